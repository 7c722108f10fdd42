"""Values of data: stored with their types, or refused."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from trunkline.contracts.fsm.samples import (
    BOT,
    EQUAL_NAMES,
    KEY,
    KINDS,
    SUBCLASSES,
    UNSTORABLE,
    Answer,
    same,
)
from trunkline.errors import ConfigurationError
from trunkline.fsm import FSMAdapter, FSMState, FSMStore

__all__ = ("ValueTests",)


class ValueTests:
    """A part of `FSMContract`."""

    async def test_a_value_comes_back_as_it_went_in(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for kind, value in KINDS.items():
                await store.set_data(BOT, KEY, {"value": value})
                assert same(await store.get_data(BOT, KEY), {"value": value}), kind
                merged = await store.update_data(BOT, KEY, {"again": value})
                assert same(merged, {"value": value, "again": value}), kind

    async def test_names_of_data_are_more_than_strings(self, adapter: FSMAdapter) -> None:
        data = {"": 1, 1: 2, "1": 3, None: 4, b"1": 5, (1, "a"): 6, 2.5: 7, 2**70: 8}
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_data(BOT, KEY, data)
            assert await store.update_data(BOT, KEY, {1: "new"}) == {**data, 1: "new"}
            assert same(await store.get_data(BOT, KEY), {**data, 1: "new"})

    async def test_names_that_are_equal_are_one_name(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for one, other in EQUAL_NAMES:
                await store.set_data(BOT, KEY, {one: "one"})
                assert await store.update_data(BOT, KEY, {other: "other"}) == {one: "other"}
                assert await store.update_data(BOT, KEY, {one: "again"}) == {other: "again"}
                assert await store.get_data(BOT, KEY) == {one: "again"}

    @pytest.mark.parametrize("size", [1, 2_000])
    async def test_data_keeps_the_order_in_which_names_were_added(
        self, adapter: FSMAdapter, size: int
    ) -> None:
        names = ["z", "a", 7, "m", (1, "a"), "b", "naïve", "0"]
        data = dict.fromkeys(names, "x" * size)
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", data))
            found = await store.get_data(BOT, KEY)
            assert found is not None
            assert list(found) == names
            merged = await store.update_data(BOT, KEY, {"new": 1, "m": 2, "y": 3, "z": 4})
            assert list(merged) == [*names, "new", "y"]
            await store.set_state(BOT, KEY, None)
            await store.update_data(BOT, KEY, {"last": 5, "a": 6})
            found = await store.get_data(BOT, KEY)
            assert found is not None
            assert list(found) == [*names, "new", "y", "last"]
            await store.set_data(BOT, KEY, dict(reversed(data.items())))
            found = await store.get_data(BOT, KEY)
            assert found is not None
            assert list(found) == names[::-1]

    async def test_data_of_hundreds_of_names_keeps_their_order(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            names = [f"name {number * 7_919 % 1_000}" for number in range(1_000)]
            await store.set_data(BOT, KEY, dict.fromkeys(names[:400], 1))
            assert list(await store.update_data(BOT, KEY, dict.fromkeys(names, 2))) == names

    async def test_a_value_of_a_subclass_comes_back_as_what_it_equals(
        self, adapter: FSMAdapter
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for value, plain in SUBCLASSES:
                await store.set_data(BOT, KEY, {"value": value})
                assert same(await store.get_data(BOT, KEY), {"value": plain})
                assert same(
                    await store.update_data(BOT, KEY, {Answer.YES: value}),
                    {"value": plain, "yes": plain},
                )

    async def test_a_value_of_a_million_bytes_is_stored(self, adapter: FSMAdapter) -> None:
        large = bytes(range(256)) * 4_096
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_data(BOT, KEY, {"large": large})
            assert await store.get_data(BOT, KEY) == {"large": large}

    async def test_a_value_that_cannot_be_stored_is_refused_before_anything_changes(
        self, adapter: FSMAdapter
    ) -> None:
        standing = FSMState("a", "one", {"x": 1})
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, standing)
            for value in UNSTORABLE.values():
                wrong = FSMState("b", "two", {"y": 2, "value": value, "z": 3})
                calls = [
                    store.set_state(BOT, KEY, wrong),
                    store.set_data(BOT, KEY, wrong.data),
                    store.update_data(BOT, KEY, wrong.data),
                    store.compare_and_set(BOT, KEY, standing, wrong, keep_data=False),
                ]
                for call in calls:
                    with pytest.raises(ConfigurationError, match=r"data 'value' .* cannot be"):
                        await call
                    assert await store.get_state(BOT, KEY) == standing

    async def test_data_that_is_no_map_is_refused(self, adapter: FSMAdapter) -> None:
        wrong: list[Any] = [None, 7, "text", [("a", 1)], {"a"}]
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for call, data in product((store.set_data, store.update_data), wrong):
                with pytest.raises(ConfigurationError, match="is a map, not"):
                    await call(BOT, KEY, data)
                assert await store.get_state(BOT, KEY) is None

    async def test_what_a_caller_does_to_a_map_changes_nothing_stored(
        self, adapter: FSMAdapter
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            data: dict[str, Any] = {"list": [1]}
            await store.set_data(BOT, KEY, data)
            data["list"].append(2)
            returned = await store.get_data(BOT, KEY)
            assert returned is not None
            returned["list"].append(3)
            returned["new"] = 4
            merged = await store.update_data(BOT, KEY, {"more": [5]})
            merged["more"].append(6)
            merged["list"].append(7)
            state = await store.get_state(BOT, KEY)
            assert state is not None
            state.data["list"].append(8)
            assert await store.get_data(BOT, KEY) == {"list": [1], "more": [5]}
