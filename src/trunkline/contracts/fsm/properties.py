"""What holds for any calls and any data. These tests need hypothesis."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trunkline.contracts.fsm.samples import BOT, KEY, same
from trunkline.fsm import FSMAdapter, FSMState, FSMStore

__all__ = ("PropertyTests",)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXTS,
    st.binary(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.dates(),
    st.times(timezones=st.none() | st.just(UTC)),
    st.timedeltas(),
    st.datetimes(timezones=st.none() | st.timezones()),
)
HASHABLE = st.recursive(
    st.one_of(st.none(), st.integers(), TEXTS, st.binary(), st.dates(), st.datetimes()),
    lambda values: st.lists(values).map(tuple) | st.frozensets(values),
    max_leaves=5,
)
VALUES = st.recursive(
    SCALARS | HASHABLE | st.sets(HASHABLE),
    lambda values: (
        st.lists(values)
        | st.lists(values).map(tuple)
        | st.dictionaries(TEXTS | st.integers(-(2**63), 2**64 - 1), values)
    ),
    max_leaves=10,
)
DATA = st.dictionaries(TEXTS, VALUES, max_size=6)

_HYPOTHESIS = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

STATES = st.sampled_from([None, "a", "b"])
FIELDS = st.dictionaries(st.sampled_from(["x", "y", "z"]), st.integers(0, 3), max_size=2)
#: A call of the store: the name of the method, and what it takes after bot and key.
CALLS = st.one_of(
    st.tuples(st.just("set_state"), STATES),
    st.tuples(st.just("set_state"), st.builds(FSMState, STATES, STATES, FIELDS)),
    st.tuples(st.just("set_data"), FIELDS),
    st.tuples(st.just("update_data"), FIELDS),
    st.tuples(st.just("clear")),
    st.tuples(
        st.just("compare_and_set"),
        st.builds(FSMState, STATES, STATES),
        st.builds(FSMState, STATES, STATES, FIELDS),
        st.booleans(),
    ),
)


class PropertyTests:
    """A part of `FSMContract`."""

    @_HYPOTHESIS
    @given(calls=st.lists(CALLS, max_size=12))
    async def test_any_calls_leave_what_a_plain_dictionary_would_hold(
        self, adapter: FSMAdapter, calls: list[tuple[Any, ...]]
    ) -> None:
        model: dict[str, FSMState] = {}
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.clear(BOT, KEY)
            for name, *arguments in calls:
                expected = _apply(model, name, arguments)
                if name == "compare_and_set":
                    *states, keep_data = arguments
                    found = await store.compare_and_set(BOT, KEY, *states, keep_data=keep_data)
                else:
                    found = await getattr(store, name)(BOT, KEY, *arguments)
                assert found == expected
                assert await store.get_state(BOT, KEY) == model.get("state")

    @_HYPOTHESIS
    @given(data=DATA, more=DATA)
    async def test_data_comes_back_as_it_went_in(
        self, adapter: FSMAdapter, data: dict[Any, Any], more: dict[Any, Any]
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", None, data))
            assert same(await store.get_data(BOT, KEY), data)
            assert same(await store.update_data(BOT, KEY, more), {**data, **more})
            assert same(await store.get_data(BOT, KEY), {**data, **more})


def _apply(model: dict[str, FSMState], name: str, arguments: list[Any]) -> Any:
    """Do to `model["state"]` what the call does, and return what the call returns."""
    standing = model.get("state", FSMState())
    if name == "clear":
        model.pop("state", None)
    elif name == "set_state" and isinstance(arguments[0], FSMState):
        model["state"] = arguments[0]
    elif name == "set_state":
        model["state"] = FSMState(arguments[0], standing.flow, standing.data)
    elif name == "set_data":
        model["state"] = FSMState(standing.state, standing.flow, arguments[0])
    elif name == "update_data":
        merged = {**standing.data, **arguments[0]}
        model["state"] = FSMState(standing.state, standing.flow, merged)
        return merged
    else:
        expected, new, keep_data = arguments
        if (expected.flow, expected.state) != (standing.flow, standing.state):
            return FSMState(standing.state, standing.flow)
        model["state"] = FSMState(new.state, new.flow, standing.data if keep_data else new.data)
    return None
