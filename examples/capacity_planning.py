"""Capacity planning: which time to live and which capacity does this bot need?

Shows `trunkline.replay` as a function: it runs a log of real or generated messages through routers
of different settings, by the log's own clock. Give it your own log as an argument.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio

from trunkline.replay import ChatLog, replay
from trunkline.routing import RouterConfig

TTLS_MS = (60_000, 300_000, 1_800_000)


async def main(log: Path) -> None:
    print(f"{'ttl':>8} {'hits':>8} {'misses':>8} {'peak':>6}")
    for ttl_ms in TTLS_MS:
        report = await replay(ChatLog(log), RouterConfig(ttl_ms=ttl_ms))
        print(
            f"{ttl_ms // 1000:>6} s {report.late_answers.hits:>8} {report.late_answers.misses:>8}"
            f" {report.peak_entries:>6}"
        )


def generate(log: Path) -> None:
    """An afternoon of 40 rooms, some of them busy, with threads in between."""
    chance = random.Random(1)
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with log.open("w", encoding="utf-8") as lines:
        for number in range(3_000):
            now += timedelta(seconds=chance.expovariate(1 / 5))
            room = min(int(chance.expovariate(1 / 8)), 39)
            message = {
                "ts": now.isoformat(),
                "channel": "telegram",
                "bridge_id": "bot",
                "room_id": f"room-{room}",
                "thread_id": f"t{chance.randrange(4)}" if chance.random() < 0.3 else None,
                "user_id": f"user-{chance.randrange(100)}",
                "text": f"message {number}",
            }
            lines.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        anyio.run(main, Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            generated = Path(folder) / "chat.jsonl"
            generate(generated)
            anyio.run(main, generated)
