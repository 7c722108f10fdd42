"""A database of trunkline 0.1.0 is brought to the present schema, and works on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from trunkline.errors import ConfigurationError
from trunkline.persistence import PersistenceStore
from trunkline.persistence.inbound import new_inbound
from trunkline.persistence.schema import tables
from trunkline.persistence.sql import SQLPersistenceAdapter

SCRIPT = (Path(__file__).parent / "fixtures" / "trunkline-0.1.0.sql").read_text()

#: The message that 0.1.0 took in: its id is made of its external id.
CAME_IN_ID = "8d1a0e46-f7a8-535a-a0ad-996e058770d6"
CAME_IN = [{"type": "text", "text": "number 1"}]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request, tmp_path):
    """The URL of an empty database, and what executes a script there."""
    if request.param == "sqlite":
        path = tmp_path / "bot.db"

        def execute(script: str) -> None:
            with closing(sqlite3.connect(path)) as connection:
                connection.executescript(script)

        return f"sqlite:///{path}", execute
    url = request.getfixturevalue("postgres_url")
    server = request.getfixturevalue("postgres_server")
    return url, lambda script: server.execute(script, url.partition("@/")[2].partition("?")[0])


@pytest.fixture
def old(empty):
    """The URL of a database that 0.1.0 has filled."""
    url, execute = empty
    execute(SCRIPT)
    return url


async def test_what_the_old_version_stored_is_there_in_the_default_namespace(old):
    async with PersistenceStore(old) as store:
        assert set((await store.counts()).values()) == {1, 2, 3, 5}
        room = await store.get_room_by_external_binding("telegram", "bot", 42)
        assert room.id == "lobby"
        first, second, *_ = await store.get_messages("lobby")
        assert (first.id, second.id) == ("m", CAME_IN_ID)
        assert (await store.get_thread_by_external_id("lobby", 5)).id == "t"
        assert (await store.get_routing_policy("lobby")).id == "policy"
        without_id, with_id = await store.list_ingress_subscriptions("bot")
        assert (without_id.status, with_id.status) == ("unknown", "active")
        assert (await store.get_onboarding("o"))["step"] == 1
        assert (await store.get_bridge_config("bot")).enabled
        assert (await store.get_or_create_participant_by_external_id("telegram", 7)).id == "ada"
        await store.delete_participant("ada")
        assert (await store.get_or_create_participant_by_external_id("telegram", 7)).id == "zed"
        await store.delete_room("lobby")
        assert (await store.counts())["messages"] == 0
    async with PersistenceStore(old, namespace="other") as store:
        assert not any((await store.counts()).values())


async def test_a_message_that_came_in_before_the_upgrade_is_a_duplicate_after_it(old):
    inbound = new_inbound(
        channel="telegram",
        bridge_id="bot",
        external_room_id=42,
        content="again",
        external_message_id=1,
    )
    async with PersistenceStore(old) as store:
        again = await store.save_new_inbound(inbound)
        assert again.duplicate
        assert (again.message.id, again.message.content) == (CAME_IN_ID, CAME_IN)


async def test_names_that_the_old_version_folded_are_found(old):
    async with PersistenceStore(old) as store:
        for name in ("cafe\u0301", "CAF\u00c9"):
            assert [one.id for one in await store.directory_search("room", {"name": name})] == [
                "lobby"
            ]


async def test_an_upgraded_database_has_the_tables_of_a_new_one(old, empty, tmp_path):
    url, _ = empty
    async with PersistenceStore(url):
        pass
    async with PersistenceStore(f"sqlite:///{tmp_path}/new.db"):
        pass
    found = shape_of(url)
    assert found == shape_of(f"sqlite:///{tmp_path}/new.db")
    assert all(columns[0] == "namespace" for _, columns in found)


def shape_of(url: str) -> set[tuple[str, tuple[str, ...]]]:
    """The tables of a database with their primary keys, and the indexes with their columns."""
    adapter = SQLPersistenceAdapter(url)
    adapter.open()
    with adapter.transaction(read_only=True):
        inspector = sa.inspect(adapter.database.connection)
        names = [one for one in inspector.get_table_names() if one != "trunkline_schema"]
        assert sorted(names) == sorted(table.name for table in tables)
        keys = {
            (name, tuple(inspector.get_pk_constraint(name)["constrained_columns"]))
            for name in names
        }
        indexes = {
            (str(index["name"]), tuple(map(str, index["column_names"])))
            for name in names
            for index in inspector.get_indexes(name)
        }
    adapter.close()
    return keys | indexes


async def test_a_table_of_another_program_is_not_taken_for_ours(empty):
    url, execute = empty
    execute("CREATE TABLE trunkline_rooms (number INTEGER PRIMARY KEY, floor INTEGER)")
    with pytest.raises(ConfigurationError, match=r"table trunkline_rooms .* columns are floor, nu"):
        async with PersistenceStore(url):
            pytest.fail("it was entered")
    execute("DROP TABLE trunkline_rooms")
    async with PersistenceStore(url) as store:
        assert not any((await store.counts()).values())
