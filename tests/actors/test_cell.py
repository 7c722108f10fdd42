"""What a call meets on its way through an actor: its turn, its time, crashes and cancellation."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from functools import partial
from random import Random

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
    Refused,
    on_asyncio,
    turns,
    until,
    use_up_local_turns,
)
from trunkline.actors import Actor, Supervisor
from trunkline.errors import ActorCrashed, ActorStopped, CallTimeout, TrunklineError

# -- local and queued calls are the same ---------------------------------------------------------


class Account(Actor):
    """State and errors of every kind, for calls that go one way or the other."""

    def __init__(self):
        self.entries = []

    def post(self, amount):
        self.entries.append(amount)
        return list(self.entries)

    def refuse(self, amount):
        self.entries.append(amount)
        raise Refused(f"{amount} was refused, and noted")

    def crash(self, error):
        self.entries.append("lost")
        raise error


#: Everything that a handler may get wrong. None of these may mean anything to the kernel.
ODDITIES = [
    ValueError,
    KeyError,
    StopIteration,
    StopAsyncIteration,
    TimeoutError,
    asyncio.CancelledError,
    anyio.EndOfStream,
    anyio.WouldBlock,
    anyio.ClosedResourceError,
    anyio.BrokenResourceError,
    RuntimeError,
    RecursionError,
    MemoryError,
]


def scenario(seed):
    """A hundred calls in random order, with crashes of every kind among them."""
    random = Random(seed)
    calls = range(100 - len(ODDITIES))
    steps = [(random.choice([Account.post, Account.refuse]), n) for n in calls]
    steps += [(Account.crash, error("odd")) for error in ODDITIES]
    random.shuffle(steps)
    return steps


async def play(steps, before_each):
    """What every step of a scenario gives, in comparable form, and how the actor fared."""
    outcomes = []
    async with Supervisor(policy=FORGIVING) as supervisor:
        account = await supervisor.spawn(Account, name="account")
        for handler, argument in steps:
            await until(lambda: account.is_up)
            await turns(3)  # idle again after a restart
            before_each(account)
            try:
                outcomes.append(await account.call(handler, argument))
            except TrunklineError as error:
                cause = error.__cause__
                outcomes.append((type(error), str(error), type(cause), str(cause)))
        await until(lambda: account.is_up)
        return outcomes, account.restarts, account.local_calls, account.queued_calls


@pytest.mark.parametrize("seed", range(3))
async def test_local_and_queued_calls_have_the_same_results_and_errors(seed):
    locally, local_restarts, local_calls, none_queued = await play(scenario(seed), lambda _: None)
    queued, queued_restarts, _, queued_calls = await play(scenario(seed), use_up_local_turns)
    assert (local_calls, none_queued, queued_calls) == (100, 0, 100)
    assert locally == queued
    assert local_restarts == queued_restarts == len(ODDITIES)


# -- crashes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [Counter.fail, Counter.fail_slowly])
async def test_a_bug_reaches_its_caller_as_the_cause_of_actor_crashed(handler):
    bug = Bug("off by one")
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter, name="till")
        with pytest.raises(ActorCrashed, match=r"till crashed .*off by one") as caught:
            await counter.call(handler, bug)
        assert caught.value.__cause__ is bug


@pytest.mark.parametrize("handler", [Counter.fail, Counter.fail_slowly])
async def test_a_crash_costs_the_actor_its_state_and_nothing_else(handler):
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        await counter.call(Counter.add, 7)
        with pytest.raises(ActorCrashed):
            await counter.call(handler, Bug())
        assert await counter.call(Counter.add) == 1
        assert counter.restarts == 1


@pytest.mark.parametrize("error", ODDITIES)
async def test_whatever_an_async_handler_raises_is_a_crash_and_no_more(error):
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        with pytest.raises(ActorCrashed):
            await counter.call(Counter.fail_slowly, error("odd"))
        assert await counter.call(Counter.add_slowly) == 1
        assert counter.restarts == 1


@pytest.mark.parametrize("handler", [Counter.fail, Counter.fail_slowly])
async def test_an_error_that_cannot_be_shown_is_a_crash_and_no_more(handler):
    class Unshowable(Exception):
        def __repr__(self):
            raise ZeroDivisionError

        __str__ = __repr__

    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        with pytest.raises(ActorCrashed, match=r"Unshowable \(its repr\(\) raised\)") as caught:
            await counter.call(handler, Unshowable())
        assert isinstance(caught.value.__cause__, Unshowable)
        assert await counter.call(Counter.add) == 1


@on_asyncio
async def test_a_handler_that_awaits_a_cancelled_task_crashes_and_the_supervisor_lives_on():
    async def await_cancelled(_):
        task = asyncio.get_running_loop().create_task(asyncio.Event().wait())
        task.cancel()
        await task

    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        beside = await supervisor.spawn(Counter)
        with pytest.raises(ActorCrashed) as caught:
            await counter.call(await_cancelled)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert await counter.call(Counter.add) == 1
        assert await beside.call(Counter.add) == 1
        assert (counter.restarts, beside.restarts) == (1, 0)


async def test_a_handler_may_use_timeouts_and_cancel_scopes_of_its_own():
    async def give_up(counter):
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await checkpoint()
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(anyio.sleep_forever)
            task_group.cancel_scope.cancel()
        return counter.add()

    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        assert await counter.call(give_up) == 1
        # Having been cancelled before does not hide the actor's next crash.
        with pytest.raises(ActorCrashed):
            await counter.call(Counter.fail_slowly, asyncio.CancelledError())
        assert await counter.call(give_up) == 1


async def test_calls_behind_a_crash_are_served_by_the_next_incarnation():
    gate = Gate()
    outcomes = {}

    async def fall(counter):
        counter.add(100)
        await gate.pass_through()
        raise Bug

    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter, mailbox_size=2)

        async def caller(name, handler):
            try:
                outcomes[name] = await counter.call(handler)
            except ActorCrashed:
                outcomes[name] = "crashed"

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(caller, "culprit", fall)
            await gate.reached.wait()
            for n in range(5):  # two find room in the mailbox, three wait for it
                task_group.start_soon(caller, n, (Counter.add, Counter.add_slowly)[n % 2])
                await until(lambda n=n: counter.mailbox_depth == n + 1)
            gate.opened.set()
    assert outcomes == {"culprit": "crashed", 0: 1, 1: 2, 2: 3, 3: 4, 4: 5}


async def test_calls_of_a_batch_behind_a_crash_are_served_by_the_next_incarnation():
    gate = Gate()
    outcomes = {}
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)

        async def caller(n, handler, *args):
            try:
                outcomes[n] = await counter.call(handler, *args)
            except ActorCrashed:
                outcomes[n] = "crashed"

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(counter.call, Counter.hold, gate)
            await gate.reached.wait()
            # They are taken out of the mailbox together, and two of them crash.
            for n, fails in enumerate([False, True, False, True, False]):
                call = (Counter.fail, Bug()) if fails else (Counter.add,)
                task_group.start_soon(caller, n, *call)
                await until(lambda n=n: counter.mailbox_depth == n + 1)
            gate.opened.set()
        assert outcomes == {0: 1, 1: "crashed", 2: 1, 3: "crashed", 4: 1}
        assert counter.restarts == 2


async def test_a_call_made_while_the_actor_restarts_waits_for_the_next_incarnation():
    gate = Gate()
    starts = []

    class SlowStarter(Counter):
        async def on_start(self):
            starts.append(self)
            if len(starts) == 2:
                await gate.pass_through()

    results = []
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(SlowStarter)
        with pytest.raises(ActorCrashed):
            await counter.call(Counter.fail, Bug())

        async def caller():
            results.append(await counter.call(Counter.add))

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(caller)  # while it rests
            await gate.reached.wait()
            task_group.start_soon(caller)  # while it starts
            await turns(5)
            assert results == []
            gate.opened.set()
    assert sorted(results) == [1, 2]


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_a_call_made_while_the_actor_restarts_waits_no_longer_than_its_timeout():
    async with Supervisor(policy=NEVER_BACK, stop_timeout_ms=1) as supervisor:
        counter = await supervisor.spawn(Counter, name="till", call_timeout_ms=1_500)
        with pytest.raises(ActorCrashed):
            await counter.call(Counter.fail, Bug())
        called_at = anyio.current_time()
        with pytest.raises(CallTimeout, match="till did not reply within 1500 ms"):
            await counter.call(Counter.add)
        assert anyio.current_time() - called_at == pytest.approx(1.5)


@pytest.mark.parametrize(("callers", "kind"), [(4_000, "plain"), (1_000, "async")])
async def test_everyone_gets_a_reply_of_an_actor_that_crashes_on_every_100th_call(callers, kind):
    calls_each = 2
    served = []

    class Flaky(Actor):
        def serve(self, caller, n):
            served.append((caller, n))
            if len(served) % 100 == 0:
                raise Bug
            return caller, n

        async def serve_slowly(self, caller, n):
            return self.serve(caller, n)

    handler = Flaky.serve if kind == "plain" else Flaky.serve_slowly
    replies = {"answered": 0, "crashed": 0}

    async with Supervisor(policy=FORGIVING) as supervisor:
        flaky = await supervisor.spawn(Flaky, call_timeout_ms=60_000)

        async def caller(name):
            for n in range(calls_each):
                try:
                    assert await flaky.call(handler, name, n) == (name, n)
                    replies["answered"] += 1
                except ActorCrashed:
                    replies["crashed"] += 1

        with anyio.fail_after(60):
            async with anyio.create_task_group() as task_group:
                for name in range(callers):
                    task_group.start_soon(caller, name)
        await until(lambda: flaky.is_up)
        assert flaky.mailbox_depth == 0
        crashes = callers * calls_each // 100
        assert flaky.restarts == crashes

    assert replies == {"answered": callers * calls_each - crashes, "crashed": crashes}
    order_of = {}
    for name, n in served:
        order_of.setdefault(name, []).append(n)
    assert order_of == {name: [0, 1] for name in range(callers)}


def add_deeply(counter, frames=40):
    return add_deeply(counter, frames - 1) if frames else counter.add()


@pytest.mark.parametrize("handler", [Counter.add, add_deeply, Counter.add_slowly])
async def test_a_caller_near_the_recursion_limit_does_not_crash_the_actor(handler):
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        begun = 0

        async def call_at(depth):
            nonlocal begun
            if depth:
                await call_at(depth - 1)
            else:
                begun += 1
                await counter.call(handler)

        refused = 0
        for depth in range(sys.getrecursionlimit() - 300, sys.getrecursionlimit()):
            try:
                await call_at(depth)
            except RecursionError:
                refused += 1
        # Some had the stack to call the actor, and some of these had not enough to get through.
        assert begun > 300 - refused > 0
        assert counter.restarts == 0
        with anyio.fail_after(60):
            assert await counter.call(Counter.read) == 300 - refused
            assert await counter.call(Counter.add_slowly) == 300 - refused + 1


async def test_a_handler_without_an_end_is_a_bug_of_the_actor():
    def descend(counter):
        return descend(counter)

    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        with pytest.raises(ActorCrashed) as caught:
            await counter.call(descend)
        assert isinstance(caught.value.__cause__, RecursionError)


class Secret:
    """Something whose end can be seen."""


@pytest.mark.parametrize("error", [Refused, Bug])
@pytest.mark.parametrize("way", ["local", "queued", "async"])
async def test_a_call_that_failed_keeps_nothing_of_its_arguments(error, way):
    def fail(_, secret):
        raise error

    async def fail_slowly(_, secret):
        await checkpoint()
        raise error

    async def call():
        secret = Secret()
        secrets.append(weakref.ref(secret))
        try:
            await counter.call(fail_slowly if way == "async" else fail, secret)
        except TrunklineError:
            pass

    secrets = []
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        gc.disable()
        try:
            for _ in range(2):
                if way == "queued":
                    use_up_local_turns(counter)
                await call()
                await counter.call(Counter.add_slowly)  # also after a restart
            assert [secret() for secret in secrets] == [None, None]
        finally:
            gc.enable()


# -- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_a_call_that_is_not_served_in_time_never_is():
    gate = Gate()
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, name="till", call_timeout_ms=2_000)
        async with anyio.create_task_group() as task_group:

            async def holder():
                with pytest.raises(CallTimeout):
                    await counter.call(Counter.hold, gate)

            task_group.start_soon(holder)
            await gate.reached.wait()
            called_at = anyio.current_time()
            with pytest.raises(CallTimeout, match="till did not reply within 2000 ms") as caught:
                await counter.call(Counter.add)
            assert not caught.value.begun
            assert anyio.current_time() - called_at == pytest.approx(2)
            gate.opened.set()
        assert await counter.call(Counter.read) == 0
        assert counter.restarts == 0


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_a_call_that_was_begun_in_time_goes_on_after_its_timeout():
    async def add_late(counter):
        await anyio.sleep(3)
        counter.add()

    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, call_timeout_ms=2_000)
        with pytest.raises(CallTimeout) as caught:
            await counter.call(add_late)
        assert caught.value.begun
        assert await counter.call(Counter.read) == 1


async def test_a_call_timeout_is_a_timeout_error():
    gate = Gate()
    async with Supervisor(stop_timeout_ms=1) as supervisor:
        counter = await supervisor.spawn(Counter, call_timeout_ms=1)
        with pytest.raises(TimeoutError):
            await counter.call(Counter.hold, gate)


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_callers_wait_for_room_in_a_full_mailbox_in_the_order_of_arrival():
    gate = Gate()
    order = []
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, mailbox_size=1)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(counter.call, Counter.hold, gate)
            await gate.reached.wait()
            for n in range(10):
                task_group.start_soon(counter.call, lambda _, n=n: order.append(n))
                await until(lambda n=n: counter.mailbox_depth == n + 1)
            gate.opened.set()
    assert order == list(range(10))


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_callers_wait_for_room_no_longer_than_the_call_timeout():
    gate = Gate()
    timeouts = []
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, mailbox_size=1, call_timeout_ms=1_000)

        async def caller(handler, *args):
            called_at = anyio.current_time()
            try:
                await counter.call(handler, *args)
            except CallTimeout:
                timeouts.append(round(anyio.current_time() - called_at, 3))

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(caller, Counter.hold, gate)
            await gate.reached.wait()
            for _ in range(4):
                task_group.start_soon(caller, Counter.add)
                await anyio.sleep(0.1)
        assert timeouts == [1.0] * 5
        gate.opened.set()
        assert await counter.call(Counter.read) == 0


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_a_handler_that_calls_its_own_actor_gets_a_timeout_and_is_no_crash():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, call_timeout_ms=1_000)

        async def call_myself(_):
            return await counter.call(Counter.add)

        with pytest.raises(CallTimeout):
            await counter.call(call_myself)
        await counter.call(Counter.add_slowly)
        assert await counter.call(Counter.read) == 1
        assert counter.restarts == 0


# -- cancellation --------------------------------------------------------------------------------


async def test_a_call_whose_caller_was_cancelled_before_it_began_is_skipped():
    gate = Gate()
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(counter.call, Counter.hold, gate)
            await gate.reached.wait()
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(counter.call, Counter.add, 10)
                leaving.start_soon(counter.call, Counter.add_slowly, 10)
                await until(lambda: counter.mailbox_depth == 2)
                leaving.cancel_scope.cancel()
            gate.opened.set()
        assert await counter.call(Counter.add) == 1


async def test_a_call_that_has_begun_finishes_though_its_caller_was_cancelled(log):
    gate = Gate()

    async def add_behind_the_gate(counter):
        await gate.pass_through()
        return counter.add()

    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(counter.call, add_behind_the_gate)
            await gate.reached.wait()
            leaving.cancel_scope.cancel()
        assert counter.peek(Counter.read, None) == 0
        gate.opened.set()
        assert await counter.call(Counter.read) == 1
    assert log == []


async def test_a_crash_after_its_caller_was_cancelled_is_still_a_crash(log):
    gate = Gate()

    async def crash_behind_the_gate(_):
        await gate.pass_through()
        raise Bug("nobody hears me")

    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(counter.call, crash_behind_the_gate)
            await gate.reached.wait()
            leaving.cancel_scope.cancel()
        gate.opened.set()
        assert await counter.call(Counter.add) == 1
        assert counter.restarts == 1
    assert log[0]["error"] == "Bug('nobody hears me')"


async def test_a_caller_that_leaves_a_full_mailbox_does_not_keep_others_out():
    gate = Gate()
    order = []
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, mailbox_size=1)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(counter.call, Counter.hold, gate)
            await gate.reached.wait()
            async with anyio.create_task_group() as leaving:
                for n in range(9):
                    group = leaving if n % 3 else task_group
                    group.start_soon(counter.call, lambda _, n=n: order.append(n))
                    await until(lambda n=n: counter.mailbox_depth == n + 1)
                leaving.cancel_scope.cancel()
            gate.opened.set()
    assert order == [0, 3, 6]


class Scrutinised(Actor):
    """Keeps a journal of what was begun and what was finished, outside of its incarnations."""

    def __init__(self, begun, finished):
        self.begun = begun
        self.finished = finished

    def quick(self, n):
        self.begun.append(n)
        self.finished.append(n)
        return n

    async def slow(self, n):
        self.begun.append(n)
        await turns(n % 4)
        self.finished.append(n)
        return n

    def crash(self, n):
        self.begun.append(n)
        self.finished.append(n)
        raise Bug

    async def refuse(self, n):
        self.begun.append(n)
        await turns(n % 3)
        self.finished.append(n)
        raise Refused


@pytest.mark.parametrize("mailbox_size", [1, 3, 1_024])
@pytest.mark.parametrize("seed", range(2))
async def test_callers_cancelled_at_random_points_leave_nothing_behind(seed, mailbox_size):
    random = Random(seed)
    handlers = [Scrutinised.quick] * 6 + [Scrutinised.slow] * 6
    handlers += [Scrutinised.refuse] * 2 + [Scrutinised.crash]
    begun, finished, outcomes = [], [], {}
    scopes = set()
    callers, calls_each = 40, 15

    async with Supervisor(policy=FORGIVING) as supervisor:
        ref = await supervisor.spawn(
            partial(Scrutinised, begun, finished),
            mailbox_size=mailbox_size,
            call_timeout_ms=60_000,
        )
        await turns(3)
        tasks_before = {task.id for task in anyio.get_running_tasks()}

        async def caller(first):
            for n in range(first, first + calls_each):
                with anyio.CancelScope() as scope:
                    scopes.add(scope)
                    try:
                        outcomes[n] = await ref.call(random.choice(handlers), n)
                    except (ActorCrashed, Refused) as error:
                        outcomes[n] = error
                scopes.discard(scope)
                await turns(random.randrange(3))

        async def canceller():
            while True:
                await turns(random.randrange(1, 4))
                if scopes:
                    random.choice(sorted(scopes, key=id)).cancel()

        with anyio.fail_after(30):
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(canceller)
                async with anyio.create_task_group() as calling:
                    for n in range(callers):
                        calling.start_soon(caller, n * calls_each)
                task_group.cancel_scope.cancel()
            # Nothing hangs in the mailbox, and the actor serves on.
            assert await ref.call(Scrutinised.slow, -4) == -4
        await until(lambda: ref.mailbox_depth == 0)
        assert {task.id for task in anyio.get_running_tasks()} == tasks_before

    calls = callers * calls_each
    assert len(set(begun)) == len(begun)  # none was served twice
    assert begun == finished  # one at a time, and each to its end
    assert set(outcomes) <= set(begun)  # every reply is that of a call that was served
    assert len(outcomes) < calls  # some were cancelled indeed
    for n, outcome in outcomes.items():
        assert outcome == n or isinstance(outcome, (ActorCrashed, Refused))


@on_asyncio
@pytest.mark.parametrize("seed", range(4))
async def test_callers_cancelled_by_asyncio_at_random_points_leave_nothing_behind(seed):
    random = Random(seed)
    begun, finished, outcomes = [], [], {}
    async with Supervisor(policy=FORGIVING) as supervisor:
        ref = await supervisor.spawn(partial(Scrutinised, begun, finished), mailbox_size=2)

        async def caller(first):
            for n in range(first, first + 20):
                handler = random.choice([Scrutinised.quick, Scrutinised.slow, Scrutinised.crash])
                try:
                    outcomes[n] = await ref.call(handler, n)
                except ActorCrashed:
                    outcomes[n] = n

        tasks = [asyncio.ensure_future(caller(n * 20)) for n in range(40)]
        with anyio.fail_after(30):
            while running := [task for task in tasks if not task.done()]:
                await turns(random.randrange(20))
                random.choice(running).cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await ref.call(Scrutinised.slow, -4) == -4
        assert ref.mailbox_depth == 0
    assert begun == finished
    assert len(set(begun)) == len(begun)
    assert set(outcomes) <= set(begun)
    assert all(outcome == n for n, outcome in outcomes.items())
    assert any(task.cancelled() for task in tasks)


@pytest.mark.parametrize("seed", range(4))
async def test_callers_of_an_actor_that_is_stopped_at_a_random_point_all_hear_of_it(seed):
    random = Random(seed)
    begun, finished = [], []
    replies = {"answered": 0, "crashed": 0, "stopped": 0}

    async with (
        anyio.create_task_group() as task_group,
        Supervisor(policy=FORGIVING) as supervisor,
    ):
        ref = await supervisor.spawn(partial(Scrutinised, begun, finished), mailbox_size=3)

        async def caller(first):
            for n in range(first, first + 20):
                handler = random.choice([Scrutinised.quick, Scrutinised.slow])
                if n % 50 == 49:
                    handler = Scrutinised.crash
                try:
                    assert await ref.call(handler, n) == n
                    replies["answered"] += 1
                except ActorCrashed:
                    replies["crashed"] += 1
                except ActorStopped:
                    replies["stopped"] += 1

        for n in range(20):
            task_group.start_soon(caller, n * 20)
        target = random.randrange(20, 300)
        await until(lambda: len(begun) >= target)
    assert ref.mailbox_depth == 0
    assert sum(replies.values()) == 400
    assert replies["stopped"] > 0
    assert begun == finished
    assert len(begun) == replies["answered"] + replies["crashed"]
