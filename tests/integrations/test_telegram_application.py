"""A real Application on TrunklinePersistence; only Telegram itself is in memory."""

from __future__ import annotations

import asyncio
import enum
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.ext import (
    Application,
    ApplicationHandlerStop,
    CallbackQueryHandler,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    MessageHandler,
    TypeHandler,
    filters,
)

from trunkline import FSMStore, Trunkline
from trunkline.errors import ConfigurationError, StoreUnavailable
from trunkline.integrations.telegram import DurableApplication, TrunklinePersistence

NAME, AGE = range(2)


def registration(**options) -> ConversationHandler:
    """Asks for a name and an age; the answers are kept in `user_data`."""

    async def start(update, context) -> int:
        await update.message.reply_text("Your name?")
        return NAME

    async def take_name(update, context) -> int:
        context.user_data["name"] = update.message.text
        await update.message.reply_text("Your age?")
        return AGE

    async def take_age(update, context) -> int:
        context.user_data["age"] = int(update.message.text)
        context.bot_data["users"] = context.bot_data.get("users", 0) + 1
        await update.message.reply_text("{name} is {age}".format(**context.user_data))
        return ConversationHandler.END

    return ConversationHandler(
        [CommandHandler("start", start)],
        {
            NAME: [MessageHandler(filters.TEXT, take_name)],
            AGE: [MessageHandler(filters.Regex(r"^\d+$"), take_age)],
        },
        [],
        name="registration",
        persistent=True,
        **options,
    )


@pytest.fixture
def request_(offline):
    return offline.OfflineRequest()


@pytest.fixture
def running(offline, request_):
    """An application that is initialized and started, and in the end stopped and shut down."""

    @asynccontextmanager
    async def run(persistence, *handlers, kind=Application, configure=None):
        builder = offline.build(persistence, request_, kind)
        application = (configure(builder) if configure else builder).build()
        application.add_handlers(handlers or [registration()])
        async with application:
            await application.start()
            yield application
            await application.stop()

    return run


@pytest.fixture
def say(offline):
    async def say(application: Application, user_id: int, *texts: str) -> None:
        await offline.feed(application, *(offline.message(user_id, text) for text in texts))

    return say


@pytest.fixture(params=[Application, DurableApplication])
def kind(request):
    return request.param


# -- types of the program's own ------------------------------------------------------------------


class Visits:
    def __init__(self):
        self.count = 0


class Cart(dict):
    pass


class Steps(int, enum.Enum):
    WAITING = 7


async def test_an_application_with_types_of_its_own_starts_and_goes_on_after_a_restart(
    sqlite_url, running, say
):
    types = ContextTypes(user_data=Visits, chat_data=Cart, bot_data=Visits)

    async def count(update, context):
        context.user_data.count += 1
        context.chat_data["said"] = context.user_data.count
        context.bot_data.count += 10
        return Steps.WAITING

    for turn in (1, 2):
        anything = MessageHandler(filters.TEXT, count)
        conversation = ConversationHandler(
            [anything], {Steps.WAITING: [anything]}, [], name="count", persistent=True
        )
        persistence = TrunklinePersistence(sqlite_url, context_types=types)
        async with running(
            persistence, conversation, configure=lambda builder: builder.context_types(types)
        ) as application:
            await say(application, 7, "hello")
            assert application.user_data[7].count == turn
            assert type(application.chat_data[7]) is Cart
            assert application.bot_data.count == 10 * turn


# -- restarts --------------------------------------------------------------------------------------


async def test_a_conversation_goes_on_in_a_new_application(
    sqlite_url, running, say, request_, kind
):
    for texts in (["/start"], ["Ada"], ["36"], ["37", "/start"]):
        async with running(TrunklinePersistence(sqlite_url), kind=kind) as application:
            await say(application, 7, *texts)
    assert request_.said == {7: ["Your name?", "Your age?", "Ada is 36", "Your name?"]}
    async with running(TrunklinePersistence(sqlite_url), kind=kind) as application:
        assert dict(application.user_data) == {7: {"name": "Ada", "age": 36}}
        assert application.bot_data == {"users": 1}


async def test_one_application_can_be_started_again(url, offline, request_, say):
    application = offline.build(TrunklinePersistence(url), request_).build()
    application.add_handler(registration())
    for texts in (["/start"], ["Ada"], ["36"]):
        async with application:
            await application.start()
            await say(application, 7, *texts)
            await application.stop()
    assert request_.said[7][-1] == "Ada is 36"


async def test_the_store_of_a_url_does_not_run_after_the_shutdown(url, running, say):
    persistence = TrunklinePersistence(url)
    async with running(persistence) as application:
        await say(application, 7, "/start")
    with pytest.raises(StoreUnavailable):
        await persistence.store.get_state("telegram:42", ("bot_data",))


async def test_a_line_keeps_what_an_application_remembers(running, say, request_):
    async with Trunkline("memory://") as line:
        for texts in (["/start", "Ada"], ["36"]):
            async with running(TrunklinePersistence(line.fsm)) as application:
                await say(application, 7, *texts)
    assert request_.said[7][-1] == "Ada is 36"


async def test_two_bots_on_one_file_do_not_see_each_other(sqlite_url, offline, say):
    for bot_id, name in ((42, "Ada"), (43, "Eve"), (42, None), (43, None)):
        request = offline.OfflineRequest(bot_id)
        application = offline.build(TrunklinePersistence(sqlite_url), request).build()
        application.add_handler(registration())
        async with application:
            if name:
                assert not application.user_data
                await say(application, 7, "/start", name)
            else:
                assert application.user_data[7]["name"] == ("Ada" if bot_id == 42 else "Eve")


async def test_dropped_data_stays_dropped(sqlite_url, running, say):
    async with running(TrunklinePersistence(sqlite_url)) as application:
        await say(application, 7, "/start", "Ada")
        await say(application, 8, "/start", "Eve")
    async with running(TrunklinePersistence(sqlite_url)) as application:
        application.drop_user_data(7)
    async with running(TrunklinePersistence(sqlite_url)) as application:
        assert dict(application.user_data) == {8: {"name": "Eve"}}


async def test_a_chat_that_became_a_supergroup_takes_its_data_along(sqlite_url, running):
    async with running(TrunklinePersistence(sqlite_url)) as application:
        application.chat_data[-7]["topic"] = "tea"
        application.mark_data_for_update_persistence(chat_ids=-7)
        await application.update_persistence()
        application.migrate_chat_data(old_chat_id=-7, new_chat_id=-1007)
    async with running(TrunklinePersistence(sqlite_url)) as application:
        assert dict(application.chat_data) == {-1007: {"topic": "tea"}}


async def test_callback_data_of_any_kind_survives_a_restart(
    sqlite_url, running, offline, say, request_
):
    pressed = []

    async def ask(update, context) -> None:
        button = InlineKeyboardButton("Buy", callback_data={"item": 7, "tags": {"a", "b"}})
        await update.message.reply_text("Tea?", reply_markup=InlineKeyboardMarkup([[button]]))

    async def press(update, context) -> None:
        pressed.append(update.callback_query.data)

    def run():
        return running(
            TrunklinePersistence(sqlite_url),
            CommandHandler("ask", ask),
            CallbackQueryHandler(press),
            configure=lambda builder: builder.arbitrary_callback_data(True),
        )

    async with run() as application:
        await say(application, 7, "/ask")
    button = request_.keyboards[0]["inline_keyboard"][0][0]
    query = {"id": "1", "chat_instance": "c", "data": button["callback_data"]}
    query["from"] = {"id": 7, "is_bot": False, "first_name": "Ada"}
    async with run() as application:
        # As getting updates does, and as webhooks must.
        update = Update.de_json({"update_id": 1_000_000, "callback_query": query}, application.bot)
        application.bot.insert_callback_data(update)
        await application.process_update(update)
    assert pressed == [{"item": 7, "tags": {"a", "b"}}]


async def test_what_a_handler_does_that_nobody_waits_for_is_stored_at_the_stop(
    sqlite_url, running, say
):
    may_go_on = asyncio.Event()

    async def later(update, context) -> None:
        await may_go_on.wait()
        context.user_data["done"] = True

    async with running(
        TrunklinePersistence(sqlite_url), MessageHandler(filters.TEXT, later, block=False)
    ) as application:
        await say(application, 7, "go")
        may_go_on.set()
    async with running(TrunklinePersistence(sqlite_url)) as application:
        assert application.user_data[7] == {"done": True}


# -- at once ---------------------------------------------------------------------------------------


async def test_hundreds_of_users_fill_in_forms_at_once(url, running, offline, request_, kind):
    users = range(1, 251)
    persistence = TrunklinePersistence(url)
    async with running(
        persistence, kind=kind, configure=lambda builder: builder.concurrent_updates(True)
    ) as application:

        async def fill(user_id: int) -> None:
            for answers, text in enumerate(("/start", f"Name{user_id}", str(user_id)), start=1):
                update = offline.message(user_id, text)
                await application.update_queue.put(Update.de_json(update, application.bot))
                await request_.wait_for(user_id, answers)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for user_id in users:
                    tasks.start_soon(fill, user_id)
    assert all(said[-1] == f"Name{user} is {user}" for user, said in request_.said.items())
    async with running(persistence, kind=kind) as application:
        assert dict(application.user_data) == {
            user: {"name": f"Name{user}", "age": user} for user in users
        }
        assert application.bot_data == {"users": 250}


async def test_what_is_stored_while_users_are_busy_is_never_older_than_before(
    url, running, say, offline
):
    """Updates, and runs of the periodic update of the persistence, in between each other."""
    persistence = TrunklinePersistence(url)

    async def count(update, context) -> None:
        context.user_data["count"] = context.user_data.get("count", 0) + 1
        await checkpoint()

    async with running(persistence, MessageHandler(filters.TEXT, count)) as application:

        async def be_busy(user_id: int) -> None:
            for _ in range(20):
                await say(application, user_id, "go")

        async def look() -> None:
            seen = {}
            for _ in range(30):
                await application.update_persistence()
                found = await persistence.get_user_data()
                assert all(found[user]["count"] >= data["count"] for user, data in seen.items())
                seen = found

        async with anyio.create_task_group() as tasks:
            for user_id in range(1, 31):
                tasks.start_soon(be_busy, user_id)
            tasks.start_soon(look)
    async with running(persistence) as application:
        assert [data["count"] for data in application.user_data.values()] == [20] * 30


# -- errors ----------------------------------------------------------------------------------------


async def test_error_handlers_get_what_cannot_be_stored_and_the_rest_is_stored(
    sqlite_url, running, say, kind
):
    errors = []

    class Color(enum.Enum):
        RED = 1

    async def paint(update, context) -> None:
        context.user_data["color"] = Color.RED if update.message.text == "red" else "blue"

    async def on_error(update, context) -> None:
        errors.append(context.error)

    async with running(
        TrunklinePersistence(sqlite_url), MessageHandler(filters.TEXT, paint), kind=kind
    ) as application:
        application.add_error_handler(on_error)
        await say(application, 7, "red")
        await say(application, 8, "blue")
    assert [type(error) for error in errors] == [ConfigurationError]
    assert "user_data[7]['color'] cannot be stored" in str(errors[0])
    async with running(TrunklinePersistence(sqlite_url)) as application:
        assert dict(application.user_data) == {8: {"color": "blue"}}


async def test_a_wrong_url_ends_the_initialization(tmp_path, offline, request_):
    persistence = TrunklinePersistence(f"sqlite:///{tmp_path}/missing/bot.db")
    application = offline.build(persistence, request_).build()
    with pytest.raises(ConfigurationError, match="missing"):
        await application.initialize()


async def test_a_given_store_that_does_not_run_is_reported_clearly(offline, request_):
    application = offline.build(TrunklinePersistence(FSMStore("memory://")), request_).build()
    with pytest.raises(StoreUnavailable, match="enter it with 'async with', or await start"):
        await application.initialize()


# -- DurableApplication ----------------------------------------------------------------------------


async def test_a_processed_update_is_stored_at_once(sqlite_url, running, say):
    async with running(
        TrunklinePersistence(sqlite_url, update_interval=1e6), kind=DurableApplication
    ) as application:
        await say(application, 7, "/start", "Ada")
        other = TrunklinePersistence(sqlite_url, bot_name="telegram:42")
        assert await other.get_user_data() == {7: {"name": "Ada"}}
        assert await other.get_conversations("registration") == {(7, 7): AGE}
        await say(application, 7, "36")
        assert (await other.get_user_data())[7]["age"] == 36
        assert await other.get_conversations("registration") == {}
        assert await other.get_bot_data() == {"users": 1}
        await other.flush()


async def test_an_update_whose_handlers_fail_or_stop_is_stored_as_well(url, running, say):
    async def work(update, context) -> None:
        context.user_data["said"] = update.message.text
        if update.message.text == "fail":
            raise ValueError("oops")
        raise ApplicationHandlerStop

    async def on_error(update, context) -> None: ...

    persistence = TrunklinePersistence(url)
    async with running(
        persistence, MessageHandler(filters.TEXT, work), kind=DurableApplication
    ) as application:
        application.add_error_handler(on_error)
        for text in ("fail", "stop"):
            await say(application, 7, text)
            assert await persistence.get_user_data() == {7: {"said": text}}


async def test_updates_that_end_at_the_same_time_are_stored_together(url, running, offline):
    runs = 0

    class Counting(DurableApplication):
        async def update_persistence(self) -> None:
            nonlocal runs
            runs += 1
            await super().update_persistence()

    may_end = anyio.Event()

    async def work(update, context) -> None:
        await may_end.wait()
        context.user_data["done"] = True

    persistence = TrunklinePersistence(url, update_interval=1e6)
    async with running(
        persistence, MessageHandler(filters.TEXT, work), kind=Counting
    ) as application:
        async with anyio.create_task_group() as tasks:
            for user_id in range(100):
                tasks.start_soon(offline.feed, application, offline.message(user_id + 1, "go"))
            for _ in range(5):
                await checkpoint()
            may_end.set()
        assert 1 <= runs <= 3
        assert len(await persistence.get_user_data()) == 100


async def test_a_cancelled_update_does_not_keep_others_from_being_stored(url, running, offline):
    persistence = TrunklinePersistence(url, update_interval=1e6)

    async def work(update, context) -> None:
        context.user_data["done"] = True

    async with running(
        persistence, MessageHandler(filters.TEXT, work), kind=DurableApplication
    ) as application:
        async with anyio.create_task_group() as kept, anyio.create_task_group() as cancelled:
            cancelled.start_soon(offline.feed, application, offline.message(1, "go"))
            kept.start_soon(offline.feed, application, offline.message(2, "go"))
            await checkpoint()
            cancelled.cancel_scope.cancel()
        assert (await persistence.get_user_data())[2] == {"done": True}


async def test_without_persistence_it_is_an_application_like_any_other(running, say, request_):
    async def echo(update, context) -> None:
        await update.message.reply_text(update.message.text)

    async with running(None, TypeHandler(Update, echo), kind=DurableApplication) as application:
        await say(application, 7, "hello")
    assert request_.said == {7: ["hello"]}


# -- run_polling -----------------------------------------------------------------------------------


def test_run_polling_starts_and_stops_it_in_tasks_of_their_own(sqlite_url, offline, request_, kind):
    async def stop(update, context) -> None:
        context.application.stop_running()

    users = range(1, 51)
    for texts in (["/start"], ["Ada"], ["36"]):
        application = (
            Application.builder()
            .application_class(kind)
            .token(offline.TOKEN)
            .request(request_)
            .get_updates_request(request_)
            .concurrent_updates(True)
            .persistence(TrunklinePersistence(sqlite_url))
            .build()
        )
        application.add_handler(CommandHandler("stop", stop), group=-1)
        application.add_handler(registration())
        request_.updates = [
            offline.message(user_id, text) for text in texts for user_id in users
        ] + [offline.message(99, "/stop")]
        asyncio.set_event_loop(asyncio.new_event_loop())  # it closes this one
        application.run_polling(stop_signals=None)
    asyncio.set_event_loop(None)
    assert {user: said[-1] for user, said in request_.said.items()} == dict.fromkeys(
        users, "Ada is 36"
    )
