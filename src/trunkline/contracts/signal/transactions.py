"""Transactions: all or nothing, unseen until the commit, nested."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from trunkline.contracts.signal.samples import (
    Handle,
    RollBack,
    elsewhere,
    remember,
    rolled_back,
    write,
)
from trunkline.errors import ConfigurationError
from trunkline.signal import SignalAdapter, SignalStore

__all__ = ("TransactionTests",)


class TransactionTests:
    """A part of `SignalContract`."""

    async def test_a_transaction_reads_what_it_wrote_and_not_what_it_deleted(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1", "bob": b"2"}})
            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"mine", "bob": None, "new": b"3"}})
                found = await tx.get("session", ["ann", "bob", "new"])
                assert found == {"ann": b"mine", "new": b"3"}
                await tx.set({"session": {"bob": b"again", "new": None}})
                found = await tx.get("session", ["ann", "bob", "new"])
                assert found == {"ann": b"mine", "bob": b"again"}
            found = await store.get("session", ["ann", "bob", "new"])
            assert found == {"ann": b"mine", "bob": b"again"}

    async def test_what_a_transaction_has_read_does_not_change_under_it(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            async with store.transaction("ann") as tx:
                assert await tx.get("session", ["ann", "new"]) == {"ann": b"1"}
                await store.set({"session": {"ann": b"2", "new": b"3"}})
                assert await tx.get("session", ["ann", "new"]) == {"ann": b"1"}

    async def test_nothing_is_visible_outside_before_the_commit(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store, elsewhere() as run:
            await store.set({"session": {"ann": b"1", "bob": b"2"}})

            async def look() -> dict[str, Any]:
                async with store.transaction("another") as theirs:
                    found = await theirs.get("session", ["ann", "bob", "new"])
                assert found == await store.get("session", ["ann", "bob", "new"])
                return found

            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"mine", "bob": None, "new": b"3"}})
                assert await run(look) == {"ann": b"1", "bob": b"2"}
                assert await store.get("session", ["ann"]) == {"ann": b"1"}
                await tx.clear()
                assert await run(look) == {"ann": b"1", "bob": b"2"}
            assert await run(look) == {}

    async def test_a_transaction_is_stored_wholly(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"1"}})
                await tx.set({"session": {"bob": b"2"}, "identity-key": {"ann": b"3"}})
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"2"}
            assert await store.get("identity-key", ["ann"]) == {"ann": b"3"}

    async def test_an_exception_rolls_back(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            with rolled_back():
                async with store.transaction("ann") as tx:
                    await tx.set({"session": {"ann": b"2", "bob": b"3"}})
                    raise RollBack
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1"}
            async with store.transaction("ann") as tx:
                assert await tx.get("session", ["ann", "bob"]) == {"ann": b"1"}

    async def test_a_cancellation_rolls_back(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            with anyio.CancelScope() as scope:
                async with store.transaction("ann") as tx:
                    await tx.set({"session": {"ann": b"2", "bob": b"3"}})
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1"}

    async def test_clear_is_part_of_a_transaction(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1", "bob": b"2"}, "pre-key": {"1": b"3"}})
            with rolled_back():
                async with store.transaction("ann") as tx:
                    await tx.clear()
                    raise RollBack
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"2"}
            async with store.transaction("ann") as tx:
                await tx.get("session", ["ann"])
                await tx.set({"session": {"before": b"4"}})
                await tx.clear()
                assert await tx.get("session", ["ann", "bob", "before"]) == {}
                await tx.set({"session": {"bob": b"5", "after": b"6"}})
                await tx.clear()
                await tx.set({"session": {"after": b"7", "ann": None}})
                assert await tx.get("session", ["bob", "after"]) == {"after": b"7"}
            found = await store.get("session", ["ann", "bob", "before", "after"])
            assert found == {"after": b"7"}
            assert await store.get("pre-key", ["1"]) == {}

    async def test_a_transaction_that_is_over_takes_no_more(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"1"}})
            for use in (
                tx.get("session", ["ann"]),
                tx.set({"session": {"ann": b"2"}}),
                tx.clear(),
                tx.transact("ann", write),
                tx.transaction("ann").__aenter__(),
            ):
                with pytest.raises(RuntimeError, match="the transaction on 'ann' is over"):
                    await use
            assert not tx.in_transaction
            assert await store.get("session", ["ann"]) == {"ann": b"1"}

    @pytest.mark.parametrize(
        "wrong",
        ["", 7, None, b"ann", "nul\0"],
        ids=["empty", "an int", "None", "bytes", "a NUL"],
    )
    async def test_the_key_of_a_transaction_is_a_string(
        self, adapter: SignalAdapter, wrong: Any
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            with pytest.raises(ConfigurationError, match="the key of a transaction"):
                store.transaction(wrong)
            with pytest.raises(ConfigurationError, match="the key of a transaction"):
                await store.transact(wrong, write)
            async with store.transaction("ann") as tx:
                with pytest.raises(ConfigurationError, match="the key of a transaction"):
                    tx.transaction(wrong)

    @pytest.mark.parametrize("key", ["ann", "another"])
    async def test_a_nested_transaction_joins_the_outer_whatever_its_key(
        self, adapter: SignalAdapter, key: str
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            async with store.transaction("ann") as outer:
                await outer.set({"session": {"ann": b"1"}})
                async with store.transaction(key) as inner:
                    assert inner is outer
                    assert await inner.get("session", ["ann"]) == {"ann": b"1"}
                    await inner.set({"session": {"bob": b"2"}})
                    async with inner.transaction(key) as innermost:
                        assert innermost is outer
                assert await outer.get("session", ["bob"]) == {"bob": b"2"}
                assert await store.get("session", ["ann", "bob"]) == {}
                assert store.in_transaction
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"2"}

    async def test_an_exception_in_the_outer_rolls_the_nested_one_back(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            with rolled_back():
                async with store.transaction("ann"):
                    async with store.transaction("bob") as inner:
                        await inner.set({"session": {"bob": b"2"}})
                    raise RollBack
            assert await store.get("session", ["bob"]) == {}

    async def test_an_exception_that_leaves_only_the_nested_one_undoes_nothing(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            async with store.transaction("ann") as outer:
                with rolled_back():
                    async with store.transaction("bob") as inner:
                        await inner.set({"session": {"bob": b"2"}})
                        raise RollBack
                assert outer.in_transaction
                await outer.set({"session": {"ann": b"1"}})
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"2"}

    async def test_tasks_of_a_transaction_share_it(self, adapter: SignalAdapter) -> None:
        async def add(number: int) -> None:
            async with store.transaction(f"key {number}") as tx:
                await tx.set({"session": {str(number): number}})

        async with SignalStore(adapter=adapter) as store:
            async with store.transaction("ann") as outer:
                async with anyio.create_task_group() as task_group:
                    for number in range(20):
                        task_group.start_soon(add, number)
                ids = [str(number) for number in range(20)]
                assert len(await outer.get("session", ids)) == 20
                assert await store.get("session", ids) == {}
            assert len(await store.get("session", ids)) == 20

    async def test_in_transaction_is_true_in_its_task_and_in_tasks_started_there(
        self, adapter: SignalAdapter
    ) -> None:
        async def look() -> bool:
            return store.in_transaction

        async def look_later(
            results: list[bool], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
        ) -> None:
            results.append(store.in_transaction)
            task_status.started()
            await over.wait()
            results.append(store.in_transaction)
            async with store.transaction("later") as tx:
                await tx.set({"session": {"later": b"1"}})

        async with SignalStore(adapter=adapter) as store, elsewhere() as run:
            over = anyio.Event()
            child: list[bool] = []
            assert not store.in_transaction
            async with anyio.create_task_group() as task_group:
                async with store.transaction("ann") as tx:
                    assert store.in_transaction
                    assert tx.in_transaction
                    assert not await run(look)
                    await task_group.start(look_later, child)
                assert not store.in_transaction
                over.set()
            assert child == [True, False]
            assert await store.get("session", ["later"]) == {"later": b"1"}
            with rolled_back():
                async with store.transaction("ann"):
                    raise RollBack
            assert not store.in_transaction

    async def test_wrap_running_takes_a_store_or_a_transaction(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            assert SignalStore.wrap_running(None) is None
            assert store.wrap_running(store) is store
            async with store.transaction("ann") as tx:
                assert SignalStore.wrap_running(tx) is tx
            with pytest.raises(ConfigurationError, match="object is no running signal store"):
                SignalStore.wrap_running(object())  # type: ignore[arg-type]

    @pytest.mark.parametrize("inside", [False, True], ids=["a store", "a transaction"])
    async def test_code_that_takes_a_store_or_a_transaction_runs_on_both(
        self, adapter: SignalAdapter, inside: bool
    ) -> None:
        async def use(handle: Handle) -> bytes:
            await handle.set({"session": {"ann": b"1"}})
            async with handle.transaction("ann") as tx:
                await tx.set({"session": {"bob": b"2"}})
            return await handle.transact("ann", remember, retries=3)

        async with SignalStore(adapter=adapter) as store:
            if inside:
                async with store.transaction("outer") as tx:
                    assert await use(tx) == b"1"
            else:
                assert await use(store) == b"1"
            found = await store.get("session", ["ann", "bob", "memory"])
            assert found == {"ann": b"1", "bob": b"2", "memory": b"1"}
