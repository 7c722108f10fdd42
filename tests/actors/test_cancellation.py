"""Every call can be cancelled, by anyio and by asyncio, in a task that awaits nothing else."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading

import anyio
import pytest

from tests.actors.conftest import Bug, Counter, on_asyncio, use_up_local_turns
from tests.conftest import BACKENDS, UVLOOP
from trunkline import SessionKey, SessionRouter
from trunkline.actors import Supervisor

#: Calls that a loop may still make after its cancellation. It made a million before.
FEW = 300


@pytest.fixture(params=["local", "queued plain", "queued async", "two actors"])
async def call_loop(request):
    """Makes calls until it is cancelled, and fails if it goes on for long after that."""
    async with Supervisor() as supervisor:
        yield CallLoop(request.param, [await supervisor.spawn(Counter) for _ in range(2)])


class CallLoop:
    def __init__(self, kind, refs):
        self.running = anyio.Event()
        self._kind = kind
        self._refs = refs if kind == "two actors" else refs[:1]

    async def run(self, is_cancelled):
        handler = Counter.add_slowly if self._kind == "queued async" else Counter.add
        calls = 0
        while calls < FEW:
            self.running.set()
            for ref in self._refs:
                if self._kind == "queued plain":
                    use_up_local_turns(ref)
                await ref.call(handler)
            calls += is_cancelled()
        pytest.fail("the loop of calls does not end")


async def test_a_cancel_scope_ends_a_loop_of_calls(call_loop):
    async def cancel():
        await call_loop.running.wait()
        scope.cancel()

    async with anyio.create_task_group() as task_group:
        with anyio.CancelScope() as scope:
            task_group.start_soon(cancel)
            await call_loop.run(lambda: scope.cancel_called)
    assert scope.cancelled_caught


async def test_the_deadline_of_a_cancel_scope_ends_a_loop_of_calls(call_loop):
    with anyio.move_on_after(0.02) as scope:
        await call_loop.run(lambda: scope.cancel_called)
    assert scope.cancelled_caught


async def test_an_exception_of_a_sibling_ends_a_loop_of_calls(call_loop):
    async def fail():
        await call_loop.running.wait()
        raise Bug

    async def run():
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(call_loop.run, lambda: task_group.cancel_scope.cancel_called)
            task_group.start_soon(fail)

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert [type(error) for error in caught.value.exceptions] == [Bug]


async def test_the_end_of_a_task_group_is_held_up_by_none_of_many_loops_of_calls(call_loop):
    async with anyio.create_task_group() as task_group:
        for _ in range(5):
            task_group.start_soon(call_loop.run, lambda: task_group.cancel_scope.cancel_called)
        await call_loop.running.wait()
        task_group.cancel_scope.cancel()


@on_asyncio
@pytest.mark.parametrize("by", ["task.cancel", "wait_for", "timeout"])
async def test_a_native_cancellation_ends_a_loop_of_calls(call_loop, by):
    def is_cancelled():
        return asyncio.current_task().cancelling() > 0

    if by == "task.cancel":
        task = asyncio.create_task(call_loop.run(is_cancelled))
        await call_loop.running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    elif by == "wait_for":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call_loop.run(is_cancelled), 0.02)
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await call_loop.run(is_cancelled)


async def test_a_call_that_is_cancelled_before_it_is_queued_is_never_begun():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await counter.call(Counter.add_slowly)
        assert scope.cancelled_caught
        assert await counter.call(Counter.read) == 0


async def test_a_timeout_around_a_router_is_a_timeout_and_no_error_of_the_router():
    room = SessionKey("telegram", "bot", "42")

    async def route():
        with anyio.fail_after(0.01):
            async with SessionRouter(partition_count=2) as router:
                while True:
                    await router.set(room, {"external_room_id": "42"})
                    await router.resolve(room)
                    await router.get(room)

    for _ in range(10):
        with pytest.raises(TimeoutError):
            await route()


WORKERS = """
    import sys
    import anyio
    from trunkline import SessionRouter

    async def work(router, n):
        key = ("telegram", "bot", str(n))
        while True:
            await router.set(key, {"external_room_id": n})
            await router.resolve(key)

    async def main():
        async with SessionRouter() as router, anyio.create_task_group() as task_group:
            for n in range(4):
                task_group.start_soon(work, router, n)
            print("running", flush=True)

    backend, uvloop = sys.argv[1:]
    options = {"use_uvloop": True} if uvloop == "True" else {}
    try:
        anyio.run(main, backend=backend, backend_options=options)
    except* KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("backend", [*BACKENDS, UVLOOP])
def test_ctrl_c_ends_a_task_group_of_router_workers(backend):
    name, options = backend
    arguments = [name, str(options.get("use_uvloop", False))]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKERS), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    # What does not end is ended, so that the test fails and does not hang.
    watchdog = threading.Timer(20, process.kill)
    watchdog.start()
    try:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate()
    finally:
        watchdog.cancel()
    assert rest == "interrupted\n"
