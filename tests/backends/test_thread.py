"""The thread that a worker has for itself."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar

import anyio
import pytest

from tests.backends.ledger import Gate
from trunkline.backends import thread as thread_module
from trunkline.backends.thread import WorkerThread

word: ContextVar[str] = ContextVar("word", default="unset")


def names():
    return [one.name for one in threading.enumerate()]


async def gone(name):
    with anyio.fail_after(60):
        while name in names():  # noqa: ASYNC110
            await anyio.sleep(0.005)


@pytest.fixture
async def thread():
    thread = WorkerThread("a thread of the tests")
    yield thread
    thread.stop()
    await gone("a thread of the tests")


async def test_a_function_runs_in_the_thread_and_its_result_comes_back(thread):
    assert await thread.run(lambda a, b: (a + b, threading.current_thread().name), 40, 2) == (
        42,
        "a thread of the tests",
    )


async def test_what_a_function_raised_is_raised(thread):
    with pytest.raises(ZeroDivisionError) as caught:
        await thread.run(lambda: 1 / 0)
    assert await thread.run(lambda: 42) == 42
    # It holds no frame that holds it.
    error = caught.value
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    assert not any(error in frame.f_locals.values() for frame in frames[1:])


async def test_what_follows_a_function_gets_its_result_in_the_event_loop(thread):
    told = []

    def hear(result):
        told.append((result, threading.get_ident()))

    assert await thread.run(lambda: 42, then=hear) == 42
    assert told == [(42, threading.get_ident())]
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 / 0, then=hear)
    assert len(told) == 1
    with pytest.raises(KeyError):
        await thread.run(dict, then=lambda result: result["missing"])


async def test_functions_run_one_after_another_in_the_order_of_their_asking(thread):
    ran = []

    async def ask(number):
        await thread.run(ran.append, number)

    async with anyio.create_task_group() as task_group:
        for number in range(100):
            task_group.start_soon(ask, number)
            await anyio.lowlevel.checkpoint()
    assert ran == list(range(100))


async def test_a_cancellation_waits_for_the_function_that_runs(thread):
    gate = Gate()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(thread.run, gate.pass_through)
        await gate.reached()
        task_group.cancel_scope.cancel()
        threading.Timer(0.05, gate.open).start()
    assert gate.is_open


async def test_the_context_of_its_maker_reaches_the_functions():
    token = word.set("set")
    thread = WorkerThread("a thread with a context")
    word.reset(token)
    assert await thread.run(word.get) == "set"
    thread.stop()
    await gone("a thread with a context")


async def test_a_thread_ends_when_it_is_stopped_and_has_done_all(thread):
    other = WorkerThread("another thread")
    gate = Gate()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(other.run, gate.pass_through)
        await gate.reached()
        other.stop()
        assert "another thread" in names()
        gate.open()
    await gone("another thread")


def test_a_thread_ends_with_an_event_loop_that_nobody_tidied_up(monkeypatch):
    monkeypatch.setattr(thread_module, "_LOOK_SECONDS", 0.01)
    gate, ran = Gate(), []

    async def leave_it():
        thread = WorkerThread("a thread left behind")
        await thread.run(ran.append, "before")
        asyncio.get_running_loop().create_task(thread.run(gate.pass_through))
        await gate.reached()
        # Held by nobody who could stop it.

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_it())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    gate.open()
    deadline = time.monotonic() + 10
    while "a thread left behind" in names() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert "a thread left behind" not in names()
    assert ran == ["before"]
