"""Updates of aiogram as turns: a real Dispatcher and real updates; only Telegram is in memory."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from aiogram import Bot, Dispatcher, F
from aiogram.client.default import DefaultBotProperties
from aiogram.filters import Command
from aiogram.methods import GetUpdates, SendMessage
from aiogram.types import CallbackQuery, Message, Update
from aiogram.webhook.aiohttp_server import SimpleRequestHandler, setup_application
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.integrations.aiogram_programs import count_handled, lose_updates, processes
from tests.integrations.test_aiogram_dispatcher import (
    GROUP,
    TOKEN,
    Telegram,
    message,
    registration,
    say,
    update,
)
from tests.servers.writer import read_journal
from trunkline import Inbox, Trunkline, TurnPolicy
from trunkline.errors import ConfigurationError, InboxFull, StoreUnavailable
from trunkline.integrations.aiogram import (
    TrunklineMiddleware,
    TrunklineStorage,
    TrunklineTurns,
)
from trunkline.turns.memory import MemoryInboxAdapter

COLLECT = TurnPolicy(while_busy="collect")


@pytest.fixture
def telegram() -> Telegram:
    return Telegram()


@pytest.fixture
def bot(telegram) -> Bot:
    return Bot(TOKEN, session=telegram)


@pytest.fixture
async def line(url):
    async with Trunkline(url, signal=None) as line:
        yield line


class Program:
    """A dispatcher with turns, started as aiogram starts it."""

    def __init__(self, line, bot, policy=None, **options) -> None:
        self.line, self.bot = line, bot
        storage = TrunklineStorage(line.fsm)
        self.dispatcher = Dispatcher(storage=storage, events_isolation=storage.create_isolation())
        self.turns = TrunklineTurns(line, policy, **options)
        self.turns.setup(self.dispatcher)

    async def __aenter__(self) -> Program:
        await self.dispatcher.emit_startup(bot=self.bot)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.dispatcher.emit_shutdown(bot=self.bot)

    async def say(self, user_id: int, *texts: str, **fields: Any) -> None:
        await say(self.dispatcher, self.bot, user_id, *texts, **fields)

    async def feed(self, **event: Any) -> Any:
        return await self.dispatcher.feed_update(self.bot, update(self.bot, **event))

    async def idle(self) -> None:
        with anyio.fail_after(60):
            await self.turns.turns.idle()


# -- turns -----------------------------------------------------------------------------------------


async def test_an_update_is_acknowledged_before_its_handler_and_handled_in_a_turn(line, bot):
    go_on, handled = anyio.Event(), []
    program = Program(line, bot)

    @program.dispatcher.message()
    async def on_message(message: Message, turn, arrival, route, updates, line, bot) -> None:
        await go_on.wait()
        handled.append((message.text, turn, arrival, route, updates, line, bot))

    async with program:
        await program.say(7, "hello")
        assert handled == []
        (room,) = await line.persistence.list_rooms()
        go_on.set()
        await program.idle()
    ((text, turn, arrival, route, updates, given, given_bot),) = handled
    assert (text, given, given_bot) == ("hello", line, bot)
    assert arrival == turn.arrivals[0]
    assert (arrival.room.id, arrival.message.content) == (room.id, "hello")
    assert route.external_room_id == 7
    assert [one.message.text for one in updates] == ["hello"]
    assert turn.items[0].external_id == str(updates[0].update_id)


async def test_handlers_filters_states_and_middlewares_work_as_always(line, telegram, bot):
    program = Program(line, bot)
    program.dispatcher.include_router(registration())
    seen = []

    async def note(handler, event, data):
        seen.append((event.text, data["turn"].attempt))
        return await handler(event, data)

    program.dispatcher.message.outer_middleware(note)
    async with program:
        await program.say(7, "/start", "Ada", "36")
        await program.idle()
    assert telegram.said[7][-1] == "Ada is 36"
    assert seen == [("/start", 1), ("Ada", 1), ("36", 1)]


async def test_data_of_the_dispatcher_and_of_startup_reach_handlers(line, bot):
    program = Program(line, bot)
    program.dispatcher["pool"] = "a pool"
    got = []

    @program.dispatcher.message()
    async def on_message(message: Message, pool, shop) -> None:
        got.append((pool, shop))

    await program.dispatcher.emit_startup(bot=bot, shop="a shop")
    await program.say(7, "hello")
    await program.idle()
    await program.dispatcher.emit_shutdown(bot=bot)
    assert got == [("a pool", "a shop")]


async def test_a_burst_is_one_call_of_the_newest_handler_with_all_of_it(line, bot):
    calls = []
    program = Program(line, bot, COLLECT)

    @program.dispatcher.message()
    async def on_message(message: Message, turn, updates) -> None:
        texts = [item.payload["update"]["message"]["text"] for item in turn.items]
        assert texts == [one.message.text for one in updates]
        assert texts == [one.content for one in turn.messages]
        calls.append((message.text, texts))

    # All of it is there before the turns begin.
    await program.say(7, "one", "two", "three")
    await program.say(8, "alone")
    async with program:
        await program.idle()
    assert sorted(calls) == [("alone", ["alone"]), ("three", ["one", "two", "three"])]


async def test_if_no_handler_takes_the_newest_of_a_burst_the_one_before_is_dispatched(line, bot):
    calls = []
    program = Program(line, bot, COLLECT)

    @program.dispatcher.message(F.text)
    async def on_text(message: Message, turn) -> None:
        calls.append((message.text, len(turn.items)))

    await program.say(7, "one", "two")
    await program.feed(message=message(7, None, location={"latitude": 1.0, "longitude": 2.0}))
    await program.feed(message=message(7, None, location={"latitude": 3.0, "longitude": 4.0}))
    async with program:
        await program.idle()
    assert calls == [("two", 4)]


async def test_a_command_and_an_edited_message_are_turns_of_their_own(line, bot):
    calls = []
    program = Program(line, bot, COLLECT)

    @program.dispatcher.message(Command("help"))
    async def on_help(message: Message, turn) -> None:
        calls.append(("help", len(turn.items)))

    @program.dispatcher.edited_message()
    async def on_edited(message: Message, turn) -> None:
        calls.append((f"edited {message.text}", len(turn.items)))

    @program.dispatcher.message()
    async def on_message(message: Message, turn) -> None:
        calls.append((message.text, len(turn.items)))

    await program.say(7, "one", "two", "/help", "three")
    said = message(7, "four")
    await program.feed(message=said)
    await program.feed(edited_message={**said, "text": "five", "edit_date": 2})
    async with program:
        await program.idle()
    assert calls == [("two", 2), ("help", 1), ("four", 2), ("edited five", 1)]


async def test_an_update_that_comes_twice_is_handled_once(line, bot):
    handled = []
    program = Program(line, bot)

    @program.dispatcher.message()
    async def on_message(message: Message) -> None:
        handled.append(message.text)

    async with program:
        again = update(bot, message=message(7, "hello"))
        for _ in range(2):
            await program.dispatcher.feed_update(bot, again)
            await program.idle()
    assert handled == ["hello"]


async def test_what_has_a_deadline_or_no_chat_is_handled_at_once(line, bot):
    handled = []
    program = Program(line, bot)

    @program.dispatcher.callback_query()
    async def on_press(query: CallbackQuery, turn, arrival, updates) -> str:
        handled.append((query.data, turn, arrival.message.content[0]["type"], len(updates)))
        return "answered"

    @program.dispatcher.inline_query()
    async def on_query(query, turn) -> None:
        handled.append((query.query, turn))

    user = {"id": 7, "is_bot": False, "first_name": "User 7"}
    asked = message(42, "sure?", {"id": 7, "type": "private", "first_name": "User 7"})
    pressed = {"id": "99", "from": user, "chat_instance": "c", "data": "yes", "message": asked}
    async with program:
        assert await program.feed(callback_query=pressed) == "answered"
        await program.feed(inline_query={"id": "1", "from": user, "query": "cats", "offset": ""})
        assert handled == [("yes", None, "callback", 1), ("cats", None)]
        assert (await line.inbox.counts()).sessions == 0


async def test_what_is_no_message_and_has_a_chat_is_handled_in_a_turn(line, bot):
    handled = []
    program = Program(line, bot)

    @program.dispatcher.my_chat_member()
    async def on_member(event, turn) -> None:
        handled.append((event.new_chat_member.status, turn.items[0].alone, turn.messages))

    user = {"id": 7, "is_bot": False, "first_name": "User 7"}
    member = {"user": {"id": 42, "is_bot": True, "first_name": "Bot"}}
    changed = {
        "chat": GROUP,
        "from": user,
        "date": 1,
        "old_chat_member": {**member, "status": "left"},
        "new_chat_member": {**member, "status": "member"},
    }
    async with program:
        await program.feed(my_chat_member=changed)
        await program.idle()
    assert handled == [("member", True, ())]


async def test_an_urgent_update_runs_beside_a_turn_and_may_cancel_it(line, bot):
    events, began = [], anyio.Event()
    program = Program(
        line, bot, urgent=lambda update: bool(update.message and update.message.text == "/stop")
    )

    @program.dispatcher.message(Command("stop"))
    async def on_stop(message: Message, turn, line) -> None:
        events.append(await line.inbox.cancel(turn.session_key))

    @program.dispatcher.message()
    async def on_message(message: Message) -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            events.append("cancelled")

    async with program:
        await program.say(7, "tell me everything")
        await began.wait()
        await program.say(7, "/stop")
        await program.idle()
    assert sorted(map(str, events)) == ["1", "cancelled"]


async def test_a_pressed_button_does_not_wait_for_a_turn_of_its_user(line, bot):
    began, pressed_in_time = anyio.Event(), []
    program = Program(line, bot)

    @program.dispatcher.callback_query()
    async def on_press(query: CallbackQuery) -> None:
        pressed_in_time.append(not ended)

    @program.dispatcher.message()
    async def on_message(message: Message) -> None:
        began.set()
        await go_on.wait()
        ended.append(True)

    go_on, ended = anyio.Event(), []
    async with program:
        await program.say(7, "tell me everything")
        await began.wait()
        asked = message(42, "sure?", {"id": 7, "type": "private", "first_name": "User 7"})
        user = {"id": 7, "is_bot": False, "first_name": "User 7"}
        with anyio.fail_after(60):
            await program.feed(
                callback_query={
                    "id": "99",
                    "from": user,
                    "chat_instance": "c",
                    "data": "x",
                    "message": asked,
                }
            )
        go_on.set()
        await program.idle()
    assert (pressed_in_time, ended) == ([True], [True])


async def test_a_handler_that_raises_is_tried_again(line, bot):
    attempts = []
    program = Program(line, bot, TurnPolicy(while_busy="queue", max_attempts=2, retry_delay_ms=1))

    @program.dispatcher.message()
    async def on_message(message: Message, turn) -> None:
        attempts.append(turn.attempt)
        raise ValueError("no answer")

    async with program:
        await program.say(7, "hello")
        await program.idle()
        (item,) = await line.inbox.list("failed")
    assert attempts == [1, 2]
    assert item.payload["update"]["message"]["text"] == "hello"


async def test_an_error_that_an_error_handler_takes_ends_the_turn(line, bot):
    errors = []
    program = Program(line, bot)

    @program.dispatcher.message()
    async def on_message(message: Message) -> None:
        raise ValueError("no answer")

    @program.dispatcher.errors()
    async def on_error(event, turn) -> bool:
        errors.append((str(event.exception), turn.attempt))
        return True

    async with program:
        await program.say(7, "hello")
        await program.idle()
        assert (await line.inbox.counts()).failed == 0
    assert errors == [("no answer", 1)]


async def test_a_method_that_a_handler_returns_is_called_in_the_turn(line, telegram, bot):
    program = Program(line, bot)

    @program.dispatcher.message()
    async def on_message(message: Message) -> SendMessage:
        return message.answer("as the answer of a webhook")

    async with program:
        answer = await program.dispatcher.feed_webhook_update(
            bot, update(bot, message=message(7, "hello"))
        )
        assert answer is None
        await program.idle()
    assert telegram.said == {7: ["as the answer of a webhook"]}


async def test_a_reply_goes_to_the_topic_and_through_the_business_account(line, telegram, bot):
    program = Program(line, bot)

    @program.dispatcher.message()
    @program.dispatcher.business_message()
    async def on_message(message: Message, turn) -> None:
        await turn.reply(f"to {message.text}")

    async with program:
        await program.say(7, "topic", chat=GROUP, message_thread_id=5, is_topic_message=True)
        await program.idle()
        await program.feed(business_message=message(7, "shop", business_connection_id="shop"))
        await program.idle()
    sent = [call for call in telegram.calls if isinstance(call, SendMessage)]
    assert [(one.chat_id, one.text, one.message_thread_id) for one in sent] == [
        (-100, "to topic", 5),
        (7, "to shop", None),
    ]
    assert [one.business_connection_id for one in sent] == [None, "shop"]


async def test_an_update_comes_out_of_the_inbox_as_it_went_in(line, telegram):
    bot = Bot(
        TOKEN,
        session=telegram,
        default=DefaultBotProperties(parse_mode="HTML", link_preview_is_disabled=True),
    )
    program = Program(line, bot)
    got = []

    @program.dispatcher.message()
    async def on_message(message: Message, event_update: Update) -> None:
        got.append(event_update)

    sizes = [{"file_id": "f", "file_unique_id": "u", "width": 1, "height": 2}]
    said = message(
        7,
        None,
        photo=sizes,
        caption="look",
        caption_entities=[{"type": "bold", "offset": 0, "length": 4}],
        reply_to_message=message(8, "before", link_preview_options={"url": "https://x.test"}),
        forward_origin={"type": "hidden_user", "date": 5, "sender_user_name": "Ada"},
        of_a_newer_api={"field": [1, None, "x"]},
    )
    sent = update(bot, message=said)
    async with program:
        await program.dispatcher.feed_update(bot, sent)
        await program.idle()
    (received,) = got
    assert received == sent
    assert received.bot is bot
    assert received.message.bot is bot


# -- starting and stopping -------------------------------------------------------------------------


async def test_the_line_starts_and_stops_with_the_dispatcher_if_it_does_not_run(url, bot):
    line = Trunkline(url)
    program = Program(line, bot)
    async with program:
        assert line.is_running
    assert not line.is_running
    async with line:
        async with program:
            pass
        assert line.is_running


async def test_turns_end_before_what_was_registered_for_shutdown(url, bot):
    line, order = Trunkline(url), []
    dispatcher = Dispatcher()

    async def on_shutdown() -> None:
        order.append("shutdown")

    dispatcher.shutdown.register(on_shutdown)
    turns = TrunklineTurns(line)
    turns.setup(dispatcher)
    began = anyio.Event()

    @dispatcher.message()
    async def on_message(message: Message) -> None:
        began.set()
        await anyio.sleep(0.05)
        order.append("handled")

    await dispatcher.emit_startup(bot=bot)
    await say(dispatcher, bot, 7, "hello")
    await began.wait()
    await dispatcher.emit_shutdown(bot=bot)
    assert order == ["handled", "shutdown"]


async def test_turns_have_one_dispatcher(line):
    turns = TrunklineTurns(line)
    turns.setup(Dispatcher())
    with pytest.raises(ConfigurationError, match="already"):
        turns.setup(Dispatcher())


async def test_a_middleware_beside_the_turns_stores_nothing_twice(line, bot):
    program = Program(line, bot)
    TrunklineMiddleware(line).setup(program.dispatcher)
    arrivals = []

    @program.dispatcher.message()
    async def on_message(message: Message, arrival) -> None:
        arrivals.append(arrival)

    async with program:
        await program.say(7, "hello")
        await program.idle()
    assert not arrivals[0].duplicate
    assert (await line.persistence.counts())["messages"] == 1


async def test_a_webhook_is_answered_when_its_update_is_on_disk(line, bot):
    program = Program(line, bot)
    go_on, handled = anyio.Event(), []

    @program.dispatcher.message()
    async def on_message(message: Message) -> None:
        await go_on.wait()
        handled.append(message.text)

    app = web.Application()
    webhook = SimpleRequestHandler(program.dispatcher, bot, handle_in_background=False)
    webhook.register(app, path="/webhook")
    setup_application(app, program.dispatcher, bot=bot)
    async with TestClient(TestServer(app)) as client:
        sent = update(bot, message=message(7, "hello"))
        for _ in range(2):
            answer = await client.post("/webhook", data=sent.model_dump_json(exclude_unset=True))
            assert answer.status == 200
            counts = await line.inbox.counts()
            assert counts.waiting + counts.running == 1
        assert handled == []
        go_on.set()
        await program.idle()
    assert handled == ["hello"]


async def test_a_program_with_a_server_of_its_own_starts_and_stops_the_turns(url, telegram, bot):
    line = Trunkline(url)
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def on_message(message: Message, turn) -> None:
        await turn.reply(f"you said {message.text}")

    turns = TrunklineTurns(line)
    turns.setup(dispatcher, bot)
    async with line:
        await say(dispatcher, bot, 7, "hello")
        await turns.start()
        await turns.turns.idle()
        await turns.stop()
        assert line.is_running
    assert telegram.said == {7: ["you said hello"]}


async def test_an_update_that_is_not_on_disk_is_not_acknowledged(bot):
    class Away(MemoryInboxAdapter):
        is_away = True

        def accept(self, *args: Any) -> Any:
            if self.is_away:
                raise StoreUnavailable("the inbox is away")
            return super().accept(*args)

    inbox, handled = Away(), []
    async with Trunkline("memory://", inbox=inbox) as line:
        program = Program(line, bot)

        @program.dispatcher.message()
        async def on_message(message: Message) -> None:
            handled.append(message.text)

        @program.dispatcher.errors()
        async def on_error(event) -> bool:
            return True  # must not acknowledge it either

        async with program:
            sent = update(bot, message=message(7, "hello"))
            with pytest.raises(StoreUnavailable):
                await program.dispatcher.feed_webhook_update(bot, sent)
            inbox.is_away = False
            await program.dispatcher.feed_webhook_update(bot, sent)
            await program.idle()
    assert handled == ["hello"]


# -- polling ---------------------------------------------------------------------------------------


class StrictTelegram(Telegram):
    """Notes what the inbox held whenever updates were confirmed."""

    inbox: Inbox

    def __init__(self) -> None:
        super().__init__()
        self.confirmed: dict[int, int] = {}

    async def make_request(self, bot: Bot, method: Any, timeout: int | None = None) -> Any:
        if isinstance(method, GetUpdates) and method.offset and method.offset not in self.confirmed:
            counts = await self.inbox.counts()
            self.confirmed[method.offset] = counts.waiting + counts.running
        return await super().make_request(bot, method, timeout)


@pytest.mark.parametrize("handle_as_tasks", [True, False])
async def test_polling_confirms_updates_when_they_are_in_the_inbox(line, handle_as_tasks):
    telegram = StrictTelegram()
    telegram.inbox = line.inbox
    bot = Bot(TOKEN, session=telegram)
    go_on = anyio.Event()
    program = Program(line, bot, max_running=500)

    @program.dispatcher.message()
    async def on_message(message: Message) -> None:
        await go_on.wait()
        await message.answer(message.text or "")

    telegram.updates = [
        update(bot, message=message(number % 10, str(number))) for number in range(150)
    ]
    async with anyio.create_task_group() as tasks:

        async def poll() -> None:
            await program.dispatcher.start_polling(
                bot, handle_signals=False, handle_as_tasks=handle_as_tasks
            )

        tasks.start_soon(poll)
        with anyio.fail_after(60):
            while len(telegram.confirmed) < 2:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            go_on.set()
            await telegram.wait_for(150)
        await program.dispatcher.stop_polling()
    assert list(telegram.confirmed.values()) == [100, 150]
    assert telegram.said == {
        user_id: [str(number) for number in range(150) if number % 10 == user_id]
        for user_id in range(10)
    }
    assert not telegram.middleware
    assert not program.turns._polling._accepted


async def test_polling_fetches_again_what_could_not_be_stored(telegram, bot):
    class Away(MemoryInboxAdapter):
        attempts = 0

        def accept(self, *args: Any) -> Any:
            self.attempts += 1
            if self.attempts == 2:
                raise StoreUnavailable("the inbox is away")
            return super().accept(*args)

    async with Trunkline("memory://", inbox=Away()) as line:
        program = Program(line, bot)

        @program.dispatcher.message()
        async def on_message(message: Message) -> None:
            await message.answer(message.text or "")

        telegram.updates = [update(bot, message=message(7, str(number))) for number in range(5)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: program.dispatcher.start_polling(bot, handle_signals=False))
            with anyio.fail_after(60):
                await telegram.wait_for(5)
            await program.dispatcher.stop_polling()
    assert telegram.said == {7: ["0", "1", "2", "3", "4"]}
    assert len([call for call in telegram.calls if isinstance(call, GetUpdates)]) == 3


async def test_a_full_inbox_of_one_chat_does_not_hold_up_the_others(telegram, bot, caplog):
    began = anyio.Event()
    async with Trunkline("memory://") as line:
        program = Program(line, bot, TurnPolicy(while_busy="queue", max_waiting=1))

        @program.dispatcher.message(F.chat.id == 7)
        async def on_flood(message: Message) -> None:
            began.set()
            await anyio.sleep_forever()

        @program.dispatcher.message()
        async def on_message(message: Message) -> None:
            await began.wait()
            await message.answer("here")

        telegram.updates = [
            *(update(bot, message=message(7, str(number))) for number in range(5)),
            update(bot, message=message(8, "anybody there?")),
        ]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: program.dispatcher.start_polling(bot, handle_signals=False))
            with anyio.fail_after(60):
                await telegram.wait_for(1)
                assert (await line.inbox.counts()).running == 1
            await line.inbox.cancel(("telegram", "42", "nobody"))
            for item in await line.inbox.list("running"):
                await line.inbox.cancel(item.session_key)
            await program.dispatcher.stop_polling()
    assert telegram.said == {8: ["here"]}
    assert InboxFull.__name__ in caplog.text


# -- kill ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("way", ["webhook", "polling"])
def test_what_was_acknowledged_is_handled_once_after_a_kill(tmp_path, way):
    url, journal = f"sqlite:///{tmp_path / 'bot.db'}", tmp_path / "journal"
    all_acknowledged = processes.Event()
    first = processes.Process(target=lose_updates, args=(url, journal, way, all_acknowledged))
    first.start()
    assert all_acknowledged.wait(60)
    first.kill()
    first.join()
    acknowledged = [text for (text,) in read_journal(journal)]
    assert len(acknowledged) == 30

    handled = tmp_path / "handled"
    second = processes.Process(target=count_handled, args=(url, handled))
    second.start()
    second.join(120)
    assert second.exitcode == 0
    texts = [text for (text,) in read_journal(handled)]
    assert sorted(texts) == sorted(acknowledged)
    for chat in range(3):
        of_chat = [text for text in texts if text.startswith(f"{chat}:")]
        assert of_chat == [f"{chat}:{number}" for number in range(10)]
