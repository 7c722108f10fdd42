"""What holds for any entries. These tests need hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trunkline.contracts.signal.samples import same
from trunkline.signal import SignalAdapter, SignalStore

__all__ = ("PropertyTests",)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
)
#: Whatever msgpack holds.
VALUES = st.recursive(
    SCALARS,
    lambda values: st.lists(values) | st.dictionaries(st.text(max_size=5), values),
    max_leaves=12,
).filter(lambda value: value is not None)
IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda text: len(text.encode()) <= 1_000
)


class PropertyTests:
    """A part of `SignalContract`."""

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[
            HealthCheck.differing_executors,
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
        ],
    )
    @given(entries=st.dictionaries(IDS, VALUES, min_size=1, max_size=12))
    async def test_whatever_msgpack_holds_comes_back_as_it_went_in(
        self, adapter: SignalAdapter, entries: dict[str, Any]
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": entries})
            found = await store.get("session", entries)
            assert list(found) == list(entries)
            for name, value in entries.items():
                assert same(found[name], value)
