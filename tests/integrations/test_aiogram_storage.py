"""TrunklineStorage and TrunklineEventIsolation, called as aiogram calls them."""

from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import permutations
from types import MappingProxyType

import anyio
import pytest
from aiogram.exceptions import DataNotDictLikeError
from aiogram.fsm.context import FSMContext
from aiogram.fsm.scene import HistoryManager
from aiogram.fsm.state import State, StatesGroup
from aiogram.fsm.storage.base import StorageKey
from anyio.lowlevel import checkpoint

from trunkline import FSMState, FSMStore
from trunkline.errors import ConfigurationError, StoreUnavailable
from trunkline.integrations.aiogram import TrunklineEventIsolation, TrunklineStorage

KEY = StorageKey(bot_id=42, chat_id=-7, user_id=7)

#: Another value for every field of a key.
OTHER = {
    "bot_id": 43,
    "chat_id": 7,
    "user_id": 8,
    "thread_id": 5,
    "business_connection_id": "connection",
    "destiny": "scenes_history",
}


class Form(StatesGroup):
    name = State()
    age = State()


@pytest.fixture
async def storage(url):
    storage = TrunklineStorage(url)
    yield storage
    await storage.close()


async def stored(storage: TrunklineStorage, key: StorageKey = KEY) -> FSMState | None:
    parts = (key.chat_id, key.user_id, key.thread_id, key.business_connection_id, key.destiny)
    return await storage.store.get_state(f"aiogram:{key.bot_id}", parts)


# -- states ----------------------------------------------------------------------------------------


async def test_a_new_conversation_has_no_state_and_no_data(storage):
    assert await storage.get_state(KEY) is None
    assert await storage.get_data(KEY) == {}
    assert await storage.get_value(KEY, "name") is None
    assert await storage.get_value(KEY, "name", "nobody") == "nobody"


async def test_reading_stores_nothing(storage):
    await storage.get_state(KEY)
    await storage.get_data(KEY)
    await storage.get_value(KEY, "name")
    await storage.update_data(KEY, {})
    await storage.set_state(KEY, None)
    await storage.set_data(KEY, {})
    assert await stored(storage) is None


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ("asked", "asked"),
        (Form.name, "Form:name"),
        (State("alone"), "@:alone"),
        (State("*"), "*"),
        ("", ""),
    ],
)
async def test_a_state_object_is_stored_by_its_name_and_a_string_as_it_is(storage, state, name):
    await storage.set_state(KEY, state)
    assert await storage.get_state(KEY) == name


async def test_the_state_is_set_to_none_by_leaving_it_out(storage):
    await storage.set_state(KEY, Form.name)
    await storage.set_state(KEY)
    assert await storage.get_state(KEY) is None


async def test_a_state_without_a_name_is_none(storage):
    await storage.set_state(KEY, "asked")
    await storage.set_state(KEY, State())
    assert await storage.get_state(KEY) is None
    assert await stored(storage) is None


async def test_a_state_that_is_neither_is_refused(storage):
    with pytest.raises(ConfigurationError, match="state is a str"):
        await storage.set_state(KEY, 3)
    assert await stored(storage) is None


async def test_changing_the_state_keeps_the_data_and_the_other_way_round(storage):
    await storage.set_data(KEY, {"name": "Ada"})
    await storage.set_state(KEY, Form.age)
    assert await storage.get_data(KEY) == {"name": "Ada"}
    await storage.set_data(KEY, {"name": "Eve"})
    assert await storage.get_state(KEY) == "Form:age"
    await storage.set_state(KEY, None)
    assert await storage.get_data(KEY) == {"name": "Eve"}
    await storage.set_state(KEY, Form.age)
    await storage.set_data(KEY, {})
    assert await storage.get_state(KEY) == "Form:age"


async def test_no_state_and_no_data_leave_nothing_stored(storage):
    for first, second in permutations([(storage.set_state, None), (storage.set_data, {})]):
        await storage.set_state(KEY, Form.age)
        await storage.set_data(KEY, {"name": "Ada"})
        await first[0](KEY, first[1])
        assert await stored(storage) is not None
        await second[0](KEY, second[1])
        assert await stored(storage) is None


async def test_clearing_a_context_leaves_nothing_stored(storage):
    context = FSMContext(storage, KEY)
    await context.set_state(Form.age)
    await context.update_data(name="Ada")
    await context.clear()
    assert await stored(storage) is None


# -- data ------------------------------------------------------------------------------------------


async def test_data_is_replaced_as_a_whole(storage):
    await storage.set_data(KEY, {"name": "Ada", "age": 36})
    await storage.set_data(KEY, {"name": "Eve"})
    assert await storage.get_data(KEY) == {"name": "Eve"}
    assert await storage.get_value(KEY, "name") == "Eve"
    assert await storage.get_value(KEY, "age", 7) == 7


async def test_updating_merges_and_returns_the_merged_data(storage):
    assert await storage.update_data(KEY, {"name": "Ada"}) == {"name": "Ada"}
    assert await storage.update_data(KEY, {}) == {"name": "Ada"}
    assert await storage.update_data(KEY, {"age": 36}) == {"name": "Ada", "age": 36}
    assert await storage.update_data(KEY, {"age": 37}) == {"name": "Ada", "age": 37}
    assert await storage.get_data(KEY) == {"name": "Ada", "age": 37}


async def test_data_that_was_read_is_the_callers_own(storage):
    await storage.set_data(KEY, {"cart": ["tea"]})
    data = await storage.get_data(KEY)
    data["cart"].append("milk")
    value = await storage.get_value(KEY, "cart")
    value.append("sugar")
    assert await storage.get_data(KEY) == {"cart": ["tea"]}


async def test_data_that_was_given_is_copied(storage):
    cart = ["tea"]
    await storage.set_data(KEY, {"cart": cart})
    cart.append("milk")
    assert await storage.get_data(KEY) == {"cart": ["tea"]}


@pytest.mark.parametrize("data", [(), [("name", "Ada")], "name", 7, None])
async def test_data_that_is_no_map_is_refused(storage, data):
    await storage.set_data(KEY, {"name": "Ada"})
    with pytest.raises(DataNotDictLikeError, match=type(data).__name__):
        await storage.set_data(KEY, data)
    with pytest.raises(DataNotDictLikeError, match=type(data).__name__):
        await storage.update_data(KEY, data)
    assert await storage.get_data(KEY) == {"name": "Ada"}


async def test_any_map_is_dict_like(storage):
    await storage.set_data(KEY, MappingProxyType({"name": "Ada"}))
    assert await storage.get_data(KEY) == {"name": "Ada"}


async def test_values_come_back_as_they_went_in(storage):
    data = {
        "at": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        "price": Decimal("9.90"),
        "tags": {"a", "b"},
        "place": (1, "x", None),
        "photo": b"\x00\xff",
        "left": timedelta(days=1, microseconds=1),
        "nested": {"list": [1, 2.5, True, None]},
        "big": 2**70,
    }
    await storage.set_data(KEY, data)
    assert await storage.get_data(KEY) == data


async def test_a_value_that_cannot_be_stored_is_refused_by_name_and_changes_nothing(storage):
    class Color(enum.Enum):
        RED = 1

    await storage.set_data(KEY, {"name": "Ada"})
    for change in (storage.set_data, storage.update_data):
        with pytest.raises(ConfigurationError, match=r"'color'.*Color"):
            await change(KEY, {"name": "Eve", "color": Color.RED})
    assert await storage.get_data(KEY) == {"name": "Ada"}


async def test_the_history_of_scenes_works_on_it(storage):
    context = FSMContext(storage, KEY)
    history = HistoryManager(context)
    await context.set_state(Form.name)
    await context.update_data(name="Ada")
    await history.snapshot()
    await context.set_state(Form.age)
    await context.set_data({})
    assert (await history.get()).state == "Form:name"
    assert await history.rollback() == "Form:name"
    assert await context.get_data() == {"name": "Ada"}
    assert await history.rollback() is None
    assert await stored(storage) is None
    assert await stored(storage, dataclasses.replace(KEY, destiny="scenes_history")) is None


# -- whose it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(StorageKey)])
async def test_every_field_of_a_key_makes_a_conversation_of_its_own(storage, field):
    other = dataclasses.replace(KEY, **{field: OTHER[field]})
    await storage.set_state(KEY, "one")
    await storage.set_data(KEY, {"at": 1})
    assert await storage.get_state(other) is None
    assert await storage.get_data(other) == {}
    await storage.set_state(other, "two")
    await storage.set_data(other, {"at": 2})
    assert await storage.get_state(KEY) == "one"
    assert await storage.get_data(KEY) == {"at": 1}
    await FSMContext(storage, KEY).clear()
    assert await storage.get_state(other) == "two"
    assert await storage.get_data(other) == {"at": 2}


async def test_values_in_different_fields_of_a_key_do_not_meet(storage):
    keys = [
        StorageKey(1, 2, 3),
        StorageKey(1, 3, 2),
        StorageKey(1, 2, 3, thread_id=0),
        StorageKey(1, 2, 3, business_connection_id=""),
        StorageKey(1, 2, 3, business_connection_id="None"),
        StorageKey(1, 2, 3, destiny=""),
        StorageKey(12, 3, 3),
        StorageKey(1, 23, 3),
        StorageKey(1, 2, 33),
    ]
    for number, key in enumerate(keys):
        await storage.set_state(key, str(number))
    assert [await storage.get_state(key) for key in keys] == [str(n) for n in range(len(keys))]


# -- at once ---------------------------------------------------------------------------------------


async def test_of_many_updates_at_once_none_is_lost(storage):
    told = {}

    async def update(number: int) -> None:
        told[number] = await storage.update_data(KEY, {str(number): number})

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(update, number)
    assert await storage.get_data(KEY) == {str(number): number for number in range(100)}
    assert all(data[str(number)] == number for number, data in told.items())
    assert sorted(len(data) for data in told.values()) == list(range(1, 101))


async def test_removing_an_empty_conversation_loses_nothing_that_is_written_meanwhile(storage):
    for turns in range(12):
        await storage.set_state(KEY, "asked")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(storage.set_state, KEY, None)
            for _ in range(turns):
                await checkpoint()
            tasks.start_soon(storage.update_data, KEY, {"name": "Ada"})
        assert await storage.get_data(KEY) == {"name": "Ada"}, turns
        await storage.set_state(KEY, None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(storage.set_data, KEY, {})
            for _ in range(turns):
                await checkpoint()
            tasks.start_soon(storage.set_state, KEY, "answered")
        assert await storage.get_state(KEY) == "answered", turns


async def test_two_storages_on_one_file_see_each_other(sqlite_url):
    one, two = TrunklineStorage(sqlite_url), TrunklineStorage(sqlite_url)
    await one.set_state(KEY, Form.name)
    assert await two.get_state(KEY) == "Form:name"
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(one.update_data, KEY, {f"one{number}": 1})
            tasks.start_soon(two.update_data, KEY, {f"two{number}": 2})
    assert len(await one.get_data(KEY)) == 40
    await one.close()
    await two.close()


# -- its store -------------------------------------------------------------------------------------


async def test_what_was_stored_is_there_after_a_restart(sqlite_url):
    storage = TrunklineStorage(sqlite_url)
    await storage.set_state(KEY, Form.age)
    await storage.update_data(KEY, {"name": "Ada"})
    await storage.close()
    storage = TrunklineStorage(sqlite_url)
    assert await storage.get_state(KEY) == "Form:age"
    assert await storage.get_data(KEY) == {"name": "Ada"}
    await storage.close()


async def test_a_given_store_stays_open_when_the_storage_is_closed():
    async with FSMStore("memory://") as store:
        storage = TrunklineStorage(store)
        await storage.set_state(KEY, "asked")
        await storage.close()
        assert storage.store is store
        assert (
            await store.get_state("aiogram:42", (-7, 7, None, None, "default"))
        ).state == "asked"


async def test_a_given_store_that_does_not_run_is_reported_clearly():
    storage = TrunklineStorage(FSMStore("memory://"))
    with pytest.raises(StoreUnavailable, match="enter it with 'async with', or await start"):
        await storage.get_state(KEY)


async def test_starting_reports_a_wrong_url_at_once(tmp_path):
    storage = TrunklineStorage(f"sqlite:///{tmp_path}/missing/bot.db")
    with pytest.raises(ConfigurationError, match="missing"):
        await storage.start()


async def test_a_conversation_ends_when_its_time_to_live_is_over(sqlite_url):
    now = [1_000]
    async with FSMStore(sqlite_url, clock=lambda: now[0]) as store:
        storage = TrunklineStorage(store, ttl_ms=500)
        await storage.set_data(KEY, {"name": "Ada"})
        now[0] += 400
        await storage.set_state(KEY, Form.age)
        now[0] += 400
        assert await storage.get_data(KEY) == {"name": "Ada"}
        now[0] += 100
        assert await storage.get_state(KEY) is None
        assert await storage.get_data(KEY) == {}


# -- isolation -------------------------------------------------------------------------------------


@pytest.fixture
async def isolation(storage):
    isolation = storage.create_isolation()
    yield isolation
    await isolation.close()


async def test_one_at_a_time_holds_a_conversation_in_the_order_of_arrival(isolation):
    inside, order = [], []

    async def handle(number: int) -> None:
        async with isolation.lock(KEY):
            inside.append(number)
            assert inside == [number]
            for _ in range(5):
                await checkpoint()
            inside.remove(number)
            order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(handle, number)
    assert order == list(range(50))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(StorageKey)])
async def test_conversations_do_not_wait_for_each_other(isolation, field):
    async with isolation.lock(KEY):
        with anyio.fail_after(60):
            async with isolation.lock(dataclasses.replace(KEY, **{field: OTHER[field]})):
                pass


async def test_a_handler_can_change_the_conversation_that_it_holds(isolation, storage):
    with anyio.fail_after(60):
        async with isolation.lock(KEY):
            await storage.set_state(KEY, Form.age)
            await FSMContext(storage, KEY).clear()
    assert await storage.get_state(KEY) is None


async def test_a_handler_that_raises_lets_go(isolation):
    with pytest.raises(ValueError, match="oops"):
        async with isolation.lock(KEY):
            raise ValueError("oops")
    with anyio.fail_after(60):
        async with isolation.lock(KEY):
            pass


async def test_one_that_is_cancelled_while_it_waits_holds_up_nobody(isolation):
    async def wait() -> None:
        async with isolation.lock(KEY):
            raise AssertionError("it was cancelled")

    async with isolation.lock(KEY), anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        for _ in range(5):
            await checkpoint()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(60):
        async with isolation.lock(KEY):
            pass


async def test_an_isolation_can_have_a_store_of_its_own(url):
    isolation = TrunklineEventIsolation(url)
    async with isolation.lock(KEY):
        pass
    await isolation.close()


async def test_closing_both_is_fine_in_any_order(url):
    storage = TrunklineStorage(url)
    isolation = storage.create_isolation()
    async with isolation.lock(KEY):
        await storage.set_state(KEY, "asked")
    await isolation.close()
    await storage.close()


# -- without aiogram -------------------------------------------------------------------------------


def test_without_aiogram_the_import_says_what_to_install():
    code = (
        "import sys; sys.modules['aiogram'] = None\n"
        "try:\n    import trunkline.integrations.aiogram\n"
        "except ImportError as error:\n    print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert "pip install 'trunkline[aiogram]'" in told.stdout
