"""An item that kills every process in which it is handled."""

from __future__ import annotations

import anyio
import pytest

from tests.turns.faults import counts, noted, wait_until
from tests.turns.worker import Bot, session
from trunkline import Inbox
from trunkline.turns import InboxCounts

pytestmark = pytest.mark.slow

INNOCENTS = 63


async def accept_all(url):
    async with Inbox(url) as inbox:
        for number in range(INNOCENTS):
            await inbox.accept(session(number), number, external_id=number)
            if number == INNOCENTS // 2:
                await inbox.accept(session("poison"), "poison", external_id="poison")


def test_a_poison_item_fails_and_none_of_63_innocents_does(shared_url, tmp_path):
    anyio.run(accept_all, shared_url)
    bots = []

    def all_noted(name):
        return [entry for bot in bots for entry in noted(bot, name)]

    def is_over(bot):
        done = len(all_noted("finished")) == INNOCENTS and all_noted("failed")
        return done or not bot.is_alive

    is_alive = False
    while not is_alive:
        assert len(bots) < 4, "it killed more processes than it has attempts"
        bots.append(bot := Bot(shared_url, tmp_path / str(len(bots)), "poison", lease_ms=2_000))
        with bot:
            wait_until(lambda bot=bot: is_over(bot))
            is_alive = bot.is_alive
    assert anyio.run(counts, shared_url) == InboxCounts(failed=1)
    (reported,) = all_noted("on_failed")
    assert reported[1:3] == ["poison", ["poison"]]
    assert sorted(int(entry[1]) for entry in all_noted("finished")) == list(range(INNOCENTS))
