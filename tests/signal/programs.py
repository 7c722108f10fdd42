"""Programs that use a signal store, to be run in processes of their own and to be killed there."""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from tests.servers.writer import Journal
from trunkline.actors.mailbox import Call
from trunkline.errors import StoreUnavailable, TransactionConflict
from trunkline.signal import SignalStore, SignalTransaction
from trunkline.signal.adapter import Commit, KeyName, SignalAdapter
from trunkline.signal.redis import RedisSignalAdapter
from trunkline.signal.sql import SQLSignalAdapter

#: Entries over three families that one caller always changes together.
FAMILIES = ("session", "pre-key", "identity-key")
CALLERS = 4


def ids_of(caller: int) -> list[str]:
    return [f"{caller}-{number}" for number in range(6)]


def commit_for_ever(url: str, path: Path, ready: Any, backend: str, seed: int) -> None:
    """Callers that each write one token into all of their entries, and count, until killed.

    What they began, and what they were told is stored, goes to the journal. If the server dies
    first, the program ends.
    """

    async def main() -> None:
        journal = Journal(path)
        tokens = count()
        async with SignalStore(url) as store, anyio.create_task_group() as callers:

            async def call(caller: int) -> None:
                ids = ids_of(caller)
                while True:
                    token = f"{seed}/{next(tokens)}"

                    async def write(tx: SignalTransaction, token: str = token) -> None:
                        counted = (await tx.get("lid-mapping", ["count"])).get("count", 0)
                        await tx.set({family: dict.fromkeys(ids, token) for family in FAMILIES})
                        await checkpoint()
                        await tx.set({"lid-mapping": {"count": counted + 1}})

                    journal.write("begun", caller, token)
                    await store.transact(f"key {seed}/{caller}", write, retries=1_000)
                    journal.write("committed", caller, token)
                    ready.set()

            async def call_until_it_is_away(caller: int) -> None:
                try:
                    await call(caller)
                except StoreUnavailable:
                    callers.cancel_scope.cancel()

            for caller in range(CALLERS):
                callers.start_soon(call_until_it_is_away, caller)

    anyio.run(main, backend=backend)


def increment(url: str, path: Path, start: Any, backend: str, number: int, times: int) -> None:
    """Add one to the same counter so many times, under a key that no other process has."""

    async def add(tx: SignalTransaction) -> None:
        found = await tx.get("lid-mapping", ["count"])
        await tx.set({"lid-mapping": {"count": found.get("count", 0) + 1}})
        await tx.set({"session": {f"{number}-{found.get('count', 0)}": True}})

    async def main() -> None:
        journal = Journal(path)
        async with SignalStore(url) as store:
            start.wait(120)
            for _ in range(times):
                try:
                    await store.transact(f"key {number}", add, retries=100)
                except Exception as error:
                    journal.write("error", repr(error))

    anyio.run(main, backend=backend)


def hold(url: str, ready: Any, backend: str, lease_ms: int) -> None:
    """Begin a transaction on the key `ann`, write in it, and never end it."""

    async def main() -> None:
        async with _store(url, lease_ms) as store, store.transaction("ann") as tx:
            await tx.set({"session": {"ann": "theirs"}})
            ready.set()
            await anyio.sleep_forever()

    anyio.run(main, backend=backend)


def sleep_in_transaction(
    url: str, path: Path, ready: Any, wake_up: Any, backend: str, lease_ms: int
) -> None:
    """Begin a transaction on the key `ann` and sleep in it like a frozen process, then commit."""

    async def main() -> None:
        journal = Journal(path)
        async with _store(url, lease_ms) as store:
            try:
                async with store.transaction("ann") as tx:
                    await tx.set({"session": {"bob": "theirs"}})
                    ready.set()
                    wake_up.wait(30)  # the event loop stands still, and no lease is renewed
            except TransactionConflict as error:
                journal.write("conflict", str(error))
            else:
                journal.write("committed")
            async with store.transaction("ann") as tx:
                await tx.set({"session": {"eve": "theirs"}})
            journal.write("committed again")

    anyio.run(main, backend=backend)


def _store(url: str, lease_ms: int) -> SignalStore:
    if not url.startswith("valkey"):
        return SignalStore(url)
    adapter = RedisSignalAdapter(url)
    adapter.lease_ms = lease_ms
    return SignalStore(adapter=adapter)


def take_locks(url: str, pipe: Any, backend: str) -> None:
    """Take the key that comes through the pipe, reply whether it was free soon, and release it."""

    async def main() -> None:
        async with SignalStore(url) as store:
            while (key := await to_thread.run_sync(pipe.recv)) is not None:
                # Less than a lease lasts.
                with anyio.move_on_after(8) as scope:
                    async with store.transaction(key):
                        pipe.send(True)
                        await to_thread.run_sync(pipe.recv)
                pipe.send(not scope.cancelled_caught)

    anyio.run(main, backend=backend)


def stop_before_commit(url: str, changes: dict[KeyName, bytes | None], ready: Any, go: Any) -> None:
    """Do what a commit does, and commit it only when told to."""
    adapter = SQLSignalAdapter(url, timeout_ms=60_000)
    adapter.open()
    with adapter.transaction():
        call = Call(SignalAdapter.commit, (Commit(changes, 7),), {})
        adapter.run_together([call])
        assert call.value
        ready.set()
        assert go.wait(120)
    adapter.close()


def claim(url: str, path: Path, start: Any, backend: str, number: int, times: int) -> None:
    """Take what nobody has taken, under a key that no other process has, and note what it got."""

    async def take(tx: SignalTransaction, entry_id: str) -> bool:
        if await tx.get("session", [entry_id]):
            return False
        await tx.set({"session": {entry_id: number}})
        return True

    async def main() -> None:
        journal = Journal(path)
        async with SignalStore(url) as store:
            start.wait(120)
            for one in map(str, range(times)):
                if await store.transact(f"key {number}", partial(take, entry_id=one), retries=100):
                    journal.write(one)

    anyio.run(main, backend=backend)


def swap(url: str, start: Any, backend: str, number: int, times: int) -> None:
    """Let one of two entries be there, and delete the other, so many times."""

    async def main() -> None:
        async with SignalStore(url) as store:
            start.wait(120)
            for turn in range(times):
                mine, other = ("left", "right") if (number + turn) % 2 else ("right", "left")
                await store.set({"session": {mine: turn, other: None}})

    anyio.run(main, backend=backend)
