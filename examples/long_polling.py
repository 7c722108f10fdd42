"""A long-polling loop, in which neither a graceful stop nor a crash loses or doubles a message.

Shows the one rule: take a message in before you confirm it with the next offset. What was not
confirmed comes again, and `ingest` knows it. Runs offline against a platform in memory, with two
starts of the bot; the first dies between taking a message in and confirming it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import anyio

from trunkline import Trunkline


class Platform:
    """Stands for a platform with `getUpdates`: keeps updates until an offset confirms them."""

    def __init__(self, texts: list[str]) -> None:
        self._updates: list[dict[str, Any]] = [
            {"update_id": i, "chat": 42, "text": t} for i, t in enumerate(texts)
        ]

    async def get_updates(self, offset: int) -> list[dict[str, Any]]:
        self._updates = [one for one in self._updates if one["update_id"] >= offset]
        return self._updates[:3]


class Crash(Exception):
    """Stands for a power cut."""


async def poll(line: Trunkline, platform: Platform, *, crash_at: str | None = None) -> None:
    """Take in what comes until nothing is left."""
    offset = 0
    while updates := await platform.get_updates(offset):
        for update in updates:
            arrival = await line.ingest(
                channel="chat",
                bridge_id="bot",
                external_room_id=update["chat"],
                external_message_id=update["update_id"],
                content=update["text"],
            )
            print(f"{update['text']}{' (again)' if arrival.duplicate else ''}")
            if update["text"] == crash_at:
                raise Crash
        # Only now: all of them are on disk.
        offset = updates[-1]["update_id"] + 1


async def main() -> None:
    texts = [f"message {number}" for number in range(7)]
    platform = Platform(texts)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'bot.db'}"
        try:
            async with Trunkline(url) as line:
                await poll(line, platform, crash_at="message 4")
        except Crash:
            print("-- the bot is started again --")
        async with Trunkline(url) as line:
            await poll(line, platform)
            room = await line.persistence.get_room_by_external_binding("chat", "bot", 42)
            stored = await line.persistence.get_messages(room.id)
    assert [message.content for message in stored] == texts


if __name__ == "__main__":
    anyio.run(main)
