"""Programs that write to a store, to be run in processes of their own and to be killed there."""

from __future__ import annotations

import json
import os
import random
import resource
from collections.abc import Awaitable, Callable
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anyio
import sqlalchemy as sa

from trunkline.backends.sql import database_at
from trunkline.errors import StoreUnavailable
from trunkline.persistence import Message, PersistenceStore
from trunkline.persistence.inbound import new_inbound

#: Processes that are forked from one that has imported all of this, and so start at once.
processes = get_context("forkserver")
processes.set_forkserver_preload(["tests.servers.writer", "trunkline.persistence.sql", "trio"])

CALLERS = 16


class Journal:
    """A file to which a process writes what it was told is stored. It outlives a `kill -9`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, *entry: Any) -> None:
        os.write(self._file, json.dumps(entry).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read_journal(path: Path) -> list[list[Any]]:
    """Every whole line of a journal; of a last one that was cut off nobody knows."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(True) if line[-1:] == b"\n"]


def write_for_ever(url: str, path: Path, ready: Any, backend: str, seed: int) -> None:
    """Sixteen callers that write whatever they like, and note it, until the process is killed."""

    async def main() -> None:
        journal = Journal(path)
        numbers = count()
        async with PersistenceStore(url) as store, anyio.create_task_group() as callers:
            lobby = await store.get_or_create_room_by_external_binding("test", "bot", "lobby")
            ready.set()

            async def caller(number: int) -> None:
                chance = random.Random(f"{seed}/{number}")
                while True:
                    external_id = f"{seed}-{next(numbers)}"
                    await _write_one(store, journal, lobby.id, external_id, chance.random())

            for number in range(CALLERS):
                callers.start_soon(caller, number)

    anyio.run(main, backend=backend)


async def _write_one(
    store: PersistenceStore, journal: Journal, lobby_id: str, external_id: str, chance: float
) -> None:
    if chance < 0.6:
        metadata = {"channel": "test", "bridge_id": "bot"}
        message = Message.new(room_id=lobby_id, external_id=external_id, metadata=metadata)
        journal.write("message", (await store.save_message(message)).id)
    elif chance < 0.8:
        room = await store.get_or_create_room_by_external_binding("test", "bot", external_id)
        journal.write("room", room.id)
    else:
        who = await store.get_or_create_participant_by_external_id("test", external_id)
        journal.write("participant", who.id)


def race(url: str, path: Path, start: Any, backend: str, seed: int, size: int) -> None:
    """Sixteen callers that all want the same rooms and participants, each in an order of its own.

    What they got, and whatever they met besides, goes to the journal.
    """

    async def main() -> None:
        journal = Journal(path)
        start.wait(30)
        async with PersistenceStore(url) as store, anyio.create_task_group() as callers:

            async def caller(number: int) -> None:
                chance = random.Random(f"{seed}/{number}")
                for external_id in chance.sample(range(size), size):
                    await _note_errors(journal, race_for, external_id)

            async def race_for(external_id: int) -> None:
                room = await store.get_or_create_room_by_external_binding(
                    "test", "bot", external_id
                )
                journal.write("room", external_id, room.id)
                who = await store.get_or_create_participant_by_external_id("test", external_id)
                journal.write("participant", external_id, who.id)
                message = Message.new(room_id=room.id, sender_id=who.id)
                journal.write("message", external_id, (await store.save_message(message)).id)

            for number in range(CALLERS):
                callers.start_soon(caller, number)

    anyio.run(main, backend=backend)


def meet(url: str, path: Path, start: Any, backend: str, seed: int, size: int) -> None:
    """Give one participant external ids, and take in messages that others take in as well."""

    async def main() -> None:
        journal = Journal(path)
        start.wait(30)
        store = PersistenceStore(url, call_timeout_ms=30_000)
        async with store, anyio.create_task_group() as callers:

            async def caller(number: int) -> None:
                await _note_errors(journal, call, number)

            async def call(number: int) -> None:
                await store.get_or_create_participant_by_external_id(
                    f"{seed}-{number}", 1, {"id": "p"}
                )
                journal.write("channel", f"{seed}-{number}")
                inbound = await store.save_new_inbound(
                    new_inbound(
                        channel="test",
                        bridge_id="bot",
                        external_room_id="lobby",
                        content=seed,
                        external_message_id=number,
                        external_user_id=seed,
                        external_thread_id="topic",
                    )
                )
                if not inbound.duplicate:
                    journal.write("message", inbound.message.id)

            for number in range(size):
                callers.start_soon(caller, number)

    anyio.run(main, backend=backend)


async def _note_errors(
    journal: Journal, function: Callable[..., Awaitable[None]], *args: Any
) -> None:
    try:
        await function(*args)
    except Exception as error:
        journal.write("error", repr(error))


def fill_limited_file(path: Path, journal_path: Path, limit: int, backend: str) -> None:
    """Write to a database whose file must not grow beyond `limit` bytes, until it cannot.

    Then the limit is lifted, and one more message is written by the same store.
    """

    async def main() -> None:
        journal = Journal(journal_path)
        async with PersistenceStore(f"sqlite:///{path}") as store:
            room = await store.get_or_create_room_by_external_binding("test", "bot", "lobby")
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
            try:
                while True:
                    message = Message.new(room_id=room.id, content="x" * 1_000)
                    journal.write("message", (await store.save_message(message)).id)
            except StoreUnavailable as error:
                refused = message.id
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
                journal.write("refused", refused, str(error))
            message = Message.new(room_id=room.id, content="there is room again")
            journal.write("message", (await store.save_message(message)).id)

    anyio.run(main, backend=backend)


def open_with_steps(url: str, barrier: Any, failures: Any) -> None:
    """Open a database at the same moment as other processes, with steps that work but once."""

    def make(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE once (number INTEGER PRIMARY KEY)")

    def fill(connection: sa.Connection) -> None:
        connection.exec_driver_sql("INSERT INTO once VALUES (1)")

    database = database_at(url, component="once", migrations=(make, fill))
    barrier.wait(30)
    try:
        database.open()
        with database.transaction():
            rows = database.connection.exec_driver_sql("SELECT number FROM once").all()
            assert rows == [(1,)]
    except Exception as error:
        failures.put(repr(error))
    finally:
        database.close()
