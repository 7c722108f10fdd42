"""A conversation with python-telegram-bot that survives a restart.

Shows `TrunklinePersistence` behind a `ConversationHandler`, and `DurableApplication`, which stores
after every update. Offline it is fed recorded updates, and restarted in the middle; with a token in
`BOT_TOKEN` it polls Telegram and keeps `bot.db`.
"""

# mypy: disable-error-code="union-attr,index"

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from telegram import Update
from telegram.ext import (
    Application,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    MessageHandler,
    filters,
)
from telegram.request import BaseRequest

from trunkline.integrations.telegram import DurableApplication, TrunklinePersistence

CITY, NIGHTS = "city", "nights"


async def ask_city(update: Update, context: ContextTypes.DEFAULT_TYPE) -> str:
    await update.message.reply_text("Where do you want to go?")
    return CITY


async def ask_nights(update: Update, context: ContextTypes.DEFAULT_TYPE) -> str:
    context.user_data["city"] = update.message.text
    await update.message.reply_text("For how many nights?")
    return NIGHTS


async def book(update: Update, context: ContextTypes.DEFAULT_TYPE) -> int:
    city = context.user_data.pop("city")
    await update.message.reply_text(f"{update.message.text} nights in {city}: booked.")
    return ConversationHandler.END


def make_application(url: str, token: str, request: BaseRequest | None = None) -> Any:
    builder = Application.builder().application_class(DurableApplication).token(token)
    builder = builder.persistence(TrunklinePersistence(url))
    if request is not None:
        builder = builder.request(request).get_updates_request(request).updater(None)
    application = builder.build()
    text = filters.TEXT & ~filters.COMMAND
    application.add_handler(
        ConversationHandler(
            [CommandHandler("travel", ask_city)],
            {CITY: [MessageHandler(text, ask_nights)], NIGHTS: [MessageHandler(text, book)]},
            [],
            name="travel",
            persistent=True,
        )
    )
    return application


class OfflineRequest(BaseRequest):
    """Stands for Telegram: prints what the bot says."""

    read_timeout = 5.0

    async def initialize(self) -> None: ...

    async def shutdown(self) -> None: ...

    async def do_request(
        self, url: str, method: str, request_data: Any = None, *_: Any, **__: Any
    ) -> Any:
        if url.endswith("getMe"):
            result = {"id": 42, "is_bot": True, "first_name": "Bot", "username": "the_bot"}
        else:
            print(
                f"   bot to {request_data.parameters['chat_id']}: {request_data.parameters['text']}"
            )
            result = {"message_id": 1, "date": 0, "chat": {"id": 7, "type": "private"}}
        return 200, json.dumps({"ok": True, "result": result}).encode()


async def run_offline(url: str, *texts: str) -> None:
    application = make_application(url, "42:offline", OfflineRequest())
    async with application:
        for number, text in enumerate(texts):
            print(f"7 says: {text}")
            message: dict[str, Any] = {"message_id": number, "date": 0, "text": text}
            message["chat"] = {"id": 7, "type": "private"}
            message["from"] = {"id": 7, "is_bot": False, "first_name": "Ada"}
            if text.startswith("/"):
                message["entities"] = [{"type": "bot_command", "offset": 0, "length": len(text)}]
            update = {"update_id": number, "message": message}
            await application.process_update(Update.de_json(update, application.bot))


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'bot.db'}"
        await run_offline(url, "/travel", "Łódź")
        print("-- the bot is restarted --")
        await run_offline(url, "3")


if __name__ == "__main__":
    if token := os.environ.get("BOT_TOKEN"):
        make_application("sqlite:///bot.db", token).run_polling()
    else:
        asyncio.run(main())
