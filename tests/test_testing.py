from __future__ import annotations

import subprocess
import sys

import anyio
import pytest
from anyio.lowlevel import checkpoint

from trunkline import Route, SessionRouter
from trunkline.actors import Actor, RestartPolicy, Supervisor
from trunkline.actors.clock import sleep_ms
from trunkline.errors import ActorStopped
from trunkline.testing import InjectedCrash, ManualClock, crash

AT_ONCE = RestartPolicy(max_restarts=100, min_backoff_ms=1, max_backoff_ms=1)


class Counter(Actor):
    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value


# -- clock ---------------------------------------------------------------------------------------


def test_a_clock_starts_where_it_is_set_and_moves_by_what_it_is_advanced():
    assert ManualClock()() == 0
    clock = ManualClock(start_ms=1_000)
    assert clock() == 1_000
    clock.advance_ms(0)
    clock.advance_ms(250)
    assert clock() == 1_250


def test_a_clock_does_not_go_back():
    clock = ManualClock(10)
    with pytest.raises(ValueError, match="cannot go back by 1 ms"):
        clock.advance_ms(-1)
    assert clock() == 10


@pytest.mark.parametrize("duration", [0.5, 1.0, True, "1", None])
def test_a_clock_moves_by_whole_milliseconds(duration):
    clock = ManualClock(10)
    with pytest.raises(TypeError) as refused:
        clock.advance_ms(duration)
    assert repr(duration) in str(refused.value)
    assert clock() == 10


async def test_sleepers_wake_when_their_time_has_come_and_not_before():
    clock = ManualClock(1_000)
    awake = []

    async def sleeper(duration: int) -> None:
        await sleep_ms(clock, duration)
        awake.append((duration, clock()))

    async with anyio.create_task_group() as task_group:
        for duration in (30, 10, 20, 10):
            task_group.start_soon(sleeper, duration)
        await turns()
        clock.advance_ms(9)
        await turns()
        assert awake == []
        clock.advance_ms(1)
        await turns()
        assert awake == [(10, 1_010), (10, 1_010)]
        clock.advance_ms(15)
        await turns()
        assert awake[2:] == [(20, 1_025)]
        clock.advance_ms(1_000)
    assert awake[3:] == [(30, 2_025)]


async def test_a_sleep_of_nothing_ends_by_itself():
    clock = ManualClock()
    await clock.sleep_ms(0)
    await clock.sleep_ms(-5)


async def test_a_cancelled_sleeper_is_forgotten():
    clock = ManualClock()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(clock.sleep_ms, 10)
        task_group.start_soon(clock.sleep_ms, 20)
        await turns()
        task_group.cancel_scope.cancel()
    assert clock._sleepers == []
    clock.advance_ms(100)


async def turns(count: int = 10) -> None:
    """Let every other task go as far as it can."""
    for _ in range(count):
        await checkpoint()


# -- crash ---------------------------------------------------------------------------------------


async def test_a_crashed_actor_is_down_and_comes_back_with_fresh_state(log):
    async with Supervisor(policy=AT_ONCE) as supervisor:
        counter = await supervisor.spawn(Counter)
        await counter.call(Counter.add, 5)
        await crash(counter)
        assert not counter.is_up
        assert await counter.call(Counter.add, 1) == 1
        assert counter.restarts == 1
    (crashed,) = [entry for entry in log if entry["event"] == "actor_crashed"]
    assert crashed["actor"] == "Counter"


async def test_a_crash_waits_its_turn_behind_the_calls_before_it():
    order = []

    async def slow(_counter: Counter) -> None:
        await checkpoint()
        order.append("slow")

    async with Supervisor(policy=AT_ONCE) as supervisor:
        counter = await supervisor.spawn(Counter)
        async with anyio.create_task_group() as task_group:
            await task_group.start(start, counter.call, slow)
            await crash(counter)
            order.append("crashed")
    assert order == ["slow", "crashed"]


async def start(function, *args, task_status):
    task_status.started()
    await function(*args)


async def test_an_actor_can_be_crashed_again_and_again():
    async with Supervisor(policy=AT_ONCE) as supervisor:
        counter = await supervisor.spawn(Counter)
        for restarts in range(1, 6):
            await crash(counter)
            await counter.call(Counter.add, 1)
            assert counter.restarts == restarts


async def test_an_actor_that_has_stopped_cannot_be_crashed():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
    with pytest.raises(ActorStopped):
        await crash(counter)


async def test_a_crash_looks_like_a_bug_in_a_handler():
    async with SessionRouter(restart_policy=AT_ONCE) as router:
        errors = []
        router.events.subscribe(
            lambda event: event.name == "crashed" and errors.append(event.error)  # type: ignore[attr-defined]
        )
        await crash(router.partition(0))
        await router.set_many({("a", "b", str(number)): Route(1) for number in range(50)})
    assert [type(error) for error in errors] == [InjectedCrash]
    assert str(errors[0]) == "crash() was called"


# -- contract suites -----------------------------------------------------------------------------

ADAPTERS = {
    "FSMContract": "trunkline.fsm.memory.MemoryFSMAdapter",
    "PersistenceContract": "trunkline.persistence.memory.MemoryPersistenceAdapter",
    "SignalContract": "trunkline.signal.memory.MemorySignalAdapter",
}


@pytest.mark.slow
@pytest.mark.parametrize("contract", ADAPTERS)
def test_a_contract_suite_runs_without_hypothesis_and_reports_what_it_skipped(tmp_path, contract):
    module, _, adapter = ADAPTERS[contract].rpartition(".")
    (tmp_path / "test_adapter.py").write_text(
        f"""
import pytest
from {module} import {adapter}
from trunkline.testing import {contract}

class TestAdapter({contract}):
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    @pytest.fixture
    def adapter(self):
        return {adapter}()
"""
    )
    program = tmp_path / "without_hypothesis.py"
    program.write_text(
        """
import sys
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

class WithoutHypothesis:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "hypothesis":
            return find_spec(name, path, target)

PathFinder.find_spec = WithoutHypothesis().find_spec
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
    )
    options = ["-q", "-rs", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    done = subprocess.run(
        [sys.executable, program, *options, "test_adapter.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = contract != "PersistenceContract"
    assert ("hypothesis is not installed" in done.stdout) is skipped
