"""Other ways to keep the state of a dialogue. Each is asked the same things."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiosqlite
from aiogram.fsm.storage.base import BaseStorage, StorageKey
from aiogram.fsm.storage.memory import MemoryStorage
from aiogram.fsm.storage.redis import RedisStorage

from benchmarks.race import Crowd
from benchmarks.store_peers import connect
from trunkline import FSMState, FSMStore

BOT = "support_bot"

#: No dialogue is given twice in a row what it has: SQLite would have nothing to write.
STATES = ("get_name", "get_email", "get_language")

#: What a dialogue has collected so far.
DATA = [
    {"name": "Ada Lovelace", "language": "en", "attempts": attempts}
    for attempts in range(len(STATES))
]

#: Dialogues under way, each of a user in a chat of theirs: nothing that is measured begins one.
USERS = random.Random(1).sample(range(10**8, 10**9), 256)


class Act(NamedTuple):
    """One of these things, and what it takes for each of the dialogues."""

    call: Callable[..., Awaitable[object]]
    arguments: list[tuple[Any, ...]]

    async def do(self, arguments: tuple[Any, ...]) -> None:
        await self.call(*arguments)

    async def do_all(self, many: list[tuple[Any, ...]]) -> None:
        call = self.call
        for arguments in many:
            await call(*arguments)


class FSM(NamedTuple):
    set_state: Act
    update_data: Act
    get_state: Act
    get_data: Act


@asynccontextmanager
async def our_fsm(url: str) -> AsyncGenerator[FSM, None]:
    async with FSMStore(url) as store:
        await store.init(BOT)
        yield await _begin_all(store, lambda: [(BOT, (user, user)) for user in USERS])


@asynccontextmanager
async def aiogram_memory() -> AsyncGenerator[FSM, None]:
    """Without bounds, and never forgetting: a read of what is not there stores an empty record.

    What it keeps is what it was given, and not a copy: a list in the data changes with the
    caller's.
    """
    yield await _begin_all(MemoryStorage(), _aiogram_keys)


@asynccontextmanager
async def aiogram_redis(url: str) -> AsyncGenerator[FSM, None]:
    """`update_data` is a `GET` and then a `SET`: of two at once, one may be lost.

    A connection for every caller, which is its fastest. As redis-py comes, with no more than 100,
    it refuses the others.
    """
    storage = RedisStorage.from_url(url, connection_kwargs={"max_connections": 1_024})
    yield await _begin_all(storage, _aiogram_keys)
    await storage.close()


def _aiogram_keys() -> list[tuple[StorageKey]]:
    return [(StorageKey(bot_id=42, chat_id=user, user_id=user),) for user in USERS]


@asynccontextmanager
async def aiosqlite_fsm(path: Path) -> AsyncGenerator[FSM, None]:
    """A commit a call, in the table of our own store, with the data as JSON; calls take turns."""
    async with FSMStore(f"sqlite:///{path}"):
        pass  # makes the table
    async with connect(path) as connection:
        yield await _begin_all(SQLiteFSM(connection), lambda: [(str(user),) for user in USERS])


class SQLiteFSM:
    """As plain as a bot would write it."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._turn = asyncio.Lock()

    async def get_state(self, key: str) -> FSMState | None:
        statement = (
            "SELECT state, fields FROM trunkline_fsm"
            " WHERE namespace = 'default' AND bot_name = ? AND key = ?"
        )
        rows = await self._connection.execute_fetchall(statement, (BOT, key))
        for state, fields in rows:
            return FSMState(state, data=json.loads(fields))
        return None

    async def get_data(self, key: str) -> dict[str, Any]:
        stored = await self.get_state(key)
        return {} if stored is None else stored.data

    async def set_state(self, key: str, state: str) -> None:
        async with self._turn:
            await self._connection.execute(
                "INSERT INTO trunkline_fsm (namespace, bot_name, key, state, fields)"
                " VALUES ('default', ?, ?, ?, '{}')"
                " ON CONFLICT DO UPDATE SET state = excluded.state",
                (BOT, key, state),
            )
            await self._connection.commit()

    async def update_data(self, key: str, data: dict[str, Any]) -> dict[str, Any]:
        async with self._turn:
            merged = {**await self.get_data(key), **data}
            await self._connection.execute(
                "INSERT INTO trunkline_fsm (namespace, bot_name, key, fields)"
                " VALUES ('default', ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET fields = excluded.fields",
                (BOT, key, json.dumps(merged)),
            )
            await self._connection.commit()
        return merged


async def _begin_all(
    storage: FSMStore | BaseStorage | SQLiteFSM, make_keys: Callable[[], list[Any]]
) -> FSM:
    """The acts of `storage`, after each dialogue was begun under its key.

    An update brings a key of its own, equal to the one that its dialogue was begun with. With the
    very same object a dictionary would not even compare them.
    """
    begun, keys = make_keys(), make_keys()
    set_state = Act(storage.set_state, [(*key, state) for state in STATES for key in keys])
    update_data = Act(storage.update_data, [(*key, data) for data in DATA for key in keys])
    await Crowd(set_state.do, callers=16)([(*key, STATES[-1]) for key in begun])
    await Crowd(update_data.do, callers=16)([(*key, DATA[-1]) for key in begun])
    state = await storage.get_state(*keys[0])
    assert getattr(state, "state", state) == STATES[-1], state
    assert await storage.update_data(*keys[0], {}) == DATA[-1]  # type: ignore[call-arg]
    return FSM(set_state, update_data, Act(storage.get_state, keys), Act(storage.get_data, keys))
