"""What the author of an actor can rely on: handlers, hooks and batches."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.actors.conftest import (
    FORGIVING,
    Bug,
    Counter,
    Gate,
    Refused,
    turns,
    until,
    use_up_local_turns,
)
from trunkline.actors import NOT_LOCAL, Actor, BatchActor, Supervisor
from trunkline.errors import ActorCrashed, TrunklineError

# -- handlers ------------------------------------------------------------------------------------


async def test_no_handler_begins_while_another_one_of_the_actor_waits():
    results = []
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)

        async def caller():
            results.append(await counter.call(Counter.add_slowly))

        async with anyio.create_task_group() as task_group:
            for _ in range(50):
                task_group.start_soon(caller)
    assert sorted(results) == list(range(1, 51))


async def test_calls_are_served_in_the_order_of_arrival():
    class Log(Actor):
        def __init__(self):
            self.entries = []

        def note(self, n):
            self.entries.append(n)

        async def note_slowly(self, n):
            await turns(n % 3)
            self.entries.append(n)

        async def hold(self, gate):
            await gate.pass_through()

    gate = Gate()
    async with Supervisor() as supervisor:
        log = await supervisor.spawn(Log)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(log.call, Log.hold, gate)
            await gate.reached.wait()
            for n in range(20):
                task_group.start_soon(log.call, (Log.note, Log.note_slowly)[n % 2], n)
                await until(lambda n=n: log.mailbox_depth == n + 1)
            gate.opened.set()
        assert log.peek(lambda actor: actor.entries, None) == list(range(20))


async def test_an_actor_drains_its_mailbox_in_batches_and_lets_other_tasks_run_in_between():
    gate = Gate()
    loop_turns = 0
    served = Tally()

    async def other_task():
        nonlocal loop_turns
        while True:
            loop_turns += 1
            await checkpoint()

    def note(_):
        served[loop_turns] += 1

    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, max_batch=10)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(other_task)
            async with anyio.create_task_group() as calling:
                calling.start_soon(counter.call, Counter.hold, gate)
                await gate.reached.wait()
                for _ in range(200):
                    calling.start_soon(counter.call, note)
                await until(lambda: counter.mailbox_depth == 200)
                gate.opened.set()
            task_group.cancel_scope.cancel()
    assert served.total() == 200
    # Of two turns of trio's loop the other task may run first in one and last in the next.
    assert 10 <= max(served.values()) <= 20


async def add_twice(counter, amount, *, times=2):
    for _ in range(times):
        await counter.add_slowly(amount)
    return counter.value


class Adder:
    """A handler that is an object."""

    def __call__(self, counter, amount):
        return counter.add(amount)


class SlowAdder:
    """A handler that is an object and awaits."""

    async def __call__(self, counter, amount):
        return await counter.add_slowly(amount)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (Counter.add, 5),
        (Counter.add_slowly, 5),
        (lambda counter, amount: counter.add(amount), 5),
        (add_twice, 10),
        (partial(add_twice, times=3), 15),
        (partial(Counter.add), 5),
        (Adder(), 5),
        (SlowAdder(), 5),
    ],
)
async def test_a_handler_is_anything_that_takes_the_actor_first(handler, expected):
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        assert await counter.call(handler, 5) == expected


async def test_a_handler_takes_arguments_by_name_whatever_they_are_called():
    class Echo(Actor):
        def echo(self, **named):
            return named

        async def echo_slowly(self, **named):
            return named

    named = {"handler": 1, "actor": 2, "args": 3, "call": 4}
    async with Supervisor() as supervisor:
        echo = await supervisor.spawn(Echo)
        assert await echo.call(Echo.echo, **named) == named
        assert await echo.call(Echo.echo_slowly, **named) == named


@pytest.mark.parametrize("handler", [Counter.fail, Counter.fail_slowly])
async def test_a_trunkline_error_is_an_answer_and_the_actor_keeps_its_state(handler):
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        await counter.call(Counter.add, 7)
        error = Refused("not today")
        with pytest.raises(Refused) as caught:
            await counter.call(handler, error)
        assert caught.value is error
        assert await counter.call(Counter.read) == 7
        assert counter.restarts == 0


async def test_a_handler_may_call_another_actor():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)

        class Front(Actor):
            async def add(self, amount):
                return await counter.call(Counter.add, amount)

        front = await supervisor.spawn(Front)
        assert await front.call(Front.add, 3) == 3
        assert await front.call(Front.add, 3) == 6


async def test_a_crash_of_another_actor_is_an_answer_to_the_handler_that_called_it():
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter, name="till")

        class Front(Actor):
            async def fail(self, error):
                await counter.call(Counter.fail, error)

        front = await supervisor.spawn(Front)
        bug = Bug()
        with pytest.raises(ActorCrashed, match="till crashed") as caught:
            await front.call(Front.fail, bug)
        assert caught.value.__cause__ is bug
        await until(lambda: counter.is_up)
        assert (front.restarts, counter.restarts) == (0, 1)


async def test_a_handler_may_spawn_another_actor():
    async with Supervisor() as supervisor:

        class Parent(Actor):
            async def bear(self):
                return await supervisor.spawn(Counter)

        parent = await supervisor.spawn(Parent)
        child = await parent.call(Parent.bear)
        assert await child.call(Counter.add) == 1


# -- on_start and on_stop ------------------------------------------------------------------------


class Diary(Actor):
    """Writes down what happens to its incarnations, in a list that outlives them."""

    def __init__(self, entries):
        self.entries = entries

    async def on_start(self):
        self.entries.append("start")
        await checkpoint()
        self.entries.append("started")

    async def on_stop(self):
        self.entries.append("stop")
        await checkpoint()
        self.entries.append("stopped")

    def work(self):
        self.entries.append("work")

    async def work_slowly(self):
        self.entries.append("work")

    def crash(self):
        self.entries.append("crash")
        raise Bug

    async def crash_slowly(self):
        self.crash()


async def test_on_start_ends_before_spawn_returns_and_on_stop_runs_when_the_calls_are_over():
    entries = []
    async with Supervisor() as supervisor:
        diary = await supervisor.spawn(partial(Diary, entries))
        assert entries == ["start", "started"]
        await diary.call(Diary.work)
    assert entries == ["start", "started", "work", "stop", "stopped"]


@pytest.mark.parametrize("crash", [Diary.crash, Diary.crash_slowly])
async def test_on_stop_runs_after_a_crash_and_before_the_next_on_start(crash):
    entries = []
    async with Supervisor(policy=FORGIVING) as supervisor:
        diary = await supervisor.spawn(partial(Diary, entries))
        with pytest.raises(ActorCrashed):
            await diary.call(crash)
        await diary.call(Diary.work)
    up = ["start", "started"]
    down = ["stop", "stopped"]
    assert entries == [*up, "crash", *down, *up, "work", *down]


async def test_no_call_is_served_while_on_start_runs():
    gate = Gate()
    seen = []

    class SlowStarter(Counter):
        async def on_start(self):
            if seen:
                await gate.pass_through()
            seen.append("up")

    async with Supervisor(policy=FORGIVING) as supervisor:
        ref = await supervisor.spawn(SlowStarter)
        with pytest.raises(ActorCrashed):
            await ref.call(Counter.fail, Bug())
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(ref.call, lambda _: seen.append("served"))
            await gate.reached.wait()
            await turns(5)
            assert seen == ["up"]
            assert not ref.is_up
            gate.opened.set()
        assert seen == ["up", "up", "served"]


async def test_no_call_is_served_after_on_stop():
    entries = []
    gate = Gate()

    class Lingering(Diary):
        async def on_stop(self):
            if "crash" in entries:
                await gate.pass_through()
            await super().on_stop()

    async with Supervisor(policy=FORGIVING) as supervisor:
        diary = await supervisor.spawn(partial(Lingering, entries))
        with pytest.raises(ActorCrashed):
            await diary.call(Diary.crash)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(diary.call, Diary.work)
            await gate.reached.wait()
            await turns(5)
            assert "work" not in entries
            gate.opened.set()
    assert entries.index("work") > entries.index("stopped")


async def test_on_stop_may_await_also_when_the_actor_is_cut_off():
    entries = []
    with anyio.CancelScope() as scope:
        async with Supervisor() as supervisor:
            await supervisor.spawn(partial(Diary, entries))
            scope.cancel()
    assert entries[-2:] == ["stop", "stopped"]


async def test_on_stop_may_call_an_actor_that_was_started_earlier():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        totals = []

        class Reporter(Actor):
            async def on_stop(self):
                totals.append(await counter.call(Counter.add, 9))

        await supervisor.spawn(Reporter)
    assert totals == [9]


async def test_an_on_stop_that_raises_at_the_end_is_logged_and_nothing_is_started_again(log):
    starts = []

    class BadEnd(Counter):
        async def on_start(self):
            starts.append(self)

        async def on_stop(self):
            raise Bug("cannot close")

    async with Supervisor(policy=FORGIVING) as supervisor:
        ref = await supervisor.spawn(BadEnd)
        await ref.call(Counter.add)
    assert len(starts) == 1
    crashes = [entry for entry in log if entry["event"] == "actor_crashed"]
    assert [entry["error"] for entry in crashes] == ["Bug('cannot close')"]


async def test_an_on_stop_that_raises_after_a_crash_does_not_keep_the_actor_down():
    class BadEnd(Counter):
        async def on_stop(self):
            raise Bug("cannot close")

    async with Supervisor(policy=FORGIVING) as supervisor:
        ref = await supervisor.spawn(BadEnd)
        with pytest.raises(ActorCrashed) as caught:
            await ref.call(Counter.fail, Bug("first"))
        assert str(caught.value.__cause__) == "first"
        assert await ref.call(Counter.add) == 1
        assert ref.restarts == 1


# -- batches -------------------------------------------------------------------------------------


class Ledger(BatchActor):
    """Serves a batch at a time, and remembers the batches."""

    def __init__(self, batches, gate=None):
        self.batches = batches
        self.gate = gate

    async def handle_batch(self, calls):
        self.batches.append([call.args[0] for call in calls])
        if self.gate is not None:
            await self.gate.pass_through()
        for call in calls:
            try:
                call.answer(call.handler(self, *call.args))
            except TrunklineError as error:
                call.fail(error)
        return ()

    def post(self, amount):
        if amount < 0:
            raise Refused(f"{amount} is below zero")
        return amount * 2


async def queue(task_group, ref, *calls):
    """Start calls in tasks of their own, and see that they are queued in this order."""
    for call in calls:
        depth = ref.mailbox_depth
        task_group.start_soon(*call)
        await until(lambda depth=depth: ref.mailbox_depth == depth + 1)


async def test_all_calls_that_wait_come_as_one_batch_in_the_order_of_arrival():
    batches, results, gate = [], {}, Gate()
    async with Supervisor() as supervisor:
        ledger = await supervisor.spawn(partial(Ledger, batches, gate))

        async def caller(amount):
            results[amount] = await ledger.call(Ledger.post, amount)

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(caller, 100)
            await gate.reached.wait()
            await queue(task_group, ledger, *[(caller, n) for n in range(10)])
            gate.opened.set()
    assert batches == [[100], list(range(10))]
    assert results == {n: n * 2 for n in (*range(10), 100)}


async def test_a_batch_is_not_longer_than_max_batch():
    batches, gate = [], Gate()
    async with Supervisor() as supervisor:
        ledger = await supervisor.spawn(partial(Ledger, batches, gate), max_batch=4)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(ledger.call, Ledger.post, 100)
            await gate.reached.wait()
            await queue(task_group, ledger, *[(ledger.call, Ledger.post, n) for n in range(10)])
            gate.opened.set()
    assert batches == [[100], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_one_call_of_a_batch_that_is_refused_leaves_the_others_alone():
    batches, outcomes, gate = [], {}, Gate()
    async with Supervisor() as supervisor:
        ledger = await supervisor.spawn(partial(Ledger, batches, gate))

        async def caller(amount):
            try:
                outcomes[amount] = await ledger.call(Ledger.post, amount)
            except Refused as error:
                outcomes[amount] = str(error)

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(caller, 100)
            await gate.reached.wait()
            await queue(task_group, ledger, (caller, 1), (caller, -2), (caller, 3))
            gate.opened.set()
        assert ledger.restarts == 0
    assert batches[1] == [1, -2, 3]
    assert outcomes == {100: 200, 1: 2, -2: "-2 is below zero", 3: 6}


async def test_a_batch_actor_is_never_called_in_the_callers_task():
    async with Supervisor() as supervisor:
        ledger = await supervisor.spawn(partial(Ledger, []))
        for amount in range(5):
            assert await ledger.call(Ledger.post, amount) == amount * 2
        assert ledger.call_local(lambda _: None) is NOT_LOCAL
        assert (ledger.local_calls, ledger.queued_calls) == (0, 5)


async def test_callers_that_were_cancelled_are_left_out_of_a_batch():
    batches, gate = [], Gate()
    async with Supervisor() as supervisor:
        ledger = await supervisor.spawn(partial(Ledger, batches, gate))
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(ledger.call, Ledger.post, 100)
            await gate.reached.wait()
            async with anyio.create_task_group() as leaving:
                await queue(leaving, ledger, (ledger.call, Ledger.post, 1))
                await queue(task_group, ledger, (ledger.call, Ledger.post, 2))
                await queue(leaving, ledger, (ledger.call, Ledger.post, 3))
                leaving.cancel_scope.cancel()
            gate.opened.set()
    assert batches == [[100], [2]]


async def test_a_batch_without_a_waiting_caller_is_not_served_at_all():
    batches, gate = [], Gate()
    async with Supervisor() as supervisor:
        ledger = await supervisor.spawn(partial(Ledger, batches, gate))
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(ledger.call, Ledger.post, 100)
            await gate.reached.wait()
            async with anyio.create_task_group() as leaving:
                await queue(leaving, ledger, (ledger.call, Ledger.post, 1))
                leaving.cancel_scope.cancel()
            gate.opened.set()
        assert await ledger.call(Ledger.post, 2) == 4
    assert batches == [[100], [2]]


class Patient(BatchActor):
    """Serves a call once it has seen it twice."""

    def __init__(self, batches, gate):
        self.batches = batches
        self.gate = gate
        self.seen = set()

    async def handle_batch(self, calls):
        self.batches.append([call.args[0] for call in calls])
        await self.gate.pass_through()
        again = [call for call in calls if call not in self.seen]
        for call in calls:
            if call in self.seen:
                call.answer(call.args[0])
        self.seen.update(calls)
        return again

    def post(self, amount):
        raise AssertionError("a batch actor serves its calls itself")


async def test_calls_that_a_batch_leaves_come_first_in_the_next_one():
    batches, results, gate = [], [], Gate()

    async def post(amount):
        results.append(await patient.call(Patient.post, amount))

    async with Supervisor() as supervisor:
        patient = await supervisor.spawn(partial(Patient, batches, gate))
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(post, 1)
            await gate.reached.wait()
            await queue(task_group, patient, (post, 2), (post, 3))
            gate.opened.set()
    assert batches == [[1], [1, 2, 3], [2, 3]]
    assert sorted(results) == [1, 2, 3]


class Half(BatchActor):
    """Answers the first call of a batch, and does `then` about the rest."""

    def __init__(self, gate, then):
        self.gate = gate
        self.then = then

    async def handle_batch(self, calls):
        await self.gate.pass_through()
        calls[0].answer("answered")
        if len(calls) > 1:
            self.then()
        return ()


def fall(error):
    raise error


@pytest.mark.parametrize(
    "then",
    [
        partial(fall, Bug("batch")),
        partial(fall, Refused("an answer that belongs to nobody")),
        partial(fall, anyio.EndOfStream()),
        partial(fall, anyio.WouldBlock()),
        partial(fall, asyncio.CancelledError()),
        lambda: None,
    ],
    ids=["bug", "trunkline error", "end of stream", "would block", "cancelled", "silence"],
)
async def test_a_batch_that_crashes_fails_the_calls_without_a_reply_and_no_others(then):
    outcomes, gate = {}, Gate()
    async with Supervisor(policy=FORGIVING) as supervisor:
        half = await supervisor.spawn(partial(Half, gate, then), max_batch=3)

        async def caller(n):
            try:
                outcomes[n] = await half.call(Counter.read)
            except ActorCrashed as error:
                outcomes[n] = error

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(caller, 0)
            await gate.reached.wait()
            # A batch of three that crashes, and one behind it for the next incarnation.
            await queue(task_group, half, *[(caller, n) for n in (1, 2, 3, 4)])
            gate.opened.set()
        assert half.restarts == 1
    assert [outcomes[n] for n in (0, 1, 4)] == ["answered"] * 3
    for n in (2, 3):
        assert isinstance(outcomes[n], ActorCrashed)
        assert outcomes[n].__cause__ is outcomes[2].__cause__ is not None
    assert outcomes[2] is not outcomes[3]


async def test_a_call_that_a_batch_leaves_without_a_reply_is_named():
    gate = Gate()
    gate.opened.set()
    async with Supervisor(policy=FORGIVING) as supervisor:
        half = await supervisor.spawn(partial(Half, gate, lambda: None))
        crashes = []

        async def caller():
            try:
                await half.call(Counter.read)
            except ActorCrashed as error:
                crashes.append(error)

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(caller)
            task_group.start_soon(caller)
    (crash,) = crashes
    assert "<Call of Counter.read> without a reply" in str(crash)


async def test_a_batch_actor_has_to_say_how_it_serves_a_batch():
    class Vague(BatchActor):
        pass

    async with Supervisor(policy=FORGIVING) as supervisor:
        ref = await supervisor.spawn(Vague)
        use_up_local_turns(ref)
        with pytest.raises(ActorCrashed, match="Vague does not say") as caught:
            await ref.call(Counter.read)
        assert isinstance(caught.value.__cause__, NotImplementedError)
