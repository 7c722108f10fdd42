"""`python -m benchmarks.turn_worker URL`: runs turns, and prints when each handler began."""

from __future__ import annotations

import sys
from time import monotonic_ns

import anyio

from trunkline import Inbox, Turn, Turns


async def main(url: str) -> None:
    async def handler(turn: Turn) -> None:
        # The clock is the same in all processes of a machine.
        print(monotonic_ns(), flush=True)

    async with Inbox(url) as inbox, Turns(inbox, handler) as turns:
        print("ready", flush=True)
        await turns.serve()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
