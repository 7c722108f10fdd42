"""The FSMStore of an integration, started when it is needed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from msgspec import UNSET, UnsetType

from trunkline.backends.locks import KeyLocks
from trunkline.errors import ConfigurationError
from trunkline.fsm import FSMStore

__all__ = ("StoreHandle",)


class StoreHandle:
    """An FSMStore of the program, or that of a URL, which runs while it is needed.

    Frameworks make their storages when a module is imported, long before there is an event loop.
    So the store of a URL is started by the first call, and started again by one that comes after
    `close`: a handler that is still busy when its framework stops can still use its storage.

    Args:
        store: a store, which the program starts and stops; or the URL of one.
        ttl_ms: how long conversations live after their last change; `None` for ever. If left out,
            bots that the store knows keep theirs.
        namespace: of the store of a URL; a given store has its own.

    Raises:
        ConfigurationError: a URL that can never work, or a namespace beside a store.
    """

    def __init__(
        self,
        store: FSMStore | str,
        *,
        ttl_ms: int | UnsetType | None = UNSET,
        namespace: str | None = None,
    ) -> None:
        self.is_owned = not isinstance(store, FSMStore)
        if isinstance(store, FSMStore):
            if namespace is not None:
                raise ConfigurationError("a store has its namespace: give it with a URL alone")
            self.store = store
        else:
            self.store = FSMStore(store, namespace="default" if namespace is None else namespace)
        self._ttl_ms = ttl_ms
        self._is_running = False
        self._bots: set[str] = set()
        # Not asyncio's lock, which stays with the event loop that saw it first.
        self._turns = KeyLocks()
        self._calls = 0
        #: Set when no call is under way; there while `close` waits for that.
        self._is_idle: anyio.Event | None = None

    async def start(self) -> None:
        """Start the store of a URL now, and not with the first call.

        Raises:
            StoreUnavailable: the database cannot be reached.
            ConfigurationError: it never can be like this.
        """
        async with self._turns.hold("lifetime"):
            await self._start()

    async def ready(self, bot_name: str) -> FSMStore:
        """The store, started if it is that of a URL, with the bot initialised.

        Callers go on in the order in which they came, also those that had to wait for the start.
        """
        if len(self._turns) or not self._is_ready(bot_name):
            async with self._turns.hold("lifetime"):
                await self._start()
                if bot_name not in self._bots:
                    await self.store.init(bot_name, ttl_ms=self._ttl_ms)
                    self._bots.add(bot_name)
        return self.store

    @asynccontextmanager
    async def calling(self, bot_name: str) -> AsyncGenerator[FSMStore, Any]:
        """The store for the calls inside, which `close` waits for."""
        store = await self.ready(bot_name)
        self._calls += 1
        try:
            yield store
        finally:
            self._calls -= 1
            if not self._calls and self._is_idle is not None:
                self._is_idle.set()

    async def close(self) -> None:
        """Stop the store of a URL, after the calls that are under way."""
        async with self._turns.hold("lifetime"):
            if not self._is_running:
                return
            if self._calls:
                self._is_idle = anyio.Event()
                await self._is_idle.wait()
                self._is_idle = None
            self._is_running = False
            await self.store.stop()

    def _is_ready(self, bot_name: str) -> bool:
        return bot_name in self._bots and (self._is_running or not self.is_owned)

    async def _start(self) -> None:
        if self.is_owned and not self._is_running:
            await self.store.start()
            self._is_running = True
