"""Signal keys: transactions that meet and that do not, and a hundred pre-keys at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from benchmarks.race import Contender, Crowd
from benchmarks.rows import Row
from benchmarks.signal_peers import FileAKeyStore
from trunkline import SignalStore

FILES = "a file a key"

CALLERS = 64

PRE_KEYS = 100

_random = random.Random(1)


def make_pre_keys() -> Iterator[dict[str, dict[str, dict[str, bytes]]]]:
    """Batches of new ones without end, as a device makes them when it is linked."""
    first = 1
    while True:
        yield {
            "pre-key": {
                str(number): {
                    "public": _random.randbytes(32),
                    "private": _random.randbytes(32),
                }
                for number in range(first, first + PRE_KEYS)
            }
        }
        first += PRE_KEYS


def ratchet(store):
    """A call that reads a session and stores its next state, as for every message."""

    async def step(session: str) -> None:
        async with store.transaction(session) as tx:
            record = (await tx.get("session", [session])).get(session, b"")
            await tx.set({"session": {session: record[1:] + record[:1]}})

    return step


@pytest.fixture
def stores(portal, disk_folder):
    """Opens a store by URL, or the one with a file a key."""
    with ExitStack() as stack:

        def open_store(url: str) -> SignalStore | FileAKeyStore:
            if url != FILES:
                return stack.enter_context(portal.wrap_async_context_manager(SignalStore(url)))
            folder = disk_folder / "keys"
            folder.mkdir()
            return FileAKeyStore(folder)

        yield open_store


@pytest.mark.parametrize("keys", [CALLERS, 1], ids=["apart", "on one key"])
@pytest.mark.parametrize("backend", ["memory", "SQLite"])
def test_transactions(race, portal, scale, stores, disk_folder, backend, keys):
    on_disk = backend == "SQLite"
    sessions = [f"4917{number:08}.0" for number in range(keys)]
    ours = stores(f"sqlite:///{disk_folder}/ours.db" if on_disk else "memory://")
    contenders = {"ours": ours} | ({"files": stores(FILES)} if on_disk else {})
    records = {"session": {session: _random.randbytes(1_200) for session in sessions}}
    for store in contenders.values():
        portal.call(store.set, records)
    operations = scale.durable_operations if on_disk else scale.batched_operations
    best = race.run(
        portal,
        rounds=scale.store_rounds,
        **{
            name: Contender(Crowd(ratchet(store), CALLERS), sessions, operations)
            for name, store in contenders.items()
        },
    )
    turns = (scale.store_rounds + 1) * operations
    for store in contenders.values():
        assert_turned(portal.call(store.get, "session", sessions), records["session"], turns)
    race.add(
        Row(
            section=f"signal, {backend}",
            work=f"transaction, {CALLERS} callers {'on one key' if keys == 1 else 'apart'}",
            figure=best["ours"],
            unit="ns",
            per_second=True,
            against=FILES if on_disk else None,
            peer=best.get("files"),
            speedup=on_disk,
        )
    )


def assert_turned(found: dict[str, bytes], records: dict[str, bytes], turns: int) -> None:
    """Each call has turned a record by one byte: none was lost, none was done twice."""
    each, more = divmod(turns, len(records))
    for place, (session, record) in enumerate(records.items()):
        by = (each + (place < more)) % len(record)
        assert found[session] == record[by:] + record[:by], session


def test_set_pre_keys(race, portal, scale, stores, disk_folder):
    ours = stores(f"sqlite:///{disk_folder}/ours.db")
    contenders = {"ours": ours, "files": stores(FILES)}
    times = max(1, scale.durable_operations // PRE_KEYS)
    best = race.run(
        portal,
        rounds=scale.store_rounds,
        **{
            name: Contender(Crowd(store.set, 1), make_pre_keys(), times)
            for name, store in contenders.items()
        },
    )
    last = str((scale.store_rounds + 1) * times * PRE_KEYS)
    for store in contenders.values():
        (pair,) = portal.call(store.get, "pre-key", [last]).values()
        assert pair.keys() == {"public", "private"}
    race.add(
        Row(
            section="signal, SQLite",
            work=f"set of {PRE_KEYS} pre-keys",
            figure=best["ours"],
            unit="ns",
            against=FILES,
            peer=best["files"],
            speedup=True,
            budget=5,
        )
    )
