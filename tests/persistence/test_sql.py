"""The SQL adapter: how its statements find their rows, and what it says of databases that fail."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy import event

from trunkline.errors import ConfigurationError, NotFound, StoreError, StoreUnavailable
from trunkline.persistence import (
    BridgeConfig,
    Inbound,
    IngressSubscription,
    Message,
    Participant,
    PersistenceStore,
    Room,
    RoomBinding,
    RoutingPolicy,
    Thread,
)
from trunkline.persistence.inbound import new_inbound
from trunkline.persistence.schema import MIGRATIONS, tables
from trunkline.persistence.sql import SQLPersistenceAdapter

ROOMS, MESSAGES = 5, 4_000

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'bot.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def adapter(url):
    adapter = SQLPersistenceAdapter(url)
    adapter.open()
    yield adapter
    adapter.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def full(request, tmp_path_factory):
    """An adapter with so many messages that no database would want to read them all.

    What a test does to it is undone, since it is filled but once.
    """
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('full') / 'bot.db'}"
    else:
        server = request.getfixturevalue("postgres_server")
        url = server.url(server.create_database())
    adapter = SQLPersistenceAdapter(url)
    adapter.open()
    with adapter.transaction():
        for room in range(ROOMS):
            adapter.save_room(Room.new(id=f"room-{room}"))
        adapter.save_messages([message(number) for number in range(MESSAGES)])
    with adapter.transaction():
        adapter.database.connection.exec_driver_sql("ANALYZE")
    yield adapter
    adapter.close()


class Undone(Exception):
    """Leaves a transaction."""


@contextmanager
def undone(adapter: SQLPersistenceAdapter):
    """A transaction that is rolled back."""
    with suppress(Undone), adapter.transaction():
        yield
        raise Undone


def message(number: int) -> Message:
    return Message.new(
        id=f"message-{number:05}",
        room_id=f"room-{number % ROOMS}",
        thread_id=f"thread-{number % 50}" if number % 3 == 0 else None,
        external_id=number,
        metadata={"channel": "test", "bridge_id": "bot"},
        inserted_at=NOON + timedelta(seconds=number // 7),
    )


@contextmanager
def recorded(adapter: SQLPersistenceAdapter):
    """Every statement that the adapter executes inside, with its parameters.

    On SQLite they stand in the statement, since not all of them come by SQLAlchemy.
    """
    statements: list[tuple[str, object]] = []
    if not adapter.database.writes_concurrently:
        with adapter.transaction():  # connects
            connection = adapter.database.connection.connection.dbapi_connection
        connection.set_trace_callback(lambda statement: statements.append((statement, None)))
        yield statements
        connection.set_trace_callback(None)
        return

    def record(_connection, _cursor, statement, parameters, _context, executemany) -> None:
        statements.append(
            (statement, parameters[0] if isinstance(parameters, list) else parameters)
        )

    event.listen(adapter.database._engine, "before_cursor_execute", record)
    yield statements
    event.remove(adapter.database._engine, "before_cursor_execute", record)


def plan(adapter: SQLPersistenceAdapter, statement: str, parameters: object) -> list[str]:
    """How the database means to execute a statement, a step a line."""
    explain = "EXPLAIN" if adapter.database.writes_concurrently else "EXPLAIN QUERY PLAN"
    with adapter.transaction():
        if adapter.database.writes_concurrently:
            adapter.database.connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        rows = adapter.database.connection.exec_driver_sql(f"{explain} {statement}", parameters)
        return [row[-1] for row in rows]


def reads_every_message(adapter: SQLPersistenceAdapter, step: str) -> bool:
    if not adapter.database.writes_concurrently:
        return step.startswith("SCAN trunkline_messages")
    return "Seq Scan on trunkline_messages" in step


INBOUND = (
    Inbound(
        Room.new(id="room-7"),
        Participant.new(id="alice", external_ids={"test": "alice"}),
        Message.new(id="inbound", room_id="room-7"),
        RoomBinding.new(room_id="room-7", channel="test", bridge_id="bot", external_room_id="7"),
        Thread.new(id="thread-7", room_id="room-7", external_thread_id="77"),
    ),
)

#: Every operation that has to do with messages, but for those that are to read them all: `counts`,
#: and the first page of `scan`.
ON_MESSAGES = {
    "save_message": [message(1)],
    "save_messages": [[message(1), message(2)]],
    "get_message": ["message-00001"],
    "delete_message": ["message-00001"],
    "get_message_by_external_id": ["test", "bot", "1", None],
    "get_message_by_external_id in a room": ["test", "bot", "1", "room-1"],
    "update_message_external_id": ["message-00002", "new"],
    "get_messages": ["room-1", 50, None, None, None],
    "get_messages before": ["room-1", 50, "message-02001", None, None],
    "get_messages after": ["room-1", 50, None, "message-00011", None],
    "get_messages between": ["room-1", 50, "message-02001", "message-00011", None],
    "get_messages of a thread": ["room-1", 50, None, None, "thread-6"],
    "get_messages of a thread between": [
        "room-1",
        50,
        "message-02001",
        "message-00011",
        "thread-6",
    ],
    "save_inbound": list(INBOUND),
    "scan": ["messages", 50, "message-00011", False],
    "scan backwards": ["messages", 50, "message-00011", True],
    "delete_room_part": ["room-2", 100],
}


@pytest.mark.parametrize("operation", ON_MESSAGES)
def test_no_operation_reads_every_message(full, operation):
    with recorded(full) as statements, undone(full):
        getattr(full, operation.partition(" ")[0])(*ON_MESSAGES[operation])
    explained = [
        one for one in statements if one[0].split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")
    ]
    assert explained != []
    for statement, parameters in explained:
        steps = plan(full, statement, parameters)
        assert not any(reads_every_message(full, step) for step in steps), (statement, steps)
        if not full.database.writes_concurrently and not re.search(
            "external_(thread_)?id = ", statement
        ):
            # PostgreSQL may like to sort the few rows that it has found, and so may SQLite those
            # with one external id.
            assert not any("TEMP B-TREE" in step for step in steps), (statement, steps)


@pytest.mark.parametrize("full", ["sqlite"], indirect=True)
def test_the_messages_of_a_thread_are_found_without_those_of_its_room(full):
    with recorded(full) as statements, full.transaction():
        full.get_messages(*ON_MESSAGES["get_messages of a thread"])
    ((statement, parameters),) = [one for one in statements if one[0].startswith("SELECT")]
    (step,) = plan(full, statement, parameters)
    assert "trunkline_messages_by_thread (namespace=? AND room_id=? AND thread_id=?)" in step


def test_the_plan_of_a_look_up_without_an_index_is_recognised(full):
    """Else the test above would prove nothing."""
    statement = "SELECT document FROM trunkline_messages WHERE document = 'x'"
    assert any(reads_every_message(full, step) for step in plan(full, statement, None))


@pytest.mark.parametrize("full", ["sqlite"], indirect=True)
def test_deleting_a_small_room_costs_the_same_however_many_messages_others_have(full):
    """The cascade of a foreign key is not in a query plan, but it is in what SQLite executes."""
    with undone(full):
        for room in ("small", "also-small"):
            full.save_room(Room.new(id=room))
            full.save_message(Message.new(room_id=room))
        connection = full.database.connection.connection.dbapi_connection
        instructions = 0

        def count() -> int:
            nonlocal instructions
            instructions += 1
            return 0

        connection.set_progress_handler(count, 1)
        full.delete_room_part("small", 100)
        few = instructions
        full.save_messages([message(MESSAGES + number) for number in range(MESSAGES)])
        instructions = 0
        full.delete_room_part("also-small", 100)
        connection.set_progress_handler(None, 1)
    assert 0 < instructions < few * 1.5
    assert few < MESSAGES


def test_foreign_keys_that_cascade_are_indexed():
    for table in tables:
        for key in table.foreign_key_constraints:
            indexes = [*table.indexes, table.primary_key]
            leading = [[column.name for column in index.columns][:2] for index in indexes]  # type: ignore[attr-defined]
            assert key.column_keys in leading, f"{table.name}: {key.column_keys}"


def test_the_schema_of_the_code_is_that_of_a_database_made_by_the_steps(adapter):
    """Who changes a table and forgets the step would otherwise only break older databases."""
    assert len(MIGRATIONS) == 2
    with adapter.transaction(read_only=True):
        found = sa.inspect(adapter.database.connection)
        for table in tables:
            columns = {column["name"] for column in found.get_columns(table.name)}
            assert columns == set(table.columns.keys())
            indexes = {index["name"] for index in found.get_indexes(table.name)}
            assert {index.name for index in table.indexes} <= indexes


@pytest.mark.parametrize("reads", [True, False])
def test_every_connection_of_an_adapter_is_durable_and_checks_foreign_keys(tmp_path, reads):
    adapter = SQLPersistenceAdapter(f"sqlite:///{tmp_path / 'bot.db'}")
    adapter.open()
    for one in (adapter, adapter.sibling()):
        with one.transaction(read_only=reads):
            pragmas = {
                name: one.database.connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
        one.close()
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_message_a_thread_and_a_binding_need_a_room(adapter):
    for method, model in (
        (adapter.save_message, Message.new(room_id="nowhere")),
        (adapter.save_thread, Thread.new(room_id="nowhere")),
        (adapter.create_room_binding, INBOUND[0].binding),
    ):
        with pytest.raises(NotFound, match="no Room"), adapter.transaction():
            method(model)


@pytest.mark.parametrize(
    ("url", "writers", "readers"),
    [("sqlite://", 1, 0), ("sqlite:///bot.db", 1, 1), ("postgresql://bot@host/db", 4, 2)],
)
def test_how_many_may_write_and_read_at_once(url, writers, readers):
    adapter = SQLPersistenceAdapter(url)
    assert (adapter.writers, adapter.readers) == (writers, readers)


async def test_stores_of_two_namespaces_do_not_see_each_other(url):
    binding = ("telegram", "bot", 42)
    one, other = (PersistenceStore(url, namespace=name) for name in ("one", "other"))
    async with one, other:
        rooms = {}
        for store in (one, other):
            room = await store.get_or_create_room_by_external_binding(*binding, {"id": "r"})
            rooms[store] = room
            participant = await store.get_or_create_participant_by_external_id("telegram", 7)
            inbound = new_inbound(
                channel="telegram",
                bridge_id="bot",
                external_room_id=42,
                content="hi",
                external_message_id=1,
                external_user_id=7,
                external_thread_id=5,
            )
            arrived = await store.save_new_inbound(inbound)
            assert not arrived.duplicate
            assert arrived.participant == participant
            await store.save_onboarding({"onboarding_id": "o"})
            await store.save_bridge_config(BridgeConfig.new(id="b"))
            await store.save_routing_policy(RoutingPolicy.new(room_id="r"))
            await store.save_ingress_subscription(IngressSubscription.new(bridge_id="b"))
        for store in (one, other):
            [_] = await store.get_messages("r")
            [_] = await store.list_threads("r")
            [_] = await store.list_room_bindings("r")
            [_] = await store.list_bridge_configs()
            [_] = await store.list_ingress_subscriptions("b")
            for query in ({"name": ""}, {"channel": "telegram", "external_id": 7}):
                people = await store.directory_search("participant", query)
                assert len(people) == ("external_id" in query)
            query = {"channel": "telegram", "bridge_id": "bot", "external_id": 42}
            [_] = await store.directory_search("room", query)
            with pytest.raises(NotFound):
                await store.list_threads("r", after="t")
        everything = {kind: await other.scan(kind) for kind in await other.counts()}
        assert all(len(found) == 1 for found in everything.values())
        assert set((await one.counts()).values()) == {1}
        assert [room.id for room in await one.directory_search("room", {})] == ["r"]
        await one.save_room(replace(rooms[one], name="changed"))
        await one.delete_participant(participant.id)
        await one.delete_room("r")
        await one.delete_bridge_config("b")
        await one.delete_ingress_subscription("b", None)
        assert {kind: await other.scan(kind) for kind in everything} == everything
        assert [kind for kind, count in (await one.counts()).items() if count] == [
            "participants",
            "onboarding_flows",
        ]


def test_a_reply_finds_a_message_that_comes_in_with_it(adapter):
    def arriving(number: int, **ids: object):
        return new_inbound(
            channel="telegram", bridge_id="bot", external_room_id=42, content=number, **ids
        )

    with adapter.transaction():
        first, reply, again, last = adapter.save_inbounds(
            [
                arriving(1, external_message_id=1),
                arriving(2, external_message_id=2, external_reply_to_id="1"),
                arriving(3, external_message_id="1"),
                arriving(4, external_reply_to_id=2, external_thread_id=5),
            ]
        )
    assert reply.message.reply_to_id == first.message.id
    assert (again.message, again.duplicate) == (first.message, True)
    assert last.message.reply_to_id == reply.message.id
    assert last.message.thread_id == last.thread.id


def test_a_batch_of_messages_that_come_in_takes_a_handful_of_statements(adapter):
    def arriving(number: int):
        return new_inbound(
            channel="telegram",
            bridge_id="bot",
            external_room_id=number % 8,
            content=number,
            external_message_id=number,
            external_user_id=number % 16,
            external_thread_id=number % 4,
            external_reply_to_id=number - 64 if number >= 64 else None,
        )

    with adapter.transaction():
        adapter.save_inbounds([arriving(number) for number in range(64)])
    with recorded(adapter) as statements, adapter.transaction():
        results = adapter.save_inbounds([arriving(number) for number in range(64, 128)])
    assert all(one.message.reply_to_id and not one.duplicate for one in results)
    kinds = [one[0].split()[0] for one in statements]
    assert len([kind for kind in kinds if kind in ("SELECT", "INSERT")]) == 7


# -- what a user meets -----------------------------------------------------------------------------


async def test_a_store_on_a_file_that_is_no_database_cannot_be_entered(tmp_path):
    path = tmp_path / "bot.db"
    path.write_bytes(b"Dear diary, " * 1_000)
    with pytest.raises(ConfigurationError, match=r"persistence at sqlite:.*SQLITE_NOTADB"):
        async with PersistenceStore(f"sqlite:///{path}"):
            pytest.fail("it was entered")


async def test_a_store_on_a_server_that_is_away_cannot_be_entered():
    with pytest.raises(
        StoreUnavailable, match=r"persistence at postgresql://bot:\*\*\*@127"
    ) as met:
        async with PersistenceStore("postgresql://bot:hunter2@127.0.0.1:1/db"):
            pytest.fail("it was entered")
    assert "hunter2" not in str(met.value)


async def test_a_store_of_a_newer_version_cannot_be_entered(url, monkeypatch):
    async with PersistenceStore(url):
        pass
    adapter = SQLPersistenceAdapter(url)
    with adapter.transaction():
        statement = "UPDATE trunkline_schema SET version = 99 WHERE component = 'persistence'"
        adapter.database.connection.exec_driver_sql(statement)
    adapter.close()
    with pytest.raises(ConfigurationError, match="has version 99 of the persistence schema"):
        async with PersistenceStore(url):
            pytest.fail("it was entered")


async def test_an_unexpected_error_fails_its_call_alone_and_does_not_show_what_was_stored(url):
    """What PostgreSQL adds to an error quotes the row."""

    class Buggy(SQLPersistenceAdapter):
        def save_room(self, room: Room) -> Room:
            insert = (
                "INSERT INTO trunkline_rooms (namespace, id, type, document)"
                " VALUES ('default', '{0}', 'x', '{0}')"
            )
            for _ in range(2):
                self.database.connection.exec_driver_sql(insert.format(room.id))
            return room

    async with PersistenceStore(adapter=Buggy(url)) as store:
        for _ in range(20):
            with pytest.raises(StoreError, match=r"unique|UNIQUE") as refused:
                await store.save_room(Room.new(id="hunter2"))
            assert "hunter2" not in str(refused.value) + repr(refused.value.__cause__)
        assert store.stats().restarts == 0
