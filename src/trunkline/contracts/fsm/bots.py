"""Bots: initialised, named, kept apart."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from trunkline.contracts.fsm.samples import BOT, KEY
from trunkline.errors import ConfigurationError
from trunkline.fsm import FSMAdapter, FSMState, FSMStore

__all__ = ("BotTests",)


class BotTests:
    """A part of `FSMContract`."""

    async def test_a_bot_that_was_not_initialised_is_refused_by_name(
        self, adapter: FSMAdapter
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            calls: list[Awaitable[Any]] = [
                store.get_state("shop", KEY),
                store.set_state("shop", KEY, "get_name"),
                store.get_data("shop", KEY),
                store.set_data("shop", KEY, {}),
                store.update_data("shop", KEY, {}),
                store.clear("shop", KEY),
                store.compare_and_set("shop", KEY, FSMState(), FSMState("a")),
            ]
            for call in calls:
                with pytest.raises(ConfigurationError, match="'shop' was not initialised"):
                    await call
            with pytest.raises(ConfigurationError, match="'shop' was not initialised"):
                store.lock("shop", KEY)

    async def test_init_may_be_called_again(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("get_name", "register", {"a": 1}))
            await store.init(BOT)
            await store.init(BOT, ttl_ms=60_000)
            assert await store.get_state(BOT, KEY) == FSMState("get_name", "register", {"a": 1})

    async def test_bots_never_see_each_others_keys(self, adapter: FSMAdapter) -> None:
        bots = ["bot", "Bot", "bot2", "bot:", "böt", "bot[", '"', "x" * 250]
        async with FSMStore(adapter=adapter) as store:
            for bot in bots:
                await store.init(bot)
                await store.set_state(bot, KEY, FSMState("s", None, {"bot": bot}))
            for bot in bots:
                assert await store.get_data(bot, KEY) == {"bot": bot}
            await store.clear("bot", KEY)
            assert await store.get_state("bot", KEY) is None
            for bot in bots[1:]:
                assert await store.get_data(bot, KEY) == {"bot": bot}

    async def test_a_name_that_cannot_be_stored_is_refused(self, adapter: FSMAdapter) -> None:
        wrong: list[Any] = ["", None, 7, b"bot", "nul\0", "\ud800", "x" * 251]
        async with FSMStore(adapter=adapter) as store:
            for name in wrong:
                with pytest.raises(ConfigurationError, match="bot_name"):
                    await store.init(name)
