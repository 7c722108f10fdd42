"""Processes that are killed, frozen and slow, and what becomes of their turns."""

from __future__ import annotations

import signal
from time import monotonic

import anyio
import pytest

from tests.servers.writer import Journal
from tests.turns.faults import accept, begun, counts, finished, wait_until
from tests.turns.worker import Bot, Histories, accept_at_random
from trunkline import Inbox
from trunkline.turns import InboxCounts

pytestmark = pytest.mark.slow

LEASE_MS = 1_000


@pytest.mark.parametrize("successor", ["restarted", "living"])
def test_kill_9_with_one_item_in_its_handler_and_five_waiting_loses_none(
    shared_url, tmp_path, successor
):
    options = {"lease_ms": LEASE_MS, "policy": {"while_busy": "queue"}}
    first = Bot(shared_url, tmp_path / "first", "endless at first", **options)
    second = Bot(shared_url, tmp_path / "second", "endless at first", **options)
    with first:
        anyio.run(accept, shared_url, 0)
        wait_until(lambda: begun(first))
        anyio.run(accept, shared_url, 1, 2, 3, 4, 5)
        if successor == "living":
            second.start()
        first.kill()
    killed_at = monotonic()
    if successor == "restarted":
        second.start()
    try:
        # No retry by the platform, and no new message.
        (again, *_) = wait_until(lambda: begun(second))
        wait_until(lambda: len(finished(second)) == 6)
    finally:
        second.kill()
    assert again[3:5] == [[0], 2]
    assert again[5] - killed_at < LEASE_MS / 1000 + 1.0
    assert [entry[3:5] for entry in begun(second)] == [
        [[0], 2],
        *([[number], 1] for number in range(1, 6)),
    ]
    assert anyio.run(counts, shared_url) == InboxCounts()


def test_three_processes_that_are_killed_again_and_again_lose_double_and_overlap_nothing(
    shared_url, tmp_path
):
    names = [f"{seed}-{index}" for seed in range(1) for index in range(100)]
    accepted = Journal(tmp_path / "accepted")
    bots: list[Bot] = []

    def bot():
        bots.append(Bot(shared_url, tmp_path / str(len(bots)), lease_ms=LEASE_MS))
        bots[-1].start()
        return bots[-1]

    async def main():
        running = [await anyio.to_thread.run_sync(bot) for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept_at_random, shared_url, accepted, 100, 20, 8.0, 0)
            for round_ in range(8):
                await anyio.sleep(1.0)
                victim = running[round_ % 3]
                await anyio.to_thread.run_sync(victim.kill)
                running[round_ % 3] = await anyio.to_thread.run_sync(bot)
        async with Inbox(shared_url) as inbox:
            with anyio.fail_after(60):
                while (left := await inbox.counts()).waiting or left.running:  # noqa: ASYNC110 (others handle them)
                    await anyio.sleep(0.1)
        for one in running:
            one.signal(signal.SIGTERM)
        for one in running:
            await anyio.to_thread.run_sync(one.join)

    anyio.run(main)
    histories = Histories(bots)
    assert histories.overlaps() == []
    for name in names:
        assert histories.handled(name) == list(range(20))
    # What was committed as done never comes again.
    assert len(histories.finished) == len(set(histories.finished))
