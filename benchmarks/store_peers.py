"""Other ways to keep messages in the same tables. Each gives a function that saves one, durably."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import aiosqlite
import asyncpg
import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import registry

from trunkline import PersistenceStore, Trunkline
from trunkline.persistence import Message, Room
from trunkline.persistence.schema import messages as message_table

Save: TypeAlias = Callable[[Message], Awaitable[object]]
Fetch: TypeAlias = Callable[[str], Awaitable[list[Message]]]

ROOM = Room.new(type="group", name="Lobby")

#: How many messages are fetched.
PAGE = 50

COLUMNS = [column.name for column in message_table.c]

INSERT = (
    f"INSERT INTO {message_table.name} ({', '.join(COLUMNS)})"
    f" VALUES ({', '.join('?' for _ in COLUMNS)})"
)

SELECT_PAGE = (
    f"SELECT document FROM {message_table.name} WHERE namespace = 'default' AND room_id = ?"
    f" ORDER BY inserted_at_us DESC, id DESC LIMIT {PAGE}"
)

#: As in `trunkline.backends.sql`: a commit that returned is on disk.
PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")


def make_messages() -> Iterator[Message]:
    """New ones without end, as a bot on Telegram hears them."""
    for number in count(1):
        yield Message.new(
            room_id=ROOM.id,
            sender_id=f"user-{number % 97}",
            external_id=number,
            content=[{"type": "text", "text": f"Is anybody here? I asked {number} times."}],
            metadata={"channel": "telegram", "bridge_id": "support_bot"},
        )


def row_of(message: Message) -> tuple[Any, ...]:
    """What our adapter stores of one, in the order of `COLUMNS`."""
    return (
        "default",
        message.id,
        message.room_id,
        message.thread_id,
        message.metadata["channel"],
        message.metadata["bridge_id"],
        str(message.external_id),
        None,
        (message.inserted_at - _EPOCH) // _MICROSECOND,
        msgspec.json.encode(message).decode(),
    )


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


async def make_database(url: str) -> None:
    """Make our tables, and the room, for a peer to find."""
    async with PersistenceStore(url) as store:
        await store.save_room(ROOM)


async def count_messages(url: str) -> int:
    async with PersistenceStore(url) as store:
        return (await store.counts())["messages"]


@asynccontextmanager
async def our_store(url: str) -> AsyncGenerator[Save, None]:
    async with PersistenceStore(url) as store:
        yield store.save_message


def our_file(path: Path) -> AbstractAsyncContextManager[Save]:
    return our_store(f"sqlite:///{path}")


@asynccontextmanager
async def our_line(url: str) -> AsyncGenerator[Save, None]:
    """Takes in messages of one room, from the senders that `make_messages` has."""
    async with Trunkline(url, fsm=None, signal=None, namespace="default") as line:

        async def ingest(message: Message) -> None:
            await line.ingest(
                channel="telegram",
                bridge_id="support_bot",
                external_room_id="lobby",
                external_user_id=message.sender_id,
                external_message_id=message.external_id,
                content=message.content,
            )

        yield ingest


@asynccontextmanager
async def aiosqlite_alone(path: Path) -> AsyncGenerator[Save, None]:
    """A transaction a call. They take turns: on one connection there is one transaction at a time.

    More connections would only wait for SQLite's one write lock, and less fairly.
    """
    async with connect(path) as connection:
        turn = asyncio.Lock()

        async def save(message: Message) -> None:
            row = row_of(message)
            async with turn:
                await connection.execute(INSERT, row)
                await connection.commit()

        yield save


@asynccontextmanager
async def aiosqlite_shared(path: Path) -> AsyncGenerator[Save, None]:
    """As it is often written: nobody takes turns, and so callers commit each other's halves.

    A call of several statements would be torn by a crash, and a rollback would undo the others.
    """
    async with connect(path) as connection:

        async def save(message: Message) -> None:
            await connection.execute(INSERT, row_of(message))
            await connection.commit()

        yield save


@asynccontextmanager
async def sqlalchemy_session(path: Path) -> AsyncGenerator[Save, None]:
    """A session and a commit a call, on a pool of one connection: with more it is slower."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=1, max_overflow=0)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").close()

    async def save(message: Message) -> None:
        row = dict(zip(COLUMNS, row_of(message), strict=True))
        async with AsyncSession(engine) as session:
            session.add(StoredMessage(**row))
            await session.commit()

    yield save
    await engine.dispose()


class StoredMessage:
    """Our table of messages as SQLAlchemy's ORM sees it."""


registry().map_imperatively(StoredMessage, message_table)


@contextmanager
def sqlite_batches(path: Path, size: int) -> Iterator[Callable[[list[tuple[Any, ...]]], None]]:
    """The limit: rows that are made beforehand, so many a commit, and no caller waits for any."""
    # It stays in the thread of the event loop, as everything that the loop calls.
    with _raw_connection(path) as connection:

        def save(rows: list[tuple[Any, ...]]) -> None:
            for start in range(0, len(rows), size):
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(INSERT, rows[start : start + size])
                connection.execute("COMMIT")

        yield save


@asynccontextmanager
async def asyncpg_pool(url: str) -> AsyncGenerator[Save, None]:
    """asyncpg's pool of ten connections; a statement commits by itself."""
    statement = INSERT
    for number in range(1, len(COLUMNS) + 1):
        statement = statement.replace("?", f"${number}", 1)
    async with asyncpg.create_pool(url, min_size=10, max_size=10) as pool:

        async def save(message: Message) -> None:
            await pool.execute(statement, *row_of(message))

        yield save


@asynccontextmanager
async def our_page(path: Path) -> AsyncGenerator[Fetch, None]:
    async with PersistenceStore(f"sqlite:///{path}") as store:

        async def fetch(room_id: str) -> list[Message]:
            return await store.get_messages(room_id, limit=PAGE)

        yield fetch


@asynccontextmanager
async def aiosqlite_page(path: Path) -> AsyncGenerator[Fetch, None]:
    async with connect(path) as connection:

        async def fetch(room_id: str) -> list[Message]:
            return decoded(await connection.execute_fetchall(SELECT_PAGE, (room_id,)))

        yield fetch


@asynccontextmanager
async def sqlite_page(path: Path) -> AsyncGenerator[Fetch, None]:
    """In the event loop's own thread, which stands still meanwhile."""
    with _raw_connection(path) as connection:

        async def fetch(room_id: str) -> list[Message]:
            return decoded(connection.execute(SELECT_PAGE, (room_id,)).fetchall())

        yield fetch


def decoded(rows: Iterable[Any]) -> list[Message]:
    messages = [msgspec.json.decode(document, type=Message) for (document,) in rows]
    messages.reverse()
    return messages


@asynccontextmanager
async def connect(path: Path) -> AsyncGenerator[aiosqlite.Connection, None]:
    async with aiosqlite.connect(path) as connection:
        for pragma in PRAGMAS:
            await connection.execute(f"PRAGMA {pragma}")
        yield connection


@contextmanager
def _raw_connection(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        yield connection
    finally:
        connection.close()
