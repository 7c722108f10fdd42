"""Group commit: calls that wait together share a transaction, and each gets what is its own."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.backends.ledger import Book, Bug, Gate, Ledger, LedgerStore, PlainLedger
from trunkline.actors import RestartPolicy
from trunkline.backends import Conflict, ConnectionLost
from trunkline.errors import ActorCrashed, NotFound, StoreUnavailable
from trunkline.fsm import FSMStore

#: Forgives one crash, and rests for a millisecond after it.
FORGIVES_ONE = RestartPolicy(max_restarts=1, min_backoff_ms=1, max_backoff_ms=1)


class Outcomes:
    """What came of calls that were made together: results and errors by name."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}
        self.errors: dict[str, Exception] = {}

    async def note(self, name: str, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.results[name] = await call()
        except Exception as error:
            self.errors[name] = error


async def until(condition: Callable[[], object]) -> None:
    """Wait for the store's thread, which needs the interpreter too: sleep, and not only yield."""
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.001)


@asynccontextmanager
async def one_batch(store: LedgerStore):
    """Let the calls that are made inside wait together, and serve them in one batch on leaving.

    Yields:
        A function that makes a call by the name of the line, and what came of all of them.
    """
    gate, outcomes = Gate(), Outcomes()
    async with anyio.create_task_group() as callers:
        callers.start_soon(Outcomes().note, "-", lambda: store.hold("-", gate))
        await gate.reached()

        async def call(line: str, method: Callable[..., Awaitable[Any]], *args: Any) -> None:
            waiting = store.waiting
            callers.start_soon(outcomes.note, line, lambda: method(line, *args))
            while store.waiting == waiting:
                await checkpoint()

        yield call, outcomes
        gate.open()


async def test_calls_that_wait_together_are_committed_together():
    async with LedgerStore(Ledger()) as store:
        async with one_batch(store) as (call, outcomes):
            for line in "abcde":
                await call(line, store.write)
        assert outcomes.results == {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"}
        assert store.book.commits == [1, 5]


async def test_a_batch_is_bounded():
    async with LedgerStore(Ledger(), max_batch=2) as store:
        async with one_batch(store) as (call, _):
            for line in "abcde":
                await call(line, store.write)
        assert store.book.commits == [1, 2, 2, 1]


async def test_a_call_that_fails_is_rolled_back_alone():
    async with LedgerStore(Ledger()) as store:
        async with one_batch(store) as (call, outcomes):
            await call("a", store.write)
            await call("b", store.fail, NotFound("no b"))
            await call("c", store.write)
        assert store.book.lines == ["-", "a", "c"]
        assert outcomes.results == {"a": "A", "c": "C"}
        with pytest.raises(NotFound, match="no b"):
            raise outcomes.errors["b"]


async def test_calls_are_served_in_the_order_in_which_they_were_made_also_after_a_failure():
    async with LedgerStore(Ledger()) as store:
        async with one_batch(store) as (call, _):
            for line in "abc":
                await call(line, store.write)
            await call("d", store.fail, NotFound("no d"))
            for line in "efg":
                await call(line, store.write)
        assert store.book.lines == ["-", *"abcefg"]


async def test_neighbours_of_one_kind_are_served_in_bulk():
    async with LedgerStore(Ledger()) as store:
        async with one_batch(store) as (call, outcomes):
            for line in "abc":
                await call(line, store.write)
            await call("d", store.fail_once)
            await call("e", store.write)
        assert store.book.runs == ["-", "a b c", "d", "e"]
        assert outcomes.results == {line: line.upper() for line in "abcde"}


async def test_a_bug_crashes_only_the_caller_whose_call_it_is_and_the_worker_comes_back():
    async with LedgerStore(Ledger(), restart_policy=FORGIVES_ONE) as store:
        bug = Bug("b is broken")
        async with one_batch(store) as (call, outcomes):
            await call("a", store.write)
            await call("b", store.fail, bug)
            await call("c", store.write)
        assert outcomes.results == {"a": "A", "c": "C"}
        assert isinstance(outcomes.errors["b"], ActorCrashed)
        assert outcomes.errors["b"].__cause__ is bug
        assert await store.write("d") == "D"
        assert store.book.lines == ["-", "a", "c", "d"]
        assert (store.book.opened, store.book.closed, store.restarts) == (2, 1, 1)


async def test_what_is_raised_in_opening_a_transaction_is_the_answer_to_every_call():
    async with LedgerStore(Ledger()) as store:
        async with one_batch(store) as (call, outcomes):
            store.book.on_begin = [StoreUnavailable("away")]
            await call("a", store.write)
            await call("b", store.write)
        assert store.book.runs == ["-"]
        for line in "ab":
            with pytest.raises(StoreUnavailable, match="away"):
                raise outcomes.errors[line]
        assert await store.write("c") == "C"
        assert store.restarts == 0


async def test_a_commit_that_fails_is_tried_again_call_by_call():
    async with LedgerStore(Ledger()) as store:
        full = StoreUnavailable("full")
        async with one_batch(store) as (call, outcomes):
            for line in "abc":
                await call(line, store.write)
            # Of the holding call, of the batch, of a, and of b.
            store.book.on_commit = [None, full, None, full]
        assert store.book.lines == ["-", "a", "c"]
        assert outcomes.results == {"a": "A", "c": "C"}
        with pytest.raises(StoreUnavailable, match="full"):
            raise outcomes.errors["b"]


async def test_a_connection_that_is_lost_fails_every_call_and_none_is_tried_again():
    async with LedgerStore(Ledger()) as store:
        async with one_batch(store) as (call, outcomes):
            await call("a", store.write)
            await call("b", store.fail_once)
            store.book.on_commit = [None, ConnectionLost("cut")]
        assert store.book.runs == ["-", "a", "b"]
        for line in "ab":
            with pytest.raises(ConnectionLost, match="cut"):
                raise outcomes.errors[line]
        assert outcomes.errors["a"] is not outcomes.errors["b"]


async def test_a_connection_that_is_lost_while_calls_run_singly_fails_those_that_are_left():
    async with LedgerStore(Ledger()) as store:
        async with one_batch(store) as (call, outcomes):
            await call("a", store.write)
            await call("b", store.fail_once, NotFound("no b"), ConnectionLost("cut"))
            await call("c", store.write)
        assert outcomes.results == {"a": "A"}
        assert {line: str(error) for line, error in outcomes.errors.items()} == {
            "b": "cut",
            "c": "cut",
        }
        assert store.book.runs == ["-", "a", "b", "a", "b"]


async def test_a_call_that_met_another_transaction_is_tried_again():
    async with LedgerStore(Ledger()) as store:
        conflict = Conflict("deadlock")
        assert await store.fail_once("a", conflict, conflict, conflict) == "A"
        assert store.book.lines == ["a"]
        assert store.book.runs == ["a"] * 4


async def test_a_batch_that_met_another_transaction_is_run_call_by_call():
    async with LedgerStore(Ledger()) as store:
        async with one_batch(store) as (call, outcomes):
            await call("a", store.write)
            await call("b", store.fail_once, Conflict("deadlock"), Conflict("deadlock"))
            await call("c", store.write)
        assert outcomes.results == {"a": "A", "b": "B", "c": "C"}
        assert store.book.commits == [1, 1, 1, 1]
        assert store.book.runs == ["-", "a", "b", "a", "b", "c", "b"]


async def test_a_call_that_meets_another_transaction_for_long_holds_up_only_its_own_order():
    """Its neighbours are served meanwhile, and so are those that come later."""
    conflicts = [Conflict("locked")] * 6
    async with LedgerStore(Ledger()) as store:
        async with one_batch(store) as (call, outcomes):
            await call("b1", store.fail_once, *conflicts)
            await call("b2", store.write)
            await call("a1", store.write)
            await call("c1", store.write)
        assert outcomes.results == {name: name.upper() for name in ("b1", "b2", "a1", "c1")}
        assert store.book.lines == ["-", "a1", "c1", "b1", "b2"]


async def test_calls_that_come_while_another_meets_a_transaction_are_served_before_it():
    async with LedgerStore(Ledger()) as store, anyio.create_task_group() as callers:
        conflicts: list[Exception | None] = [Conflict("locked")] * 1_000
        callers.start_soon(store._write, "b", Ledger.fail_once, "b", conflicts)
        await until(lambda: len(conflicts) < 1_000)
        assert await store.write("a") == "A"
        assert store.book.lines == ["a"]
        conflicts.clear()
    assert store.book.lines == ["a", "b"]


async def test_a_call_that_is_given_up_while_its_batch_waits_to_begin_is_never_run():
    async with LedgerStore(GatedLedger(), call_timeout_ms=50) as store:
        with pytest.raises(StoreUnavailable, match="the call will never begin"):
            await store.write("a")
        store.book.gate.open()  # type: ignore[attr-defined]
        await until(lambda: not store.waiting)
        assert await store.write("b") == "B"
        assert (store.book.lines, store.book.runs) == (["b"], ["b"])


async def test_a_call_that_is_given_up_after_it_began_says_that_it_may_take_effect():
    async with LedgerStore(Ledger(), call_timeout_ms=50) as store:
        gate = Gate()
        with pytest.raises(StoreUnavailable, match="began, and may take effect"):
            await store.hold("a", gate)
        gate.open()
        await until(lambda: store.book.lines == ["a"])


class GatedLedger(Ledger):
    """A database whose transactions begin when another process lets them."""

    @contextmanager
    def transaction(self, *, read_only=False):
        if not hasattr(self.book, "gate"):
            self.book.gate = Gate()  # type: ignore[attr-defined]
        self.book.gate.pass_through()  # type: ignore[attr-defined]
        with super().transaction(read_only=read_only):
            yield


class CountingLedger(Ledger):
    """A database that reports how much its transaction has changed."""

    def changes(self):
        return len(self._pending)


async def test_a_call_that_fails_and_changed_nothing_leaves_its_batch_alone():
    async with LedgerStore(CountingLedger()) as store:
        async with one_batch(store) as (call, outcomes):
            await call("a", store.write)
            await call("b", lambda line: store._write(line, Ledger.read_one, line))
            await call("c", store.write)
        assert outcomes.results == {"a": "A", "c": "C"}
        assert isinstance(outcomes.errors["b"], NotFound)
        assert store.book.commits == [1, 2]
        assert store.book.runs == ["-", "a", "b", "c"]


async def test_a_call_that_fails_after_a_change_is_rolled_back_though_changes_are_counted():
    async with LedgerStore(CountingLedger()) as store:
        async with one_batch(store) as (call, outcomes):
            await call("a", store.write)
            await call("b", store.fail, NotFound("no b"))
        assert store.book.lines == ["-", "a"]
        assert isinstance(outcomes.errors["b"], NotFound)


async def test_a_read_goes_to_the_reader_that_has_least_to_do():
    async with LedgerStore(Ledger(readers=2)) as store, anyio.create_task_group() as callers:
        gates = [Gate(), Gate()]
        callers.start_soon(store.hold_read, gates[0])
        await gates[0].reached()
        # Neither reader has a call that waits: only one of them is at work.
        for _ in range(4):
            assert await store.read() == []
        gates[0].open()


async def test_a_call_that_meets_others_for_too_long_fails_and_nothing_of_it_is_stored():
    async with LedgerStore(Ledger(), call_timeout_ms=500) as store:
        with pytest.raises(StoreUnavailable):
            await store.fail_once("a", *[Conflict("deadlock")] * 1_000)
        assert await store.write("b") == "B"
        assert store.book.lines == ["b"]


async def test_a_reply_does_not_wait_for_a_call_behind_it_that_met_another_transaction():
    async with LedgerStore(Ledger()) as store:
        gate = Gate()
        async with anyio.create_task_group() as callers:
            async with one_batch(store) as (call, outcomes):
                await call("a", store.write)
                await call("b", store.fail_once, Conflict("deadlock"))
                callers.start_soon(store.hold, "c", gate)
                while store.waiting < 3:
                    await checkpoint()
                # Lets the holding call of the batch go on; then a and b run, and c holds.
            assert outcomes.results == {"a": "A", "b": "B"}
            assert "c" not in store.book.lines
            gate.open()
        assert store.book.lines == ["-", "a", "b", "c"]


async def test_calls_for_which_nobody_waits_any_more_are_not_run_singly():
    async with LedgerStore(Ledger(), call_timeout_ms=500) as store:
        gate = Gate()
        async with anyio.create_task_group() as callers:
            async with one_batch(store) as (call, outcomes):
                callers.start_soon(Outcomes().note, "a", lambda: store.hold("a", gate))
                while store.waiting < 1:
                    await checkpoint()
                await call("b", store.fail, NotFound("no b"))
                await call("c", store.write)
            # Their callers have given up by now; what they called stands in the middle.
            assert all("500 ms" in str(outcomes.errors[line]) for line in "bc")
            gate.open()
        assert await store.write("d") == "D"
        assert store.book.lines == ["-", "d"]
        assert store.book.runs == ["-", "a", "b", "d"]


async def test_a_call_is_not_run_twice_by_an_adapter_without_transactions():
    async with LedgerStore(PlainLedger()) as store:
        async with one_batch(store) as (call, outcomes):
            await call("a", store.write)
            await call("b", store.write)
            await call("c", store.fail, NotFound("no c"))
            await call("d", store.write)
        assert store.book.runs == ["-", "a", "b", "c", "d"]
        assert outcomes.results == {"a": "A", "b": "B", "d": "D"}
        assert outcomes.errors.keys() == {"c"}


# -- reads -----------------------------------------------------------------------------------------


async def test_a_read_that_fails_does_not_trouble_the_others():
    async with LedgerStore(Ledger(readers=1)) as store:
        await store.write("a")
        gate, outcomes = Gate(), Outcomes()
        async with anyio.create_task_group() as callers:
            callers.start_soon(store.hold_read, gate)
            await gate.reached()
            for line in ("a", "x", "y"):
                callers.start_soon(outcomes.note, line, lambda line=line: store.read_one(line))
            while store._readers[0].mailbox_depth < 3:
                await checkpoint()
            gate.open()
        assert outcomes.results == {"a": "a"}
        assert {line: str(error) for line, error in outcomes.errors.items()} == {
            "x": "no line 'x'",
            "y": "no line 'y'",
        }
        assert sorted(store.book.runs) == ["a", "a", "read", "x", "y"], "each was run once"


async def test_reads_do_not_wait_behind_a_long_batch_of_writes():
    async with LedgerStore(Ledger(readers=1)) as store:
        await store.write("a")
        async with one_batch(store) as (call, _):
            await call("b", store.write)
            assert await store.read() == ["a"]
        assert await store.read() == ["a", "-", "b"]


async def test_a_caller_reads_what_it_wrote():
    async with LedgerStore(Ledger(readers=2)) as store:
        seen = []

        async def write_and_read(line: str) -> None:
            await store.write(line)
            seen.append(line in await store.read())

        async with anyio.create_task_group() as callers:
            for number in range(50):
                callers.start_soon(write_and_read, f"{number}")
        assert seen == [True] * 50


# -- order, room, time -----------------------------------------------------------------------------


async def test_calls_that_belong_together_keep_their_order_among_several_writers():
    async with LedgerStore(Ledger(writers=4), max_batch=3) as store:

        async def speak(room: str) -> None:
            async with anyio.create_task_group() as calls:
                for number in range(20):
                    calls.start_soon(store.write, f"{room}{number}")
                    await checkpoint()

        async with anyio.create_task_group() as rooms:
            for room in "abcdefgh":
                rooms.start_soon(speak, room)
        for room in "abcdefgh":
            lines = [line for line in store.book.lines if line[0] == room]
            assert lines == [f"{room}{number}" for number in range(20)]


async def test_callers_wait_for_room_in_a_full_mailbox():
    async with LedgerStore(Ledger(), mailbox_size=2) as store:
        async with one_batch(store) as (call, outcomes):
            for line in "abcde":
                await call(line, store.write)
        assert store.book.lines == ["-", *"abcde"]
        assert len(outcomes.results) == 5


async def test_a_call_that_finds_no_room_in_time_fails_and_is_never_run():
    async with LedgerStore(Ledger(), mailbox_size=1, call_timeout_ms=500) as store:
        gate, outcomes = Gate(), Outcomes()
        async with anyio.create_task_group() as callers:
            callers.start_soon(outcomes.note, "a", lambda: store.hold("a", gate))
            await gate.reached()
            callers.start_soon(outcomes.note, "b", lambda: store.write("b"))
            callers.start_soon(outcomes.note, "c", lambda: store.write("c"))
        gate.open()
        for line in "abc":
            with pytest.raises(
                StoreUnavailable, match="ledger/writer-0 did not reply within 500 ms"
            ):
                raise outcomes.errors[line]
        assert await store.write("d") == "D"
        assert store.book.lines == ["a", "d"], "a was begun, b and c were not"


async def test_a_call_whose_caller_was_cancelled_in_the_middle_is_finished():
    async with LedgerStore(Ledger()) as store:
        gate = Gate()
        async with anyio.create_task_group() as callers:
            callers.start_soon(store.hold, "a", gate)
            await gate.reached()
            callers.cancel_scope.cancel()
        gate.open()
        assert await store.write("b") == "B"
        assert store.book.lines == ["a", "b"]


async def test_a_store_that_is_cancelled_does_not_run_the_rest_of_a_batch_that_failed():
    first, second = Gate(), Gate()
    book = Book()
    async with anyio.create_task_group() as program:

        async def run_store():
            async with LedgerStore(Ledger(book)) as store, anyio.create_task_group() as callers:
                callers.start_soon(store.hold, "-", first)
                await first.reached()
                callers.start_soon(store.fail_once, "a", NotFound("no a"))
                await until(lambda: store.waiting == 1)
                callers.start_soon(store.hold, "b", second)
                await until(lambda: store.waiting == 2)
                for line in "cdefg":
                    callers.start_soon(store.write, line)
                await until(lambda: store.waiting == 7)
                first.open()

        program.start_soon(run_store)
        await second.reached()
        program.cancel_scope.cancel()
        threading.Timer(0.05, second.open).start()
    assert book.lines == ["-", "a", "b"]
    assert (book.opened, book.closed) == (1, 1)


async def test_a_call_whose_caller_was_cancelled_while_it_waited_is_not_run():
    async with LedgerStore(Ledger()) as store:
        async with one_batch(store) as (call, outcomes):
            await call("a", store.write)
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(store.write, "b")
                while store.waiting < 2:
                    await checkpoint()
                cancelled.cancel_scope.cancel()
            await call("c", store.write)
        assert outcomes.results == {"a": "A", "c": "C"}
        assert store.book.lines == ["-", "a", "c"]


async def test_the_programs_own_threads_do_not_hold_up_a_store():
    limiter = anyio.to_thread.current_default_thread_limiter()
    async with LedgerStore(Ledger()) as store:
        before, limiter.total_tokens = limiter.total_tokens, 1
        try:
            gate = Gate()
            async with anyio.create_task_group() as program:
                program.start_soon(anyio.to_thread.run_sync, gate.pass_through)
                while not limiter.borrowed_tokens:
                    await checkpoint()
                assert await store.write("a") == "A"
                gate.open()
        finally:
            limiter.total_tokens = before


# -- coming and going ------------------------------------------------------------------------------


async def test_what_opening_raises_at_first_comes_out_of_async_with():
    book = Book()
    book.on_open = [StoreUnavailable("away")]
    with pytest.raises(StoreUnavailable, match="away"):
        async with LedgerStore(Ledger(book)):
            pytest.fail("it was entered")


async def test_a_worker_that_crashed_while_the_database_is_away_opens_it_when_it_is_back():
    async with LedgerStore(Ledger(), restart_policy=FORGIVES_ONE) as store:
        away = StoreUnavailable("away")
        store.book.on_open = [away] * 4  # one for coming up, and one for each of these calls
        with pytest.raises(ActorCrashed):
            await store.fail("a", Bug())
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="away"):
                await store.write("b")
        assert await store.write("c") == "C"
        assert store.restarts == 1
        assert store.book.opened == 6


async def test_leaving_serves_the_calls_in_the_mailbox_and_refuses_those_that_wait_for_room():
    store = LedgerStore(Ledger(), mailbox_size=2)
    gate, outcomes = Gate(), Outcomes()

    async def write(line: str) -> None:
        await outcomes.note(line, lambda: store.write(line))
        if line == "d":
            gate.open()  # the store is being left, and d was refused at once

    async with anyio.create_task_group() as callers, store:
        callers.start_soon(outcomes.note, "a", lambda: store.hold("a", gate))
        await gate.reached()
        for waiting, line in enumerate("bcd"):
            callers.start_soon(write, line)
            while store.waiting <= waiting:
                await checkpoint()
    assert outcomes.results == {"a": "A", "b": "B", "c": "C"}
    with pytest.raises(StoreUnavailable, match="ledger/writer-0 has stopped"):
        raise outcomes.errors["d"]
    assert store.book.lines == ["a", "b", "c"]
    assert store.book.closed == 1


def test_an_event_loop_that_ends_in_the_middle_of_a_batch_lets_it_end_before_closing():
    book, begun = Book(), threading.Event()

    class SlowLedger(Ledger):
        def write(self, line: str) -> str:
            begun.set()
            threading.Event().wait(0.2)
            return super().write(line)

    async def main() -> asyncio.Task:
        store = await LedgerStore(SlowLedger(book)).start()
        write = asyncio.create_task(store.write("a"))
        await anyio.to_thread.run_sync(begun.wait)
        return write  # and nobody awaits stop(): asyncio.run cancels whatever is left

    assert asyncio.run(main()).cancelled()
    assert book.lines == ["a"]
    assert book.closed == 1
    assert not book.closed_in_the_middle


async def test_what_was_refused_while_another_process_held_the_database_is_never_stored(tmp_path):
    """The batch waits to begin for as long as its callers do; the reply that they get is final."""
    path = tmp_path / "bot.db"
    async with FSMStore(f"sqlite:///{path}", call_timeout_ms=300) as store:
        await store.init("bot")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        errors: list[StoreUnavailable] = []

        async def refused(key: int) -> None:
            with pytest.raises(StoreUnavailable) as caught:
                await store.set_state("bot", key, "refused")
            errors.append(caught.value)

        async with anyio.create_task_group() as callers:
            for key in range(20):
                callers.start_soon(refused, key)
        other.execute("ROLLBACK")
        await store.set_state("bot", 99, "stored")
        assert [await store.get_state("bot", key) for key in range(20)] == [None] * 20
        other.close()
    assert not [error for error in errors if "may take effect" in str(error)]


@pytest.mark.parametrize("anyio_backend", ["asyncio", ("asyncio", {"use_uvloop": True}), "trio"])
async def test_a_loop_of_calls_on_a_store_can_be_cancelled():
    async with LedgerStore(Ledger()) as store:
        calls = 0
        with anyio.fail_after(60), anyio.move_on_after(0.05) as scope:
            while True:
                await store.read()
                calls += 1
        assert scope.cancelled_caught
        assert calls


@pytest.mark.parametrize("anyio_backend", ["asyncio", ("asyncio", {"use_uvloop": True}), "trio"])
async def test_loops_of_calls_on_a_store_end_when_a_sibling_fails():
    async def read_on(store: LedgerStore) -> None:
        while True:
            await store.read()

    async def run() -> None:
        async with LedgerStore(Ledger()) as store, anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(read_on, store)
            await store.read()
            raise KeyError

    with anyio.fail_after(60), pytest.raises(ExceptionGroup):
        await run()
