"""An item that kills every process in which it is handled."""

from __future__ import annotations

import anyio
import pytest

from tests.turns.faults import counts, finished, noted, wait_until
from tests.turns.worker import Bot, session
from trunkline import Inbox

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

    def failures():
        return [entry for bot in bots for entry in noted(bot, "on_failed")]

    def is_settled(bot):
        return not bot.is_alive or len([one for bot in bots for one in finished(bot)]) == INNOCENTS

    while not failures() or bots[-1].ended_at is not None:
        bot = Bot(shared_url, tmp_path / str(len(bots)), "poison", lease_ms=2_000)
        bots.append(bot)
        with bot:
            wait_until(lambda bot=bot: is_settled(bot) and (failures() or not bot.is_alive))
            if bot.is_alive:
                break
        assert len(bots) <= 4, "it killed more processes than it has attempts"
    assert anyio.run(counts, shared_url).failed == 1
    assert [entry[1:3] for entry in failures()] == [["poison", ["poison"]]]
    done = sorted(int(entry[1]) for bot in bots for entry in finished(bot))
    assert done == list(range(INNOCENTS))
