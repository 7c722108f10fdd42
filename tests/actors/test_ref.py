"""The handle on an actor: calls in the caller's task, calls from other threads, and gauges."""

from __future__ import annotations

import threading
from collections import Counter as Tally
from functools import partial
from random import Random

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from tests.actors.conftest import (
    FORGIVING,
    NEVER_BACK,
    Bug,
    Counter,
    Gate,
    Refused,
    turns,
    until,
    use_up_local_turns,
)
from tests.conftest import BACKENDS, UVLOOP
from trunkline.actors import NOT_LOCAL, Actor, Supervisor
from trunkline.actors.cell import Cell
from trunkline.errors import ActorCrashed, ActorStopped


class Whereabouts(Actor):
    """Tells which task its handlers run in."""

    def plain(self):
        return anyio.get_current_task().id

    async def slow(self):
        return anyio.get_current_task().id


# -- local calls ---------------------------------------------------------------------------------


async def test_a_plain_handler_of_an_idle_actor_runs_in_its_callers_task():
    async with Supervisor() as supervisor:
        ref = await supervisor.spawn(Whereabouts)
        assert await ref.call(Whereabouts.plain) == anyio.get_current_task().id
        assert (ref.local_calls, ref.queued_calls) == (1, 0)


async def test_a_handler_that_may_await_runs_in_a_task_of_the_actor():
    async with Supervisor() as supervisor:
        ref = await supervisor.spawn(Whereabouts)
        assert await ref.call(Whereabouts.slow) != anyio.get_current_task().id
        assert (ref.local_calls, ref.queued_calls) == (0, 1)


async def test_a_call_of_a_busy_actor_waits_for_its_turn():
    gate = Gate()
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(counter.call, Counter.hold, gate)
            await gate.reached.wait()
            task_group.start_soon(counter.call, Counter.add)
            await turns(5)
            assert counter.mailbox_depth == 1
            assert counter.call_local(Counter.add) is NOT_LOCAL
            assert counter.peek(Counter.read, None) == 0
            gate.opened.set()
        assert counter.peek(Counter.read, None) == 1
        assert (counter.local_calls, counter.queued_calls) == (0, 2)


async def test_a_call_does_not_overtake_one_that_is_queued_and_not_yet_begun():
    order = []

    async def slow(_):
        order.append("first")

    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(counter.call, slow)
            await until(lambda: counter.queued_calls)
            await counter.call(lambda _: order.append("second"))
    assert order == ["first", "second"]


async def test_a_call_does_not_overtake_those_who_wait_for_room_in_the_mailbox():
    order, gate = [], Gate()

    class Log(Counter):
        def note(self, name):
            order.append(name)

    async with Supervisor() as supervisor:
        log = await supervisor.spawn(Log, mailbox_size=1)

        async def latecomer():
            # The mailbox is empty now, and the actor idle; six callers still wait for room.
            await until(lambda: len(order) >= 2)
            await log.call(Log.note, "late")

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(log.call, Counter.hold, gate)
            await gate.reached.wait()
            for n in range(8):
                task_group.start_soon(log.call, Log.note, n)
                await until(lambda n=n: log.mailbox_depth == n + 1)
            task_group.start_soon(latecomer)
            gate.opened.set()
    assert order == [*range(8), "late"]


async def test_local_turns_and_waiting_callers_exclude_each_other():
    gate = Gate()
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, mailbox_size=2)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(counter.call, Counter.hold, gate)
            await gate.reached.wait()
            for _ in range(50):
                task_group.start_soon(counter.call, Counter.add)
            await until(lambda: counter.mailbox_depth == 50)
            gate.opened.set()
            while counter.mailbox_depth:
                assert counter.call_local(Counter.read) is NOT_LOCAL
                await checkpoint()
        await counter.call(Counter.add_slowly)
        # idle again, and no caller is waiting
        await until(lambda: counter.call_local(Counter.read) is not NOT_LOCAL)


async def test_after_128_local_calls_in_a_row_one_takes_the_mailbox():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        for n in range(1, 129):
            assert await counter.call(Counter.add) == n
        assert (counter.local_calls, counter.queued_calls) == (128, 0)
        assert await counter.call(Counter.add) == 129
        assert (counter.local_calls, counter.queued_calls) == (128, 1)
        assert await counter.call(Counter.add) == 130
        assert counter.local_calls == 129


@pytest.mark.parametrize("actors", [1, 2, 8, 100])
async def test_no_more_than_128_local_calls_are_made_on_one_actor_before_the_event_loop_runs(
    actors,
):
    random = Random(actors)
    in_a_row = Tally()
    longest_row = 0
    async with Supervisor() as supervisor:
        refs = [await supervisor.spawn(Counter) for _ in range(actors)]
        for _ in range(20_000):
            ref = random.choice(refs)
            queued_calls = ref.queued_calls
            await ref.call(Counter.add)
            if ref.queued_calls == queued_calls:
                in_a_row[ref] += 1
                longest_row = max(longest_row, in_a_row[ref])
            else:
                in_a_row.clear()
        assert longest_row == 128 if actors <= 8 else longest_row < 128
        assert sum(ref.local_calls for ref in refs) > 19_500


@pytest.mark.parametrize("callers", [1, 3])
async def test_a_tight_loop_of_local_calls_lets_other_tasks_run(callers):
    loop_turns = 0
    seen = 0
    in_a_row = 0
    longest_row = 0

    async def other_task():
        nonlocal loop_turns
        while True:
            loop_turns += 1
            await checkpoint()

    def note(_):
        nonlocal seen, in_a_row, longest_row
        in_a_row = in_a_row + 1 if loop_turns == seen else 1
        seen = loop_turns
        longest_row = max(longest_row, in_a_row)

    async def caller():
        for _ in range(10_000):
            await counter.call(note)

    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(other_task)
            async with anyio.create_task_group() as calling:
                for _ in range(callers):
                    calling.start_soon(caller)
            task_group.cancel_scope.cancel()
    # 128, and the call that takes the mailbox. Of two turns of trio's loop, which shuffles its
    # tasks, the other task may run first in one and last in the next.
    assert 128 <= longest_row <= 2 * 129 * callers


async def test_an_actor_beside_a_busy_one_gets_no_more_than_128_calls_in_a_row():
    async with Supervisor() as supervisor:
        busy = await supervisor.spawn(Counter)
        beside = await supervisor.spawn(Counter)
        for _ in range(3):  # both have used up their turns before, and renew them together
            for _ in range(200):
                await busy.call(Counter.add)
                await beside.call(Counter.add)
        for used_before in (0, 1, 64, 127):
            await checkpoint()
            await beside.call(Counter.add_slowly)  # a new row
            for _ in range(used_before):
                await beside.call(Counter.add)
            use_up_local_turns(busy)
            await busy.call(Counter.add)  # the event loop runs, and turns are renewed
            before = beside.local_calls
            use_up_local_turns(beside)
            assert beside.local_calls - before <= 128


async def test_actors_of_one_supervisor_share_the_trip_that_renews_their_local_turns():
    async with Supervisor() as supervisor:
        refs = [await supervisor.spawn(Counter) for _ in range(8)]
        for _ in range(10_000):
            for ref in refs:
                await ref.call(Counter.add)
        # With a trip for each of them every 128 calls there would be 8 * 10,000 / 129 = 620.
        assert sum(ref.queued_calls for ref in refs) < 200


async def test_a_tight_loop_of_calls_that_are_refused_lets_other_tasks_run_as_well():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        error = Refused("no")
        for _ in range(300):
            with pytest.raises(Refused):
                await counter.call(Counter.fail, error)
        assert counter.queued_calls == 2


async def test_a_tight_loop_of_calls_on_a_stopped_actor_lets_other_tasks_run():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
    loop_turns = 0

    async def other_task():
        nonlocal loop_turns
        while True:
            loop_turns += 1
            await checkpoint()

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(other_task)
        for n in range(1, 101):
            with pytest.raises(ActorStopped):
                await counter.call(Counter.add)
            assert loop_turns >= n - 1
        task_group.cancel_scope.cancel()


async def test_call_local_runs_a_plain_handler_at_once_and_without_await():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        assert counter.call_local(Counter.add, 2) == 2
        assert await counter.call(Counter.add, 3) == 5
        assert (counter.local_calls, counter.queued_calls) == (2, 0)


async def test_call_local_runs_nothing_that_has_to_wait():
    gate = Gate()
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(counter.call, Counter.hold, gate)
            await gate.reached.wait()
            assert counter.call_local(Counter.add) is NOT_LOCAL
            gate.opened.set()
        assert await counter.call(Counter.read) == 0


async def test_a_bug_in_a_local_call_takes_the_actor_down():
    bug = Bug("in place")
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        with pytest.raises(ActorCrashed, match="in place") as caught:
            counter.call_local(Counter.fail, bug)
        assert caught.value.__cause__ is bug
        assert not counter.is_up
        assert counter.call_local(Counter.read) is NOT_LOCAL
        assert await counter.call(Counter.add, 3) == 3
        assert counter.restarts == 1


async def test_an_error_of_the_tree_is_the_answer_of_a_local_call():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        with pytest.raises(Refused):
            counter.call_local(Counter.fail, Refused())
        assert counter.is_up


# -- a call in the wrong thread ------------------------------------------------------------------


@pytest.mark.parametrize("backend", [*BACKENDS, UVLOOP])
async def test_a_call_in_an_event_loop_of_another_thread_is_refused_at_once(backend):
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter, name="till")
        assert await counter.call(Counter.add) == 1
        await anyio.wait_all_tasks_blocked()

        def elsewhere(handler):
            async def main():
                await counter.call(handler)

            with pytest.raises(RuntimeError, match=r"another thread.*call_from_thread"):
                anyio.run(main, backend=backend[0], backend_options=backend[1])

        for handler in (Counter.add, Counter.add_slowly):
            await anyio.to_thread.run_sync(elsewhere, handler)
        with pytest.raises(RuntimeError, match="another thread"):
            await anyio.to_thread.run_sync(counter.call_local, Counter.add)
        assert await anyio.to_thread.run_sync(counter.call_from_thread, Counter.add) == 2
        assert counter.restarts == 0


# -- gauges --------------------------------------------------------------------------------------


async def test_a_handle_shows_how_many_calls_have_no_reply_yet():
    gate = Gate()
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, mailbox_size=1)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(counter.call, Counter.hold, gate)
            await gate.reached.wait()
            for _ in range(2):  # one is queued, and one waits for room
                task_group.start_soon(counter.call, Counter.add)
            await until(lambda: counter.mailbox_depth == 2)
            assert counter.pending == 3
            gate.opened.set()
        assert counter.pending == 0


async def test_a_handle_shows_its_name_and_whether_the_actor_is_up():
    async with Supervisor(policy=NEVER_BACK, stop_timeout_ms=1) as supervisor:
        counter = await supervisor.spawn(Counter, name="till")
        assert counter.name == "till"
        assert counter.is_up
        assert repr(counter) == "<ActorRef till up>"
        with pytest.raises(ActorCrashed):
            await counter.call(Counter.fail, Bug())
        assert not counter.is_up
        assert repr(counter) == "<ActorRef till down>"
    assert not counter.is_up


async def test_peek_reads_without_a_call():
    async with Supervisor(policy=NEVER_BACK, stop_timeout_ms=1) as supervisor:
        counter = await supervisor.spawn(Counter)
        await counter.call(Counter.add, 4)
        assert counter.peek(Counter.read, -1) == 4
        assert (counter.local_calls, counter.queued_calls) == (1, 0)
        with pytest.raises(ActorCrashed):
            await counter.call(Counter.fail, Bug())
        assert counter.peek(Counter.read, -1) == -1


async def test_mailbox_depth_counts_every_call_that_is_not_begun():
    gate = Gate()
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter, mailbox_size=2)
        assert counter.mailbox_depth == 0
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(counter.call, Counter.hold, gate)
            await gate.reached.wait()
            for n in range(1, 7):
                task_group.start_soon(counter.call, Counter.add)
                await until(lambda n=n: counter.mailbox_depth == n)
            gate.opened.set()
        assert counter.mailbox_depth == 0


# -- other threads -------------------------------------------------------------------------------


async def in_plain_thread(function, *args):
    """What `function` returns or raises in a thread that anyio knows nothing of."""
    outcome = []

    def run():
        try:
            outcome.append((function(*args), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


@pytest.fixture(params=[anyio.to_thread.run_sync, in_plain_thread], ids=["worker", "plain"])
def in_thread(request):
    return request.param


@pytest.mark.parametrize("handler", [Counter.add, Counter.add_slowly])
async def test_a_thread_gets_the_reply(in_thread, handler):
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        assert await in_thread(counter.call_from_thread, handler, 3) == 3
        assert await in_thread(partial(counter.call_from_thread, handler, amount=4)) == 7
        assert await counter.call(Counter.read) == 7


async def test_a_handler_called_from_a_thread_runs_in_the_event_loops_thread(in_thread):
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        ident = await in_thread(counter.call_from_thread, lambda _: threading.get_ident())
        assert ident == threading.get_ident()


async def test_a_thread_gets_the_errors_that_a_task_gets(in_thread):
    async with Supervisor(policy=FORGIVING) as supervisor:
        counter = await supervisor.spawn(Counter)
        with pytest.raises(Refused, match="no"):
            await in_thread(counter.call_from_thread, Counter.fail, Refused("no"))
        bug = Bug()
        with pytest.raises(ActorCrashed) as caught:
            await in_thread(counter.call_from_thread, Counter.fail, bug)
        assert caught.value.__cause__ is bug
        assert await in_thread(counter.call_from_thread, Counter.add) == 1
    with pytest.raises(ActorStopped):
        await in_thread(counter.call_from_thread, Counter.add)


async def test_many_threads_call_at_once():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)

        def work():
            for _ in range(20):
                counter.call_from_thread(Counter.add)
                counter.call_from_thread(Counter.add_slowly)

        async with anyio.create_task_group() as task_group:
            for _ in range(8):
                task_group.start_soon(anyio.to_thread.run_sync, work)
        assert await counter.call(Counter.read) == 8 * 40


async def test_a_thread_that_waits_hears_of_the_end(in_thread):
    gate = Gate()
    refused = []

    async def caller():
        try:
            await in_thread(counter.call_from_thread, Counter.hold, gate)
        except ActorStopped as error:
            refused.append(error)

    async with anyio.create_task_group() as task_group:
        with anyio.CancelScope() as scope:
            async with Supervisor() as supervisor:
                counter = await supervisor.spawn(Counter)
                task_group.start_soon(caller)
                await gate.reached.wait()
                scope.cancel()
    assert len(refused) == 1


async def test_the_event_loops_own_thread_must_not_wait_for_itself():
    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        with pytest.raises(RuntimeError, match=r"use await call\(\)"):
            counter.call_from_thread(Counter.add)
        assert await counter.call(Counter.read) == 0


@pytest.mark.parametrize("backend", [*BACKENDS, UVLOOP])
def test_after_the_event_loop_has_ended_a_call_from_any_thread_is_refused(backend):
    async def main():
        async with Supervisor() as supervisor:
            return await supervisor.spawn(Counter, name="till")

    name, options = backend
    counter = anyio.run(main, backend=name, backend_options=options)

    # This thread was the event loop's own until a moment ago.
    with pytest.raises(ActorStopped, match="till has stopped"):
        counter.call_from_thread(Counter.add)

    async def from_others():
        for in_thread in (anyio.to_thread.run_sync, in_plain_thread):
            with pytest.raises(ActorStopped, match="till has stopped"):
                await in_thread(counter.call_from_thread, Counter.add)

    anyio.run(from_others)


@pytest.mark.parametrize("backend", [*BACKENDS, UVLOOP])
def test_an_event_loop_that_ended_without_a_stop_refuses_calls_from_threads(backend):
    async def main():
        return Cell(
            Counter,
            name="till",
            mailbox_size=1,
            call_timeout_ms=1,
            max_batch=1,
        )

    name, options = backend
    cell = anyio.run(main, backend=name, backend_options=options)

    async def from_another_loop():
        with pytest.raises(ActorStopped, match="till has stopped: its event loop is closed"):
            await in_plain_thread(cell.ref.call_from_thread, Counter.add)

    anyio.run(from_another_loop)
    cell.finish(ActorStopped, "the test is over")
