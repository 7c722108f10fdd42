"""Transactions that change or read the same entries."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from itertools import permutations

import anyio
import pytest
from anyio.abc import TaskStatus

from trunkline.contracts.signal.interleavings import (
    INITIAL,
    interleave,
    one_after_another,
    state_of,
)
from trunkline.contracts.signal.samples import (
    Changes,
    Handle,
    apply,
    elsewhere,
    everything,
    raises_conflict,
    write,
)
from trunkline.signal import SignalAdapter, SignalStore

__all__ = ("ConflictTests",)


async def _read(tx: Handle) -> None:
    await tx.get("session", ["ann"])
    await tx.set({"pre-key": {"1": b"mine"}})


async def _read_absent(tx: Handle) -> None:
    await tx.get("session", ["new"])
    await tx.set({"pre-key": {"1": b"mine"}})


async def _delete(tx: Handle) -> None:
    await tx.set({"session": {"ann": None}})


async def _create(tx: Handle) -> None:
    await tx.set({"session": {"new": b"mine"}})


async def _clear(tx: Handle) -> None:
    await tx.clear()


async def _clear_and_write(tx: Handle) -> None:
    await tx.clear()
    await tx.set({"pre-key": {"1": b"mine"}})


#: What a transaction does, and what another one that commits before it changes; `None` clears.
CONFLICTS: dict[str, tuple[Callable[[Handle], Awaitable[None]], Changes | None]] = {
    "read-write": (_read, {"session": {"ann": b"theirs"}}),
    "read-delete": (_read, {"session": {"ann": None}}),
    "read-create": (_read_absent, {"session": {"new": b"theirs"}}),
    "read-clear": (_read, None),
    "write-write": (write, {"session": {"ann": b"theirs"}}),
    "write-the-same": (write, {"session": {"ann": b"first"}}),
    "write-delete": (write, {"session": {"ann": None}}),
    "write-clear": (write, None),
    "delete-write": (_delete, {"session": {"ann": b"theirs"}}),
    "delete-delete": (_delete, {"session": {"ann": None}}),
    "create-create": (_create, {"session": {"new": b"theirs"}}),
    "clear-write": (_clear, {"session": {"ann": b"theirs"}}),
    "clear-create": (_clear_and_write, {"identity-key": {"new": b"theirs"}}),
    "clear-delete": (_clear_and_write, {"session": {"bob": None}}),
}


class ConflictTests:
    """A part of `SignalContract`."""

    @pytest.mark.parametrize("case", CONFLICTS)
    async def test_the_second_to_commit_gets_a_conflict_and_nothing_of_it_is_stored(
        self, adapter: SignalAdapter, case: str
    ) -> None:
        mine, change = CONFLICTS[case]

        async def theirs() -> None:
            async with store.transaction("theirs") as tx:
                await apply(tx, change)

        async with SignalStore(adapter=adapter) as store, elsewhere() as run:
            await store.set({"session": {"ann": b"first", "bob": b"first"}})
            with raises_conflict():
                async with store.transaction("mine") as tx:
                    await mine(tx)
                    await run(theirs)
                    stored = await everything(store)
            assert await everything(store) == stored
            assert not store.in_transaction

    @pytest.mark.parametrize("case", CONFLICTS)
    async def test_the_first_to_commit_may_have_begun_before(
        self, adapter: SignalAdapter, case: str
    ) -> None:
        mine, change = CONFLICTS[case]

        async def theirs(*, task_status: TaskStatus[None]) -> None:
            async with store.transaction("theirs") as tx:
                await apply(tx, change)
                task_status.started()
                await commit.wait()
            committed.set()

        async with SignalStore(adapter=adapter) as store, anyio.create_task_group() as task_group:
            commit, committed = anyio.Event(), anyio.Event()
            await store.set({"session": {"ann": b"first", "bob": b"first"}})
            await task_group.start(theirs)
            with raises_conflict():
                async with store.transaction("mine") as tx:
                    await mine(tx)
                    commit.set()
                    await committed.wait()
                    stored = await everything(store)
            assert await everything(store) == stored

    @pytest.mark.parametrize("case", CONFLICTS)
    async def test_a_change_without_a_transaction_is_a_conflict_as_well(
        self, adapter: SignalAdapter, case: str
    ) -> None:
        mine, change = CONFLICTS[case]
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"first", "bob": b"first"}})
            with raises_conflict():
                async with store.transaction("mine") as tx:
                    await mine(tx)
                    await apply(store, change)
                    stored = await everything(store)
            assert await everything(store) == stored

    async def test_transactions_that_touch_different_ids_do_not_conflict(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store, elsewhere() as run:
            await store.set({"session": {"ann": b"first", "bob": b"first"}})

            async def theirs() -> None:
                async with store.transaction("theirs") as tx:
                    assert await tx.get("session", ["bob"]) == {"bob": b"first"}
                    await tx.set({"session": {"bob": b"theirs"}, "pre-key": {"ann": b"theirs"}})

            async with store.transaction("mine") as tx:
                assert await tx.get("session", ["ann"]) == {"ann": b"first"}
                await tx.set({"session": {"ann": b"mine"}})
                await run(theirs)
            found = await store.get("session", ["ann", "bob"])
            assert found == {"ann": b"mine", "bob": b"theirs"}

    async def test_transactions_that_only_read_the_same_ids_do_not_conflict(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store, elsewhere() as run:
            await store.set({"session": {"ann": b"first"}})

            async def theirs() -> None:
                async with store.transaction("theirs") as tx:
                    await tx.get("session", ["ann", "new"])
                    await tx.set({"pre-key": {"1": b"theirs"}})

            async with store.transaction("mine") as tx:
                await tx.get("session", ["ann", "new"])
                await tx.set({"pre-key": {"2": b"mine"}})
                await run(theirs)
            assert len(await store.get("pre-key", ["1", "2"])) == 2

    async def test_a_transaction_that_read_what_was_never_true_together_gets_a_conflict(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1", "bob": b"1"}})
            with raises_conflict():
                async with store.transaction("mine") as tx:
                    first = await tx.get("session", ["ann"])
                    await store.set({"session": {"ann": b"2", "bob": b"2"}})
                    second = await tx.get("session", ["bob"])
            assert (first, second) == ({"ann": b"1"}, {"bob": b"2"})

    async def test_a_hundred_interleavings_end_as_if_one_had_run_after_another(
        self, adapter: SignalAdapter
    ) -> None:
        committed = conflicts = 0
        async with SignalStore(adapter=adapter) as store:
            for seed in range(100):
                await store.clear()
                await store.set(INITIAL)
                players = await interleave(store, random.Random(seed))
                stood = [player for player in players if player.committed]
                final = await state_of(store)
                assert any(one_after_another(order) == final for order in permutations(stood)), (
                    f"seed {seed}: no order of {stood} gives {final}"
                )
                committed += len(stood)
                conflicts += len(players) - len(stood)
        # Interleavings of which nobody ever conflicts, or nobody ever commits, show nothing.
        assert committed > 100
        assert conflicts > 30
