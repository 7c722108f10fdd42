"""aiogram 3: its states and data in an FSMStore, its updates through a Trunkline."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

try:
    from aiogram import BaseMiddleware, Bot
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

from trunkline.backends.locks import KeyLocks
from trunkline.fsm import FSMStore
from trunkline.integrations.source import StoreSource
from trunkline.line import Trunkline

__all__ = ("TrunklineEventIsolation", "TrunklineMiddleware", "TrunklineStorage")


class TrunklineStorage(BaseStorage):
    """States and data of aiogram's conversations in an FSMStore. A change that returned is on disk.

    Bots, chats, users, threads, business connections and destinies each have their own
    conversations, and no key builder is needed. Data holds what JSON or msgpack holds, and
    datetimes, sets, Decimals and tuples, which come back as they went in; anything else is refused
    by name, with `ConfigurationError`. `update_data` is atomic, also among processes.

    A state of `None` and no data leave nothing stored. Where several processes serve one
    conversation, `TrunklineEventIsolation` keeps one from removing it while another writes.

    Args:
        store: the URL of a store, which is started with the first update and stopped when the
            dispatcher shuts down. Or an `FSMStore` or a line's `line.fsm`, which the program starts
            before the dispatcher and stops after it, or lets the dispatcher do so:
            `dispatcher.startup.register(store.start)`, `dispatcher.shutdown.register(store.stop)`.
        ttl_ms: how long a conversation lives after its last change; for ever by default.

    Example:
        >>> from aiogram import Dispatcher
        >>> from trunkline.integrations.aiogram import TrunklineStorage
        >>> storage = TrunklineStorage("sqlite:///bot.db")
        >>> dispatcher = Dispatcher(storage=storage, events_isolation=storage.create_isolation())
    """

    def __init__(self, store: FSMStore | str, *, ttl_ms: int | None = None) -> None:
        self._source = StoreSource(store, ttl_ms=ttl_ms)
        self._changes = KeyLocks()

    @property
    def store(self) -> FSMStore:
        """Where it is all kept: bot `aiogram:<bot id>`, keys of the five other parts."""
        return self._source.store

    def create_isolation(self) -> TrunklineEventIsolation:
        """An isolation on the same store, which stays this storage's to close."""
        return TrunklineEventIsolation(self.store)._sharing(self._source)

    async def start(self) -> None:
        """Open the store of a URL now: a wrong one ends the program, and not its first update.

        `dispatcher.startup.register(storage.start)`. Without it the first update does so.
        """
        await self._source.start()

    async def close(self) -> None:
        """Stop the store, if it was made from a URL."""
        await self._source.close()

    async def get_state(self, key: StorageKey) -> str | None:
        async with self._source.calling(_bot_name(key)) as store:
            stored = await store.get_state(_bot_name(key), _place(key))
        return None if stored is None else stored.state

    async def set_state(self, key: StorageKey, state: StateType = None) -> None:
        name = state.state if isinstance(state, State) else state
        bot_name, place = _bot_name(key), _place(key)
        async with self._changing(key) as store:
            if name is not None:
                await store.set_state(bot_name, place, name)
            elif await store.get_data(bot_name, place):
                await store.set_state(bot_name, place, None)
            else:
                await store.clear(bot_name, place)

    async def get_data(self, key: StorageKey) -> dict[str, Any]:
        async with self._source.calling(_bot_name(key)) as store:
            return await store.get_data(_bot_name(key), _place(key)) or {}

    async def set_data(self, key: StorageKey, data: Mapping[str, Any]) -> None:
        _check_is_map(data)
        bot_name, place = _bot_name(key), _place(key)
        async with self._changing(key) as store:
            if data:
                await store.set_data(bot_name, place, data)
                return
            stored = await store.get_state(bot_name, place)
            if stored is not None and stored.state is not None:
                await store.set_data(bot_name, place, {})
            else:
                await store.clear(bot_name, place)

    async def update_data(self, key: StorageKey, data: Mapping[str, Any]) -> dict[str, Any]:
        _check_is_map(data)
        if not data:
            return await self.get_data(key)
        async with self._changing(key) as store:
            return await store.update_data(_bot_name(key), _place(key), data)

    @asynccontextmanager
    async def _changing(self, key: StorageKey) -> AsyncGenerator[FSMStore, Any]:
        """The store, while nobody else in this process changes this conversation.

        An empty conversation is removed in two steps: a look and the removal.
        """
        async with self._source.calling(_bot_name(key)) as store, self._changes.hold(str(key)):
            yield store


class TrunklineEventIsolation(BaseEventIsolation):
    """One update of a conversation at a time, by the locks of an FSMStore.

    Updates of one conversation are handled in the order in which they came; on PostgreSQL, Redis
    and Valkey one at a time among processes, too. A lock that nobody holds leaves no trace.

    Args:
        store: an `FSMStore`, or the URL of one. `TrunklineStorage.create_isolation` makes one on
            the storage's own store.

    Example:
        >>> from aiogram import Dispatcher
        >>> from trunkline import FSMStore
        >>> from trunkline.integrations.aiogram import TrunklineEventIsolation, TrunklineStorage
        >>> store = FSMStore("memory://")
        >>> dispatcher = Dispatcher(
        ...     storage=TrunklineStorage(store), events_isolation=TrunklineEventIsolation(store)
        ... )
        >>> dispatcher.startup.register(store.start) is not None
        True
        >>> dispatcher.shutdown.register(store.stop) is not None
        True
    """

    def __init__(self, store: FSMStore | str) -> None:
        self._source = StoreSource(store)

    @asynccontextmanager
    async def lock(self, key: StorageKey) -> AsyncGenerator[None, None]:
        bot_name = _bot_name(key)
        store = await self._source.ready(bot_name)
        async with store.lock(bot_name, _place(key)):
            yield

    async def close(self) -> None:
        """Stop the store, if it was made from a URL."""
        await self._source.close()


