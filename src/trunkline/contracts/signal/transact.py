"""`transact`, which runs its function again after a conflict."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from trunkline.contracts.signal.samples import RollBack, count_up, remember, rolled_back, write
from trunkline.errors import ConfigurationError, TransactionConflict
from trunkline.signal import SignalAdapter, SignalStore, SignalTransaction

__all__ = ("TransactTests",)


class TransactTests:
    """A part of `SignalContract`."""

    async def test_transact_returns_what_its_function_returned(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            assert await store.transact("ann", remember) == b"1"
            assert await store.get("session", ["memory"]) == {"memory": b"1"}

    async def test_transact_runs_its_function_again_after_a_conflict(
        self, adapter: SignalAdapter
    ) -> None:
        async def increment(tx: SignalTransaction) -> int:
            count: int = (await tx.get("session", ["count"])).get("count", 0)
            seen.append(count)
            if len(seen) < 3:
                await store.set({"session": {"count": 10 * len(seen)}})
            await tx.set({"session": {"count": count + 1}})
            return count + 1

        seen: list[int] = []
        async with SignalStore(adapter=adapter) as store:
            assert await store.transact("ann", increment) == 21
            assert seen == [0, 10, 20]
            assert await store.get("session", ["count"]) == {"count": 21}

    @pytest.mark.parametrize("retries", [0, 1, 4])
    async def test_transact_gives_up_after_its_retries(
        self, adapter: SignalAdapter, retries: int
    ) -> None:
        runs = 0

        async def lose(tx: SignalTransaction) -> None:
            nonlocal runs
            runs += 1
            await tx.set({"session": {"ann": b"mine"}})
            await store.set({"session": {"ann": runs}})

        async with SignalStore(adapter=adapter) as store:
            with pytest.raises(TransactionConflict):
                await store.transact("ann", lose, retries=retries)
            assert runs == retries + 1
            assert await store.get("session", ["ann"]) == {"ann": retries + 1}

    async def test_transact_does_not_run_a_function_again_that_raised(
        self, adapter: SignalAdapter
    ) -> None:
        runs = 0

        async def fail(tx: SignalTransaction) -> None:
            nonlocal runs
            runs += 1
            await tx.set({"session": {"ann": b"1"}})
            raise RollBack

        async with SignalStore(adapter=adapter) as store:
            with rolled_back():
                await store.transact("ann", fail)
            assert runs == 1
            assert await store.get("session", ["ann"]) == {}

    async def test_a_conflict_of_a_nested_transact_is_for_the_outer_to_deal_with(
        self, adapter: SignalAdapter
    ) -> None:
        runs = {"inner": 0, "outer": 0}

        async def inner(tx: SignalTransaction) -> None:
            runs["inner"] += 1
            await tx.set({"session": {"bob": b"inner"}})
            if runs["inner"] == 1:
                raise TransactionConflict("of another store, for instance")

        async def outer(tx: SignalTransaction) -> None:
            runs["outer"] += 1
            await tx.set({"session": {"ann": runs["outer"]}})
            await store.transact("another", inner)

        async with SignalStore(adapter=adapter) as store:
            await store.transact("ann", outer)
            assert runs == {"inner": 2, "outer": 2}
            assert await store.get("session", ["ann", "bob"]) == {"ann": 2, "bob": b"inner"}

    @pytest.mark.parametrize("retries", [-1, 1.5, "3", True, None], ids=repr)
    async def test_retries_are_an_int_of_0_or_more(
        self, adapter: SignalAdapter, retries: Any
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            with pytest.raises(ConfigurationError, match="retries"):
                await store.transact("ann", write, retries=retries)

    async def test_a_counter_loses_nothing_under_thirty_two_keys(
        self, adapter: SignalAdapter
    ) -> None:
        async def work(number: int) -> None:
            for _ in range(3):
                await store.transact(f"key {number}", count_up, retries=200)

        async with SignalStore(adapter=adapter) as store:
            async with anyio.create_task_group() as task_group:
                for number in range(32):
                    task_group.start_soon(work, number)
            assert await store.get("session", ["count"]) == {"count": 96}
