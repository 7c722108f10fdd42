"""aiogram 3: its states and data in an FSMStore, its updates through a Trunkline."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

try:
    from aiogram import BaseMiddleware, Bot, Dispatcher
    from aiogram.enums import ContentType
    from aiogram.exceptions import DataNotDictLikeError
    from aiogram.fsm.state import State
    from aiogram.fsm.storage.base import BaseEventIsolation, BaseStorage, StateType, StorageKey
    from aiogram.types import CallbackQuery, Chat, Message, TelegramObject, Update, User
    from aiogram.types.update import UpdateTypeLookupError
except ImportError as error:
    raise ImportError(
        f"trunkline.integrations.aiogram needs aiogram 3.21 or later ({error}):"
        " pip install 'trunkline[aiogram]'"
    ) from error

from msgspec import UNSET, UnsetType

from trunkline.fsm import FSMStore
from trunkline.integrations.handle import StoreHandle
from trunkline.line import Arrival, Trunkline

__all__ = ("TrunklineEventIsolation", "TrunklineMiddleware", "TrunklineStorage")


class TrunklineStorage(BaseStorage):
    """States and data of aiogram's conversations in an FSMStore. A change that returned is on disk.

    Bots, chats, users, threads, business connections and destinies each have their own
    conversations, and no key builder is needed. Data holds what aiogram's own storages take, and
    datetimes, sets, Decimals and tuples, which come back as they went in; anything else is refused
    by name, with `ConfigurationError`. Every change is atomic, also between processes: none loses
    what another process wrote. A state of `None` and no data leave nothing stored.

    Args:
        store: the URL of a store, which is started with the first update and stopped when the
            dispatcher shuts down. Or an `FSMStore` or a line's `line.fsm`, which the program starts
            before the dispatcher and stops after it, or lets the dispatcher do so:
            `dispatcher.startup.register(store.start)`, `dispatcher.shutdown.register(store.stop)`.
        ttl_ms: how long a conversation lives after its last change; `None` for ever. If left out, a
            bot that the store knows keeps its own, and a new one has none.
        namespace: of the store of a URL: bots in two namespaces never see each other's data.

    Example:
        >>> from aiogram import Dispatcher
        >>> from trunkline.integrations.aiogram import TrunklineStorage
        >>> storage = TrunklineStorage("sqlite:///bot.db")
        >>> dispatcher = Dispatcher(storage=storage, events_isolation=storage.create_isolation())
    """

    def __init__(
        self,
        store: FSMStore | str,
        *,
        ttl_ms: int | UnsetType | None = UNSET,
        namespace: str | None = None,
    ) -> None:
        self._handle = StoreHandle(store, ttl_ms=ttl_ms, namespace=namespace)

    @property
    def store(self) -> FSMStore:
        """Where it is all kept: bot `aiogram:<bot id>`, keys of the five other parts."""
        return self._handle.store

    def create_isolation(self) -> TrunklineEventIsolation:
        """An isolation on the same store, which stays this storage's to close."""
        isolation = TrunklineEventIsolation(self.store)
        isolation._handle = self._handle
        return isolation

    async def start(self) -> None:
        """Open the store of a URL now: a wrong one ends the program, and not its first update.

        `dispatcher.startup.register(storage.start)`. Without it the first update does so.
        """
        await self._handle.start()

    async def close(self) -> None:
        """Stop the store, if it was made from a URL."""
        await self._handle.close()

    async def get_state(self, key: StorageKey) -> str | None:
        async with self._handle.calling(_bot_name(key)) as store:
            stored = await store.get_state(_bot_name(key), _store_key(key))
        return None if stored is None else stored.state

    async def set_state(self, key: StorageKey, state: StateType = None) -> None:
        name = state.state if isinstance(state, State) else state
        async with self._handle.calling(_bot_name(key)) as store:
            await store.set_state(_bot_name(key), _store_key(key), name, remove_empty=True)

    async def get_data(self, key: StorageKey) -> dict[str, Any]:
        async with self._handle.calling(_bot_name(key)) as store:
            return await store.get_data(_bot_name(key), _store_key(key)) or {}

    async def set_data(self, key: StorageKey, data: Mapping[str, Any]) -> None:
        _check_is_map(data)
        async with self._handle.calling(_bot_name(key)) as store:
            await store.set_data(_bot_name(key), _store_key(key), data, remove_empty=True)

    async def update_data(self, key: StorageKey, data: Mapping[str, Any]) -> dict[str, Any]:
        _check_is_map(data)
        if not data:
            return await self.get_data(key)
        async with self._handle.calling(_bot_name(key)) as store:
            return await store.update_data(_bot_name(key), _store_key(key), data)


class TrunklineEventIsolation(BaseEventIsolation):
    """One update of a conversation at a time, by the locks of an FSMStore.

    Updates of one conversation are handled in the order in which they came; on PostgreSQL, Redis
    and Valkey one at a time between processes, too.

    Args:
        store: an `FSMStore`, or the URL of one. `TrunklineStorage.create_isolation` makes one on
            the storage's own store.
        namespace: of the store of a URL.

    Example:
        >>> from aiogram import Dispatcher
        >>> from trunkline import FSMStore
        >>> from trunkline.integrations.aiogram import TrunklineEventIsolation, TrunklineStorage
        >>> store = FSMStore("memory://")
        >>> dispatcher = Dispatcher(
        ...     storage=TrunklineStorage(store), events_isolation=TrunklineEventIsolation(store)
        ... )
        >>> dispatcher.startup.register(store.start)
        >>> dispatcher.shutdown.register(store.stop)
    """

    def __init__(self, store: FSMStore | str, *, namespace: str | None = None) -> None:
        self._handle = StoreHandle(store, namespace=namespace)

    @asynccontextmanager
    async def lock(self, key: StorageKey) -> AsyncGenerator[None, None]:
        bot_name = _bot_name(key)
        store = await self._handle.ready(bot_name)
        async with store.lock(bot_name, _store_key(key)):
            yield

    async def close(self) -> None:
        """Stop the store, if it was made from a URL."""
        await self._handle.close()


class TrunklineMiddleware(BaseMiddleware):
    """Takes every message and pressed button into a line, and passes handlers what came of it.

    Handlers get `line`; `arrival`, the `Arrival` that `line.ingest` returned; and `route`, the
    `Resolution` of where the answer goes. Other updates, such as inline queries, have `line` alone.
    A message that comes again, or was edited, is not stored again: `arrival.duplicate` is true.

    `setup` puts it in front of aiogram's isolation of events: a message is stored when it comes,
    and not when the handlers of earlier messages of the same user have ended.

    Args:
        line: started before the dispatcher and stopped after it; the dispatcher can do so.
        channel: the platform's name in session keys.
        content: what is stored of a message or a pressed button, if not text as it is and anything
            else as one block: its type, its file's id and its caption.

    Raises:
        StoreUnavailable: to aiogram's error handlers, with nothing stored and no handler called.

    Example:
        >>> from aiogram import Dispatcher
        >>> from trunkline import Trunkline
        >>> from trunkline.integrations.aiogram import TrunklineMiddleware, TrunklineStorage
        >>> line = Trunkline("sqlite:///bot.db")
        >>> dispatcher = Dispatcher(storage=TrunklineStorage(line.fsm))
        >>> dispatcher.startup.register(line.start)
        >>> dispatcher.shutdown.register(line.stop)
        >>> TrunklineMiddleware(line).setup(dispatcher)
        >>> @dispatcher.message()
        ... async def on_message(message, line, arrival, route):
        ...     await message.answer(f"hello, {arrival.participant.identity['name']}")
    """

    def __init__(
        self,
        line: Trunkline,
        *,
        channel: str = "telegram",
        content: Callable[[Message | CallbackQuery], Any] | None = None,
    ) -> None:
        self._line = line
        self._channel = channel
        self._content = content or _content

    def setup(self, dispatcher: Dispatcher) -> None:
        """Put it on the dispatcher's updates, in front of aiogram's isolation of events.

        Middlewares of the program keep their place behind the isolation.
        """
        outer = dispatcher.update.outer_middleware
        registered = list(outer)
        behind = []
        if dispatcher.fsm in registered:  # if not, the dispatcher has disable_fsm=True
            behind = registered[registered.index(dispatcher.fsm) :]
        for middleware in behind:
            outer.unregister(middleware)
        outer.register(self)
        for middleware in behind:
            outer.register(middleware)

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        data["line"] = self._line
        spoken = _spoken(event)
        if spoken is not None:
            data["arrival"] = await self._ingest(spoken, data["bot"])
            data["route"] = await self._line.reply_route(data["arrival"])
        return await handler(event, data)

    async def _ingest(self, spoken: Message | CallbackQuery, bot: Bot) -> Arrival:
        place = spoken if isinstance(spoken, Message) else spoken.message
        assert place is not None, "_spoken gives no button without its message"
        message = place if isinstance(place, Message) else None
        sender = _sender(spoken)
        return await self._line.ingest(
            channel=self._channel,
            bridge_id=_bridge_id(bot, message),
            external_room_id=place.chat.id,
            external_thread_id=None if message is None else _thread_id(message),
            external_user_id=None if sender is None else sender.id,
            content=self._content(spoken),
            room={"type": _ROOM_TYPES.get(place.chat.type, "group"), "name": place.chat.full_name},
            participant=None if sender is None else _participant(sender),
            **_ids(spoken),
        )


#: Telegram's types of chats → ours of rooms.
_ROOM_TYPES = {"private": "direct", "channel": "channel"}


def _bot_name(key: StorageKey) -> str:
    return f"aiogram:{key.bot_id}"


def _store_key(key: StorageKey) -> tuple[int | str | None, ...]:
    return (key.chat_id, key.user_id, key.thread_id, key.business_connection_id, key.destiny)


def _check_is_map(data: object) -> None:
    if not isinstance(data, Mapping):
        raise DataNotDictLikeError(
            f"Data must be a dict or dict-like object, got {type(data).__name__}"
        )


def _spoken(event: TelegramObject) -> Message | CallbackQuery | None:
    """The message or pressed button of an event, if it is from a chat."""
    if isinstance(event, Update):
        try:
            event = event.event
        except UpdateTypeLookupError:  # of a Bot API that is newer than aiogram
            return None
    if isinstance(event, Message) or (isinstance(event, CallbackQuery) and event.message):
        return event
    return None


def _bridge_id(bot: Bot, message: Message | None) -> str:
    """The bot; a business account that it works for has a conversation of its own with a user."""
    connection_id = None if message is None else message.business_connection_id
    return str(bot.id) if connection_id is None else f"{bot.id}/{connection_id}"


def _thread_id(message: Message) -> int | None:
    # A reply in a plain group has a thread id as well, which is no topic.
    return message.message_thread_id if message.is_topic_message else None


def _sender(spoken: Message | CallbackQuery) -> User | Chat | None:
    """Who said it. Telegram puts a placeholder user behind a channel or an anonymous admin."""
    if isinstance(spoken, Message) and spoken.sender_chat is not None:
        return spoken.sender_chat
    return spoken.from_user


def _participant(sender: User | Chat) -> dict[str, Any]:
    kind = "agent" if isinstance(sender, User) and sender.is_bot else "human"
    identity = {"name": sender.full_name, "username": sender.username}
    return {"type": kind, "identity": identity}


def _ids(spoken: Message | CallbackQuery) -> dict[str, Any]:
    if isinstance(spoken, Message):
        return {
            "external_message_id": spoken.message_id,
            "external_reply_to_id": _reply_to_id(spoken),
            # Not as `sent_at`: Telegram's clock has whole seconds, which would put a message
            # before the answer that it follows.
            "metadata": {"date": spoken.date.isoformat()},
        }
    # Ids of queries and of messages are unrelated.
    message_id = None if spoken.message is None else spoken.message.message_id
    return {"external_message_id": f"callback:{spoken.id}", "external_reply_to_id": message_id}


def _reply_to_id(message: Message) -> int | None:
    answered = message.reply_to_message
    # Everything in a topic answers the message that opened it.
    if answered is None or answered.message_id == _thread_id(message):
        return None
    return answered.message_id


def _content(spoken: Message | CallbackQuery) -> Any:
    if isinstance(spoken, CallbackQuery):
        return [{"type": "callback", "data": spoken.data or spoken.game_short_name}]
    if spoken.text is not None:
        return spoken.text
    kind = ContentType(spoken.content_type).value
    media = getattr(spoken, kind, None)
    if isinstance(media, list) and media:  # a photo in several sizes, the largest last
        media = media[-1]
    block = {"type": kind, "file_id": getattr(media, "file_id", None), "text": spoken.caption}
    return [{name: value for name, value in block.items() if value is not None}]
