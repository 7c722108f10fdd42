"""Several accounts on one database."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import anyio
import pytest

from trunkline.errors import ConfigurationError
from trunkline.signal import SignalStore
from trunkline.signal.memory import MemorySignalAdapter

ODD = ["a{b}c", "}", "a:b", "a", "%7D", "%", "żółw 🐢", "'; --", "x" * 100, "*", "a*", "[a]"]


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path}/signal.db"


@pytest.fixture(params=["sqlite", "postgres", "valkey"])
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


async def test_accounts_on_one_database_neither_see_nor_clear_each_others_keys(url):
    async with SignalStore(url, namespace="shop") as shop, SignalStore(url) as other:
        await shop.set({"session": {"ann": b"shop"}, "pre-key": {"1": b"shop"}})
        await other.set({"session": {"ann": b"other"}})
        assert await shop.get("session", ["ann"]) == {"ann": b"shop"}
        assert await other.get("pre-key", ["1"]) == {}
        await other.clear()
        assert await other.get("session", ["ann"]) == {}
        async with other.transaction("clear") as tx:
            await tx.set({"session": {"bob": b"other"}})
            await tx.clear()
        async with other.transaction("delete") as tx:
            await tx.set({"session": {"ann": None}})
        assert await shop.get("session", ["ann"]) == {"ann": b"shop"}
        assert await shop.get("pre-key", ["1"]) == {"1": b"shop"}


async def test_accounts_do_not_wait_for_each_others_locks(url):
    async with SignalStore(url, namespace="shop") as shop, SignalStore(url) as other:
        with anyio.fail_after(60):
            async with shop.transaction("ann") as mine, other.transaction("ann") as theirs:
                await mine.set({"session": {"ann": b"shop"}})
                await theirs.set({"session": {"ann": b"other"}})
        assert await shop.get("session", ["ann"]) == {"ann": b"shop"}
        assert await other.get("session", ["ann"]) == {"ann": b"other"}


async def test_a_namespace_may_have_any_characters(url):
    async def write(number, namespace):
        async with SignalStore(url, namespace=namespace) as store, store.transaction("ann") as tx:
            await tx.set({"session": {"ann": number, namespace: None}})

    for number, namespace in enumerate(ODD):
        await write(number, namespace)
    for number, namespace in enumerate(ODD):
        async with SignalStore(url, namespace=namespace) as store:
            assert await store.get("session", ["ann"]) == {"ann": number}
            await store.clear()
            assert await store.get("session", ["ann"]) == {}


def test_an_adapter_keeps_its_own_namespace():
    with pytest.raises(ConfigurationError, match="namespace"):
        SignalStore(adapter=MemorySignalAdapter(), namespace="shop")


# -- what trunkline 0.1 has stored, which knew no namespaces ---------------------------------------

OLD = [("session", "ann", 7, b"\0\xa3ann"), ("pre-key", "1", 2**62, b"\0\x01")]

#: As SQLAlchemy made them for 0.1.
SQLITE = """
CREATE TABLE trunkline_schema (component TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (component));
INSERT INTO trunkline_schema VALUES ('signal', 1);
CREATE TABLE trunkline_signal (
    family TEXT NOT NULL, id TEXT NOT NULL, version BIGINT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (family, id)
);
"""  # noqa: E501
POSTGRESQL = SQLITE.replace("BLOB", "BYTEA")


@pytest.fixture
def old_sqlite(tmp_path):
    with closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as connection:
        connection.executescript(SQLITE)
        connection.executemany("INSERT INTO trunkline_signal VALUES (?, ?, ?, ?)", OLD)
    return f"sqlite:///{tmp_path}/old.db"


@pytest.fixture
def old_postgres(postgres_server):
    import psycopg

    name = postgres_server.create_database()
    with psycopg.connect(postgres_server.url(name), autocommit=True) as connection:
        connection.execute(POSTGRESQL)
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO trunkline_signal VALUES (%s, %s, %s, %s)", OLD)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture
def old_valkey(valkey_url, valkey_server):
    put_old_keys(valkey_server)
    return valkey_url


def put_old_keys(server):
    for family, entry_id, version, value in OLD:
        server.execute("SADD", "trunkline:{signal}:families", family)
        stored = b"%d:%b" % (version, value)
        server.execute("HSET", f"trunkline:{{signal}}:family:{family}", entry_id, stored)


@pytest.mark.parametrize("old", ["sqlite", "postgres", "valkey"])
async def test_what_0_1_has_stored_is_found_in_the_default_namespace(request, old):
    url = request.getfixturevalue(f"old_{old}")
    for _ in range(2):
        async with SignalStore(url, namespace="shop") as store:
            assert await store.get("session", ["ann"]) == {}
    for _ in range(2):
        async with SignalStore(url) as store:
            assert await store.get("session", ["ann"]) == {"ann": "ann"}
            assert await store.get("pre-key", ["1"]) == {"1": 1}
    async with SignalStore(url) as store:
        async with store.transaction("ann") as tx:
            await tx.get("session", ["ann"])
            await tx.set({"pre-key": {"1": None}})
        assert await store.get("pre-key", ["1"]) == {}
        await store.clear()


async def test_what_0_1_has_stored_meanwhile_on_valkey_replaces_nothing(old_valkey, valkey_server):
    async with SignalStore(old_valkey) as store:
        await store.set({"session": {"ann": b"new"}})
    put_old_keys(valkey_server)
    valkey_server.execute("HSET", "trunkline:{signal}:family:session", "bob", b"8:\0\x02")
    async with SignalStore(old_valkey) as store:
        assert await store.get("session", ["ann", "bob"]) == {"ann": b"new", "bob": 2}
    assert not valkey_server.execute("KEYS", "trunkline:{signal}:*")
