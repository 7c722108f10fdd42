"""TrunklinePersistence, called as an Application calls it."""

from __future__ import annotations

import enum
import random
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from threading import Timer

import anyio
import pytest
from telegram.ext import ContextTypes, ConversationHandler, PersistenceInput

from trunkline import FSMStore
from trunkline.errors import ConfigurationError, StoreUnavailable, UnreadableRecord
from trunkline.fsm.memory import MemoryFSMAdapter
from trunkline.integrations.telegram import TrunklinePersistence


@pytest.fixture
async def persistence(url):
    persistence = TrunklinePersistence(url)
    yield persistence
    await persistence.flush()


@pytest.fixture
def reopened(sqlite_url):
    """What a process that starts now reads from the file."""

    @asynccontextmanager
    async def reopen(bot_name=None):
        persistence = TrunklinePersistence(sqlite_url, bot_name=bot_name)
        yield persistence
        await persistence.flush()

    return reopen


VALUES = {
    "at": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    "price": Decimal("9.90"),
    "tags": {"a", "b"},
    "place": (1, "x", None),
    "photo": b"\x00\xff",
    "left": timedelta(days=1, microseconds=1),
    "nested": {"list": [1, 2.5, True, None], 7: "a number"},
    "big": 2**70,
    3: "a name that is a number",
}

CALLBACK_DATA = (
    [("keyboard", 12.5, {"button": {"id": 7, "at": VALUES["at"]}, "other": ("a", 1)})],
    {"query": "keyboard"},
)


# -- what is stored --------------------------------------------------------------------------------


async def test_a_new_bot_has_nothing(persistence):
    assert await persistence.get_user_data() == {}
    assert await persistence.get_chat_data() == {}
    assert await persistence.get_bot_data() == {}
    assert await persistence.get_callback_data() is None
    assert await persistence.get_conversations("form") == {}


async def test_values_come_back_as_they_went_in(persistence):
    await persistence.update_user_data(7, VALUES)
    await persistence.update_chat_data(-7, VALUES)
    await persistence.update_bot_data(VALUES)
    await persistence.update_callback_data(CALLBACK_DATA)
    await persistence.update_conversation("form", (7,), tuple(VALUES.items()))
    assert await persistence.get_user_data() == {7: VALUES}
    assert await persistence.get_chat_data() == {-7: VALUES}
    assert await persistence.get_bot_data() == VALUES
    assert await persistence.get_callback_data() == CALLBACK_DATA
    assert await persistence.get_conversations("form") == {(7,): tuple(VALUES.items())}


async def test_an_update_replaces_what_was_there(persistence):
    for data in ({"name": "Ada", "age": 36}, {"name": "Eve"}):
        await persistence.update_user_data(7, data)
        await persistence.update_chat_data(7, data)
        await persistence.update_bot_data(data)
    assert await persistence.get_user_data() == {7: {"name": "Eve"}}
    assert await persistence.get_chat_data() == {7: {"name": "Eve"}}
    assert await persistence.get_bot_data() == {"name": "Eve"}


async def test_a_user_of_whom_nothing_is_known_is_remembered(persistence):
    await persistence.update_user_data(7, {})
    assert await persistence.get_user_data() == {7: {}}


async def test_what_is_dropped_is_deleted_and_may_come_again(persistence):
    numbers = range(600)  # more than there are records
    async with anyio.create_task_group() as tasks:
        for number in numbers:
            tasks.start_soon(persistence.update_user_data, number, {"is": number})
            tasks.start_soon(persistence.update_chat_data, number, {"is": number})
    for number in numbers[:40:2]:
        await persistence.drop_user_data(number)
        await persistence.drop_chat_data(number + 1)
    await persistence.drop_user_data(12345)
    await persistence.update_user_data(2, {"is": "back"})
    everything = {number: {"is": number} for number in numbers}
    users = {n: data for n, data in everything.items() if n >= 40 or n % 2}
    chats = {n: data for n, data in everything.items() if n >= 40 or n % 2 == 0}
    assert await persistence.get_user_data() == users | {2: {"is": "back"}}
    assert await persistence.get_chat_data() == chats


async def test_when_all_is_dropped_nothing_is_left_in_the_store(persistence):
    await persistence.update_user_data(7, {"name": "Ada"})
    await persistence.update_conversation("form", (7, 7), 1)
    records = [("user_data", n) for n in range(256)] + [
        ("conversations", "form", n) for n in range(256)
    ]

    async def stored() -> int:
        found = [await persistence.store.get_state("telegram", record) for record in records]
        return len(found) - found.count(None)

    assert await stored() == 2
    await persistence.drop_user_data(7)
    await persistence.update_conversation("form", (7, 7), None)
    assert await stored() == 0


async def test_what_was_given_is_copied(persistence):
    data = {"cart": ["tea"]}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(persistence.update_user_data, 7, data)
        await anyio.lowlevel.checkpoint()
        data["cart"].append("milk")
    assert await persistence.get_user_data() == {7: {"cart": ["tea"]}}


async def test_conversations_are_kept_by_name_and_key(persistence):
    states = {
        (7,): 0,
        ("7",): 1,
        (7, 7): "asked",
        (-100, 7): ConversationHandler.TIMEOUT,
        (7, "inline-message"): ("nested", 2),
        (7, 7, 12): 2.5,
        (): "empty",
    }
    for key, state in states.items():
        await persistence.update_conversation("form", key, state)
    await persistence.update_conversation("other", (7,), "other")
    assert await persistence.get_conversations("form") == states
    assert await persistence.get_conversations("other") == {(7,): "other"}
    await persistence.update_conversation("form", (7,), None)
    await persistence.update_conversation("form", (8,), None)
    del states[7,]
    assert await persistence.get_conversations("form") == states
    assert await persistence.get_conversations("other") == {(7,): "other"}


async def test_names_of_handlers_do_not_meet_other_data(persistence):
    await persistence.update_conversation("user_data", (1,), 1)
    await persistence.update_user_data(1, {"name": "Ada"})
    assert await persistence.get_conversations("user_data") == {(1,): 1}
    assert await persistence.get_user_data() == {1: {"name": "Ada"}}


async def test_refreshing_leaves_what_is_in_memory(persistence):
    await persistence.update_user_data(7, {"name": "Ada"})
    await persistence.update_chat_data(7, {"name": "Ada"})
    await persistence.update_bot_data({"name": "Ada"})
    newer = {"name": "Eve"}
    await persistence.refresh_user_data(7, newer)
    await persistence.refresh_chat_data(7, newer)
    await persistence.refresh_bot_data(newer)
    assert newer == {"name": "Eve"}


async def test_bots_that_share_a_store_do_not_see_each_other():
    async with FSMStore("memory://") as store:
        one = TrunklinePersistence(store, bot_name="one")
        two = TrunklinePersistence(store, bot_name="two")
        await one.update_user_data(7, {"name": "Ada"})
        await one.update_bot_data({"is": 1})
        await two.update_user_data(7, {"name": "Eve"})
        await two.drop_user_data(7)
        assert await one.get_user_data() == {7: {"name": "Ada"}}
        assert await one.get_bot_data() == {"is": 1}
        assert await two.get_user_data() == {}
        assert await two.get_bot_data() == {}


@pytest.mark.parametrize("kind", PersistenceInput._fields)
async def test_what_shall_not_be_stored_is_not(persistence, kind):
    store_data = PersistenceInput(**{name: name != kind for name in PersistenceInput._fields})
    await persistence.get_bot_data()  # the store runs
    picky = TrunklinePersistence(persistence.store, bot_name="bot", store_data=store_data)
    await picky.update_user_data(7, {"is": 1})
    await picky.update_chat_data(7, {"is": 1})
    await picky.update_bot_data({"is": 1})
    await picky.update_callback_data(CALLBACK_DATA)
    everything = TrunklinePersistence(persistence.store, bot_name="bot")
    for one in (picky, everything):
        found = {
            "user_data": await one.get_user_data(),
            "chat_data": await one.get_chat_data(),
            "bot_data": await one.get_bot_data(),
            "callback_data": await one.get_callback_data(),
        }
        assert [name for name, value in found.items() if not value] == [kind]


# -- what cannot be stored -------------------------------------------------------------------------


class Color(enum.Enum):
    RED = 1


async def test_a_value_that_cannot_be_stored_is_named_and_the_old_one_stays(persistence):
    await persistence.update_user_data(7, {"name": "Ada"})
    await persistence.update_bot_data({"name": "Ada"})
    await persistence.update_callback_data(CALLBACK_DATA)
    await persistence.update_conversation("form", (7,), 1)
    bad = {"cart": [{"item": 1}, {"color": Color.RED}]}
    path = r"\['cart'\]\[1\]\['color'\] cannot be stored: .*Color"
    with pytest.raises(ConfigurationError, match=r"^user_data\[7\]" + path):
        await persistence.update_user_data(7, bad)
    with pytest.raises(ConfigurationError, match=r"^chat_data\[-7\]" + path):
        await persistence.update_chat_data(-7, bad)
    with pytest.raises(ConfigurationError, match="^bot_data" + path):
        await persistence.update_bot_data(bad)
    with pytest.raises(ConfigurationError, match=r"^callback_data\[0\]\[0\]\[2\]\['b'\] cannot"):
        await persistence.update_callback_data(([("k", 1.0, {"b": Color.RED})], {}))
    with pytest.raises(ConfigurationError, match=r"^conversations.form\[\(7, 8\)\] cannot"):
        await persistence.update_conversation("form", (7, 8), Color.RED)
    assert await persistence.get_user_data() == {7: {"name": "Ada"}}
    assert await persistence.get_chat_data() == {}
    assert await persistence.get_bot_data() == {"name": "Ada"}
    assert await persistence.get_callback_data() == CALLBACK_DATA
    assert await persistence.get_conversations("form") == {(7,): 1}


async def test_what_holds_itself_is_refused(persistence):
    endless = {}
    endless["more"] = [endless]
    with pytest.raises(ConfigurationError, match=r"user_data\[7\]\['more'\]\[0\].*nested .*deep"):
        await persistence.update_user_data(7, endless)


async def test_a_name_that_cannot_be_stored_is_refused(persistence):
    with pytest.raises(ConfigurationError, match=r"bot_data\['seats'\] cannot be stored: .*keys"):
        await persistence.update_bot_data({"seats": {(1, 2): "Ada"}})


async def test_one_bad_value_does_not_keep_others_from_being_stored(persistence):
    refused = []

    async def update(number: int) -> None:
        try:
            await persistence.update_user_data(number, {"is": number if number % 3 else Color.RED})
        except ConfigurationError:
            refused.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(update, number)
    assert sorted(refused) == list(range(0, 300, 3))
    assert await persistence.get_user_data() == {
        number: {"is": number} for number in range(300) if number % 3
    }


# -- at once ---------------------------------------------------------------------------------------


async def test_of_many_changes_at_once_the_last_of_each_stands(persistence):
    choices = random.Random(20260107)
    expected = {}
    for _ in range(5):
        async with anyio.create_task_group() as tasks:
            for number in range(1_000):
                user_id = choices.randrange(300)
                if choices.random() < 0.3:
                    expected.pop(user_id, None)
                    tasks.start_soon(persistence.drop_user_data, user_id)
                else:
                    expected[user_id] = {"is": number}
                    tasks.start_soon(persistence.update_user_data, user_id, {"is": number})
                if number % 7 == 0:
                    await anyio.lowlevel.checkpoint()
        assert await persistence.get_user_data() == expected


async def test_a_cancelled_update_takes_no_other_along(persistence):
    # 0 … 999 share 256 records.
    async with anyio.create_task_group() as kept, anyio.create_task_group() as cancelled:
        for number in range(0, 1_000, 2):
            cancelled.start_soon(persistence.update_user_data, number, {"is": number})
            kept.start_soon(persistence.update_user_data, number + 1, {"is": number + 1})
        await anyio.lowlevel.checkpoint()
        cancelled.cancel_scope.cancel()
    found = await persistence.get_user_data()
    assert {number for number in found if number % 2} == set(range(1, 1_000, 2))


# -- its store -------------------------------------------------------------------------------------


async def test_an_update_that_returned_is_on_disk(sqlite_url, reopened):
    persistence = TrunklinePersistence(sqlite_url)
    await persistence.update_user_data(7, VALUES)
    await persistence.update_chat_data(-7, VALUES)
    await persistence.update_bot_data(VALUES)
    await persistence.update_callback_data(CALLBACK_DATA)
    await persistence.update_conversation("form", (7, -7), "asked")
    async with reopened() as other:
        assert await other.get_user_data() == {7: VALUES}
        assert await other.get_chat_data() == {-7: VALUES}
        assert await other.get_bot_data() == VALUES
        assert await other.get_callback_data() == CALLBACK_DATA
        assert await other.get_conversations("form") == {(7, -7): "asked"}
    await persistence.flush()


async def test_a_flush_closes_the_store_and_a_later_update_opens_it_again(sqlite_url, reopened):
    persistence = TrunklinePersistence(sqlite_url)
    await persistence.update_user_data(7, {"name": "Ada"})
    await persistence.flush()
    with pytest.raises(StoreUnavailable):
        await persistence.store.get_state("telegram", ("bot_data",))
    await persistence.update_user_data(8, {"name": "Eve"})
    await persistence.flush()
    async with reopened() as other:
        assert await other.get_user_data() == {7: {"name": "Ada"}, 8: {"name": "Eve"}}


async def test_a_flush_while_updates_are_under_way_loses_none(sqlite_url, reopened):
    persistence = TrunklinePersistence(sqlite_url)
    async with anyio.create_task_group() as tasks:
        for number in range(500):
            tasks.start_soon(persistence.update_user_data, number, {"is": number})
            if number % 100 == 50:
                tasks.start_soon(persistence.flush)
            if number % 10 == 0:
                await anyio.lowlevel.checkpoint()
    await persistence.flush()
    async with reopened() as other:
        assert await other.get_user_data() == {number: {"is": number} for number in range(500)}


async def test_a_given_store_stays_open():
    async with FSMStore("memory://") as store:
        persistence = TrunklinePersistence(store)
        await persistence.update_bot_data({"is": 1})
        await persistence.flush()
        assert persistence.store is store
        assert await persistence.get_bot_data() == {"is": 1}


async def test_bot_data_that_has_not_changed_is_not_written_again(persistence):
    await persistence.update_bot_data({"is": 1})
    calls = persistence.store.stats().calls
    await persistence.update_bot_data({"is": 1})
    assert persistence.store.stats().calls == calls
    await persistence.update_bot_data({"is": 2})
    await persistence.update_bot_data({"is": 1})
    assert await persistence.get_bot_data() == {"is": 1}


async def test_bot_data_is_written_again_if_nobody_knows_what_is_stored():
    class Doubtful(MemoryFSMAdapter):
        is_doubtful = False

        def _write(self, key, record):
            super()._write(key, record)
            if self.is_doubtful:
                raise StoreUnavailable("the connection broke; who knows whether it was committed")

    adapter = Doubtful()
    async with FSMStore(adapter=adapter) as store:
        persistence = TrunklinePersistence(store)
        await persistence.update_bot_data({"is": 1})
        adapter.is_doubtful = True
        with pytest.raises(StoreUnavailable):
            await persistence.update_bot_data({"is": 2})
        adapter.is_doubtful = False
        await persistence.update_bot_data({"is": 1})
        assert await persistence.get_bot_data() == {"is": 1}


class Switchable(MemoryFSMAdapter):
    """A database that can be away."""

    is_away = False

    error = StoreUnavailable("the database is away")

    def _read(self, key):
        if self.is_away:
            raise self.error
        return super()._read(key)

    def _write(self, key, record):
        if self.is_away:
            raise self.error
        super()._write(key, record)


#: As when a password was changed, or a right was taken away.
REFUSED = ConfigurationError("WRONGPASS invalid username-password pair")


@pytest.mark.parametrize("error", [StoreUnavailable("the database is away"), REFUSED])
@pytest.mark.parametrize("kept", [{}, {"bot_data": False}, {"bot_data": False, "chat_data": False}])
async def test_what_could_not_be_stored_is_stored_when_the_database_is_back(error, kept):
    # The Application reports each change only once.
    adapter = Switchable()
    adapter.error = error
    async with FSMStore(adapter=adapter) as store:
        persistence = TrunklinePersistence(
            store, store_data=PersistenceInput(**kept), update_interval=0.01
        )
        await persistence.update_user_data(1, {"is": "old"})
        await persistence.update_user_data(2, {"is": "old"})
        adapter.is_away = True
        for change in (
            persistence.update_user_data(1, {"is": "new"}),
            persistence.drop_user_data(2),
            persistence.update_conversation("form", (1,), "asked"),
        ):
            with pytest.raises(type(error), match=r"away|WRONGPASS"):
                await change
        adapter.is_away = False
        with anyio.fail_after(60):
            await persistence._retrying
        assert await persistence.get_user_data() == {1: {"is": "new"}}
        assert await persistence.get_conversations("form") == {(1,): "asked"}
        await persistence.flush()


async def test_what_could_not_be_stored_is_tried_again_while_the_database_is_away():
    adapter = Switchable()
    async with FSMStore(adapter=adapter) as store:
        persistence = TrunklinePersistence(store, update_interval=0.001)
        adapter.is_away = True
        with pytest.raises(StoreUnavailable):
            await persistence.update_user_data(1, {"is": "new"})
        assert not persistence._retrying.done()
        with pytest.raises(StoreUnavailable):
            await persistence.flush()
        adapter.is_away = False
        await persistence.flush()
        assert await persistence.get_user_data() == {1: {"is": "new"}}


async def test_what_changed_since_is_newer_than_what_could_not_be_stored():
    adapter = Switchable()
    async with FSMStore(adapter=adapter) as store:
        persistence = TrunklinePersistence(store)
        adapter.is_away = True
        for user_id in (1, 2):
            with pytest.raises(StoreUnavailable):
                await persistence.update_user_data(user_id, {"is": "old"})
        adapter.is_away = False
        await persistence.update_user_data(1, {"is": "new"})
        await persistence.drop_user_data(2)
        await persistence.flush()
        assert await persistence.get_user_data() == {1: {"is": "new"}}


# -- values of other types -------------------------------------------------------------------------


class Steps(int, enum.Enum):
    """States as python-telegram-bot's own tests have them."""

    NAME = 0
    AGE = 1


async def test_states_of_an_enum_with_int_come_back_equal(persistence):
    await persistence.update_conversation("form", (1, 2), Steps.AGE)
    found = await persistence.get_conversations("form")
    assert found == {(1, 2): Steps.AGE}
    assert {Steps.AGE: "handlers"}[found[1, 2]] == "handlers"


class Cart(dict):
    """Of a type of the program's own."""


class Visits:
    def __init__(self):
        self.count = 0
        self.names = []


async def test_data_of_types_of_its_own_is_restored_as_these(sqlite_url):
    types = ContextTypes(user_data=Visits, chat_data=Cart, bot_data=Visits)
    persistence = TrunklinePersistence(sqlite_url, context_types=types)
    assert type(await persistence.get_bot_data()) is Visits
    visits = Visits()
    visits.count, visits.names = 3, ["Ada"]
    await persistence.update_user_data(7, visits)
    await persistence.update_chat_data(8, Cart(tea=2))
    await persistence.update_bot_data(visits)
    await persistence.flush()
    again = TrunklinePersistence(sqlite_url, context_types=types)
    for found in ((await again.get_user_data())[7], await again.get_bot_data()):
        assert type(found) is Visits
        assert vars(found) == {"count": 3, "names": ["Ada"]}
    (cart,) = (await again.get_chat_data()).values()
    assert (type(cart), cart) == (Cart, {"tea": 2})
    await again.flush()


class Slotted:
    __slots__ = ("count",)


async def test_data_without_attributes_is_refused_by_its_type(persistence):
    with pytest.raises(ConfigurationError, match="Slotted has no attributes"):
        await persistence.update_user_data(7, Slotted())


async def test_a_stored_value_that_cannot_be_decoded_is_named(persistence):
    await persistence.update_user_data(7, {"a": 1})
    await persistence.update_bot_data({"a": 1})
    store, bot = persistence.store, persistence.bot_name
    for record in range(256):
        if await store.get_data(bot, ("user_data", record)):
            await store.set_data(bot, ("user_data", record), {7: b"\xc1"})
    await store.set_data(bot, ("bot_data",), {"value": b"\xc1"})
    with pytest.raises(UnreadableRecord, match=r"user_data\[7\]"):
        await persistence.get_user_data()
    with pytest.raises(UnreadableRecord, match="bot_data"):
        await persistence.get_bot_data()


async def test_two_namespaces_on_one_file_do_not_see_each_other(sqlite_url):
    one, two = (TrunklinePersistence(sqlite_url, namespace=name) for name in ("one", "two"))
    await one.update_user_data(7, {"is": "one"})
    assert await two.get_user_data() == {}
    await one.flush()
    await two.flush()


# -- kill -9 ---------------------------------------------------------------------------------------


def run_and_kill(url: str, lines: int) -> list[tuple[int, int]]:
    """Run the bot of `offline_telegram.py`, kill it after so many lines; what it told."""
    program = Path(__file__).with_name("offline_telegram.py")
    command = [sys.executable, str(program), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bot:
        too_late = Timer(60, bot.terminate)
        too_late.start()
        told = [bot.stdout.readline() for _ in range(lines)]
        bot.kill()
        told += bot.stdout.readlines()  # what it told before it died
        too_late.cancel()
    assert bot.returncode == -signal.SIGKILL
    assert all(told)
    pairs = [line.split() for line in told if line.endswith("\n")]
    return [(int(user_id), int(number)) for user_id, number in pairs]


@pytest.mark.slow
async def test_a_killed_bot_has_lost_nothing_of_the_updates_that_it_had_processed(
    sqlite_url, reopened
):
    choices = random.Random(9)
    #: user → how many of their updates are done.
    done = {}
    for _ in range(6):
        for user_id, number in run_and_kill(sqlite_url, choices.randrange(5, 150)):
            assert number == done.get(user_id, 0) + 1
            done[user_id] = number
        async with reopened("telegram:42") as persistence:
            users = await persistence.get_user_data()
            chats = await persistence.get_chat_data()
            bot = await persistence.get_bot_data()
            states = await persistence.get_conversations("work")
        assert set(users) >= set(done)
        for user_id, number in done.items():
            # Or that and the update that was under way, in whole or in part.
            may_be = (number, number + 1)
            assert users[user_id]["done"] in may_be
            assert bot[user_id] in may_be
            assert states[user_id, user_id] in [one % 3 for one in may_be]
            assert chats.get(user_id) in [{"done": one} if one % 5 else None for one in may_be]
        done = {user_id: data["done"] for user_id, data in users.items()}


# -- without python-telegram-bot -------------------------------------------------------------------


def test_without_python_telegram_bot_the_import_says_what_to_install():
    code = (
        "import sys; sys.modules['telegram'] = None\n"
        "try:\n    import trunkline.integrations.telegram\n"
        "except ImportError as error:\n    print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert "pip install 'trunkline[telegram]'" in told.stdout
