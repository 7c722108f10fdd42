"""Lifetimes: entering and leaving in one task, and starting and stopping in two."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest

from tests.actors.conftest import Bug, Counter, Gate, on_asyncio, turns, until
from trunkline import FSMStore, SessionRouter
from trunkline.actors import RestartPolicy, Service, Supervisor
from trunkline.actors.task_group import open_task_group
from trunkline.errors import ActorCrashed, ActorStopped, RestartIntensityExceeded
from trunkline.testing import crash


class Shop(Service):
    """Writes down when it is entered and left, and runs a task in between."""

    def __init__(self, *, entering=None, running=None, leaving=None):
        self.entering = entering
        self.running = running
        self.leaving = leaving
        self.diary = []
        self.entered_in = None
        self.left_in = None

    @asynccontextmanager
    async def __asynccontextmanager__(self):
        self.diary.append("entering")
        if self.entering is not None:
            await self.entering()
        try:
            async with open_task_group() as task_group:
                if self.running is not None:
                    task_group.start_soon(self.running)
                self.entered_in = anyio.get_current_task().id
                self.diary.append("open")
                yield self
        finally:
            self.left_in = anyio.get_current_task().id
            self.diary.append("left")
            if self.leaving is not None:
                await self.leaving()


async def fail():
    raise Bug("in the shop")


async def in_another_task(function):
    """What `function` returns in a task of its own."""
    outcome = []

    async def run():
        outcome.append(await function())

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(run)
    return outcome[0]


# -- start and stop ------------------------------------------------------------------------------


async def test_async_with_enters_and_leaves():
    async with Shop() as shop:
        assert shop.diary == ["entering", "open"]
    assert shop.diary == ["entering", "open", "left"]


@on_asyncio
async def test_start_and_stop_may_run_in_different_tasks():
    shop = Shop()
    assert await in_another_task(shop.start) is shop
    assert shop.diary == ["entering", "open"]
    await in_another_task(shop.stop)
    assert shop.diary == ["entering", "open", "left"]
    assert shop.entered_in == shop.left_in  # as a task group requires


@on_asyncio
async def test_a_started_supervisor_serves_every_task_until_it_is_stopped():
    supervisor = Supervisor()
    await in_another_task(supervisor.start)
    counter = await in_another_task(lambda: supervisor.spawn(Counter))
    assert await counter.call(Counter.add) == 1
    assert await in_another_task(lambda: counter.call(Counter.add_slowly)) == 2
    await in_another_task(supervisor.stop)
    with pytest.raises(ActorStopped):
        await counter.call(Counter.add)


@on_asyncio
async def test_a_stopped_service_can_be_started_again():
    shop = Shop()
    for _ in range(2):
        await shop.start()
        await shop.stop()
    assert shop.diary == ["entering", "open", "left"] * 2


@on_asyncio
async def test_nothing_is_left_running_after_a_stop():
    before = asyncio.all_tasks()
    supervisor = await Supervisor().start()
    await supervisor.spawn(Counter)
    assert len(asyncio.all_tasks()) == len(before) + 2  # the holder of the context, and the actor
    await supervisor.stop()
    assert asyncio.all_tasks() == before


@on_asyncio
async def test_a_second_start_changes_nothing():
    shop = Shop()
    for _ in range(2):
        assert await shop.start() is shop
    assert shop.diary == ["entering", "open"]
    await shop.stop()
    assert shop.diary == ["entering", "open", "left"]


@on_asyncio
async def test_a_start_during_a_start_waits_until_the_service_is_entered():
    gate = Gate()
    shop = Shop(entering=gate.pass_through)
    started = []

    async def start():
        started.append(await shop.start())

    async with anyio.create_task_group() as task_group:
        for _ in range(3):
            task_group.start_soon(start)
        await gate.reached.wait()
        await turns(5)
        assert started == []
        gate.opened.set()
    assert started == [shop] * 3
    await shop.stop()
    assert shop.diary == ["entering", "open", "left"]


@on_asyncio
async def test_a_start_during_a_start_that_is_cancelled_starts_the_service():
    gate = Gate()
    shop = Shop(entering=gate.pass_through)
    async with anyio.create_task_group() as task_group:
        cancelled = asyncio.create_task(shop.start())
        await gate.reached.wait()
        task_group.start_soon(shop.start)
        await turns(5)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        gate.opened.set()
    assert shop.diary == ["entering", "entering", "open"]
    await shop.stop()


@on_asyncio
async def test_a_service_that_was_entered_cannot_be_started():
    async with Shop() as shop:
        with pytest.raises(RuntimeError, match="has already been entered"):
            await shop.start()
        await shop.stop()
        assert shop.diary == ["entering", "open"]


async def test_a_stop_without_a_start_does_nothing():
    shop = Shop()
    await shop.stop()
    assert shop.diary == []


@on_asyncio
async def test_a_second_stop_does_nothing():
    shop = Shop()
    await shop.start()
    await shop.stop()
    await shop.stop()
    assert shop.diary == ["entering", "open", "left"]


@on_asyncio
async def test_two_stops_at_once_both_wait_until_it_is_left():
    gate = Gate()
    shop = Shop(leaving=gate.pass_through)
    await shop.start()
    stopped = []

    async def stop():
        await shop.stop()
        stopped.append(shop)

    async with anyio.create_task_group() as task_group:
        for _ in range(2):
            task_group.start_soon(stop)
        await gate.reached.wait()
        await turns(5)
        assert stopped == []
        gate.opened.set()
    assert len(stopped) == 2


@on_asyncio
async def test_an_error_on_entering_comes_out_of_start():
    shop = Shop(entering=fail)
    with pytest.raises(Bug, match="in the shop"):
        await shop.start()
    assert shop.diary == ["entering"]
    await shop.stop()
    shop.entering = None
    await shop.start()
    await shop.stop()
    assert shop.diary == ["entering", "entering", "open", "left"]


@on_asyncio
async def test_an_error_on_leaving_comes_out_of_stop():
    shop = Shop(leaving=fail)
    await shop.start()
    with pytest.raises(Bug, match="in the shop"):
        await shop.stop()
    await shop.stop()


@on_asyncio
async def test_an_error_between_start_and_stop_surfaces_at_stop():
    gate = Gate()

    async def fail_later():
        await gate.pass_through()
        await fail()

    shop = Shop(running=fail_later)
    await shop.start()
    gate.opened.set()
    await until(lambda: shop.diary[-1] == "left")
    with pytest.raises(Bug, match="in the shop"):
        await shop.stop()


@on_asyncio
async def test_a_service_that_failed_can_be_stopped_again_and_started_again():
    shop = Shop(running=fail)
    await shop.start()
    with pytest.raises(Bug):
        await shop.stop()
    await shop.stop()
    shop.running = None
    await shop.start()
    await shop.stop()
    assert shop.diary == ["entering", "open", "left"] * 2


@on_asyncio
async def test_a_supervisor_that_gave_up_between_start_and_stop_says_so_at_stop():
    supervisor = Supervisor(policy=RestartPolicy(max_restarts=0))
    await supervisor.start()
    counter = await supervisor.spawn(Counter)
    with pytest.raises(ActorCrashed):
        await counter.call(Counter.fail, Bug("boom"))
    for _ in range(3):
        with pytest.raises(RestartIntensityExceeded, match="gave up"):
            await counter.call(Counter.add)
    with pytest.raises(RestartIntensityExceeded, match="boom"):
        await supervisor.stop()


@on_asyncio
@pytest.mark.parametrize("make", [SessionRouter, partial(FSMStore, "memory://")])
async def test_a_part_that_gave_up_after_start_logs_it_and_refuses_every_call(make, log):
    part = make(name="shop", restart_policy=RestartPolicy(max_restarts=0))
    await part.start()
    if isinstance(part, SessionRouter):
        calls = (
            partial(part.resolve, ("irc", "net", "1"), {"external_room_id": 1}),
            partial(part.set, ("irc", "net", "1"), {"external_room_id": 1}),
        )
        worker = part.partition(0)
    else:
        await part.init("bot")
        calls = (partial(part.get_state, "bot", 1), partial(part.set_state, "bot", 1, "asked"))
        [worker] = part._writers
    await crash(worker)
    await until(lambda: log and log[-1]["event"] == "service_failed")
    for _ in range(3):
        for call in calls:
            with pytest.raises(RestartIntensityExceeded, match="shop gave up"):
                await call()
    errors = [entry["event"] for entry in log if entry["log_level"] == "error"]
    assert errors == ["supervisor_gave_up", "service_failed"]
    with pytest.raises(RestartIntensityExceeded):
        await part.stop()
    await part.start()
    await calls[1]()
    await part.stop()


@on_asyncio
async def test_a_supervisor_that_gave_up_is_started_again_without_a_stop():
    supervisor = Supervisor(policy=RestartPolicy(max_restarts=0))
    await supervisor.start()
    counter = await supervisor.spawn(Counter)
    with pytest.raises(ActorCrashed):
        await counter.call(Counter.fail, Bug("boom"))
    with pytest.raises(RestartIntensityExceeded):
        await counter.call(Counter.add)
    await supervisor.start()
    counter = await supervisor.spawn(Counter)
    assert await counter.call(Counter.add) == 1
    await supervisor.stop()


@on_asyncio
@pytest.mark.parametrize("by", ["scope", "task"])
async def test_a_start_that_is_cancelled_leaves_what_it_had_entered(by):
    gate, cleaned_up = Gate(), []

    async def enter():
        try:
            await gate.pass_through()
        finally:
            with anyio.CancelScope(shield=True):
                await turns(5)
            cleaned_up.append(True)

    shop = Shop(entering=enter)
    before = asyncio.all_tasks()
    if by == "scope":
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(shop.start)
            await gate.reached.wait()
            task_group.cancel_scope.cancel()
    else:
        task = asyncio.get_running_loop().create_task(shop.start())
        await gate.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    # Nothing goes on after the caller has cancelled it.
    assert cleaned_up == [True]
    assert asyncio.all_tasks() == before
    shop.entering = None
    await shop.start()
    await shop.stop()
    assert shop.diary == ["entering", "entering", "open", "left"]


@on_asyncio
async def test_a_stop_that_is_cancelled_goes_on_in_the_background():
    gate = Gate()
    shop = Shop(leaving=gate.pass_through)
    await shop.start()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(shop.stop)
        await gate.reached.wait()
        task_group.cancel_scope.cancel()
    gate.opened.set()
    await shop.stop()
    await shop.start()
    await shop.stop()
    assert shop.diary == ["entering", "open", "left"] * 2


@on_asyncio
async def test_a_start_after_a_stop_that_was_cancelled_starts_again_once_the_service_was_left():
    gate = Gate()
    shop = Shop(leaving=gate.pass_through)
    await shop.start()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(shop.stop)
        await gate.reached.wait()
        task_group.cancel_scope.cancel()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(shop.start)
        await turns(5)
        assert shop.diary.count("entering") == 1
        gate.opened.set()
    assert shop.diary == ["entering", "open", "left", "entering", "open"]
    await shop.stop()


@pytest.mark.parametrize("again", ["stop", "start"])
def test_a_service_is_stopped_once_its_event_loop_has_cancelled_all_tasks(again):
    shop = Shop()

    async def main():
        await shop.start()

    asyncio.run(main())  # ends without a stop
    assert shop.diary == ["entering", "open", "left"]

    async def once_more():
        if again == "start":
            await shop.start()
        await shop.stop()

    asyncio.run(once_more())
    assert shop.diary == ["entering", "open", "left"] * (1 + (again == "start"))


async def stop_at_the_end(service):
    await service.start()
    try:
        await anyio.sleep_forever()
    finally:
        await service.stop()


def test_stop_returns_while_the_event_loop_cancels_all_tasks():
    async def main():
        shop = Shop()
        task = asyncio.create_task(stop_at_the_end(shop))
        await until(lambda: "open" in shop.diary)
        for other in asyncio.all_tasks() - {asyncio.current_task()}:
            other.cancel()
        await asyncio.wait([task])
        return task, shop

    task, shop = asyncio.run(main())
    # It ends with its own cancellation.
    assert task.cancelled()
    assert shop.diary == ["entering", "open", "left"]


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_start_is_refused_on_trio_with_a_way_out():
    shop = Shop()
    with pytest.raises(RuntimeError, match=r"Shop.start\(\) needs asyncio; use 'async with'"):
        await shop.start()
    assert shop.diary == []
    async with shop:
        pass
    assert shop.diary == ["entering", "open", "left"]
