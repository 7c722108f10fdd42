"""Bots of aiogram, to be run in processes beside each other and to be killed there."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from aiogram import Bot, Dispatcher
from aiogram.fsm.storage.base import StorageKey
from aiogram.methods import GetUpdates
from aiogram.types import Message, Update

from tests.integrations.test_aiogram_dispatcher import Telegram
from tests.servers.writer import Journal, processes
from trunkline import FSMStore, Trunkline
from trunkline.integrations.aiogram import (
    TrunklineMiddleware,
    TrunklineStorage,
    TrunklineTurns,
)

#: Conversations, each of which both processes change at about the same time.
KEYS = [StorageKey(bot_id=1, chat_id=number, user_id=7) for number in range(1_600)]


class TwoStepStorage(TrunklineStorage):
    """Looks whether a conversation is empty, and then removes it: two operations."""

    async def set_state(self, key: StorageKey, state: Any = None) -> None:
        if state is not None or await self.get_data(key):
            await super().set_state(key, state)
            return
        where = (key.chat_id, key.user_id, key.thread_id, key.business_connection_id, key.destiny)
        async with self._handle.calling("aiogram:1") as store:  # type: ignore[attr-defined]
            await store.clear("aiogram:1", where)


def lost_updates(url: str, kind: type[TrunklineStorage]) -> int:
    """How many acknowledged updates of one process the other process has removed."""
    anyio.run(_count_lost, url)  # makes the tables
    start = processes.Barrier(2)
    workers = [
        processes.Process(target=target, args=(url, kind, start))
        for target in (end_conversations, add_names)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0
    return anyio.run(_count_lost, url)


def end_conversations(url: str, kind: type[TrunklineStorage], start: Any) -> None:
    async def main() -> None:
        async with _storage(url, kind) as storage:
            await _for_all(KEYS, lambda key: storage.set_state(key, "asked"))
            start.wait(120)
            await _for_all(KEYS, lambda key: storage.set_state(key, None))

    anyio.run(main)


def add_names(url: str, kind: type[TrunklineStorage], start: Any) -> None:
    async def main() -> None:
        async with _storage(url, kind) as storage:
            start.wait(120)
            # In another order, so that the two meet at many different moments of each other.
            keys = random.Random(1).sample(KEYS, len(KEYS))
            await _for_all(keys, lambda key: storage.update_data(key, {"name": "Ada"}))

    anyio.run(main)


@asynccontextmanager
async def _storage(
    url: str, kind: type[TrunklineStorage]
) -> AsyncGenerator[TrunklineStorage, None]:
    storage = kind(FSMStore(url, call_timeout_ms=60_000))
    async with storage.store:
        yield storage


async def _for_all(keys: list[StorageKey], change: Callable[[StorageKey], Any]) -> None:
    for number in range(0, len(keys), 16):
        async with anyio.create_task_group() as task_group:
            for key in keys[number : number + 16]:
                task_group.start_soon(change, key)


async def _count_lost(url: str) -> int:
    lost = []

    async def look(key: StorageKey) -> None:
        if await storage.get_data(key) != {"name": "Ada"}:
            lost.append(key)

    async with _storage(url, TrunklineStorage) as storage:
        await _for_all(KEYS, look)
    return len(lost)


def hold_updates(url: str, path: Path, all_acknowledged: Any) -> None:
    """Three messages of a user come, and the handler of the first never ends."""

    async def main() -> None:
        journal, line = Journal(path), Trunkline(url)
        storage = TrunklineStorage(line.fsm)
        dispatcher = Dispatcher(storage=storage, events_isolation=storage.create_isolation())
        TrunklineMiddleware(line).setup(dispatcher)

        @dispatcher.message()
        async def on_message(message: Message) -> None:
            await anyio.sleep_forever()

        async with line:
            for number in range(3):
                # As aiogram's web server does: it answers when the handlers have taken too long.
                await dispatcher.feed_webhook_update(BOT, _update(number), _timeout=2)
                journal.write(f"hello {number}")
            all_acknowledged.set()
            await anyio.sleep_forever()

    anyio.run(main)


def lose_updates(url: str, path: Path, way: str, all_acknowledged: Any) -> None:
    """Ten messages of each of three chats are acknowledged, and no handler ever ends."""

    class Acknowledging(Telegram):
        """Notes the updates that polling has confirmed."""

        async def make_request(self, bot: Bot, method: Any, timeout: int | None = None) -> Any:
            if isinstance(method, GetUpdates) and method.offset == len(self.updates):
                note_all()
            return await super().make_request(bot, method, timeout)

    def note_all() -> None:
        for update in updates:
            assert update.message is not None
            journal.write(update.message.text)
        all_acknowledged.set()

    async def main() -> None:
        dispatcher = Dispatcher()
        TrunklineTurns(Trunkline(url, fsm=None, signal=None)).setup(dispatcher)

        @dispatcher.message()
        async def on_message(message: Message) -> None:
            await anyio.sleep_forever()

        if way == "polling":
            await dispatcher.start_polling(bot, handle_signals=False)
        await dispatcher.emit_startup(bot=bot)
        for update in updates:
            await dispatcher.feed_webhook_update(bot, update)
        note_all()
        await anyio.sleep_forever()

    journal, telegram = Journal(path), Acknowledging()
    bot = Bot(BOT.token, session=telegram)
    updates = telegram.updates = [
        Update.model_validate(_text(number, number % 3, f"{number % 3}:{number // 3}"))
        for number in range(30)
    ]
    anyio.run(main)


def count_handled(url: str, path: Path) -> None:
    """A bot that is started again, to which Telegram sends nothing more."""

    async def main() -> None:
        dispatcher, journal = Dispatcher(), Journal(path)
        turns = TrunklineTurns(Trunkline(url, fsm=None, signal=None))
        turns.setup(dispatcher)

        @dispatcher.message()
        async def on_message(message: Message) -> None:
            journal.write(message.text)

        await dispatcher.emit_startup(bot=BOT)
        with anyio.fail_after(100):
            await turns.turns.idle()
        await dispatcher.emit_shutdown(bot=BOT)

    anyio.run(main)


BOT = Bot("1:AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHHIIII")


def _update(number: int) -> dict[str, Any]:
    return _text(number, 7, f"hello {number}")


def _text(number: int, chat_id: int, text: str) -> dict[str, Any]:
    user = {"id": 7, "is_bot": False, "first_name": "Ada"}
    chat = {"id": chat_id, "type": "private", "first_name": "Ada"}
    said = {"message_id": number, "date": 1, "chat": chat, "from": user, "text": text}
    return {"update_id": number, "message": said}
