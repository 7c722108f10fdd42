"""Transactions on one key, which run one after another."""

from __future__ import annotations

import anyio
import pytest
from anyio.abc import TaskStatus

from trunkline.contracts.signal.samples import RollBack, count_up, elsewhere, held
from trunkline.errors import CallTimeout
from trunkline.signal import SignalAdapter, SignalStore

__all__ = ("LockingTests",)


class LockingTests:
    """A part of `SignalContract`."""

    async def test_transactions_on_one_key_run_one_after_another_in_order_of_arrival(
        self, adapter: SignalAdapter
    ) -> None:
        async def increment(number: int, *, task_status: TaskStatus[None]) -> None:
            task_status.started()
            async with store.transaction("ann") as tx:
                order.append(number)
                await count_up(tx)

        order: list[int] = []
        async with SignalStore(adapter=adapter) as store:
            async with anyio.create_task_group() as task_group, held(store, "ann"):
                for number in range(64):
                    await task_group.start(increment, number)
                assert order == []
            assert order == list(range(64))
            assert await store.get("session", ["count"]) == {"count": 64}

    async def test_transactions_on_different_keys_run_at_once(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store, elsewhere() as run:

            async def theirs() -> None:
                async with store.transaction("bob") as tx:
                    await tx.set({"session": {"bob": b"2"}})

            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"1"}})
                await run(theirs)
                assert await store.get("session", ["ann", "bob"]) == {"bob": b"2"}
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"2"}

    async def test_a_key_that_is_not_free_in_time_raises_call_timeout(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            async with held(store, "ann"):
                with pytest.raises(CallTimeout, match="'transaction:ann' was not free within 20"):
                    await store.transact("ann", count_up, timeout_ms=20)
            assert await store.transact("ann", count_up, timeout_ms=5_000) == 1

    async def test_a_store_that_ends_gives_back_its_locks(self, adapter: SignalAdapter) -> None:
        async def own(*, task_status: TaskStatus[None]) -> None:
            async with store.transaction("ann") as tx:
                task_status.started()
                await tx.lock.wait_lost()
                lost.set()

        if not adapter.lease_ms:
            pytest.skip("the database has no locks between processes")
        lost = anyio.Event()
        async with anyio.create_task_group() as task_group:
            async with SignalStore(adapter=adapter) as store:
                await task_group.start(own)
            await lost.wait()
        async with SignalStore(adapter=adapter.sibling()) as other:
            assert await other.transact("ann", count_up, timeout_ms=2_000) == 1

    @pytest.mark.parametrize("end", ["cancelled", "raised"])
    async def test_the_lock_of_an_owner_that_is_gone_is_free_at_once(
        self, adapter: SignalAdapter, end: str
    ) -> None:
        async def own(*, task_status: TaskStatus[anyio.CancelScope]) -> None:
            with anyio.CancelScope() as scope:
                try:
                    async with store.transaction("ann") as tx:
                        await tx.set({"session": {"ann": b"theirs"}})
                        task_status.started(scope)
                        await let_go.wait()
                        raise RollBack
                except RollBack:
                    pass

        async with SignalStore(adapter=adapter) as store, anyio.create_task_group() as task_group:
            let_go = anyio.Event()
            scope = await task_group.start(own)
            if end == "cancelled":
                scope.cancel()
            else:
                let_go.set()
            with anyio.fail_after(8):  # less than a lease lasts
                async with store.transaction("ann") as tx:
                    assert await tx.get("session", ["ann"]) == {}
                    await tx.set({"session": {"ann": b"mine"}})
            assert await store.get("session", ["ann"]) == {"ann": b"mine"}

    async def test_a_cancelled_waiter_does_not_break_the_line(self, adapter: SignalAdapter) -> None:
        async def wait_in_line(number: int, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
            with anyio.CancelScope() as scope:
                task_status.started(scope)
                async with store.transaction("ann"):
                    order.append(number)

        order: list[int] = []
        async with SignalStore(adapter=adapter) as store:
            async with anyio.create_task_group() as task_group, held(store, "ann"):
                scopes = [await task_group.start(wait_in_line, number) for number in range(6)]
                for number in (0, 2, 3):
                    scopes[number].cancel()
            assert order == [1, 4, 5]

    async def test_a_waiter_that_is_cancelled_when_its_turn_has_come_hands_it_on(
        self, adapter: SignalAdapter
    ) -> None:
        async def own(*, task_status: TaskStatus[None]) -> None:
            async with store.transaction("ann"):
                task_status.started()
                await let_go.wait()
            scope.cancel()

        async def wait_in_line(*, task_status: TaskStatus[anyio.CancelScope]) -> None:
            with anyio.CancelScope() as mine:
                task_status.started(mine)
                async with store.transaction("ann"):
                    pass

        async with SignalStore(adapter=adapter) as store, anyio.create_task_group() as task_group:
            let_go = anyio.Event()
            await task_group.start(own)
            scope = await task_group.start(wait_in_line)
            let_go.set()
            with anyio.fail_after(8):  # less than a lease lasts
                async with store.transaction("ann") as tx:
                    await tx.set({"session": {"ann": b"1"}})
            assert await store.get("session", ["ann"]) == {"ann": b"1"}
