"""A database server that is killed and comes back while turns run."""

from __future__ import annotations

import signal

import anyio
import pytest

from tests.servers.writer import Journal
from tests.turns.worker import Bot, Histories, accept_at_random
from trunkline import Inbox
from trunkline.errors import StoreUnavailable

pytestmark = pytest.mark.slow

SESSIONS, ITEMS, SECONDS = 30, 10, 5.0


@pytest.mark.parametrize("kind", ["mortal_postgres", "mortal_valkey"])
def test_a_server_that_is_killed_again_and_again_loses_nothing(kind, request, tmp_path):
    server = request.getfixturevalue(kind)
    if kind == "mortal_postgres":
        url = server.url(server.create_database())
    else:
        server.execute("FLUSHALL")
        url = server.url
    accepted = Journal(tmp_path / "accepted")
    bots = [Bot(url, tmp_path / str(number), lease_ms=2_000) for number in range(2)]

    async def kill_again_and_again():
        for _ in range(2):
            await anyio.sleep(1.0)
            await anyio.to_thread.run_sync(server.kill)
            await anyio.sleep(0.3)
            await anyio.to_thread.run_sync(server.start)

    async def settled():
        async with Inbox(url) as inbox:
            while True:
                try:
                    counts = await inbox.counts()
                    if not (counts.waiting or counts.running):
                        return counts
                except StoreUnavailable:
                    pass
                await anyio.sleep(0.1)

    async def main():
        for bot in bots:
            await anyio.to_thread.run_sync(bot.start)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept_at_random, url, accepted, SESSIONS, ITEMS, SECONDS, 0)
            tasks.start_soon(kill_again_and_again)
        with anyio.fail_after(60):
            counts = await settled()
        assert (counts.sessions, counts.failed) == (0, 0)
        for bot in bots:
            assert bot.is_alive
            bot.signal(signal.SIGTERM)
        for bot in bots:
            assert await anyio.to_thread.run_sync(bot.join) == 0

    try:
        anyio.run(main)
    finally:
        for bot in bots:
            bot.kill()
    histories = Histories(bots)
    assert histories.overlaps() == []
    for index in range(SESSIONS):
        assert histories.handled(f"0-{index}") == list(range(ITEMS))
    assert len(histories.finished) == len(set(histories.finished))
