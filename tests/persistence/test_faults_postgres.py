"""A PostgreSQL server that is killed, frozen, or in the way, under a store that keeps running."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager

import anyio
import msgspec
import psycopg
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from trunkline.errors import StoreUnavailable
from trunkline.persistence import Message, Participant, PersistenceStore
from trunkline.persistence.sql import SQLPersistenceAdapter

CALLERS = 16

#: Patience of the store, in milliseconds.
TIMEOUT_MS = 1_500

#: How long a test waits for what must come at last, in seconds.
AT_LAST = 60


@pytest.fixture
def url(mortal_postgres):
    name = mortal_postgres.create_database()
    yield mortal_postgres.url(name)
    mortal_postgres.drop_database(name)


@asynccontextmanager
async def open_store(url: str):
    adapter = SQLPersistenceAdapter(url, timeout_ms=TIMEOUT_MS)
    async with PersistenceStore(adapter=adapter, call_timeout_ms=TIMEOUT_MS) as store:
        yield store


class Load:
    """Sixteen callers that save messages, and remember which of them the store has acknowledged."""

    def __init__(self, store: PersistenceStore, room_ids: list[str]) -> None:
        self._store = store
        self._room_ids = room_ids
        self._changed = anyio.Event()
        self.acknowledged: set[str] = set()
        self.refused: list[StoreUnavailable] = []

    @asynccontextmanager
    async def run(self):
        async with anyio.create_task_group() as callers:
            for number in range(CALLERS):
                callers.start_soon(self._call, number)
            yield
            callers.cancel_scope.cancel()

    async def until_acknowledged(self, count: int) -> None:
        """Wait until so many more messages are acknowledged."""
        await self._until(lambda: self.acknowledged, count)

    async def until_refused(self, count: int) -> None:
        """Wait until so many more calls have failed."""
        await self._until(lambda: self.refused, count)

    async def _until(self, collection, count: int) -> None:
        wanted = len(collection()) + count
        with anyio.fail_after(AT_LAST):
            while len(collection()) < wanted:
                await self._changed.wait()

    async def _call(self, number: int) -> None:
        while True:
            room_id = self._room_ids[number % len(self._room_ids)]
            message = Message.new(room_id=room_id)
            try:
                # Not after some seconds only: the machine may stand still for as long.
                with anyio.fail_after(TIMEOUT_MS / 1000 + 30):
                    await self._store.save_message(message)
            except StoreUnavailable as error:
                self.refused.append(error)
            else:
                self.acknowledged.add(message.id)
            self._changed.set()
            self._changed = anyio.Event()


async def make_rooms(store: PersistenceStore, count: int = 8) -> list[str]:
    rooms = [
        await store.get_or_create_room_by_external_binding("test", "bot", number)
        for number in range(count)
    ]
    return [room.id for room in rooms]


def stored_messages(server, url: str) -> set[str]:
    rows = server.execute("SELECT id FROM trunkline_messages", database_of(url))
    return {message_id for (message_id,) in rows}


def database_of(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


@pytest.mark.slow
async def test_a_store_works_on_when_its_server_was_killed_and_comes_back(mortal_postgres, url):
    async with open_store(url) as store:
        load = Load(store, await make_rooms(store))
        async with load.run():
            await load.until_acknowledged(500)
            await to_thread.run_sync(mortal_postgres.kill)
            await load.until_refused(CALLERS)
            await to_thread.run_sync(mortal_postgres.start)
            await load.until_acknowledged(500)
        assert load.acknowledged <= stored_messages(mortal_postgres, url)
        for message_id in load.acknowledged:
            assert (await store.get_message(message_id)).id == message_id


@pytest.mark.slow
async def test_what_a_store_says_of_a_killed_server_is_clear(mortal_postgres, url):
    async with open_store(url) as store:
        (room_id,) = await make_rooms(store, 1)
        await to_thread.run_sync(mortal_postgres.kill)
        try:
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match=r"persistence at postgresql://.*: .*"):
                    await store.save_message(Message.new(room_id=room_id))
                with pytest.raises(StoreUnavailable, match=r"persistence at postgresql://.*: .*"):
                    await store.get_room(room_id)
        finally:
            await to_thread.run_sync(mortal_postgres.start)
        assert (await store.get_room(room_id)).id == room_id


async def test_a_server_that_was_away_between_two_calls_is_not_noticed(mortal_postgres, url):
    async with open_store(url) as store:
        (room_id,) = await make_rooms(store, 1)
        await to_thread.run_sync(mortal_postgres.kill)
        await to_thread.run_sync(mortal_postgres.start)
        message = await store.save_message(Message.new(room_id=room_id))
        assert await store.get_message(message.id) == message


@pytest.mark.slow
async def test_a_frozen_server_keeps_nobody_waiting_beyond_the_timeout(mortal_postgres, url):
    async with open_store(url) as store:
        load = Load(store, await make_rooms(store))
        async with load.run():
            await load.until_acknowledged(100)
            with mortal_postgres.frozen():
                await load.until_refused(2 * CALLERS)
            await load.until_acknowledged(100)
        assert load.acknowledged <= stored_messages(mortal_postgres, url)


@pytest.mark.slow
async def test_a_store_can_be_left_while_its_server_is_frozen(mortal_postgres, url):
    with ExitStack() as frozen, anyio.fail_after(AT_LAST):
        async with open_store(url) as store:
            (room_id,) = await make_rooms(store, 1)
            frozen.enter_context(mortal_postgres.frozen())
            with pytest.raises(StoreUnavailable, match="1500 ms"):
                await store.save_message(Message.new(room_id=room_id))


async def test_a_batch_that_meets_another_process_lets_go_of_its_locks(postgres_url):
    """Else two batches that want the same rows in another order would wait for each other."""
    answers: dict[str, str] = {}
    others = {f"other-{number}" for number in range(32)}
    all_others = anyio.Event()

    async def want(store: PersistenceStore, external_id: str) -> None:
        participant = await store.get_or_create_participant_by_external_id("test", external_id)
        answers[external_id] = participant.id
        if answers.keys() == others:
            all_others.set()

    async with PersistenceStore(postgres_url) as store:
        with psycopg.connect(postgres_url) as other_process:
            add_participant(other_process, "theirs", "wanted")
            async with anyio.create_task_group() as callers:
                for external_id in (*others, "wanted"):
                    callers.start_soon(want, store, external_id)
                    await checkpoint()
                with anyio.fail_after(AT_LAST):
                    await all_others.wait()
                assert "wanted" not in answers
                other_process.commit()
    assert answers["wanted"] == "theirs"


def add_participant(connection: psycopg.Connection, participant_id: str, external_id: str) -> None:
    document = Participant.new(id=participant_id, external_ids={"test": external_id})
    connection.execute(
        "INSERT INTO trunkline_participants (namespace, id, document) VALUES ('default', %s, %s)",
        [participant_id, msgspec.json.encode(document).decode()],
    )
    connection.execute(
        "INSERT INTO trunkline_participant_external_ids"
        " (namespace, participant_id, channel, external_id, holder)"
        " VALUES ('default', %s, 'test', %s, 1)",
        [participant_id, external_id],
    )
