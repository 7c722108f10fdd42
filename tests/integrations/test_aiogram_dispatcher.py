"""A real Dispatcher with real updates on TrunklineStorage; only Telegram itself is in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest
from aiogram import Bot, Dispatcher, F, Router
from aiogram.client.session.base import BaseSession
from aiogram.filters import Command
from aiogram.fsm.context import FSMContext
from aiogram.fsm.state import State, StatesGroup
from aiogram.fsm.strategy import FSMStrategy
from aiogram.methods import GetMe, GetUpdates, SendMessage, TelegramMethod
from aiogram.types import Message, TelegramObject, Update, User
from anyio.lowlevel import checkpoint

from trunkline import FSMStore, Resolution, Trunkline
from trunkline.errors import StoreUnavailable
from trunkline.integrations.aiogram import (
    TrunklineEventIsolation,
    TrunklineMiddleware,
    TrunklineStorage,
)

TOKEN = "42:AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHHIIII"


class Telegram(BaseSession):
    """Answers as Telegram does, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[TelegramMethod[Any]] = []
        self.updates: list[Update] = []
        #: chat id → what the bot said there.
        self.said: dict[int, list[str]] = {}
        self.is_closed = False
        self._expected: tuple[int, anyio.Event] | None = None

    async def make_request(self, bot: Bot, method: Any, timeout: int | None = None) -> Any:
        self.calls.append(method)
        if isinstance(method, GetUpdates):
            await checkpoint()
            offset = method.offset or 0
            new = [update for update in self.updates if update.update_id >= offset]
            if not new:
                await anyio.sleep_forever()
            return new[:100]
        if isinstance(method, GetMe):
            return User(id=bot.id, is_bot=True, first_name="Bot", username="the_bot")
        if isinstance(method, SendMessage):
            self.said.setdefault(method.chat_id, []).append(method.text)
            self._tell()
            sent = {"message_id": len(self.calls), "date": 1, "text": method.text}
            chat = {"id": method.chat_id, "type": "private"}
            return Message.model_validate({**sent, "chat": chat}, context={"bot": bot})
        return True

    async def wait_for(self, messages: int) -> None:
        """Until the bot has said so much."""
        self._expected = (messages, anyio.Event())
        self._tell()
        await self._expected[1].wait()

    def _tell(self) -> None:
        if self._expected and sum(map(len, self.said.values())) >= self._expected[0]:
            self._expected[1].set()

    async def close(self) -> None:
        self.is_closed = True

    async def stream_content(self, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        yield b""


@pytest.fixture
def telegram() -> Telegram:
    return Telegram()


@pytest.fixture
def bot(telegram) -> Bot:
    return Bot(TOKEN, session=telegram)


_ids = iter(range(1, 1_000_000))


def message(user_id: int, text: str | None = None, chat: dict | None = None, **fields) -> dict:
    user = {"id": user_id, "is_bot": False, "first_name": f"User {user_id}"}
    chat = chat or {"id": user_id, "type": "private", "first_name": f"User {user_id}"}
    said = {} if text is None else {"text": text}
    return {"message_id": next(_ids), "date": 1, "chat": chat, "from": user, **said, **fields}


def update(bot: Bot, **event) -> Update:
    return Update.model_validate({"update_id": next(_ids), **event}, context={"bot": bot})


async def say(dispatcher: Dispatcher, bot: Bot, user_id: int, *texts: str, **fields) -> None:
    for text in texts:
        await dispatcher.feed_update(bot, update(bot, message=message(user_id, text, **fields)))


class Form(StatesGroup):
    name = State()
    age = State()


def registration() -> Router:
    router = Router()

    @router.message(Command("start"))
    async def start(message: Message, state: FSMContext) -> None:
        await state.set_state(Form.name)
        await message.answer("Your name?")

    @router.message(Form.name)
    async def take_name(message: Message, state: FSMContext) -> None:
        await state.update_data(name=message.text)
        await state.set_state(Form.age)
        await message.answer("Your age?")

    @router.message(Form.age, F.text.isdigit())
    async def take_age(message: Message, state: FSMContext) -> None:
        data = await state.update_data(age=int(message.text))
        await state.clear()
        await message.answer(f"{data['name']} is {data['age']}")

    @router.message(Form.age)
    async def no_age(message: Message) -> None:
        await message.answer("A number, please.")

    return router


def form_dispatcher(store: FSMStore | str, **options) -> Dispatcher:
    storage = TrunklineStorage(store)
    dispatcher = Dispatcher(storage=storage, events_isolation=storage.create_isolation(), **options)
    dispatcher.include_router(registration())
    return dispatcher


# -- forms -----------------------------------------------------------------------------------------


async def test_a_form_is_filled_step_by_step(url, telegram, bot):
    dispatcher = form_dispatcher(url)
    await say(dispatcher, bot, 7, "/start", "Ada", "what?", "36", "more")
    assert telegram.said == {
        7: ["Your name?", "Your age?", "A number, please.", "Ada is 36"],
    }
    await dispatcher.emit_shutdown()


async def test_a_form_goes_on_after_a_restart(sqlite_url, telegram, bot):
    for texts in (["/start"], ["Ada", "what?"], ["36"]):
        dispatcher = form_dispatcher(sqlite_url)
        await dispatcher.emit_startup()
        await say(dispatcher, bot, 7, *texts)
        await dispatcher.emit_shutdown()
    assert telegram.said[7][-1] == "Ada is 36"


@pytest.mark.slow
async def test_hundreds_of_users_fill_in_forms_at_once(url, telegram, bot):
    dispatcher = form_dispatcher(url)

    async def fill(user_id: int) -> None:
        await say(dispatcher, bot, user_id, "/start", f"Name{user_id}", str(user_id))

    users = range(1, 301)
    async with anyio.create_task_group() as tasks:
        for user_id in users:
            tasks.start_soon(fill, user_id)
    assert {user: said[-1] for user, said in telegram.said.items()} == {
        user: f"Name{user} is {user}" for user in users
    }
    await dispatcher.emit_shutdown()


async def test_forms_of_two_bots_do_not_meet(url, telegram):
    one, two = Bot("1:A", session=telegram), Bot("2:B", session=telegram)
    dispatcher = form_dispatcher(url)
    await say(dispatcher, one, 7, "/start", "Ada")
    await say(dispatcher, two, 7, "Eve", "36")
    assert telegram.said[7] == ["Your name?", "Your age?"]
    await say(dispatcher, two, 7, "/start", "Eve", "5")
    await say(dispatcher, one, 7, "36")
    assert telegram.said[7][-2:] == ["Eve is 5", "Ada is 36"]
    await dispatcher.emit_shutdown()


async def test_topics_are_conversations_of_their_own_if_the_strategy_says_so(url, telegram, bot):
    dispatcher = form_dispatcher(url, fsm_strategy=FSMStrategy.USER_IN_TOPIC)
    group = {"id": -100, "type": "supergroup", "title": "Group", "is_forum": True}

    def topic(number: int) -> dict:
        return {"chat": group, "message_thread_id": number, "is_topic_message": True}

    await say(dispatcher, bot, 7, "/start", "Ada", **topic(1))
    await say(dispatcher, bot, 7, "/start", "Eve", **topic(2))
    await say(dispatcher, bot, 7, "1", **topic(1))
    await say(dispatcher, bot, 7, "2", **topic(2))
    assert telegram.said[-100][-2:] == ["Ada is 1", "Eve is 2"]
    await dispatcher.emit_shutdown()


# -- isolation -------------------------------------------------------------------------------------


def counting_dispatcher(store: FSMStore | str, busy: set[int]) -> Dispatcher:
    """Collects what a user said by a read and a write, with other tasks in between."""
    storage = TrunklineStorage(store)
    dispatcher = Dispatcher(storage=storage, events_isolation=storage.create_isolation())

    @dispatcher.message()
    async def collect(message: Message, state: FSMContext) -> None:
        user_id = message.from_user.id
        assert user_id not in busy
        busy.add(user_id)
        said = await state.get_value("said", [])
        for _ in range(3):
            await checkpoint()
        await state.set_data({"said": [*said, message.text]})
        busy.remove(user_id)

    return dispatcher


async def test_updates_of_one_user_are_handled_one_at_a_time_and_in_order(url, bot):
    # The store starts with the first of them, while the others already wait.
    dispatcher = counting_dispatcher(url, busy=set())
    updates = [
        update(bot, message=message(user_id, str(number)))
        for number in range(10)
        for user_id in range(1, 41)
    ]
    async with anyio.create_task_group() as tasks:
        for one in updates:
            tasks.start_soon(dispatcher.feed_update, bot, one)
    for user_id in range(1, 41):
        context = dispatcher.fsm.get_context(bot, user_id, user_id)
        assert await context.get_value("said") == [str(number) for number in range(10)]
    await dispatcher.emit_shutdown()


# -- polling ---------------------------------------------------------------------------------------


async def poll(dispatcher: Dispatcher, bot: Bot, telegram: Telegram, messages: int) -> None:
    """Poll until the bot has said so much, then stop."""
    async with anyio.create_task_group() as tasks:

        async def start() -> None:
            await dispatcher.start_polling(bot, handle_signals=False)

        tasks.start_soon(start)
        with anyio.fail_after(60):
            await telegram.wait_for(messages)
        await dispatcher.stop_polling()


async def test_a_dispatcher_of_module_level_polls_stops_and_polls_again(sqlite_url, telegram, bot):
    dispatcher = form_dispatcher(sqlite_url)
    for number, texts in enumerate((["/start"], ["Ada"], ["36"]), start=1):
        telegram.updates = [
            update(bot, message=message(user_id, text))
            for text in texts
            for user_id in range(1, 51)
        ]
        await poll(dispatcher, bot, telegram, 50 * number)
        assert telegram.is_closed
        with pytest.raises(StoreUnavailable):
            await dispatcher.storage.store.get_state("aiogram:42", 1)  # type: ignore[attr-defined]
    assert all(said[-1] == "Ada is 36" for said in telegram.said.values())
    assert len(telegram.said) == 50


async def test_a_dispatcher_starts_and_stops_a_store_that_was_registered(telegram, bot):
    store = FSMStore("memory://")
    dispatcher = Dispatcher(
        storage=TrunklineStorage(store), events_isolation=TrunklineEventIsolation(store)
    )
    dispatcher.startup.register(store.start)
    dispatcher.shutdown.register(store.stop)
    dispatcher.include_router(registration())
    telegram.updates = [update(bot, message=message(7, "/start"))]
    await poll(dispatcher, bot, telegram, 1)
    with pytest.raises(StoreUnavailable):
        await store.get_state("aiogram:42", 1)


async def test_a_wrong_url_ends_polling_before_it_begins_if_the_storage_starts_with_it(
    tmp_path, telegram, bot
):
    dispatcher = form_dispatcher(f"sqlite:///{tmp_path}/missing/bot.db")
    dispatcher.startup.register(dispatcher.storage.start)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="missing"):
        await dispatcher.start_polling(bot, handle_signals=False)
    assert not any(isinstance(call, GetUpdates) for call in telegram.calls)


# -- the middleware --------------------------------------------------------------------------------


@pytest.fixture
async def line(url):
    async with Trunkline(url) as line:
        yield line


def line_dispatcher(line: Trunkline, told: list, **options) -> Dispatcher:
    storage = TrunklineStorage(line.fsm)
    dispatcher = Dispatcher(storage=storage, events_isolation=storage.create_isolation())
    TrunklineMiddleware(line, **options).setup(dispatcher)

    @dispatcher.message()
    @dispatcher.edited_message()
    @dispatcher.channel_post()
    @dispatcher.business_message()
    @dispatcher.callback_query()
    @dispatcher.inline_query()
    async def handle(event: TelegramObject, **data: Any) -> None:
        names = ("line", "arrival", "route")
        told.append({name: data[name] for name in names if name in data})

    return dispatcher


@pytest.mark.parametrize("options", [{}, {"disable_fsm": True}])
async def test_the_middleware_stands_before_the_isolation_and_after_the_errors(line, options):
    async def later(handler, event, data):
        return await handler(event, data)

    dispatcher = Dispatcher(**options)
    dispatcher.update.outer_middleware(later)
    before = list(dispatcher.update.outer_middleware)
    middleware = TrunklineMiddleware(line)
    middleware.setup(dispatcher)
    after = list(dispatcher.update.outer_middleware)
    place = len(before) if options else before.index(dispatcher.fsm)
    assert after == [*before[:place], middleware, *before[place:]]


async def test_a_message_is_stored_while_an_earlier_one_of_its_user_is_handled(line, bot):
    storage = TrunklineStorage(line.fsm)
    dispatcher = Dispatcher(storage=storage, events_isolation=storage.create_isolation())
    TrunklineMiddleware(line).setup(dispatcher)
    handled, go_on = [], anyio.Event()

    @dispatcher.message()
    async def on_message(message: Message) -> None:
        handled.append(message.text)
        await go_on.wait()

    async with anyio.create_task_group() as tasks:
        for text in ("one", "two", "three"):
            tasks.start_soon(say, dispatcher, bot, 7, text)
        with anyio.fail_after(60):
            # Sleeping, and not only yielding: the store's thread needs the interpreter too.
            while line.router.stats().total.entries == 0 or len(await texts(line)) < 3:  # noqa: ASYNC110
                await anyio.sleep(0.005)
            while not handled:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        assert len(handled) == 1
        go_on.set()
    assert sorted(handled) == ["one", "three", "two"]


async def texts(line) -> list[str]:
    (room,) = await line.persistence.list_rooms()
    return [message.content for message in await line.persistence.get_messages(room.id)]


async def test_handlers_get_the_line_the_arrival_and_the_route(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    await say(dispatcher, bot, 7, "hello")
    (given,) = told
    assert given["line"] is line
    arrival, route = given["arrival"], given["route"]
    assert isinstance(route, Resolution)
    assert (route.external_room_id, route.source, route.stale) == (7, "state_hit", False)
    assert (route.route.bridge_id, route.route.room_id) == ("42", arrival.room.id)
    assert route.session_key == arrival.session_key == ("telegram", "42", arrival.room.id, None)
    assert (arrival.message.content, arrival.message.role) == ("hello", "user")
    assert (arrival.room.type, arrival.room.name) == ("direct", "User 7")
    assert arrival.participant.identity["name"] == "User 7"
    assert arrival.participant.type == "human"
    assert arrival.message.sender_id == arrival.participant.id
    assert await line.persistence.get_messages(arrival.room.id) == [arrival.message]


async def test_messages_of_one_second_keep_their_order(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    texts = [str(number) for number in range(20)]
    await say(dispatcher, bot, 7, *texts)
    stored = await line.persistence.get_messages(told[0]["arrival"].room.id)
    assert [message.content for message in stored] == texts
    assert stored[0].metadata["date"] == "1970-01-01T00:00:01+00:00"


async def test_handlers_name_what_they_want(line, telegram, bot):
    dispatcher = Dispatcher()
    TrunklineMiddleware(line).setup(dispatcher)

    @dispatcher.message()
    async def handle(message: Message, route: Resolution) -> None:
        await message.bot.send_message(route.external_room_id, f"you said {message.text}")

    await say(dispatcher, bot, 7, "hello")
    assert telegram.said == {7: ["you said hello"]}


async def test_an_update_that_comes_again_is_stored_once_and_handled_again(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    again = update(bot, message=message(7, "hello"))
    await dispatcher.feed_update(bot, again)
    await dispatcher.feed_update(bot, again)
    first, second = (given["arrival"] for given in told)
    assert (first.duplicate, second.duplicate) == (False, True)
    assert first.message == second.message
    assert len(await line.persistence.get_messages(first.room.id)) == 1


async def test_an_edited_message_is_not_stored_again(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    said = message(7, "helo")
    await dispatcher.feed_update(bot, update(bot, message=said))
    edited = {**said, "text": "hello", "edit_date": 2}
    await dispatcher.feed_update(bot, update(bot, edited_message=edited))
    assert [given["arrival"].duplicate for given in told] == [False, True]
    assert len(await line.persistence.get_messages(told[0]["arrival"].room.id)) == 1


GROUP = {"id": -100, "type": "supergroup", "title": "Group", "is_forum": True}


async def test_a_topic_is_a_thread_and_a_reply_in_a_plain_group_is_not(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    opening = message(8, None, GROUP, forum_topic_created={"name": "News", "icon_color": 1})
    await say(
        dispatcher,
        bot,
        7,
        "in a topic",
        chat=GROUP,
        message_thread_id=opening["message_id"],
        is_topic_message=True,
        reply_to_message=opening,
    )
    answered = message(8, "question", GROUP)
    await say(
        dispatcher,
        bot,
        7,
        "a reply",
        chat=GROUP,
        message_thread_id=answered["message_id"],
        reply_to_message=answered,
    )
    topic, reply = (given["arrival"] for given in told)
    assert topic.session_key.thread_id == str(opening["message_id"])
    assert topic.session_key.same_room(reply.session_key)
    assert topic.message.external_reply_to_id is None
    assert reply.session_key.thread_id is None
    assert reply.message.external_reply_to_id == answered["message_id"]
    assert (reply.room.type, reply.room.name) == ("group", "Group")
    assert told[0]["route"].route.thread_id == str(opening["message_id"])


async def test_a_pressed_button_is_ingested_into_the_chat_of_its_message(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    asked = message(42, "sure?", {"id": 7, "type": "private", "first_name": "User 7"})
    user = {"id": 7, "is_bot": False, "first_name": "User 7"}
    pressed = {"id": "99", "from": user, "chat_instance": "c", "data": "yes"}
    await say(dispatcher, bot, 7, "hello")
    await dispatcher.feed_update(bot, update(bot, callback_query={**pressed, "message": asked}))
    said, press = (given["arrival"] for given in told)
    assert press.room.id == said.room.id
    assert press.participant.id == said.participant.id
    assert press.message.content == [{"type": "callback", "data": "yes"}]
    assert press.message.external_reply_to_id == asked["message_id"]
    # And one under a message that is too old to be shown.
    gone = {"chat": asked["chat"], "message_id": 5, "date": 0}
    again = {**pressed, "id": "100", "message": gone}
    await dispatcher.feed_update(bot, update(bot, callback_query=again))
    assert told[-1]["arrival"].room.id == said.room.id


async def test_updates_without_a_chat_have_the_line_alone(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    user = {"id": 7, "is_bot": False, "first_name": "User 7"}
    query = {"id": "1", "from": user, "query": "cats", "offset": ""}
    await dispatcher.feed_update(bot, update(bot, inline_query=query))
    pressed = {"id": "2", "from": user, "chat_instance": "c", "data": "x", "inline_message_id": "i"}
    await dispatcher.feed_update(bot, update(bot, callback_query=pressed))
    assert told == [{"line": line}, {"line": line}]


async def test_a_channel_speaks_for_itself(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    channel = {"id": -200, "type": "channel", "title": "Channel"}
    post = {"message_id": 1, "date": 1, "chat": channel, "sender_chat": channel, "text": "news"}
    await dispatcher.feed_update(bot, update(bot, channel_post=post))
    # In a group it is a user of Telegram's own whom all channels share.
    nobody = {"id": 136817688, "is_bot": True, "first_name": "Channel"}
    in_group = message(1, "news", GROUP, sender_chat=channel, **{"from": nobody})
    await dispatcher.feed_update(bot, update(bot, message=in_group))
    posted, forwarded = (given["arrival"] for given in told)
    assert posted.room.type == "channel"
    assert posted.participant.identity["name"] == "Channel"
    assert forwarded.participant.id == posted.participant.id


async def test_a_business_account_has_conversations_of_its_own(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    await say(dispatcher, bot, 7, "to the bot")
    said = message(7, "to the shop", business_connection_id="shop")
    await dispatcher.feed_update(bot, update(bot, business_message=said))
    bot_room, shop_room = (given["arrival"].room.id for given in told)
    assert bot_room != shop_room
    assert told[1]["route"].route.bridge_id == "42/shop"


async def test_what_is_no_text_is_stored_as_a_block(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    sizes = [
        {"file_id": name, "file_unique_id": name, "width": width, "height": width}
        for name, width in (("small", 90), ("large", 900))
    ]
    await say_fields(dispatcher, bot, photo=sizes, caption="look")
    voice = {"file_id": "voice", "file_unique_id": "v", "duration": 3}
    await say_fields(dispatcher, bot, voice=voice)
    await say_fields(dispatcher, bot, location={"latitude": 1.0, "longitude": 2.0})
    assert [given["arrival"].message.content for given in told] == [
        [{"type": "photo", "file_id": "large", "text": "look"}],
        [{"type": "voice", "file_id": "voice"}],
        [{"type": "location"}],
    ]


async def say_fields(dispatcher: Dispatcher, bot: Bot, **fields) -> None:
    await dispatcher.feed_update(bot, update(bot, message=message(7, None, **fields)))


async def test_a_bot_can_say_itself_what_is_stored_and_under_which_channel(line, bot):
    told = []
    dispatcher = line_dispatcher(
        line, told, channel="tg", content=lambda spoken: {"upper": spoken.text.upper()}
    )
    await say(dispatcher, bot, 7, "hello")
    assert told[0]["arrival"].message.content == {"upper": "HELLO"}
    assert told[0]["arrival"].session_key.channel == "tg"


async def test_a_line_that_does_not_run_is_reported_to_error_handlers_and_calls_no_handler(bot):
    told, errors = [], []
    dispatcher = line_dispatcher(Trunkline("memory://"), told)

    @dispatcher.errors()
    async def on_error(event) -> bool:
        errors.append(event.exception)
        return True

    # Its storage would be the first to fail.
    dispatcher.update.outer_middleware.unregister(dispatcher.fsm)
    await say(dispatcher, bot, 7, "hello")
    assert told == []
    assert [type(error) for error in errors] == [StoreUnavailable]


async def test_a_line_starts_and_stops_with_its_dispatcher(sqlite_url, telegram, bot):
    line = Trunkline(sqlite_url)
    dispatcher = Dispatcher(storage=TrunklineStorage(line.fsm))
    dispatcher.startup.register(line.start)
    dispatcher.shutdown.register(line.stop)
    TrunklineMiddleware(line).setup(dispatcher)
    dispatcher.include_router(registration())
    telegram.updates = [update(bot, message=message(7, "/start"))]
    await poll(dispatcher, bot, telegram, 1)
    async with Trunkline(sqlite_url) as line:
        told = []
        await say(line_dispatcher(line, told), bot, 7, "hello")
        stored = await line.persistence.get_messages(told[0]["arrival"].room.id)
        assert [message.content for message in stored] == ["/start", "hello"]


async def test_hundreds_of_users_in_many_rooms_are_ingested_at_once(line, bot):
    told = []
    dispatcher = line_dispatcher(line, told)
    async with anyio.create_task_group() as tasks:
        for user_id in range(1, 201):
            for text in ("one", "two", "three"):
                one = update(bot, message=message(user_id, text))
                tasks.start_soon(dispatcher.feed_update, bot, one)
    assert len(told) == 600
    rooms = {given["route"].external_room_id: given["arrival"].room.id for given in told}
    assert len(rooms) == len(set(rooms.values())) == 200
    for room_id in list(rooms.values())[:20]:
        stored = await line.persistence.get_messages(room_id)
        assert [message.content for message in stored] == ["one", "two", "three"]
