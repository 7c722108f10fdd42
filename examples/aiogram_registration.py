"""A registration form with aiogram: a flow of two questions that survives a restart.

Shows `TrunklineMiddleware`, which takes every message into a line and hands it to the handlers, and
a `Flow` whose steps are compare-and-set. Offline it is fed recorded updates, and restarted in the
middle; with a token in `BOT_TOKEN` it polls Telegram and keeps `bot.db`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from aiogram import Bot, Dispatcher
from aiogram.client.session.base import BaseSession
from aiogram.types import Message, Update

from trunkline import Trunkline
from trunkline.fsm import ChatUser, Flow, FSMContext
from trunkline.integrations.aiogram import TrunklineMiddleware

FORM = Flow("register", {"get_name": ["get_email"], "get_email": []}, initial="get_name")


def make_dispatcher(line: Trunkline) -> Dispatcher:
    dispatcher = Dispatcher()
    dispatcher.startup.register(line.start)
    dispatcher.shutdown.register(line.stop)
    TrunklineMiddleware(line).setup(dispatcher)

    @dispatcher.message()
    async def on_message(message: Message, line: Trunkline, event_update: Update) -> None:
        await line.fsm.init("form")
        key = ChatUser.extract(event_update)
        if key is None:  # nobody's message, such as a post in a channel
            return
        async with line.fsm.lock("form", key):
            await message.answer(await step(FSMContext(line.fsm, "form", key, [FORM]), message))

    return dispatcher


async def step(form: FSMContext, message: Message) -> str:
    """One step of the form; what to answer."""
    match await form.get_state():
        case "get_name":
            await form.update_data(name=message.text)
            await form.transition("get_email")
            return "And your e-mail?"
        case "get_email":
            data = await form.update_data(email=message.text)
            await form.clear()
            return f"Welcome, {data['name']} <{data['email']}>!"
        case _:
            await form.start_flow("register")
            return "What is your name?"


class OfflineSession(BaseSession):
    """Stands for Telegram: prints what the bot says."""

    async def make_request(self, bot: Bot, method: Any, timeout: int | None = None) -> Any:
        print(f"   bot to {method.chat_id}: {method.text}")
        chat = {"id": method.chat_id, "type": "private"}
        return Message.model_validate({"message_id": 1, "date": 0, "chat": chat})

    async def close(self) -> None:
        """Nothing is open."""

    async def stream_content(self, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        yield b""


def recorded(number: int, text: str) -> dict[str, Any]:
    user = {"id": 7, "is_bot": False, "first_name": "Ada"}
    chat = {"id": 7, "type": "private", "first_name": "Ada"}
    message = {"message_id": number, "date": 0, "chat": chat, "from": user, "text": text}
    return {"update_id": number, "message": message}


async def run_offline(url: str, updates: list[dict[str, Any]]) -> None:
    bot = Bot("42:offline", session=OfflineSession())
    dispatcher = make_dispatcher(Trunkline(url))
    await dispatcher.emit_startup()
    for update in updates:
        print(f"7 says: {update['message']['text']}")
        await dispatcher.feed_raw_update(bot, update)
    await dispatcher.emit_shutdown()


async def main() -> None:
    token = os.environ.get("BOT_TOKEN")
    if token:
        await make_dispatcher(Trunkline("sqlite:///bot.db")).start_polling(Bot(token))
        return
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'bot.db'}"
        await run_offline(url, [recorded(1, "/register"), recorded(2, "Ada")])
        print("-- the bot is restarted --")
        await run_offline(url, [recorded(3, "ada@example.org")])


if __name__ == "__main__":
    asyncio.run(main())
