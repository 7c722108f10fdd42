"""Entries that something else than trunkline has written; the contract has damaged values."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from trunkline.errors import StoreError, TrunklineError, UnreadableRecord
from trunkline.signal import SignalStore

DAMAGE = {
    "a version that is a text": "UPDATE trunkline_signal SET version = 'SECRET' WHERE id = 'ann'",
    "a value that is a text": "UPDATE trunkline_signal SET value = 'SECRET' WHERE id = 'ann'",
    "a value that is a number": "UPDATE trunkline_signal SET value = 7 WHERE id = 'ann'",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_row_of_wrong_types_fails_its_call_and_no_other(tmp_path, damage):
    async with SignalStore(f"sqlite:///{tmp_path}/signal.db") as store:
        await store.set({"session": {"ann": 1, "bob": 2}})
        with closing(sqlite3.connect(tmp_path / "signal.db", isolation_level=None)) as connection:
            connection.execute(DAMAGE[damage])
        await require_damage_is_contained(store)


@pytest.mark.parametrize("stored", ["", "SECRET", ":", "x:SECRET", "-7:SECRET"])
async def test_a_field_without_a_version_fails_its_call_and_no_other(
    valkey_url, valkey_server, stored
):
    async with SignalStore(valkey_url) as store:
        await store.set({"session": {"ann": 1, "bob": 2}})
        valkey_server.execute("HSET", "trunkline:{default}:signal:family:session", "ann", stored)
        await require_damage_is_contained(store)


async def require_damage_is_contained(store):
    for _ in range(20):
        with pytest.raises(UnreadableRecord, match="session 'ann'") as failure:
            await store.get("session", ["bob", "ann"])
        assert "SECRET" not in str(failure.value)
    with pytest.raises(TrunklineError):
        await store.transact("ann", count_up, retries=0)
    assert await store.get("session", ["bob"]) == {"bob": 2}
    await store.set({"session": {"ann": None}})
    assert await store.get("session", ["ann", "bob"]) == {"bob": 2}
    assert store.stats().restarts == 0


async def count_up(tx):
    await tx.set({"session": {"ann": 3}})


async def test_a_family_that_is_no_hash_fails_its_calls_and_no_others(valkey_url, valkey_server):
    async with SignalStore(valkey_url) as store:
        await store.set({"session": {"ann": 1}, "pre-key": {"1": 1}})
        valkey_server.execute("SET", "trunkline:{default}:signal:family:session", "SECRET")
        for _ in range(20):
            with pytest.raises(StoreError):
                await store.get("session", ["ann"])
        assert await store.get("pre-key", ["1"]) == {"1": 1}
        assert store.stats().restarts == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_second_start_is_no_error(tmp_path):
    store = await SignalStore(f"sqlite:///{tmp_path}/signal.db").start()
    try:
        assert await store.start() is store
        await store.set({"session": {"ann": 1}})
    finally:
        await store.stop()
