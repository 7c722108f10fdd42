"""Starting actors, starting them again, giving up, and stopping."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.actors.conftest import (
    FORGIVING,
    NEVER_BACK,
    VIRTUAL_TIME,
    Bug,
    Counter,
    Gate,
    turns,
    until,
)
from trunkline.actors import Actor, RestartPolicy, Supervisor, monotonic_ms
from trunkline.errors import (
    ActorCrashed,
    ActorStopped,
    CallTimeout,
    ConfigurationError,
    RestartIntensityExceeded,
)


async def crash(ref, message="boom", handler=Counter.fail):
    """Make an actor crash; back when it is down."""
    try:
        await ref.call(handler, Bug(message))
    except ActorCrashed:
        return
    raise AssertionError("it did not crash")


# -- starting ------------------------------------------------------------------------------------


async def test_a_spawned_actor_is_up():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        assert counter.is_up
        assert await counter.call(Counter.add) == 1


async def test_an_actor_is_named_after_its_factory_unless_it_is_given_a_name():
    async with Supervisor() as supervisor:
        assert (await supervisor.spawn(Counter)).name == "Counter"
        assert (await supervisor.spawn(Counter, name="till")).name == "till"
        assert "Counter" in (await supervisor.spawn(partial(Counter))).name


async def test_a_supervisor_that_does_not_run_starts_nothing():
    supervisor = Supervisor(name="root")
    with pytest.raises(RuntimeError, match="root does not run"):
        await supervisor.spawn(Counter)
    async with supervisor:
        await supervisor.spawn(Counter)
    with pytest.raises(RuntimeError, match="root does not run"):
        await supervisor.spawn(Counter)


async def test_a_supervisor_may_be_entered_again():
    supervisor = Supervisor()
    for _ in range(2):
        async with supervisor:
            counter = await supervisor.spawn(Counter)
            assert await counter.call(Counter.add) == 1


@pytest.mark.parametrize("size", ["mailbox_size", "call_timeout_ms", "max_batch"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1"])
async def test_a_size_that_makes_no_sense_is_refused(size, value):
    async with Supervisor() as supervisor:
        with pytest.raises(ConfigurationError, match=f"{size} must be .*{value!r}"):
            await supervisor.spawn(Counter, **{size: value})


async def test_the_largest_sizes_that_are_allowed_work():
    largest = 10**15
    async with Supervisor(stop_timeout_ms=largest) as supervisor:
        counter = await supervisor.spawn(
            Counter, mailbox_size=largest, call_timeout_ms=largest, max_batch=largest
        )
        assert await counter.call(Counter.add_slowly) == 1


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None, 10**400])
def test_a_stop_timeout_that_makes_no_sense_is_refused(value):
    with pytest.raises(ConfigurationError, match="stop_timeout_ms must be"):
        Supervisor(stop_timeout_ms=value)


class Unwilling(Counter):
    """Raises on its first start, on its n-th start, or never."""

    def __init__(self, starts, unwilling_on):
        super().__init__()
        starts.append(self)
        self.nth = len(starts)
        self.unwilling_on = unwilling_on

    async def on_start(self):
        await checkpoint()
        if self.nth in self.unwilling_on:
            raise Bug(f"cannot start number {self.nth}")


async def test_an_actor_that_cannot_start_raises_out_of_spawn_and_is_not_tried_again(log):
    starts = []
    async with Supervisor(policy=FORGIVING) as supervisor:
        beside = await supervisor.spawn(Counter)
        with pytest.raises(Bug, match="cannot start number 1"):
            await supervisor.spawn(partial(Unwilling, starts, {1}))
        await turns(5)
        assert len(starts) == 1
        assert await beside.call(Counter.add) == 1
    assert log == []


async def test_a_factory_that_raises_does_so_out_of_spawn():
    def factory():
        raise Bug("no parts")

    async with Supervisor() as supervisor:
        with pytest.raises(Bug, match="no parts"):
            await supervisor.spawn(factory)


async def test_a_start_that_fails_after_a_crash_counts_as_another_crash(log):
    starts = []
    async with Supervisor(policy=FORGIVING) as supervisor:
        ref = await supervisor.spawn(partial(Unwilling, starts, {2, 3}))
        await crash(ref)
        assert await ref.call(Counter.add) == 1
        assert ref.restarts == 1
    assert len(starts) == 4
    crashes = [entry["error"] for entry in log if entry["event"] == "actor_crashed"]
    assert crashes == [
        "Bug('boom')",
        "Bug('cannot start number 2')",
        "Bug('cannot start number 3')",
    ]


@pytest.mark.parametrize("hook", ["factory", "on_start"])
async def test_a_stray_cancellation_on_the_first_start_is_an_error_like_any_other(hook):
    def raise_cancelled():
        raise asyncio.CancelledError

    class Stray(Counter):
        def __init__(self):
            super().__init__()
            if hook == "factory":
                raise_cancelled()

        async def on_start(self):
            raise_cancelled()

    async with Supervisor() as supervisor:
        beside = await supervisor.spawn(Counter)
        with pytest.raises(RuntimeError, match="was not cancelled"):
            await supervisor.spawn(Stray, name="stray")
        assert await beside.call(Counter.add) == 1


async def test_a_spawn_whose_caller_is_cancelled_at_the_last_moment_leaves_the_others_alone():
    async with Supervisor() as supervisor:
        beside = await supervisor.spawn(Counter)
        tasks_before = {task.id for task in anyio.get_running_tasks()}
        with anyio.CancelScope() as scope:

            class Cancelling(Counter):
                async def on_start(self):
                    scope.cancel()

            await supervisor.spawn(Cancelling)
        assert scope.cancelled_caught
        assert {task.id for task in anyio.get_running_tasks()} == tasks_before
        assert await beside.call(Counter.add) == 1


async def test_a_spawn_whose_caller_is_cancelled_leaves_no_actor_behind():
    gate = Gate()

    class SlowStarter(Counter):
        async def on_start(self):
            await gate.pass_through()

    async with Supervisor() as supervisor:
        tasks_before = {task.id for task in anyio.get_running_tasks()}
        async with anyio.create_task_group() as spawning:
            spawning.start_soon(supervisor.spawn, SlowStarter)
            await gate.reached.wait()
            spawning.cancel_scope.cancel()
        assert {task.id for task in anyio.get_running_tasks()} == tasks_before


async def test_a_spawn_that_outlives_its_supervisor_ends_with_the_reason():
    gate = Gate()
    outcomes = []

    class SlowStarter(Counter):
        async def on_start(self):
            await gate.pass_through()
            raise Bug("too late")

    async def spawner(supervisor):
        try:
            await supervisor.spawn(SlowStarter)
        except Bug as error:
            outcomes.append(str(error))

    async def run(task_group):
        async with Supervisor() as supervisor:
            task_group.start_soon(spawner, supervisor)
            await gate.reached.wait()
            gate.opened.set()
            raise Bug("in the body")

    async with anyio.create_task_group() as task_group:
        with pytest.raises(Bug, match="in the body"):
            await run(task_group)
    assert outcomes == ["too late"]


# -- crashes -------------------------------------------------------------------------------------


async def test_a_crash_of_one_actor_is_nothing_to_the_others():
    async with Supervisor(policy=FORGIVING) as supervisor:
        left, middle, right = [await supervisor.spawn(Counter) for _ in range(3)]
        for ref in (left, middle, right):
            await ref.call(Counter.add, 5)
        await crash(middle)
        assert [ref.is_up for ref in (left, middle, right)] == [True, False, True]
        assert await left.call(Counter.add) == 6
        assert await middle.call(Counter.add) == 1
        assert await right.call(Counter.add) == 6
        assert [ref.restarts for ref in (left, middle, right)] == [0, 1, 0]


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_an_actor_rests_longer_after_every_crash():
    policy = RestartPolicy(min_backoff_ms=100, max_backoff_ms=300, jitter=0.0)
    rests = []
    async with Supervisor(policy=policy) as supervisor:
        counter = await supervisor.spawn(Counter)
        for _ in range(4):
            await crash(counter)
            crashed_at = anyio.current_time()
            await counter.call(Counter.read)
            rests.append(round(anyio.current_time() - crashed_at, 3))
    assert rests == [0.1, 0.2, 0.3, 0.3]


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_a_crash_of_another_actor_does_not_lengthen_the_rest():
    policy = RestartPolicy(min_backoff_ms=100, jitter=0.0)
    async with Supervisor(policy=policy) as supervisor:
        often, once = [await supervisor.spawn(Counter) for _ in range(2)]
        for _ in range(3):
            await crash(often)
            await often.call(Counter.read)
        await crash(once)
        crashed_at = anyio.current_time()
        await once.call(Counter.read)
        assert anyio.current_time() - crashed_at == pytest.approx(0.1)


async def test_crashes_and_restarts_are_logged_as_warnings_with_the_traceback(log):
    async with Supervisor(policy=FORGIVING, name="root") as supervisor:
        counter = await supervisor.spawn(Counter, name="till")
        await crash(counter, "drawer stuck")
        await counter.call(Counter.read)
    crashed, restarted = log
    traceback = crashed.pop("exception")
    assert traceback.startswith("Traceback (most recent call last):")
    assert "in fail" in traceback
    assert traceback.endswith("Bug: drawer stuck")
    assert crashed == {
        "event": "actor_crashed",
        "log_level": "warning",
        "supervisor": "root",
        "actor": "till",
        "error": "Bug('drawer stuck')",
    }
    assert restarted == {
        "event": "actor_restarted",
        "log_level": "warning",
        "supervisor": "root",
        "actor": "till",
        "restarts": 1,
    }


@pytest.mark.parametrize("handler", [Counter.add, Counter.add_slowly])
async def test_the_log_never_shows_the_arguments_of_a_call_that_crashed(log, handler):
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        with pytest.raises(ActorCrashed):
            await counter.call(handler, ["s3cret"])
        assert await counter.call(Counter.add) == 1
    assert log[0]["event"] == "actor_crashed"
    assert "TypeError" in log[0]["exception"]
    assert "s3cret" not in str(log)


async def test_a_log_that_fails_is_nothing_to_the_actors():
    def broken(_record):
        raise BrokenPipeError

    logger = logging.getLogger("trunkline.actors")
    logger.addFilter(broken)
    try:
        async with Supervisor(policy=FORGIVING) as supervisor:
            counter = await supervisor.spawn(Counter)
            await crash(counter)
            assert await counter.call(Counter.add) == 1
    finally:
        logger.removeFilter(broken)


async def test_a_listener_and_the_log_report_crashes_restarts_and_giving_up(log):
    class Listener:
        def __init__(self):
            self.heard = []

        def actor_crashed(self, name, error):
            self.heard.append((name, str(error)))

        def actor_restarted(self, name, restarts):
            self.heard.append((name, restarts))

        def supervisor_gave_up(self, error):
            self.heard.append(str(error))

    listener = Listener()
    async with Supervisor(policy=FORGIVING, listener=listener) as supervisor:
        counter = await supervisor.spawn(Counter, name="till")
        for n in range(1, 3):
            await crash(counter, f"bug {n}")
            await counter.call(Counter.read)
    assert listener.heard == [("till", "bug 1"), ("till", 1), ("till", "bug 2"), ("till", 2)]

    async def give_up():
        policy = RestartPolicy(max_restarts=0)
        async with Supervisor(policy=policy, name="root", listener=listener) as supervisor:
            await crash(await supervisor.spawn(Counter, name="till"))
            await anyio.sleep_forever()

    listener.heard.clear()
    with pytest.raises(RestartIntensityExceeded) as caught:
        await give_up()
    assert listener.heard == [("till", "boom"), str(caught.value)]
    assert log[-1] == {
        "event": "supervisor_gave_up",
        "log_level": "error",
        "supervisor": "root",
        "reason": str(caught.value),
    }


# -- giving up -----------------------------------------------------------------------------------


async def test_crashes_up_to_the_restart_intensity_are_forgiven():
    policy = RestartPolicy(max_restarts=3, min_backoff_ms=1)
    async with Supervisor(policy=policy) as supervisor:
        counter = await supervisor.spawn(Counter)
        for _ in range(3):
            await crash(counter)
        assert await counter.call(Counter.add) == 1


async def test_one_crash_more_comes_out_of_async_with_bare():
    policy = RestartPolicy(max_restarts=3, min_backoff_ms=1)

    async def run():
        async with Supervisor(policy=policy, name="root") as supervisor:
            counter = await supervisor.spawn(Counter, name="till")
            for n in range(4):
                await crash(counter, f"bug {n}")
            await anyio.sleep_forever()

    with pytest.raises(RestartIntensityExceeded) as caught:
        await run()
    assert str(caught.value) == (
        "root gave up: more than 3 crashes within 60000 ms, the last in till: Bug('bug 3')"
    )
    assert str(caught.value.__cause__) == "bug 3"


async def test_the_intensity_counts_the_crashes_of_all_actors():
    policy = RestartPolicy(max_restarts=3, min_backoff_ms=1)

    async def run():
        async with Supervisor(policy=policy) as supervisor:
            refs = [await supervisor.spawn(Counter) for _ in range(4)]
            for ref in refs:
                await crash(ref)
            await anyio.sleep_forever()

    with pytest.raises(RestartIntensityExceeded):
        await run()


async def test_crashes_that_are_further_apart_than_the_window_are_all_forgiven():
    policy = RestartPolicy(max_restarts=1, within_ms=1, min_backoff_ms=1)
    async with Supervisor(policy=policy) as supervisor:
        counter = await supervisor.spawn(Counter)
        for _ in range(5):
            await crash(counter)
            crashed_at = monotonic_ms()
            await until(lambda crashed_at=crashed_at: monotonic_ms() > crashed_at + 1)
        assert await counter.call(Counter.add) == 1


async def test_no_crash_is_forgiven_where_none_shall_be():
    async def run():
        async with Supervisor(policy=RestartPolicy(max_restarts=0)) as supervisor:
            await crash(await supervisor.spawn(Counter))
            await anyio.sleep_forever()

    with pytest.raises(RestartIntensityExceeded):
        await run()


@pytest.mark.parametrize("kind", ["plain", "async", "restart"])
async def test_a_body_that_calls_on_does_not_add_an_error_of_its_own(kind):
    starts = []
    handler = Counter.fail_slowly if kind == "async" else Counter.fail
    unwilling_on = range(2, 100) if kind == "restart" else ()

    async def run():
        async with Supervisor(policy=RestartPolicy(max_restarts=2, min_backoff_ms=1)) as supervisor:
            ref = await supervisor.spawn(partial(Unwilling, starts, unwilling_on))
            while True:
                await crash(ref, handler=handler)

    with pytest.raises(RestartIntensityExceeded):
        await run()


async def test_once_the_supervisor_gave_up_every_call_on_every_actor_fails_at_once():
    gate, outcomes = Gate(), {}

    async def caller(name, ref, *call):
        try:
            outcomes[name] = await ref.call(*call)
        except RestartIntensityExceeded as error:
            outcomes[name] = str(error)

    policy = RestartPolicy(max_restarts=1, min_backoff_ms=60_000, max_backoff_ms=60_000)
    refs = []

    async def run(task_group):
        async with Supervisor(policy=policy, name="root") as supervisor:
            resting = await supervisor.spawn(Counter)
            busy = await supervisor.spawn(Counter, mailbox_size=1)
            culprit = await supervisor.spawn(Counter)
            refs.extend((resting, busy, culprit))
            await crash(resting)
            task_group.start_soon(caller, "resting", resting, Counter.add)
            task_group.start_soon(caller, "begun", busy, Counter.hold, gate)
            await gate.reached.wait()
            for n, name in enumerate(["queued", "without room", "behind that"]):
                task_group.start_soon(caller, name, busy, Counter.add)
                await until(lambda n=n: busy.mailbox_depth == n + 1)
            assert outcomes == {}
            await crash(culprit)
            await anyio.sleep_forever()

    async with anyio.create_task_group() as task_group:
        with pytest.raises(RestartIntensityExceeded):
            await run(task_group)
    for ref in refs:
        await caller(f"late, {len(outcomes)}", ref, Counter.add)
    assert len(outcomes) == 8
    for outcome in outcomes.values():
        assert "has stopped: root gave up: more than 1 crashes" in outcome


async def test_a_supervisor_that_is_entered_again_has_forgotten_old_crashes():
    supervisor = Supervisor(policy=RestartPolicy(max_restarts=1, min_backoff_ms=1))

    async def run():
        async with supervisor:
            counter = await supervisor.spawn(Counter)
            for _ in range(2):
                await crash(counter)
            await anyio.sleep_forever()

    with pytest.raises(RestartIntensityExceeded):
        await run()
    async with supervisor:
        counter = await supervisor.spawn(Counter)
        await crash(counter)
        assert await counter.call(Counter.add) == 1


async def test_a_supervisor_may_be_an_actors_child():
    class Boss(Actor):
        """Runs actors of its own; their giving up is its crash."""

        async def work(self):
            policy = RestartPolicy(max_restarts=0)
            async with Supervisor(policy=policy) as supervisor:
                counter = await supervisor.spawn(Counter)
                await crash(counter)
                await anyio.sleep_forever()

    async with Supervisor() as supervisor:
        boss = await supervisor.spawn(Boss)
        with pytest.raises(RestartIntensityExceeded):
            await boss.call(Boss.work)
        assert boss.restarts == 0


# -- errors of the body --------------------------------------------------------------------------


async def test_an_exception_in_the_body_comes_out_as_itself():
    bug = Bug("mine")

    async def run():
        async with Supervisor() as supervisor:
            await supervisor.spawn(Counter)
            raise bug

    with pytest.raises(Bug) as caught:
        await run()
    assert caught.value is bug


async def test_two_exceptions_stay_a_group():
    async def run():
        async with Supervisor(policy=RestartPolicy(max_restarts=0)) as supervisor:
            counter = await supervisor.spawn(Counter)
            try:
                await crash(counter)
                await anyio.sleep_forever()
            finally:
                raise Bug("on the way out")

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert {type(error) for error in caught.value.exceptions} == {Bug, RestartIntensityExceeded}


async def test_after_an_exception_in_the_body_calls_are_refused():
    gate, refused = Gate(), []

    async def caller():
        try:
            await counter.call(Counter.hold, gate)
        except ActorStopped as error:
            refused.append(str(error))

    async def run(task_group):
        nonlocal counter
        async with Supervisor() as supervisor:
            counter = await supervisor.spawn(Counter, name="till")
            task_group.start_soon(caller)
            await gate.reached.wait()
            raise Bug

    counter = None
    async with anyio.create_task_group() as task_group:
        with pytest.raises(Bug):
            await run(task_group)
    with pytest.raises(ActorStopped, match="till has stopped: it was cancelled"):
        await counter.call(Counter.add)  # type: ignore[attr-defined]
    assert refused == ["till has stopped: it was cancelled"]


# -- stopping ------------------------------------------------------------------------------------


async def test_leaving_waits_for_the_calls_that_were_accepted():
    gate, outcomes = Gate(), {}

    async def caller(name, handler, *args):
        outcomes[name] = await counter.call(handler, *args)

    async with anyio.create_task_group() as task_group, Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        task_group.start_soon(caller, "begun", Counter.hold, gate)
        await gate.reached.wait()
        for n in range(5):
            task_group.start_soon(caller, n, (Counter.add, Counter.add_slowly)[n % 2])
            await until(lambda n=n: counter.mailbox_depth == n + 1)
        gate.opened.set()
    assert outcomes == {"begun": None, 0: 1, 1: 2, 2: 3, 3: 4, 4: 5}


async def test_leaving_waits_also_for_accepted_calls_behind_a_crash():
    gate, outcomes = Gate(), {}

    async def caller(name, handler, *args):
        try:
            outcomes[name] = await counter.call(handler, *args)
        except ActorCrashed:
            outcomes[name] = "crashed"

    async with (
        anyio.create_task_group() as task_group,
        Supervisor(policy=FORGIVING) as supervisor,
    ):
        counter = await supervisor.spawn(Counter)
        task_group.start_soon(caller, "begun", Counter.hold, gate)
        await gate.reached.wait()
        task_group.start_soon(caller, "culprit", Counter.fail, Bug())
        await until(lambda: counter.mailbox_depth == 1)
        task_group.start_soon(caller, "behind", Counter.add)
        await until(lambda: counter.mailbox_depth == 2)
        gate.opened.set()
    assert outcomes == {"begun": None, "culprit": "crashed", "behind": 1}


async def test_a_call_that_comes_while_the_actor_stops_is_refused():
    gate, refused = Gate(), []

    async def latecomer():
        await turns(10)  # by now the body was left
        with pytest.raises(ActorStopped, match="till has stopped: it was stopped") as caught:
            await counter.call(Counter.add)
        refused.append(caught.value)
        gate.opened.set()

    async with anyio.create_task_group() as task_group, Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, name="till")
        task_group.start_soon(counter.call, Counter.hold, gate)
        await gate.reached.wait()
        task_group.start_soon(latecomer)
    assert len(refused) == 1


async def test_the_last_actor_started_is_the_first_one_stopped():
    stopped = []

    class Numbered(Actor):
        def __init__(self, n):
            self.n = n

        async def on_stop(self):
            await turns(5 - self.n)
            stopped.append(self.n)

    async with Supervisor() as supervisor:
        for n in range(5):
            await supervisor.spawn(partial(Numbered, n))
    assert stopped == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_what_has_no_reply_when_the_stop_timeout_is_over_is_cut_off(log):
    refused = []

    async def caller(handler, *args):
        try:
            await counter.call(handler, *args)
        except ActorStopped as error:
            refused.append(str(error))

    gate = Gate()
    async with anyio.create_task_group() as task_group:
        async with Supervisor(stop_timeout_ms=2_000, name="root") as supervisor:
            counter = await supervisor.spawn(Counter, name="till", call_timeout_ms=60_000)
            task_group.start_soon(caller, Counter.hold, gate)
            await gate.reached.wait()
            task_group.start_soon(caller, Counter.add)
            await until(lambda: counter.mailbox_depth == 1)
            left_at = anyio.current_time()
        assert anyio.current_time() - left_at == pytest.approx(2)
    assert refused == ["till has stopped: it was stopped"] * 2
    assert log == [
        {
            "event": "actors_cut_off",
            "log_level": "warning",
            "supervisor": "root",
            "after_ms": 2_000,
        }
    ]


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_an_on_stop_that_hangs_is_given_up_after_five_seconds():
    class Endless(Counter):
        async def on_stop(self):
            await anyio.sleep_forever()

    started_at = anyio.current_time()
    async with Supervisor(stop_timeout_ms=60_000) as supervisor:
        await supervisor.spawn(Endless)
    assert anyio.current_time() - started_at == pytest.approx(5)


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_leaving_does_not_wait_for_the_rest_of_an_actor_that_nobody_calls(log):
    started = []

    class Noted(Counter):
        async def on_start(self):
            started.append(self)

    async with Supervisor(policy=NEVER_BACK) as supervisor:
        counter = await supervisor.spawn(Noted)
        await crash(counter)
        left_at = anyio.current_time()
    assert anyio.current_time() == left_at
    assert len(started) == 1
    assert [entry["event"] for entry in log] == ["actor_crashed"]


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_leaving_does_not_wait_for_a_call_that_its_caller_gave_up():
    async with Supervisor(policy=NEVER_BACK) as supervisor:
        counter = await supervisor.spawn(Counter, call_timeout_ms=100)
        await crash(counter)
        with pytest.raises(CallTimeout):
            await counter.call(Counter.add)
        left_at = anyio.current_time()
    assert anyio.current_time() == left_at


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_leaving_waits_for_the_rest_of_an_actor_that_has_accepted_calls():
    policy = RestartPolicy(min_backoff_ms=700, jitter=0.0)
    results = []

    async def caller():
        results.append(await counter.call(Counter.add))

    async with anyio.create_task_group() as task_group:
        async with Supervisor(policy=policy) as supervisor:
            counter = await supervisor.spawn(Counter)
            await crash(counter)
            task_group.start_soon(caller)
            await until(lambda: counter.queued_calls == 1)
            left_at = anyio.current_time()
        assert anyio.current_time() - left_at == pytest.approx(0.7)
    assert results == [1]


async def test_a_supervisor_that_stops_starts_no_more_actors():
    gate, refused = Gate(), []

    async def spawner(supervisor):
        await gate.reached.wait()
        with pytest.raises(RuntimeError, match="root is stopping") as caught:
            await supervisor.spawn(Counter)
        refused.append(caught.value)
        gate.opened.set()

    class SlowStopper(Counter):
        async def on_stop(self):
            await gate.pass_through()

    async with anyio.create_task_group() as task_group, Supervisor(name="root") as supervisor:
        await supervisor.spawn(SlowStopper)
        task_group.start_soon(spawner, supervisor)
    assert len(refused) == 1


async def test_an_actor_that_is_being_started_while_its_supervisor_stops_is_stopped_as_well():
    gate, stopped = Gate(), []

    class SlowStarter(Counter):
        async def on_start(self):
            await gate.pass_through()

        async def on_stop(self):
            stopped.append(self)

    async with anyio.create_task_group() as task_group, Supervisor() as supervisor:
        task_group.start_soon(supervisor.spawn, SlowStarter)
        await gate.reached.wait()
        gate.opened.set()
    assert len(stopped) == 1


async def test_nothing_is_left_running_when_a_supervisor_was_left():
    tasks_before = {task.id for task in anyio.get_running_tasks()}
    async with Supervisor(policy=FORGIVING) as supervisor:
        for _ in range(5):
            counter = await supervisor.spawn(Counter)
            await counter.call(Counter.add_slowly)
        await crash(counter)
    assert {task.id for task in anyio.get_running_tasks()} == tasks_before


async def test_a_supervisor_that_gives_up_while_it_stops_says_so():
    gate, outcomes = Gate(), {}

    async def caller(name, handler, *args):
        try:
            outcomes[name] = await counter.call(handler, *args)
        except (ActorCrashed, RestartIntensityExceeded) as error:
            outcomes[name] = type(error)

    async def run(task_group):
        nonlocal counter
        async with Supervisor(policy=RestartPolicy(max_restarts=0)) as supervisor:
            counter = await supervisor.spawn(Counter)
            task_group.start_soon(caller, "begun", Counter.hold, gate)
            await gate.reached.wait()
            task_group.start_soon(caller, "culprit", Counter.fail, Bug())
            await until(lambda: counter.mailbox_depth == 1)
            task_group.start_soon(caller, "behind", Counter.add)
            await until(lambda: counter.mailbox_depth == 2)
            gate.opened.set()

    counter = None
    async with anyio.create_task_group() as task_group:
        with pytest.raises(RestartIntensityExceeded):
            await run(task_group)
    assert outcomes == {"begun": None, "culprit": ActorCrashed, "behind": RestartIntensityExceeded}


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_a_call_that_timed_out_does_not_hold_up_the_stop():
    async with Supervisor(stop_timeout_ms=60_000) as supervisor:
        counter = await supervisor.spawn(Counter, call_timeout_ms=100)

        async def slow(counter):
            await anyio.sleep(1)
            counter.add()

        with pytest.raises(CallTimeout):
            await counter.call(slow)
        with pytest.raises(CallTimeout):
            await counter.call(slow)  # never begun
        left_at = anyio.current_time()
    assert anyio.current_time() - left_at == pytest.approx(0.8)
