"""Keys: which values are keys, and which keys are equal."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.contracts.fsm.samples import BOT, KEYS, WRONG_KEYS, ChatMember
from trunkline.errors import ConfigurationError
from trunkline.fsm import FSMAdapter, FSMState, FSMStore

__all__ = ("KeyTests",)


class KeyTests:
    """A part of `FSMContract`."""

    async def test_keys_that_look_alike_are_different(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for number, key in enumerate(KEYS):
                await store.set_data(BOT, key, {"number": number})
            for number, key in enumerate(KEYS):
                assert await store.get_data(BOT, key) == {"number": number}

    async def test_a_named_tuple_is_the_key_that_a_tuple_is(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, ChatMember(42, 7), "a")
            assert await store.get_state(BOT, (42, 7)) == FSMState("a")

    async def test_none_is_refused_as_a_key(self, adapter: FSMAdapter) -> None:
        nothing: Any = None
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for call in (store.get_state, store.get_data, store.clear, store.lock):
                with pytest.raises(ConfigurationError, match="None is no key"):
                    await call(BOT, nothing)  # type: ignore[misc]
            with pytest.raises(ConfigurationError, match="None is no key"):
                await store.update_data(BOT, nothing, {"x": 1})

    async def test_another_key_is_refused_by_its_type(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for kind, key in WRONG_KEYS.items():
                with pytest.raises(ConfigurationError, match=f"a key holds .* not {kind}"):
                    await store.get_state(BOT, key)
                with pytest.raises(ConfigurationError, match=f"a key holds .* not {kind}"):
                    await store.set_state(BOT, (1, (key,)), "a")
                with pytest.raises(ConfigurationError, match=f"a key holds .* not {kind}"):
                    store.lock(BOT, (key,))

    async def test_a_key_that_is_too_long_or_too_deep_is_refused(self, adapter: FSMAdapter) -> None:
        deep: Any = ()
        for _ in range(2_000):
            deep = (deep,)
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for key in ("x" * 1_500, 10**5_000, (1, 10**5_000), deep):
                with pytest.raises(ConfigurationError, match=r"a key .* cannot be stored"):
                    await store.set_state(BOT, key, "a")
