"""Rooms and senders of messages that come in are as the database has them at that moment."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from msgspec.structs import replace

from trunkline.persistence import Message, PersistenceStore
from trunkline.persistence.inbound import new_inbound
from trunkline.persistence.sql import SQLPersistenceAdapter


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'bot.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
async def stores(url):
    """Two stores on one database, as two processes have them."""
    async with PersistenceStore(url) as one, PersistenceStore(url) as other:
        yield one, other


def hello(number: int, **fields):
    return new_inbound(
        channel="telegram",
        bridge_id="bot",
        external_room_id=42,
        external_user_id=7,
        external_message_id=number,
        content="hello",
        **fields,
    )


async def test_a_room_and_a_sender_that_any_process_has_changed_come_as_they_are_now(stores):
    one, other = stores
    inbound = await one.save_new_inbound(hello(1))
    for number, store in enumerate((one, other, one, other), 2):
        name = f"name {number}"
        await store.save_room(replace(inbound.room, name=name))
        await store.save_participant(replace(inbound.participant, identity={"name": name}))
        again = await one.save_new_inbound(hello(number))
        assert (again.room.name, again.participant.identity) == (name, {"name": name})


async def test_a_room_that_any_process_has_deleted_is_made_anew(stores):
    one, other = stores
    inbound = await one.save_new_inbound(hello(1))
    for number, store in enumerate((one, other), 2):
        await store.delete_room(inbound.room.id)
        await store.delete_participant(inbound.participant.id)
        again = await one.save_new_inbound(hello(number))
        assert again.room.id != inbound.room.id
        assert again.participant.id != inbound.participant.id
        assert await other.get_message(again.message.id) == again.message
        inbound = again


async def test_an_external_room_that_is_bound_anew_leads_to_its_new_room(stores):
    one, other = stores
    inbound = await one.save_new_inbound(hello(1))
    for number, store in enumerate((one, other), 2):
        (binding,) = await store.list_room_bindings(inbound.room.id)
        await store.delete_room_binding(binding.id)
        room = await store.get_or_create_room_by_external_binding("telegram", "bot", 42)
        inbound = await one.save_new_inbound(hello(number))
        assert inbound.room == room


async def test_what_a_caller_does_to_a_room_it_was_given_changes_no_other(stores):
    one, _ = stores
    inbound = await one.save_new_inbound(hello(1, room={"metadata": {"a": [1]}}))
    for number in range(2, 5):
        inbound.room.metadata["a"].append("spoilt")
        inbound = await one.save_new_inbound(hello(number))
        assert inbound.room.metadata == {"a": [1]}


def test_a_room_of_a_transaction_that_was_rolled_back_is_forgotten(url):
    adapter = SQLPersistenceAdapter(url)
    adapter.open()
    with pytest.raises(ZeroDivisionError), adapter.transaction():  # noqa: PT012
        for number in range(2):
            lost = adapter.save_inbound(hello(number))
        raise ZeroDivisionError
    for number in range(2):
        with adapter.transaction():
            saved = adapter.save_inbound(hello(number))
        with adapter.transaction():
            assert adapter.get_room(saved.room.id) == saved.room
            assert adapter.get_participant(saved.participant.id) == saved.participant
    assert saved.room.id != lost.room.id
    adapter.close()


def test_rooms_and_senders_are_looked_up_once_while_only_messages_are_saved(tmp_path):
    adapter = SQLPersistenceAdapter(f"sqlite:///{tmp_path / 'bot.db'}")
    adapter.open()
    statements: list[str] = []
    with adapter.transaction():
        adapter.save_inbound(hello(0))
        saved = adapter.save_inbound(hello(1))
        adapter.database.connection.connection.dbapi_connection.set_trace_callback(
            statements.append
        )
    for number in range(2, 6):
        with adapter.transaction():
            adapter.save_inbound(hello(number))
            adapter.save_messages([Message.new(room_id=saved.room.id)] * 2)
            adapter.save_message(Message.new(room_id=saved.room.id))
    assert sum("FROM trunkline_rooms" in one and "document" in one for one in statements) <= 1
    assert not any("trunkline_participant_external_ids" in one for one in statements[8:])
    adapter.close()


async def test_what_another_program_does_to_the_file_is_seen(tmp_path):
    path = tmp_path / "bot.db"
    # An id may hold a 42 too.
    change = "UPDATE trunkline_rooms SET document = replace(document, ':42}', ':43}')"
    async with PersistenceStore(f"sqlite:///{path}") as store:
        await store.save_new_inbound(hello(1))
        await store.save_new_inbound(hello(2))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(change)
            connection.commit()
        again = await store.save_new_inbound(hello(3))
        assert again.room.external_bindings == {"telegram": {"bot": 43}}
