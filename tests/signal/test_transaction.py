"""Transactions that tasks share, that are cancelled, or that wait for room in a mailbox."""

from __future__ import annotations

import asyncio
import random

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from tests.signal.adapters import Gate, GatedAdapter
from trunkline.errors import StoreUnavailable, TransactionConflict
from trunkline.signal import SignalStore


async def test_tasks_that_share_a_transaction_cannot_hide_a_conflict_from_each_other():
    """Two of them read an entry at once, and somebody else changes it between the two reads."""
    adapter = GatedAdapter()
    seen = []

    async def read(tx):
        seen.append((await tx.get("session", ["count"]))["count"])

    # One call at a time, so that the first reader hears first, also on trio.
    async with (
        SignalStore(adapter=adapter, max_batch=1) as store,
        anyio.create_task_group() as outside,
    ):
        await store.set({"session": {"count": 1}})
        outside.start_soon(store.get, "session", ["gate"])
        await adapter.read_gate.until_reached()
        with pytest.raises(TransactionConflict):
            await count_up(store, outside, read, adapter.read_gate)
        assert seen == [1, 1]
        assert await store.get("session", ["count"]) == {"count": 10}


async def count_up(store, outside, read, gate):
    async with store.transaction("mine") as tx:
        async with anyio.create_task_group() as inside:
            inside.start_soon(read, tx)
            await wait_all_tasks_blocked()
            outside.start_soon(store.set, {"session": {"count": 10}})
            await wait_all_tasks_blocked()
            inside.start_soon(read, tx)
            await wait_all_tasks_blocked()
            gate.open()
        await tx.set({"session": {"count": 2}})


LATE = {
    "get": lambda tx: tx.get("session", ["gate"]),
    "set": lambda tx: tx.set({"session": {"gate": b"late"}}),
    "clear": lambda tx: tx.clear(),
}


@pytest.mark.parametrize("what", LATE)
async def test_a_task_that_outlives_its_transaction_adds_nothing_to_it(what):
    adapter = GatedAdapter()

    async def come_late():
        with pytest.raises(RuntimeError, match="the transaction on 'ann' is over"):
            await LATE[what](tx)
        refused.set()

    async with SignalStore(adapter=adapter) as store, anyio.create_task_group() as task_group:
        refused = anyio.Event()
        async with store.transaction("ann") as tx:
            await tx.set({"session": {"ann": b"1"}})
            task_group.start_soon(come_late)
            await adapter.read_gate.until_reached()
            task_group.start_soon(open_when_blocked, adapter.read_gate)
        await refused.wait()
        assert await store.get("session", ["ann", "gate"]) == {"ann": b"1"}


async def open_when_blocked(gate):
    await wait_all_tasks_blocked()
    gate.open()


async def test_a_transaction_that_is_cancelled_while_it_commits_is_stored_wholly():
    adapter = GatedAdapter()
    order = []

    async def first():
        with scope:
            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"1", "bob": b"1"}})
            order.append("committed")
            await anyio.sleep_forever()

    async def second():
        async with store.transaction("ann") as tx:
            order.append("second")
            assert await tx.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"1"}
            await tx.set({"session": {"ann": b"2"}})

    async with SignalStore(adapter=adapter) as store, anyio.create_task_group() as task_group:
        gate = adapter.commit_gate = Gate()
        scope = anyio.CancelScope()
        task_group.start_soon(first)
        await gate.until_reached()
        scope.cancel()
        task_group.start_soon(second)
        await wait_all_tasks_blocked()
        assert order == []
        gate.open()
    assert scope.cancelled_caught
    assert order == ["committed", "second"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_asyncio_cancels_while_it_commits_holds_its_lock_until_that_is_done(
    anyio_backend,
):
    adapter = GatedAdapter()
    order = []

    async def first():
        async with store.transaction("ann") as tx:
            await tx.set({"session": {"ann": b"1", "bob": b"1"}})

    async def second():
        async with store.transaction("ann") as tx:
            order.append("second")
            assert await tx.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"1"}
            await tx.set({"session": {"ann": b"2"}})

    async with SignalStore(adapter=adapter) as store, anyio.create_task_group() as task_group:
        gate = adapter.commit_gate = Gate()
        owner = asyncio.create_task(first())
        await gate.until_reached()
        owner.cancel()
        task_group.start_soon(second)
        await wait_all_tasks_blocked()
        owner.cancel()
        await wait_all_tasks_blocked()
        assert order == []
        assert not owner.done()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await owner
    assert order == ["second"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_asyncio_cancels_rolls_back_and_lets_go(anyio_backend):
    async def own():
        async with store.transaction("ann") as tx:
            await tx.set({"session": {"ann": b"theirs"}})
            await anyio.sleep_forever()

    async with SignalStore("memory://") as store:
        owner, waiter = asyncio.create_task(own()), asyncio.create_task(own())
        await wait_all_tasks_blocked()
        waiter.cancel()
        owner.cancel()
        with anyio.fail_after(60):
            async with store.transaction("ann") as tx:
                assert await tx.get("session", ["ann"]) == {}
        assert (await asyncio.gather(owner, waiter, return_exceptions=True)) != [None, None]


async def test_versions_differ_also_in_programs_that_seed_random_alike():
    async with SignalStore("memory://") as store:
        random.seed(42)
        await store.set({"session": {"ann": b"1"}})
        with pytest.raises(TransactionConflict):
            await overwrite_with_a_seed(store)
        assert await store.get("session", ["ann"]) == {"ann": b"2"}


async def overwrite_with_a_seed(store):
    async with store.transaction("ann") as tx:
        await tx.get("session", ["ann"])
        random.seed(42)
        await store.set({"session": {"ann": b"2"}})
        await tx.set({"session": {"ann": b"3"}})


async def test_a_full_mailbox_makes_callers_wait_and_loses_none_of_them(tmp_path):
    async def work(number):
        await store.set({"session": {str(number): number}})
        async with store.transaction(f"key {number}") as tx:
            assert await tx.get("session", [str(number)]) == {str(number): number}
            await tx.set({"pre-key": {str(number): number}})

    ids = [str(number) for number in range(200)]
    async with SignalStore(f"sqlite:///{tmp_path}/signal.db", mailbox_size=1, max_batch=2) as store:
        async with anyio.create_task_group() as task_group:
            for number in range(200):
                task_group.start_soon(work, number)
        for family in ("session", "pre-key"):
            assert await store.get(family, ids) == {str(n): n for n in range(200)}


async def test_a_caller_that_finds_no_room_in_a_mailbox_in_time_gets_an_error_and_stores_nothing():
    adapter = GatedAdapter()
    heard = []

    async def write(number):
        try:
            await store.set({"session": {str(number): number}})
        except StoreUnavailable as error:
            heard.append(str(error))
        if len(heard) == 20:
            adapter.commit_gate.open()

    async with SignalStore(adapter=adapter, mailbox_size=2, call_timeout_ms=50) as store:
        adapter.commit_gate = Gate()
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(write, 0)
            await adapter.commit_gate.until_reached()
            for number in range(1, 20):
                task_group.start_soon(write, number)
        assert len(heard) == 20
        # Only the one that had begun.
        assert ["this may have been stored" in message for message in heard].count(True) == 1
        await store.set({"session": {"after": True}})
        found = await store.get("session", [str(number) for number in range(20)])
        assert found == {"0": 0}


async def test_an_error_in_a_transaction_comes_out_as_itself_beside_a_cancellation(valkey_url):
    """On trio, task groups that are inside of it collect both."""
    with anyio.CancelScope() as scope:
        async with SignalStore(valkey_url) as store:
            try:
                async with store.transaction("ann"):
                    scope.cancel()
                    raise ZeroDivisionError
            except ZeroDivisionError as error:
                raised = error
    assert isinstance(raised, ZeroDivisionError)
