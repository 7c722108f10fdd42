"""Values never appear in a repr, a log, an event or an error, whatever goes wrong."""

from __future__ import annotations

import sqlite3
from contextlib import nullcontext
from traceback import format_exception

import pytest
from cryptography.fernet import Fernet
from rich.pretty import pretty_repr

from trunkline.actors.mailbox import Call
from trunkline.errors import ActorCrashed, ConfigurationError, TrunklineError
from trunkline.signal import SignalStore
from trunkline.signal.adapter import Commit, KeyName, SignalAdapter, Versioned
from trunkline.signal.memory import MemorySignalAdapter

SECRET = "xyzzy-secret"
VALUE = {"private": SECRET.encode(), "note": SECRET}


class BuggyAdapter(MemorySignalAdapter):
    """Quotes what it was given and what it has in its exceptions, and in those behind them."""

    def get(self, names):
        found = super().get(names)
        if found:
            raise LookupError({name: entry.value for name, entry in found.items()})
        return found

    def commit(self, commit):
        super().commit(commit)
        try:
            raise ValueError(*commit.changes.values())
        except ValueError as error:
            raise RuntimeError(f"cannot store {dict(commit.changes)}") from error


class BuggyInAThread(BuggyAdapter):
    blocking = True


def shown(error: BaseException | None) -> str:
    """All that can be read of an exception and of those behind it."""
    parts = []
    while error is not None:
        parts += [str(error), repr(error), *format_exception(error)]
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


@pytest.mark.parametrize("way", ["at once", "traced", "in a thread"])
async def test_a_bug_in_an_adapter_does_not_tell_what_is_stored(way, log):
    adapter = BuggyInAThread() if way == "in a thread" else BuggyAdapter()
    events = []
    async with SignalStore(adapter=adapter) as store:
        store.events.subscribe(events.append)
        if way == "traced":
            store.tracing = lambda _name: nullcontext()
        with pytest.raises(ActorCrashed, match="RuntimeError in Buggy") as in_set:
            await store.set({"session": {"ann": VALUE}})
        with pytest.raises(ActorCrashed, match="LookupError in Buggy") as in_get:
            await store.get("session", ["ann"])
        with pytest.raises(ActorCrashed) as in_transaction:
            async with store.transaction("ann") as tx:
                await tx.set({"session": {"bob": VALUE}})
    told = [shown(info.value) for info in (in_set, in_get, in_transaction)]
    assert "in commit" in told[0]
    assert [entry["event"] for entry in log].count("actor_crashed") == 3
    assert_no_secret(*told, log, events)


async def test_a_table_that_was_dropped_does_not_reveal_what_was_to_be_stored(tmp_path, log):
    async with SignalStore(f"sqlite:///{tmp_path}/signal.db") as store:
        await store.set({"session": {"ann": VALUE}})
        with sqlite3.connect(tmp_path / "signal.db") as connection:
            connection.execute("DROP TABLE trunkline_signal")
        connection.close()
        with pytest.raises(TrunklineError) as failure:
            await store.set({"session": {"ann": VALUE}})
    assert_no_secret(shown(failure.value), log)


async def test_a_postgresql_constraint_does_not_quote_what_was_to_be_stored(
    postgres_server, postgres_url, log
):
    import psycopg

    async with SignalStore(postgres_url) as store:
        await store.set({"session": {"ann": b"1"}})
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE trunkline_signal ADD CHECK (id <> 'bob')")
        with pytest.raises(TrunklineError) as failure:
            await store.set({"session": {"bob": VALUE}})
        assert await store.get("session", ["ann", "bob"]) == {"ann": b"1"}
    assert_no_secret(shown(failure.value), log)


async def test_a_key_of_another_kind_on_valkey_does_not_quote_what_was_to_be_stored(
    valkey_server, valkey_url, log
):
    async with SignalStore(valkey_url) as store:
        await store.set({"pre-key": {"ann": VALUE}})
        (name,) = [name for name in valkey_server.execute("KEYS", "*") if b"pre-key" in name]
        valkey_server.execute("DEL", name)
        valkey_server.execute("SET", name, "a string")
        with pytest.raises(TrunklineError) as failure:
            await store.set({"pre-key": {"ann": VALUE}})
    assert_no_secret(shown(failure.value), log)


async def test_a_value_that_cannot_be_decrypted_or_stored_is_not_quoted(tmp_path, log):
    url = f"sqlite:///{tmp_path}/signal.db"
    right, wrong = Fernet.generate_key(), Fernet.generate_key()
    told = []
    async with SignalStore(url, encryption_key=right) as store:
        await store.set({"session": {"ann": VALUE}})
        for value in (object, {SECRET: {SECRET: object}}, [SECRET, {SECRET: {SECRET}}, object]):
            with pytest.raises(ConfigurationError) as refused:
                await store.set({"session": {"ann": value}})
            told.append(shown(refused.value))
    for key in (wrong, None):
        async with SignalStore(url, encryption_key=key) as store:
            with pytest.raises(ConfigurationError) as refused:
                await store.get("session", ["ann"])
            told.append(shown(refused.value))
    with pytest.raises(ConfigurationError) as refused:
        SignalStore(url, encryption_key=SECRET)
    told.append(shown(refused.value))
    assert_no_secret(*told, log)
    assert right.decode() not in str(told)


async def test_a_store_that_is_given_things_in_the_wrong_places_does_not_quote_them():
    async with SignalStore("memory://") as store:
        for mistake in (
            store.set({"session": SECRET}),
            store.set(SECRET),
            store.set({SECRET.encode(): {"ann": VALUE}}),
            store.set({"session": {SECRET.encode(): "ann"}}),
            store.get("session", SECRET),
            store.get("session", [VALUE]),
            store.get(VALUE, ["ann"]),
        ):
            with pytest.raises(ConfigurationError) as refused:
                await mistake
            assert_no_secret(shown(refused.value))


def test_what_is_passed_about_inside_does_not_show_values():
    name = KeyName("session", "ann")
    commit = Commit({name: SECRET.encode()}, 7)
    things = [commit, Versioned(7, SECRET.encode()), Call(SignalAdapter.commit, (commit,), {})]
    for thing in things:
        assert_no_secret(repr(thing), str(thing), pretty_repr(thing), f"{[thing]}")


async def test_at_rest_there_is_no_plain_value_in_the_file(tmp_path):
    url, key = f"sqlite:///{tmp_path}/signal.db", Fernet.generate_key()
    async with SignalStore(url, encryption_key=key) as store:
        async with store.transaction("ann") as tx:
            await tx.set({"session": {"ann": VALUE, "bob": [SECRET]}})
        await store.set({"pre-key": {"1": SECRET}})
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "signal.db-wal" in files
    files["closed"] = (tmp_path / "signal.db").read_bytes()
    for name, content in files.items():
        assert SECRET.encode() not in content, name
    async with SignalStore(url) as store:
        await store.set({"session": {"plain": SECRET}})
    assert SECRET.encode() in (tmp_path / "signal.db").read_bytes()


def assert_no_secret(*things: object) -> None:
    for thing in things:
        assert SECRET not in str(thing)
