"""What every fsm adapter must do, as a pytest class."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import product
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

import anyio
import pytest
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trunkline.errors import ConfigurationError
from trunkline.fsm import ConversationExpired, FSMAdapter, FSMState, FSMStore
from trunkline.observe import Event

__all__ = ("FSMContract",)

#: Lets milliseconds pass for an adapter.
Expire: TypeAlias = Callable[[int], Awaitable[None]]

BOT, KEY = "bot", (42, 7)
TTL_MS = 200
#: A bot whose conversations end when they are idle.
MORTAL = "mortal"


class Place(NamedTuple):
    chat_id: int
    user_id: int


class Colour(str):
    """A string of a type that would not come back."""


#: Keys that are all different.
KEYS: list[Any] = [
    None,
    0,
    1,
    -1,
    2**70,
    "",
    "1",
    "None",
    "null",
    "[1,2]",
    "(1, 2)",
    "a b",
    'quote " and \\',
    "nul \0",
    "naïve ☃ 𝄞",
    "{brace}",
    "%s?:x",
    (),
    (None,),
    (1,),
    ("1",),
    (1, 2),
    ("1", "2"),
    (1, "2"),
    (1, (2,)),
    ((1, 2),),
    ((1,), 2),
    (1, 2, None),
    (1, None, 2),
    (0, 1, 2),
    ("1,2",),
    ("x" * 1_000,),
]

WRONG_KEYS: dict[str, Any] = {
    "bool": True,
    "float": 1.5,
    "bytes": b"key",
    "list": [1, 2],
    "dict": {"chat": 1},
    "frozenset": frozenset({1}),
    "object": object(),
    "Colour": (Colour("red"),),
    "datetime": (1, datetime(2026, 1, 1)),
}

PARIS = ZoneInfo("Europe/Paris")

#: One value of each kind, and those that are easily lost on the way.
KINDS: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 1, 2**31, 2**53 + 1, -(2**63), 2**64 - 1],
    "big ints": [2**64, -(2**63) - 1, 10**40, -(10**5_000)],
    "floats": [0.0, -0.0, 1.5, 1e308, math.inf, -math.inf, math.nan],
    "strings": ["", "naïve ☃ 𝄞", "nul \0", "'; DROP TABLE x; --", "%s {} \\"],
    "bytes": [b"", b"\x00\xff", bytes(range(256))],
    "tuples": [(), (1, (2, "3")), ([1], (2,))],
    "sets": [set(), {1, 2}, {(1, 2), None, "x"}, frozenset({frozenset({1})})],
    "maps": {"a": {"b": {}}, 1: "int", None: "none", b"x": "bytes", 1.5: "float", False: "bool"},
    "datetimes": [
        datetime(2026, 2, 3, 4, 5, 6, 789),
        datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
        datetime(2026, 2, 3, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
        datetime.min,
        datetime.max,
    ],
    "the hour that comes twice": [
        datetime(2026, 10, 25, 2, 30, tzinfo=PARIS),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=PARIS),
    ],
    "dates": [date(2026, 2, 3), time(4, 5, 6, 7), time(4, 5, tzinfo=UTC), timedelta(-1, 2, 3)],
    "decimals": [Decimal("0.10"), Decimal("-1E+50"), Decimal("NaN"), Decimal("-0")],
    "uuids": UUID(int=42),
    "deep": [[[[[[[[[[{"a": ({"b"},)}]]]]]]]]]],
}

_ENDLESS: list[Any] = []
_ENDLESS.append(_ENDLESS)

UNSTORABLE: dict[str, Any] = {
    "an object": object(),
    "a class": int,
    "a bytearray": bytearray(b"x"),
    "a str of another type": Colour("red"),
    "deep": {"a": [{"b": (object(),)}]},
    "half a surrogate": "\ud800",
    "half a surrogate as a name": {"\ud800": 1},
    "a tuple as a name": {(1, 2): 3},
    "a list without end": _ENDLESS,
}

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


class FSMContract:
    """Subclass it, give it one fixture `adapter`, and pytest tests an adapter of yours.

    The fixture returns a new adapter on an empty database, not yet open. The tests are async, and
    run by the pytest plugin of anyio, on asyncio and on trio if both are installed.

    Example::

        class TestMyAdapter(FSMContract):
            @pytest.fixture
            def adapter(self, tmp_path):
                return MyAdapter(tmp_path / "fsm.db")
    """

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def adapter(self) -> FSMAdapter:
        raise NotImplementedError("a subclass of FSMContract has a fixture 'adapter'")

    @pytest.fixture
    def expire(self, adapter: FSMAdapter) -> Expire:
        """Lets time pass. By default really; override it where an adapter has a settable clock."""

        async def sleep(duration_ms: int) -> None:
            await anyio.sleep(duration_ms / 1000)

        return sleep

    # -- bots ------------------------------------------------------------------------------------

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

    # -- where nothing is stored -----------------------------------------------------------------

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

    # -- states and data -------------------------------------------------------------------------

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

    # -- keys ------------------------------------------------------------------------------------

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
            await store.set_state(BOT, Place(42, 7), "a")
            assert await store.get_state(BOT, (42, 7)) == FSMState("a")

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

    # -- values ----------------------------------------------------------------------------------

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

    # -- at once ---------------------------------------------------------------------------------

    async def test_of_64_updates_at_once_none_is_lost(self, adapter: FSMAdapter) -> None:
        results: list[dict[Any, Any]] = []

        async def add(number: int) -> None:
            results.append(await store.update_data(BOT, KEY, {number: number}))

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            async with anyio.create_task_group() as task_group:
                for number in range(64):
                    task_group.start_soon(add, number)
            assert await store.get_data(BOT, KEY) == {number: number for number in range(64)}
        # Each saw what was there after its own, and no two saw the same.
        assert sorted(map(len, results)) == list(range(1, 65))

    async def test_calls_on_one_key_come_in_the_order_in_which_they_were_made(
        self, adapter: FSMAdapter
    ) -> None:
        async def change(number: int, *, task_status: TaskStatus[None]) -> None:
            task_status.started()
            if number % 3 == 0:
                await store.clear(BOT, KEY)
            elif number % 3 == 1:
                await store.set_state(BOT, KEY, str(number))
            else:
                await store.update_data(BOT, KEY, {"number": number})

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            async with anyio.create_task_group() as task_group:
                for number in range(60):
                    # It goes on until its call is made, and then waits for the answer.
                    await task_group.start(change, number)
            assert await store.get_state(BOT, KEY) == FSMState("58", None, {"number": 59})

    async def test_whoever_reads_while_others_write_sees_no_half_of_a_call(
        self, adapter: FSMAdapter
    ) -> None:
        async def write() -> None:
            for number in range(20):
                whole = FSMState(str(number), str(number), dict.fromkeys("abc", number))
                await store.set_state(BOT, KEY, whole)
            written.set()

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            written = anyio.Event()
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(write)
                while not written.is_set():
                    found = await store.get_state(BOT, KEY)
                    if found is not None:
                        assert found.flow == found.state
                        assert {*map(str, found.data.values())} == {found.state}
                    await checkpoint()

    # -- compare and set -------------------------------------------------------------------------

    async def test_a_step_is_taken_from_where_it_was_expected(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            changed = await store.compare_and_set(
                BOT, KEY, FSMState("a", "one", {"not": "looked at"}), FSMState("b", "one", {"y": 2})
            )
            assert changed is None
            assert await store.get_state(BOT, KEY) == FSMState("b", "one", {"x": 1})

    async def test_a_step_may_replace_the_data(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            step = FSMState("b", "two", {"y": 2})
            assert (
                await store.compare_and_set(BOT, KEY, FSMState("a", "one"), step, keep_data=False)
                is None
            )
            assert await store.get_state(BOT, KEY) == step

    async def test_a_step_from_elsewhere_changes_nothing_and_tells_what_stands(
        self, adapter: FSMAdapter
    ) -> None:
        elsewhere = [
            FSMState(),
            FSMState("a"),
            FSMState(None, "one"),
            FSMState("b", "one"),
            FSMState("", ""),
        ]
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            for expected, keep_data in product(elsewhere, (True, False)):
                standing = await store.compare_and_set(
                    BOT, KEY, expected, FSMState("c", "two", {}), keep_data=keep_data
                )
                assert standing == FSMState("a", "one")
            assert await store.get_state(BOT, KEY) == FSMState("a", "one", {"x": 1})

    async def test_what_is_not_stored_has_neither_flow_nor_state(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            standing = await store.compare_and_set(BOT, KEY, FSMState("a"), FSMState("b"))
            assert standing == FSMState()
            assert await store.get_state(BOT, KEY) is None
            assert await store.compare_and_set(BOT, KEY, FSMState(), FSMState("b", "one")) is None
            assert await store.get_state(BOT, KEY) == FSMState("b", "one")

    async def test_of_many_that_take_the_same_step_at_once_only_one_does(
        self, adapter: FSMAdapter
    ) -> None:
        answers: list[FSMState | None] = []

        async def step(number: int) -> None:
            state = FSMState(str(number), "one", {"winner": number})
            answers.append(
                await store.compare_and_set(BOT, KEY, FSMState("a", "one"), state, keep_data=False)
            )

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for _ in range(5):
                answers.clear()
                await store.set_state(BOT, KEY, FSMState("a", "one"))
                async with anyio.create_task_group() as task_group:
                    for number in range(32):
                        task_group.start_soon(step, number)
                standing = await store.get_state(BOT, KEY)
                assert standing is not None
                assert standing.data == {"winner": int(standing.state or "")}
                assert answers.count(None) == 1
                assert answers.count(FSMState(standing.state, "one")) == 31

    # -- expiry ----------------------------------------------------------------------------------

    async def test_a_conversation_lives_for_ever_by_default(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.init(MORTAL, ttl_ms=TTL_MS)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            await expire(TTL_MS + 1)
            assert await store.get_state(BOT, KEY) == FSMState("a", "one", {"x": 1})

    async def test_an_idle_conversation_ends(self, adapter: FSMAdapter, expire: Expire) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=TTL_MS)
            await store.set_state(MORTAL, KEY, FSMState("a", "one", {"x": 1}))
            assert await store.get_state(MORTAL, KEY) == FSMState("a", "one", {"x": 1})
            await expire(TTL_MS + 1)
            assert await store.get_state(MORTAL, KEY) is None
            assert await store.get_data(MORTAL, KEY) is None

    async def test_every_change_lets_it_live_on(self, adapter: FSMAdapter, expire: Expire) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=60_000)
            await store.set_state(MORTAL, KEY, FSMState("a", "one", {"x": 1}))
            await store.init(MORTAL, ttl_ms=TTL_MS)
            changes: list[Callable[[], Awaitable[Any]]] = [
                lambda: store.set_state(MORTAL, KEY, "b"),
                lambda: store.set_data(MORTAL, KEY, {"y": 2}),
                lambda: store.update_data(MORTAL, KEY, {}),
                lambda: store.compare_and_set(
                    MORTAL, KEY, FSMState("b", "one"), FSMState("c", "one")
                ),
                lambda: store.set_state(MORTAL, KEY, FSMState("d")),
            ]
            for change in changes:
                await change()
                await expire(TTL_MS // 3)
                assert await store.get_state(MORTAL, KEY) is not None
            await expire(TTL_MS)
            assert await store.get_state(MORTAL, KEY) is None

    async def test_reading_does_not_let_it_live_on(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=TTL_MS)
            await store.set_state(MORTAL, KEY, "a")
            for _ in range(3):
                await expire(TTL_MS // 3 + 1)
                await store.get_state(MORTAL, KEY)
            assert await store.get_state(MORTAL, KEY) is None

    async def test_what_begins_after_the_end_knows_nothing_of_before(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=TTL_MS)
            for number in range(5):
                await store.set_state(MORTAL, number, FSMState("a", "one", {"x": 1}))
            await expire(TTL_MS + 1)
            await store.set_state(MORTAL, 0, "b")
            assert await store.get_state(MORTAL, 0) == FSMState("b")
            await store.set_data(MORTAL, 1, {"y": 2})
            assert await store.get_state(MORTAL, 1) == FSMState(None, None, {"y": 2})
            assert await store.update_data(MORTAL, 2, {"y": 2}) == {"y": 2}
            assert await store.get_state(MORTAL, 2) == FSMState(None, None, {"y": 2})
            standing = await store.compare_and_set(
                MORTAL, 3, FSMState("a", "one"), FSMState("b", "one")
            )
            assert standing == FSMState()
            await store.clear(MORTAL, 4)
            assert await store.get_state(MORTAL, 4) is None

    async def test_a_bot_may_let_its_conversations_live_for_ever_again(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=TTL_MS)
            await store.set_state(MORTAL, KEY, FSMState("a", "one", {"x": 1}))
            await store.init(MORTAL)
            await store.set_state(MORTAL, KEY, "b")
            await expire(TTL_MS + 1)
            assert await store.get_state(MORTAL, KEY) == FSMState("b", "one", {"x": 1})

    async def test_the_end_of_a_conversation_is_told_once(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        if type(adapter).sweep is FSMAdapter.sweep:
            pytest.skip("the database removes what has ended, and does not tell")
        told: list[Event] = []
        all_told, last_told = anyio.Event(), anyio.Event()

        def hear(event: Event) -> None:
            assert isinstance(event, ConversationExpired)
            if event.key == "last":
                last_told.set()
                return
            told.append(event)
            if len(told) == 3:
                all_told.set()

        async with FSMStore(adapter=adapter, sweep_interval_ms=5, name="store") as store:
            store.events.subscribe(hear)
            await store.init(BOT)
            await store.init(MORTAL, ttl_ms=TTL_MS)
            await store.set_state(BOT, "lives", FSMState("a", "one", {"x": 1}))
            ended = {key: FSMState("a", "one", {"key": key}) for key in (1, ("2", (3,)), None)}
            for key in ended:
                await store.set_state(MORTAL, key, ended[key])
            await store.set_state(MORTAL, "cleared", "a")
            await store.clear(MORTAL, "cleared")
            await expire(TTL_MS + 1)
            with anyio.fail_after(10):
                await all_told.wait()
            # Whatever would be told by mistake or twice, is told before this one.
            await store.set_state(MORTAL, "last", "a")
            await expire(TTL_MS + 1)
            with anyio.fail_after(10):
                await last_told.wait()
            expected = [
                ConversationExpired(instance="store", bot_name=MORTAL, key=key, state=ended[key])
                for key in ended
            ]
            assert sorted(told, key=repr) == sorted(expected, key=repr)
            assert await store.get_state(BOT, "lives") is not None

    async def test_a_time_to_live_that_makes_no_sense_is_refused(self, adapter: FSMAdapter) -> None:
        wrong: list[Any] = [0, -1, 1.5, True, "1", 10**14 + 1]
        async with FSMStore(adapter=adapter) as store:
            for ttl_ms in wrong:
                with pytest.raises(ConfigurationError, match="ttl_ms"):
                    await store.init(MORTAL, ttl_ms=ttl_ms)

    async def test_the_longest_time_to_live_is_stored(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=10**14)
            await store.set_state(MORTAL, KEY, "a")
            assert await store.get_state(MORTAL, KEY) == FSMState("a")

    # -- locks -----------------------------------------------------------------------------------

    async def test_those_who_want_one_key_come_in_the_order_of_arrival(
        self, adapter: FSMAdapter
    ) -> None:
        order: list[int] = []
        inside = 0

        async def visit(number: int) -> None:
            nonlocal inside
            async with store.lock(BOT, KEY):
                inside += 1
                assert inside == 1
                order.append(number)
                await checkpoint()
                inside -= 1

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            async with anyio.create_task_group() as task_group, store.lock(BOT, KEY):
                for number in range(10):
                    task_group.start_soon(visit, number)
                    await anyio.wait_all_tasks_blocked()
                assert order == []
            assert order == list(range(10))

    async def test_other_keys_and_other_bots_are_free(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.init("other")
            with anyio.fail_after(10):
                async with (
                    store.lock(BOT, (1, 2)),
                    store.lock(BOT, ("1", "2")),
                    store.lock(BOT, (1, 2, 3)),
                    store.lock("other", (1, 2)),
                ):
                    await store.set_state(BOT, (1, 2), "a")

    async def test_an_owner_that_fails_lets_go(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            with pytest.raises(ZeroDivisionError):
                async with store.lock(BOT, KEY):
                    raise ZeroDivisionError
            with anyio.fail_after(10):
                async with store.lock(BOT, KEY):
                    pass

    async def test_an_owner_that_is_cancelled_lets_go(self, adapter: FSMAdapter) -> None:
        async def own() -> None:
            async with store.lock(BOT, KEY):
                owned.set()
                await anyio.sleep_forever()

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            owned = anyio.Event()
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(own)
                await owned.wait()
                task_group.cancel_scope.cancel()
            with anyio.fail_after(10):
                async with store.lock(BOT, KEY):
                    pass

    async def test_one_who_gives_up_waiting_does_not_hold_up_the_line(
        self, adapter: FSMAdapter
    ) -> None:
        order: list[str] = []
        impatient = anyio.CancelScope()

        async def visit(name: str) -> None:
            async with store.lock(BOT, KEY):
                order.append(name)

        async def give_up() -> None:
            with impatient:
                await visit("impatient")

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            async with anyio.create_task_group() as task_group, store.lock(BOT, KEY):
                task_group.start_soon(visit, "first")
                await anyio.wait_all_tasks_blocked()
                task_group.start_soon(give_up)
                await anyio.wait_all_tasks_blocked()
                task_group.start_soon(visit, "last")
                await anyio.wait_all_tasks_blocked()
                impatient.cancel()
                await anyio.wait_all_tasks_blocked()
            assert order == ["first", "last"]

    async def test_a_task_that_would_wait_for_itself_is_told_so(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            with anyio.fail_after(10):
                async with store.lock(BOT, KEY):
                    with pytest.raises(RuntimeError, match=r"holds the lock .* already"):
                        async with store.lock(BOT, KEY):
                            pass
                async with store.lock(BOT, KEY):
                    pass

    async def test_a_lock_holds_among_processes_too(self, adapter: FSMAdapter) -> None:
        if not adapter.lease_ms:
            pytest.skip("the database has no locks among processes")
        inside = 0
        visits = 0

        async def visit(store: FSMStore) -> None:
            nonlocal inside, visits
            for _ in range(5):
                async with store.lock(BOT, KEY):
                    inside += 1
                    assert inside == 1
                    await store.update_data(BOT, KEY, {"visits": visits})
                    visits += 1
                    inside -= 1

        # A store with connections of its own is what another process would have.
        async with FSMStore(adapter=adapter) as one, FSMStore(adapter=adapter.sibling()) as other:
            with anyio.fail_after(30):
                async with anyio.create_task_group() as task_group:
                    for store in (one, other):
                        await store.init(BOT)
                        for _ in range(3):
                            task_group.start_soon(visit, store)
        assert visits == 30


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


def same(found: object, stored: object) -> bool:
    """Whether two values are equal in every type within, zones, folds and NaN included."""
    if type(found) is not type(stored):
        return False
    if isinstance(stored, Mapping):
        assert isinstance(found, Mapping)
        return same({_typed(one) for one in found}, {_typed(one) for one in stored}) and all(
            same(found[name], stored[name]) for name in stored
        )
    if isinstance(stored, list | tuple):
        assert isinstance(found, list | tuple)
        return len(found) == len(stored) and all(map(same, found, stored))
    if isinstance(stored, set | frozenset):
        assert isinstance(found, set | frozenset)
        return {_typed(one) for one in found} == {_typed(one) for one in stored}
    # As text, the zone and fold of an instant count, and NaN is NaN.
    return found == stored if isinstance(stored, int) else repr(found) == repr(stored)


def _typed(value: object) -> tuple[type, object]:
    """`value` so that `True` and `1`, or `(1,)` and `(1.0,)`, are different."""
    if isinstance(value, tuple):
        return tuple, tuple(map(_typed, value))
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(_typed, value))
    return type(value), repr(value)
