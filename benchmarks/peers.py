"""Other ways to ask for the value under a key. Each gives a loop, and the keys that it takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
import pykka
from aiocache import SimpleMemoryCache
from anyio.streams.memory import MemoryObjectReceiveStream
from cashews import Cache

from benchmarks.traffic import TTL_MS, Sessions
from trunkline import Route, SessionKey

Loop: TypeAlias = Callable[[list[Any]], Awaitable[None] | None]
Peer: TypeAlias = tuple[Loop, list[Any]]


@asynccontextmanager
async def aiocache_get(sessions: Sessions) -> AsyncGenerator[Peer, None]:
    """aiocache's memory cache as it comes, with its default timeout."""
    cache = SimpleMemoryCache()
    names = [str(key) for key in sessions.keys]
    for name, route in zip(names, sessions.routes, strict=True):
        await cache.set(name, route, ttl=TTL_MS // 1000)
    assert await cache.get(names[0]) is sessions.routes[0]

    async def get_all(names: list[str]) -> None:
        for name in names:
            await cache.get(name)

    yield get_all, names
    for name in names:
        await cache.delete(name)


@asynccontextmanager
async def cashews_get(sessions: Sessions) -> AsyncGenerator[Peer, None]:
    """cashews' memory cache."""
    cache = Cache()
    cache.setup("mem://", size=2 * len(sessions.keys))
    names = [str(key) for key in sessions.keys]
    for name, route in zip(names, sessions.routes, strict=True):
        await cache.set(name, route, expire=TTL_MS / 1000)
    assert await cache.get(names[0]) == sessions.routes[0]  # it keeps copies

    async def get_all(names: list[str]) -> None:
        for name in names:
            await cache.get(name)

    yield get_all, names
    await cache.close()


@asynccontextmanager
async def pykka_ask(sessions: Sessions) -> AsyncGenerator[Peer, None]:
    """A pykka actor in its thread; the caller blocks until it has the answer."""

    class Routes(pykka.ThreadingActor):
        def __init__(self) -> None:
            super().__init__()
            self.routes = dict(zip(*sessions, strict=True))

        def on_receive(self, message: SessionKey) -> Route:
            return self.routes[message]

    actor = Routes.start()
    assert actor.ask(sessions.keys[0]) is sessions.routes[0]

    def ask_all(keys: list[SessionKey]) -> None:
        for key in keys:
            actor.ask(key, block=False).get()

    yield ask_all, sessions.keys
    actor.stop()


class Question:
    __slots__ = ("answer", "answered", "key")

    def __init__(self, key: SessionKey) -> None:
        self.key = key
        self.answered = anyio.Event()
        self.answer: Route | None = None


@asynccontextmanager
async def anyio_stream(sessions: Sessions) -> AsyncGenerator[Peer, None]:
    """The plainest actor on anyio: a memory object stream of questions, an event a reply."""
    send, receive = anyio.create_memory_object_stream[Question](1_024)
    routes = dict(zip(*sessions, strict=True))

    async def serve(receive: MemoryObjectReceiveStream[Question]) -> None:
        async for question in receive:
            question.answer = routes[question.key]
            question.answered.set()

    async def ask(key: SessionKey) -> Route | None:
        question = Question(key)
        await send.send(question)
        await question.answered.wait()
        return question.answer

    async def ask_all(keys: list[SessionKey]) -> None:
        for key in keys:
            await ask(key)

    async with anyio.create_task_group() as task_group, send, receive:
        task_group.start_soon(serve, receive)
        assert await ask(sessions.keys[0]) is sessions.routes[0]
        yield ask_all, sessions.keys
        task_group.cancel_scope.cancel()
