"""python-telegram-bot without Telegram: a request object in memory, updates, and a bot to kill.

Run as a program it is that bot: it prints a line for every update that it has processed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import count
from typing import Any

from telegram import Update
from telegram.ext import (
    Application,
    ContextTypes,
    ConversationHandler,
    MessageHandler,
    filters,
)
from telegram.request import BaseRequest

from trunkline.integrations.telegram import DurableApplication, TrunklinePersistence

TOKEN = "42:secret"

_ids = count(1)


class OfflineRequest(BaseRequest):
    """Answers as Telegram does, and remembers what the bot said."""

    def __init__(self, bot_id: int = 42) -> None:
        self.bot_id = bot_id
        #: Waiting to be fetched, as Telegram sends them.
        self.updates: list[dict[str, Any]] = []
        #: chat id → what the bot said there.
        self.said: dict[int, list[str]] = {}
        #: The keyboards that were sent with that.
        self.keyboards: list[dict[str, Any]] = []
        self._said_more: dict[int, asyncio.Event] = {}

    @property
    def read_timeout(self) -> float:
        return 5.0

    async def initialize(self) -> None: ...

    async def shutdown(self) -> None: ...

    async def do_request(self, url: str, method: str, request_data=None, *_, **__):
        parameters = {} if request_data is None else request_data.parameters
        result = await self._answer(url.rpartition("/")[2], parameters)
        return 200, json.dumps({"ok": True, "result": result}).encode()

    async def wait_for(self, chat_id: int, number: int) -> None:
        """Until the bot has said so much in a chat."""
        while len(self.said.get(chat_id, [])) < number:
            more = self._said_more[chat_id] = asyncio.Event()
            await more.wait()

    async def _answer(self, method: str, parameters: dict[str, Any]) -> Any:
        if method == "getMe":
            return {"id": self.bot_id, "is_bot": True, "first_name": "Bot", "username": "the_bot"}
        if method == "getUpdates":
            offset = parameters.get("offset") or 0
            new = [update for update in self.updates if update["update_id"] >= offset]
            if not new and parameters.get("timeout"):
                await asyncio.Event().wait()
            return new
        if method == "sendMessage":
            chat_id = int(parameters["chat_id"])
            self.said.setdefault(chat_id, []).append(parameters["text"])
            self._said_more.setdefault(chat_id, asyncio.Event()).set()
            if "reply_markup" in parameters:
                self.keyboards.append(parameters["reply_markup"])
            chat = {"id": chat_id, "type": "private"}
            return {"message_id": next(_ids), "date": 1, "chat": chat, "text": parameters["text"]}
        return True


def message(user_id: int, text: str, chat_id: int | None = None) -> dict[str, Any]:
    """An update with a message, as Telegram sends it."""
    chat = {"id": chat_id or user_id, "type": "private"}
    said = {"message_id": next(_ids), "date": 1, "chat": chat, "text": text}
    if text.startswith("/"):
        said["entities"] = [{"type": "bot_command", "offset": 0, "length": len(text)}]
    said["from"] = {"id": user_id, "is_bot": False, "first_name": f"User {user_id}"}
    return {"update_id": next(_ids), "message": said}


async def feed(application: Application, *updates: dict[str, Any]) -> None:
    """Have the application process updates, one after another."""
    for update in updates:
        await application.process_update(Update.de_json(update, application.bot))


def build(persistence: TrunklinePersistence | None, request: OfflineRequest, kind=Application):
    """A builder of an application that speaks with `request` and fetches no updates."""
    builder = Application.builder().application_class(kind).token(f"{request.bot_id}:secret")
    builder = builder.request(request).get_updates_request(request).updater(None)
    return builder if persistence is None else builder.persistence(persistence)


# -- the bot that is killed ------------------------------------------------------------------------

USERS = range(1, 8)


async def work(update: Update, context: ContextTypes.DEFAULT_TYPE) -> int:
    """Counts what a user said in all the places that there are."""
    done = context.user_data["done"] = context.user_data.get("done", 0) + 1
    if done % 5:
        context.chat_data["done"] = done
    else:
        context.application.drop_chat_data(update.effective_chat.id)
    context.bot_data[update.effective_user.id] = done
    return done % 3


async def run(url: str) -> None:
    application = build(TrunklinePersistence(url), OfflineRequest(), DurableApplication).build()
    anything = MessageHandler(filters.TEXT, work)
    steps = {number: [anything] for number in range(3)}
    conversation = ConversationHandler([anything], steps, [], name="work", persistent=True)
    application.add_handler(conversation)
    async with application:

        async def keep_busy(user_id: int) -> None:
            while True:
                await feed(application, message(user_id, "go on"))
                print(user_id, application.user_data[user_id]["done"], flush=True)

        await asyncio.gather(*map(keep_busy, USERS))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
