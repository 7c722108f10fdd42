"""A Signal key store under contention: many messages of one chat step the same ratchet at once.

Shows transactions: those on one key wait for each other; those under different keys that touch the
same entry conflict, and `transact` runs the loser again. Without that one of the two steps would be
lost, and the next message could not be decrypted ("Bad MAC").
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import anyio

from trunkline import SignalStore
from trunkline.errors import TransactionConflict
from trunkline.signal import SignalTransaction

MESSAGES = 50


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with SignalStore(f"sqlite:///{Path(folder) / 'keys.db'}") as store:
            await store.set(
                {
                    "session": {"alice.0": {"step": 0, "chain": b"\0" * 32}},
                    "pre-key": {
                        str(n): {"public": b"p" * 32, "private": b"s" * 32} for n in range(10)
                    },
                }
            )
            await decrypt_all(store)
            await spend_a_pre_key_twice(store)


async def decrypt_all(store: SignalStore) -> None:
    """Fifty messages at once, by their sender and by their chat: two different locks."""

    async def step(tx: SignalTransaction) -> None:
        session = (await tx.get("session", ["alice.0"]))["alice.0"]
        await tx.set({"session": {"alice.0": {**session, "step": session["step"] + 1}}})

    async with anyio.create_task_group() as task_group:
        for number in range(MESSAGES):
            key = "alice" if number % 2 else "family-chat"
            task_group.start_soon(partial(store.transact, key, step, retries=100))
    session = (await store.get("session", ["alice.0"]))["alice.0"]
    print(f"{MESSAGES} messages, {session['step']} steps of the ratchet")
    assert session["step"] == MESSAGES


async def spend_a_pre_key_twice(store: SignalStore) -> None:
    """Two devices take the same one-time key at once: only one may have it."""
    both_have_read = anyio.Event()
    readers = 0
    winners: list[str] = []

    async def spend(device: str) -> None:
        nonlocal readers
        try:
            async with store.transaction(device) as tx:
                key = await tx.get("pre-key", ["7"])
                readers += 1
                if readers == 2:
                    both_have_read.set()
                await both_have_read.wait()
                await tx.set({"pre-key": {"7": None}, "session": {device: key["7"]["public"]}})
        except TransactionConflict as conflict:
            print(f"{device}: {conflict}")
        else:
            winners.append(device)

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(spend, "device-1")
        task_group.start_soon(spend, "device-2")
    print(f"the one-time key went to {winners}")
    assert len(winners) == 1
    assert await store.get("pre-key", ["7"]) == {}


if __name__ == "__main__":
    anyio.run(main)
