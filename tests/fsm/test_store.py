"""What of the fsm store is no adapter's business, and what is the business of one adapter only."""

from __future__ import annotations

import sqlite3
from contextlib import AsyncExitStack, closing
from copy import deepcopy

import anyio
import pytest
import sqlalchemy as sa
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st
from msgspec import msgpack

from tests.fsm.worker import BOT, KEY
from trunkline import FSMState, FSMStore
from trunkline.backends.codec import encode
from trunkline.errors import ConfigurationError, StoreUnavailable, UnreadableRecord
from trunkline.fsm import FSMAdapter
from trunkline.fsm.adapter import RecordKey, Step
from trunkline.fsm.memory import MemoryFSMAdapter
from trunkline.fsm.sql import SQLFSMAdapter, records
from trunkline.testing import ManualClock, crash

SEVENTIES_MS = 10**9


# -- opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "give a URL"),
        ({"url": "memory://", "adapter": MemoryFSMAdapter()}, "not both"),
        ({"url": "bot.db"}, "a store's URL looks like"),
        (
            {"url": "mysql://ann:hunter2@host/db"},
            r"no fsm adapter for 'mysql://ann:\*\*\*@host/db'",
        ),
        ({"url": "memory://", "sweep_interval_ms": 0}, "sweep_interval_ms must be"),
        ({"url": "memory://", "call_timeout_ms": 0}, "call_timeout_ms must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_never_work_is_refused_at_once(arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        FSMStore(**arguments)


async def test_a_store_that_does_not_run_says_so(url):
    store = FSMStore(url, name="dialogues")
    await store.init(BOT)
    with pytest.raises(StoreUnavailable, match="dialogues does not run"):
        await store.get_state(BOT, KEY)
    async with store:
        await store.set_state(BOT, KEY, "a")
    with pytest.raises(StoreUnavailable, match="stopped"):
        await store.get_state(BOT, KEY)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_framework_with_start_and_stop_hooks_can_run_it(url):
    store = FSMStore(url)
    await store.start()
    await store.init(BOT)
    await store.set_state(BOT, KEY, "a")
    assert await store.get_state(BOT, KEY) == FSMState("a")
    await store.stop()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
async def test_sqlite_in_memory_is_there_as_long_as_the_store_runs(url):
    async with FSMStore(url) as store:
        await store.init(BOT)
        await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
        assert await store.update_data(BOT, KEY, {"y": 2}) == {"x": 1, "y": 2}
        assert await store.get_state(BOT, KEY) == FSMState("a", "one", {"x": 1, "y": 2})


async def test_two_stores_share_a_database(shared_url):
    async with FSMStore(shared_url) as one, FSMStore(shared_url) as other:
        await one.init(BOT)
        await other.init(BOT)
        await one.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
        assert await other.update_data(BOT, KEY, {"y": 2}) == {"x": 1, "y": 2}
        assert await one.get_state(BOT, KEY) == FSMState("a", "one", {"x": 1, "y": 2})


async def test_a_worker_that_crashed_is_started_again_and_nothing_is_lost(url):
    async with FSMStore(url) as store:
        await store.init(BOT)
        await store.set_state(BOT, KEY, "a")
        await crash(store._writers[0])
        assert await store.update_data(BOT, KEY, {"x": 1}) == {"x": 1}
        assert await store.get_state(BOT, KEY) == FSMState("a", None, {"x": 1})


class Name(str):
    """As libraries for configuration files give them."""


async def test_a_name_may_be_of_a_type_that_is_a_string(url):
    async with FSMStore(url) as store:
        await store.init(Name("shop"))
        await store.set_state(Name("shop"), KEY, Name("a"))
        assert await store.get_state("shop", KEY) == FSMState("a")
        assert await store.update_data(Name("shop"), KEY, {"x": 1}) == {"x": 1}


# -- reading stores nothing --------------------------------------------------------------------


@pytest.fixture
def count_stored(url, request):
    """Counts what the database of `url` holds, past the store."""
    if url.startswith("valkey"):
        server = request.getfixturevalue("valkey_server")
        return lambda _store: len(server.execute("KEYS", "*:fsm:\\[*"))
    if url.startswith("postgresql"):
        server = request.getfixturevalue("postgres_server")
        database = url.partition("@/")[2].partition("?")[0]
        count = "SELECT count(*) FROM trunkline_fsm"
        return lambda _store: server.execute(count, database)[0][0]
    if url.startswith("sqlite"):
        return lambda _store: count_rows(url.removeprefix("sqlite:///"))
    return lambda store: store._adapter.count()


def count_rows(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT count(*) FROM trunkline_fsm").fetchone()[0]


async def test_nothing_is_stored_by_reading_and_by_what_changes_nothing(url, count_stored):
    async with FSMStore(url) as store:
        await store.init(BOT)
        for key in range(20):
            await store.get_state(BOT, key)
            await store.get_data(BOT, key)
            await store.clear(BOT, key)
            assert await store.compare_and_set(BOT, key, FSMState("a"), FSMState("b"))
            async with store.lock(BOT, key):
                pass
        assert count_stored(store) == 0
        await store.set_state(BOT, KEY, "a")
        assert count_stored(store) > 0
        await store.clear(BOT, KEY)
        assert count_stored(store) == 0


async def test_a_batch_of_calls_on_nothing_stores_nothing(url, count_stored):
    async with FSMStore(url) as store:
        await store.init(BOT)

        async def try_in_vain(key):
            await store.compare_and_set(BOT, key, FSMState("a"), FSMState("b"))

        async with anyio.create_task_group() as task_group:
            for key in range(50):
                task_group.start_soon(try_in_vain, key)
                task_group.start_soon(store.clear, BOT, key)
        assert count_stored(store) == 0


async def test_a_conversation_that_was_set_and_cleared_at_once_leaves_nothing(url, count_stored):
    async with FSMStore(url) as store:
        await store.init(BOT)

        async def come_and_go(key):
            await store.set_data(BOT, key, {"x": 1})
            await store.clear(BOT, key)

        async with anyio.create_task_group() as task_group:
            for key in range(50):
                task_group.start_soon(come_and_go, key)
        assert count_stored(store) == 0


# -- expiry ------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def telling_url(request, tmp_path):
    """A database that reports conversations that have expired."""
    if request.param == "memory":
        return "memory://"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'bot.db'}"
    return request.getfixturevalue("postgres_url")


async def test_more_conversations_than_one_sweep_takes_are_all_reported(telling_url):
    size, clock, told = 1_200, ManualClock(SEVENTIES_MS), []
    all_told = anyio.Event()

    def hear(event):
        told.append(event.key)
        if len(told) == size:
            all_told.set()

    async with FSMStore(telling_url, clock=clock, sweep_interval_ms=1_000) as store:
        store.events.subscribe(hear)
        await store.init(BOT, ttl_ms=500)
        async with anyio.create_task_group() as task_group:
            for key in range(size):
                task_group.start_soon(store.set_state, BOT, key, "a")
        await anyio.wait_all_tasks_blocked()
        clock.advance_ms(1_000)
        with anyio.fail_after(60):
            await all_told.wait()
    assert sorted(told) == list(range(size))


async def test_the_sweep_reports_no_conversation_that_only_begins(telling_url):
    told = []
    async with FSMStore(telling_url, sweep_interval_ms=1) as store:
        store.events.subscribe(told.append)
        await store.init(BOT, ttl_ms=60_000)
        for turn in range(20):
            async with anyio.create_task_group() as task_group:
                for number in range(20):
                    task_group.start_soon(store.update_data, BOT, (turn, number), {"x": 1})
                    if number % 5 == 0:
                        task_group.start_soon(store._sweep)
    assert told == []


async def test_what_ended_is_removed_from_the_database(url, count_stored):
    if url.startswith("valkey"):
        pytest.skip("the server does so by itself")
    clock = ManualClock(SEVENTIES_MS)
    async with FSMStore(url, clock=clock, sweep_interval_ms=1_000) as store:
        told = anyio.Event()
        store.events.subscribe(lambda _event: told.set())
        await store.init(BOT, ttl_ms=500)
        await store.set_state(BOT, KEY, "a")
        assert count_stored(store) == 1
        await anyio.wait_all_tasks_blocked()
        clock.advance_ms(1_000)
        with anyio.fail_after(60):
            await told.wait()
        assert count_stored(store) == 0


async def test_valkey_ends_a_conversation_by_its_own_clock(valkey_url, valkey_server):
    async with FSMStore(valkey_url) as store:
        await store.init(BOT, ttl_ms=50)
        await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
        with anyio.fail_after(60):
            while await store.get_state(BOT, KEY) is not None:  # noqa: ASYNC110
                await anyio.sleep(0.005)
            while valkey_server.execute("KEYS", "*:fsm:\\[*"):  # noqa: ASYNC110
                await anyio.sleep(0.005)


async def test_a_subscriber_that_fails_does_not_end_the_sweep(log):
    clock, told = ManualClock(SEVENTIES_MS), []

    def hear(event):
        told.append(event.key)
        raise ZeroDivisionError

    async with FSMStore("memory://", clock=clock, sweep_interval_ms=1_000) as store:
        store.events.subscribe(hear)
        await store.init(BOT, ttl_ms=500)
        for key in range(3):
            await store.set_state(BOT, key, "a")
            clock.advance_ms(1_000)
            await anyio.wait_all_tasks_blocked()
        assert told == [0, 1, 2]
        assert store.events.failures == 3


async def test_without_a_time_to_live_nobody_sweeps():
    class Unswept(MemoryFSMAdapter):
        def sweep(self, limit):
            pytest.fail("there is nothing to sweep")

    clock = ManualClock(SEVENTIES_MS)
    async with FSMStore(adapter=Unswept(clock), clock=clock, sweep_interval_ms=10) as store:
        await store.init(BOT)
        for _ in range(3):
            clock.advance_ms(10)
            await anyio.wait_all_tasks_blocked()


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["save", "clear", "advance", "sweep"]),
            st.integers(0, 3),
            st.sampled_from([None, 1, 5, 20]),
        ),
        max_size=40,
    )
)
def test_a_sweep_in_memory_removes_what_is_over_and_nothing_else(steps):
    clock = ManualClock(SEVENTIES_MS)
    adapter = MemoryFSMAdapter(clock)
    model: dict[RecordKey, float] = {}
    for step, number, ttl_ms in steps:
        key = RecordKey(BOT, str(number))
        if step == "save":
            adapter.save(key, Step(None, str(number)), {}, ttl_ms)
            model[key] = float("inf") if ttl_ms is None else clock() + ttl_ms
        elif step == "clear":
            adapter.clear(key)
            model.pop(key, None)
        elif step == "advance":
            clock.advance_ms(number)
        else:
            over = {key for key, end in model.items() if end <= clock()}
            assert {key for key, _ in adapter.sweep(100)} == over
            for key in over:
                del model[key]
    assert adapter.count() == len(model)
    assert all(adapter._read(key) is not None for key in model)


def test_a_sweep_in_memory_removes_no_more_than_it_was_asked_to():
    clock = ManualClock(SEVENTIES_MS)
    adapter = MemoryFSMAdapter(clock)
    for number in range(10):
        adapter.save(RecordKey(BOT, str(number)), Step(), {}, 1 + number % 2)
    clock.advance_ms(5)
    assert [len(adapter.sweep(4)) for _ in range(4)] == [4, 4, 2, 0]


# -- in memory ---------------------------------------------------------------------------------


async def test_a_tight_loop_of_calls_in_memory_lets_other_tasks_run():
    async with FSMStore("memory://") as store:
        await store.init(BOT)
        await store.set_state(BOT, KEY, "a")
        (worker,) = store._writers
        queued, beside = worker.queued_calls, 0

        async def count():
            nonlocal beside
            while True:
                beside += 1
                await checkpoint()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(count)
            for _ in range(1_290):
                await store.get_state(BOT, KEY)
            task_group.cancel_scope.cancel()
        assert worker.queued_calls - queued == 10
        assert beside >= 10
        assert store.stats().calls >= 1_290


async def test_memory_does_not_grow_without_end():
    told = []
    async with FSMStore(adapter=MemoryFSMAdapter(max_conversations=3)) as store:
        store.events.subscribe(told.append)
        await store.init(BOT)
        await store.init("other")
        await store.set_state("other", KEY, "a")
        for number in range(3):
            await store.set_state(BOT, (number, 7), FSMState("a", "flow", {"number": number}))
        await store.set_state(BOT, (0, 7), "b")
        await store.update_data(BOT, (1, 7), {"y": 1})
        await store.get_state(BOT, (2, 7))  # no change
        await store.set_state(BOT, (3, 7), "a")
        assert [event.key for event in told] == [(2, 7)]
        assert told[0].state == FSMState("a", "flow", {"number": 2})
        assert told[0].bot_name == BOT
        assert await store.get_state(BOT, (2, 7)) is None
        for number in range(100):
            await store.set_state(BOT, (number, 8), "a")
        assert store._adapter.count() == 4  # type: ignore[attr-defined]
        assert await store.get_state("other", KEY) == FSMState("a")


async def test_an_adapter_of_ones_own_over_memory_is_asked_by_its_methods():
    class Shouting(MemoryFSMAdapter):
        def set_state(self, key, state, ttl_ms, remove_empty):
            super().set_state(key, state.upper(), ttl_ms, remove_empty)

    async with FSMStore(adapter=Shouting()) as store:
        await store.init(BOT)
        for _ in range(2):
            await store.set_state(BOT, KEY, "a")
            assert await store.get_state(BOT, KEY) == FSMState("A")


async def test_of_two_stores_on_one_adapter_the_one_that_runs_is_notified():
    adapter, told = MemoryFSMAdapter(max_conversations=1), []
    stores = [FSMStore(adapter=adapter, name=name) for name in ("one", "two")]
    for store in reversed(stores):
        store.events.subscribe(lambda event: told.append((event.instance, event.key)))  # type: ignore[attr-defined]
        async with store:
            await store.init(BOT)
            for key in range(2):
                await store.set_state(BOT, key, "a")
    assert told == [("two", 0), ("one", 1), ("one", 0)]
    assert adapter.on_dropped is None


@pytest.mark.parametrize(
    "data",
    [{"x": 1}, {"x": "Ж"}, {"x": [1]}, {"x": {"y": {1}}}],
    ids=["plain", "text", "list", "map"],
)
@pytest.mark.parametrize("ttl_ms", [None, 60_000])
async def test_what_is_kept_in_memory_is_nobody_elses(data, ttl_ms):
    expected = deepcopy(data)
    async with FSMStore("memory://") as store:
        await store.init(BOT, ttl_ms=ttl_ms)
        await store.update_data(BOT, KEY, data)
        for _ in range(3):
            returned = await store.update_data(BOT, KEY, {})
            found = (await store.get_state(BOT, KEY)).data
            assert returned == found == expected
            for one in (data, returned, found):
                if isinstance(one["x"], list):
                    one["x"].append("changed")
                elif isinstance(one["x"], dict):
                    one["x"]["y"].add("changed")
                one["new"] = "changed"


async def test_a_dropped_conversation_does_not_end_a_second_time():
    clock, told = ManualClock(SEVENTIES_MS), []
    adapter = MemoryFSMAdapter(clock, max_conversations=2)
    async with FSMStore(adapter=adapter, clock=clock, sweep_interval_ms=1_000) as store:
        store.events.subscribe(lambda event: told.append(event.key))  # type: ignore[attr-defined]
        await store.init(BOT, ttl_ms=500)
        for key in range(4):
            await store.set_state(BOT, key, "a")
        assert told == [0, 1]
        await anyio.wait_all_tasks_blocked()
        clock.advance_ms(1_000)
        await anyio.wait_all_tasks_blocked()
        assert told == [0, 1, 2, 3]
        assert adapter.count() == 0


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "many", True])
def test_a_bound_is_a_positive_int(wrong):
    with pytest.raises(ConfigurationError, match="max_conversations must be"):
        MemoryFSMAdapter(max_conversations=wrong)


# -- in SQL ------------------------------------------------------------------------------------


def test_a_conversation_is_found_by_an_index_and_not_by_looking_at_all(tmp_path):
    adapter = SQLFSMAdapter(f"sqlite:///{tmp_path / 'bot.db'}")
    adapter.open()
    seen = []
    with adapter.transaction():
        driver = adapter.database.connection.connection.dbapi_connection
        driver.set_trace_callback(seen.append)
        adapter.load(RecordKey(BOT, "1"))
        driver.set_trace_callback(None)
        (statement,) = seen
        plan = [row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}")]
    adapter.close()
    assert any(step.startswith("SEARCH one") for step in plan), plan
    assert not any(step.startswith("SCAN one") for step in plan), plan


async def test_of_two_updates_around_a_clear_one_sees_the_other(shared_url):
    async with (
        FSMStore(shared_url) as one,
        FSMStore(shared_url) as other,
        FSMStore(shared_url) as third,
    ):
        for store in (one, other, third):
            await store.init(BOT)
        merged = {}

        async def update(store, name):
            merged[name] = await store.update_data(BOT, KEY, {name: 1})

        for _ in range(60):
            await third.set_data(BOT, KEY, {"before": 1})
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(update, one, "a")
                task_group.start_soon(third.clear, BOT, KEY)
                task_group.start_soon(update, other, "b")
            # Whichever came first, it was seen by the other; or the clear was between them, and
            # the first of them saw what was before.
            assert merged != {"a": {"a": 1}, "b": {"b": 1}}


async def test_calls_of_several_bots_share_a_batch(url):
    async with FSMStore(url) as store:
        bots = [f"bot-{number}" for number in range(5)]
        for bot in bots:
            await store.init(bot)
        async with anyio.create_task_group() as task_group:
            for number in range(10):
                for bot in bots:
                    task_group.start_soon(store.update_data, bot, KEY, {number: bot})
        for bot in bots:
            assert await store.get_data(bot, KEY) == dict.fromkeys(range(10), bot)


# -- namespaces --------------------------------------------------------------------------------

NAMESPACES = ["default", "Default", "a", "a:b", "{a}", "}a{", "a}:fsm:", "100 %", "naïve ☃", "*"]


async def test_stores_of_two_namespaces_never_see_each_others_conversations(shared_url):
    clock, told = ManualClock(SEVENTIES_MS), []
    stores = [
        FSMStore(shared_url, namespace=name, clock=clock, sweep_interval_ms=600_000)
        for name in NAMESPACES
    ]
    async with AsyncExitStack() as stack:
        for name, store in zip(NAMESPACES, stores, strict=True):
            await stack.enter_async_context(store)
            await store.init(BOT, ttl_ms=60_000)
            await store.set_state(BOT, KEY, FSMState(name, None, {"namespace": name}))
        for name, store in zip(NAMESPACES, stores, strict=True):
            assert await store.get_state(BOT, KEY) == FSMState(name, None, {"namespace": name})
            assert store._adapter.namespace == name
            summary = await store._read(FSMAdapter.summary)
            assert summary == {(BOT, Step(None, name)): 1}
        await stores[0].clear(BOT, KEY)
        stores[1].events.subscribe(told.append)
        clock.advance_ms(61_000)
        if not shared_url.startswith("valkey"):
            assert [len(await store._write(None, FSMAdapter.sweep, 10)) for store in stores] == [
                0,
                *[1] * (len(stores) - 1),
            ]


async def test_a_lock_of_one_namespace_does_not_hold_up_another(shared_url):
    async with FSMStore(shared_url) as one, FSMStore(shared_url, namespace="other") as other:
        await one.init(BOT)
        await other.init(BOT)
        with anyio.fail_after(60):
            async with one.lock(BOT, KEY), other.lock(BOT, KEY):
                pass


def test_conversations_of_the_first_version_are_kept_in_the_namespace_default(tmp_path):
    path = tmp_path / "bot.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(FIRST_VERSION)
        row = ("bot", "[42,7]", "one", "a", msgpack.encode({encode("x"): encode([1])}), None)
        connection.execute("INSERT INTO trunkline_fsm VALUES (?, ?, ?, ?, ?, ?)", row)

    async def main():
        async with FSMStore(f"sqlite:///{path}") as store:
            await store.init(BOT)
            found.append(await store.get_state(BOT, KEY))
            await store.update_data(BOT, KEY, {"y": 2})

    found = []
    for _ in range(2):
        anyio.run(main)
    assert found == [FSMState("a", "one", {"x": [1]}), FSMState("a", "one", {"x": [1], "y": 2})]


async def test_conversations_of_the_first_version_on_a_server_are_moved(valkey_url, valkey_server):
    for number in range(1_200):
        key = f'trunkline:fsm:["bot", "{number}"]'
        data = (b"." + encode("x"), encode([number]), b"." + encode("y"), encode(2))
        valkey_server.execute("HSET", key, "x", 1, "flow", "=one", "state", "=a", *data)
    valkey_server.execute("PEXPIRE", key, 10**6)
    valkey_server.execute("HSET", 'trunkline:fsm:["bot", "\\"empty\\""]', "x", 1)
    for _ in range(2):
        async with FSMStore(valkey_url) as store:
            await store.init(BOT, ttl_ms=None)
            for number in (0, 1_199):
                found = await store.get_state(BOT, number)
                assert found == FSMState("a", "one", {"x": [number], "y": 2})
            assert await store.get_state(BOT, "empty") == FSMState()
            assert await store.update_data(BOT, 7, {"z": 3}) == {"x": [7], "y": 2, "z": 3}
            await store.set_data(BOT, 7, {"x": [7], "y": 2})
            summary = await store._read(FSMAdapter.summary)
            assert summary == {(BOT, Step("one", "a")): 1_200, (BOT, Step()): 1}
    assert not valkey_server.execute("KEYS", "trunkline:fsm*")
    (moved,) = valkey_server.execute("KEYS", "*1199*")
    assert valkey_server.execute("PTTL", moved) > 0


#: What trunkline 0.1.0 made of an empty file.
FIRST_VERSION = """
CREATE TABLE trunkline_schema (
    component TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (component)
);
INSERT INTO trunkline_schema VALUES ('fsm', 1);
CREATE TABLE trunkline_fsm (
    bot_name TEXT NOT NULL, "key" TEXT NOT NULL, flow TEXT, state TEXT, fields BLOB NOT NULL,
    expires_at_ms BIGINT, PRIMARY KEY (bot_name, "key")
);
CREATE INDEX trunkline_fsm_by_expiry ON trunkline_fsm (expires_at_ms)
    WHERE expires_at_ms IS NOT NULL;
"""


async def test_the_tables_of_a_new_database_are_those_of_the_newest_version(shared_url, request):
    if shared_url.startswith("valkey"):
        pytest.skip("there are no tables")
    async with FSMStore(shared_url) as store:
        await store.init(BOT)
    adapter = SQLFSMAdapter(shared_url)
    adapter.open()
    with adapter.transaction(read_only=True):
        inspector = sa.inspect(adapter.database.connection)
        assert "trunkline_fsm_1" not in inspector.get_table_names()
        key = inspector.get_pk_constraint("trunkline_fsm")["constrained_columns"]
        (index,) = inspector.get_indexes("trunkline_fsm")
    adapter.close()
    assert key == ["namespace", "bot_name", "key"]
    assert index["column_names"] == ["namespace", "expires_at_ms"]


# -- records that cannot be decoded ------------------------------------------------------------


@pytest.fixture
def damage(shared_url, request):
    """Damages the stored data of one conversation, past the store."""

    def run():
        if shared_url.startswith("valkey"):
            server = request.getfixturevalue("valkey_server")
            (name,) = [key for key in server.execute("KEYS", "*") if b"damaged" in key]
            server.execute("HSET", name, "names", b"\xc1")
            return
        adapter = SQLFSMAdapter(shared_url)
        adapter.open()
        with adapter.transaction():
            adapter.database.connection.execute(
                sa.update(records).where(records.c.key.contains("damaged")).values(fields=b"\xc1")
            )
        adapter.close()

    return run


async def test_a_record_that_cannot_be_decoded_fails_its_calls_and_nothing_else(shared_url, damage):
    async with FSMStore(shared_url) as store:
        await store.init(BOT)
        await store.set_state(BOT, "damaged", FSMState("a", "one", {"x": 1}))
        await store.set_state(BOT, "whole", FSMState("a", "one", {"x": 1}))
        damage()
        refusals = []

        async def refused(call):
            with pytest.raises(UnreadableRecord, match=r"bot 'bot', key \"damaged\"") as refusal:
                await call
            refusals.append(refusal.value)

        async with anyio.create_task_group() as task_group:
            for number in range(20):
                task_group.start_soon(refused, store.get_state(BOT, "damaged"))
                task_group.start_soon(refused, store.update_data(BOT, "damaged", {"y": number}))
                task_group.start_soon(store.update_data, BOT, "whole", {number: number})
        assert len(refusals) == 40
        assert len(await store.get_data(BOT, "whole")) == 21
        assert store.stats().restarts == 0
        await store.set_state(BOT, "damaged", FSMState("b"))
        assert await store.get_state(BOT, "damaged") == FSMState("b")
        damage()
        await store.clear(BOT, "damaged")
        assert await store.get_state(BOT, "damaged") is None


async def test_a_sweep_removes_an_expired_record_that_cannot_be_decoded(shared_url, damage):
    if shared_url.startswith("valkey"):
        pytest.skip("the server does so by itself")
    clock = ManualClock(SEVENTIES_MS)
    async with FSMStore(shared_url, clock=clock) as store:
        await store.init(BOT, ttl_ms=500)
        await store.set_state(BOT, "damaged", FSMState("a", "one", {"x": 1}))
        await store.set_state(BOT, "whole", FSMState("b", "one", {"x": 1}))
        damage()
        clock.advance_ms(1_000)
        swept = dict(await store._write(None, FSMAdapter.sweep, 10))
        assert {key.key: (one.step.state, one.fields) for key, one in swept.items()} == {
            '"damaged"': ("a", {}),
            '"whole"': ("b", {"x": 1}),
        }


async def test_a_damaged_key_does_not_end_the_sweep(tmp_path):
    clock, told = ManualClock(SEVENTIES_MS), []
    path = tmp_path / "bot.db"
    async with FSMStore(f"sqlite:///{path}", clock=clock) as store:
        store.events.subscribe(told.append)
        await store.init(BOT, ttl_ms=500)
        await store.set_state(BOT, "damaged", "a")
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE trunkline_fsm SET key = '[1,'")
        await store.set_state(BOT, "whole", "a")
        clock.advance_ms(1_000)
        assert await store._sweep() == 2
        assert {event.key for event in told} == {"[1,", "whole"}


# -- an adapter of somebody else ---------------------------------------------------------------


async def test_an_adapter_that_does_not_sweep_need_not_know_of_it():
    class Forgetful(MemoryFSMAdapter):
        sweep = FSMAdapter.sweep

    clock = ManualClock(SEVENTIES_MS)
    async with FSMStore(adapter=Forgetful(clock), clock=clock, sweep_interval_ms=10) as store:
        await store.init(BOT, ttl_ms=5)
        await store.set_state(BOT, KEY, "a")
        clock.advance_ms(10)
        assert await store.get_state(BOT, KEY) is None
