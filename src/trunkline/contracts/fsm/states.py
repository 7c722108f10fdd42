"""States and data: stored, replaced, merged, cleared."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from trunkline.contracts.fsm.samples import BOT, KEY, Answer
from trunkline.errors import ConfigurationError
from trunkline.fsm import FSMAdapter, FSMState, FSMStore

__all__ = ("StateTests",)


class StateTests:
    """A part of `FSMContract`."""

    async def test_where_nothing_is_stored_there_is_none(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for _ in range(2):
                assert await store.get_state(BOT, KEY) is None
                assert await store.get_data(BOT, KEY) is None

    async def test_data_set_where_nothing_is_stored_has_no_state(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_data(BOT, KEY, {"name": "Ada"})
            assert await store.get_state(BOT, KEY) == FSMState(None, None, {"name": "Ada"})

    async def test_data_updated_where_nothing_is_stored_has_no_state(
        self, adapter: FSMAdapter
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            assert await store.update_data(BOT, KEY, {"name": "Ada"}) == {"name": "Ada"}
            assert await store.get_state(BOT, KEY) == FSMState(None, None, {"name": "Ada"})

    async def test_empty_data_is_stored_all_the_same(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_data(BOT, (1,), {})
            await store.update_data(BOT, (2,), {})
            await store.set_state(BOT, (3,), None)
            for key in ((1,), (2,), (3,)):
                assert await store.get_state(BOT, key) == FSMState()
                assert await store.get_data(BOT, key) == {}

    async def test_clear_of_nothing_succeeds(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.clear(BOT, KEY)
            await store.clear(BOT, KEY)
            assert await store.get_state(BOT, KEY) is None

    async def test_a_state_comes_back_whole(self, adapter: FSMAdapter) -> None:
        texts = [None, "", "get_name", "=", "☃"]
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for state, flow in product(texts, texts):
                await store.set_state(BOT, KEY, FSMState(state, flow, {"a": 1}))
                assert await store.get_state(BOT, KEY) == FSMState(state, flow, {"a": 1})

    async def test_a_whole_state_replaces_all_that_was_there(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1, "y": 2}))
            await store.set_state(BOT, KEY, FSMState("b", None, {"y": 3}))
            assert await store.get_state(BOT, KEY) == FSMState("b", None, {"y": 3})

    @pytest.mark.parametrize("state", [None, "b"])
    async def test_a_bare_state_leaves_flow_and_data(
        self, adapter: FSMAdapter, state: str | None
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            await store.set_state(BOT, KEY, state)
            assert await store.get_state(BOT, KEY) == FSMState(state, "one", {"x": 1})

    async def test_data_is_replaced_and_flow_and_state_stay(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            await store.set_data(BOT, KEY, {"y": 2})
            assert await store.get_state(BOT, KEY) == FSMState("a", "one", {"y": 2})
            await store.set_data(BOT, KEY, {})
            assert await store.get_state(BOT, KEY) == FSMState("a", "one", {})

    async def test_data_is_merged_name_by_name(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1, "y": {"deep": 1}}))
            merged = await store.update_data(BOT, KEY, {"y": {"new": 2}, "z": None})
            assert merged == {"x": 1, "y": {"new": 2}, "z": None}
            assert await store.get_state(BOT, KEY) == FSMState("a", "one", merged)
            assert await store.update_data(BOT, KEY, {}) == merged

    async def test_clear_removes_flow_state_and_data(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            await store.clear(BOT, KEY)
            assert await store.get_state(BOT, KEY) is None
            await store.set_state(BOT, KEY, "b")
            assert await store.get_state(BOT, KEY) == FSMState("b")

    async def test_a_state_is_removed_with_the_last_of_the_data_and_flow_if_it_is_asked(
        self, adapter: FSMAdapter
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for standing, state, left in [
                (None, None, None),
                (FSMState("a"), None, None),
                (FSMState("a"), "b", FSMState("b")),
                (FSMState("a"), "", FSMState("")),
                (FSMState("a", "one"), None, FSMState(None, "one")),
                (FSMState("a", None, {"x": None}), None, FSMState(None, None, {"x": None})),
            ]:
                await store.clear(BOT, KEY)
                if standing is not None:
                    await store.set_state(BOT, KEY, standing)
                await store.set_state(BOT, KEY, state, remove_empty=True)
                assert await store.get_state(BOT, KEY) == left

    async def test_data_is_removed_with_the_last_of_state_and_flow_if_it_is_asked(
        self, adapter: FSMAdapter
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for standing, data, left in [
                (None, {}, None),
                (FSMState(None, None, {"x": 1}), {}, None),
                (FSMState(None, None, {"x": 1}), {"y": 2}, FSMState(None, None, {"y": 2})),
                (FSMState("a", None, {"x": 1}), {}, FSMState("a")),
                (FSMState("", None, {"x": 1}), {}, FSMState("")),
                (FSMState(None, "one", {"x": 1}), {}, FSMState(None, "one")),
            ]:
                await store.clear(BOT, KEY)
                if standing is not None:
                    await store.set_state(BOT, KEY, standing)
                await store.set_data(BOT, KEY, data, remove_empty=True)
                assert await store.get_state(BOT, KEY) == left

    async def test_a_state_of_an_enum_with_str_is_its_value(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, Answer.YES)
            found = await store.get_state(BOT, KEY)
            assert found is not None
            assert (type(found.state), found.state) == (str, "yes")
            await store.set_state(BOT, KEY, FSMState(Answer.YES, Answer.YES))
            assert await store.get_state(BOT, KEY) == FSMState("yes", "yes")
            changed = await store.compare_and_set(
                BOT, KEY, FSMState(Answer.YES, "yes"), FSMState("b", Answer.YES)
            )
            assert changed is None
            assert await store.get_state(BOT, KEY) == FSMState("b", "yes")

    async def test_what_was_stored_is_there_after_opening_again(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            assert await store.get_state(BOT, KEY) == FSMState("a", "one", {"x": 1})

    async def test_a_state_that_cannot_be_stored_is_refused(self, adapter: FSMAdapter) -> None:
        wrong: list[Any] = [7, b"a", ["a"], {"state": "a"}, "nul\0", "\ud800"]
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for state in [*wrong, *(FSMState(flow=flow) for flow in wrong)]:
                with pytest.raises(ConfigurationError, match=r"(state|flow) .*(not|stored)"):
                    await store.set_state(BOT, KEY, state)
                assert await store.get_state(BOT, KEY) is None
