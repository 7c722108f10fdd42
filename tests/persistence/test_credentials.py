"""Credentials of bridges appear nowhere, and with a key not even on the disk."""

from __future__ import annotations

import logging
import sqlite3
import sys
import traceback
from contextlib import closing

import pytest
from cryptography.fernet import Fernet
from msgspec.structs import replace
from rich.pretty import pretty_repr

from trunkline.actors import RestartPolicy
from trunkline.errors import ActorCrashed, ConfigurationError, InvalidModel, TrunklineError
from trunkline.persistence import BridgeConfig, PersistenceStore
from trunkline.persistence.memory import MemoryPersistenceAdapter
from trunkline.persistence.sql import SQLPersistenceAdapter

SECRET = "s3cret-t0ken"
AT_ONCE = RestartPolicy(min_backoff_ms=1, max_backoff_ms=1)


def a_config(**fields) -> BridgeConfig:
    return BridgeConfig.new(**{"id": "bot", "credentials": {"token": SECRET}} | fields)


# -- in texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{0!r}".format, pretty_repr, ascii])
def test_credentials_are_hidden_however_a_config_is_shown(show):
    shown = show(a_config())
    assert SECRET not in shown
    assert "credentials=***" in shown
    assert "'bot'" in shown


def test_credentials_are_hidden_in_what_holds_a_config():
    config = a_config()
    for holder in ([config], {"config": config}, (config.bump_revision(),)):
        assert SECRET not in repr(holder)
        assert SECRET not in pretty_repr(holder)


def test_the_rest_of_a_config_is_shown():
    config = a_config(adapter_module="bots.telegram", opts={"poll": True}, revision=3)
    for part in ("adapter_module='bots.telegram'", "opts={'poll': True}", "revision=3"):
        assert part in repr(config)


@pytest.mark.parametrize(
    "fields",
    [
        {"credentials": SECRET},
        {"credentials": [SECRET]},
        {"credentials": {"token": SECRET, "nan": float("nan")}},
        {"credentials": {"token": SECRET, "object": object()}},
        {"credentials": {"token": SECRET + "\ud800"}},
        {"credentials": {(SECRET,): 1}},
        {"credential": {"token": SECRET}},
        {"Credentials": SECRET},
    ],
)
def test_credentials_are_hidden_in_what_is_wrong_with_them(fields):
    with pytest.raises(InvalidModel) as refused:
        BridgeConfig.new(id="bot", **fields)
    assert "redential" in str(refused.value)
    assert SECRET not in whole_text(refused.value)


def whole_text(error: BaseException) -> str:
    """All that a log of `error` has: its message, its causes, the lines of code."""
    return "".join(traceback.format_exception(error)) + repr(error)


class Buggy(MemoryPersistenceAdapter):
    def save_bridge_config(self, config):
        raise RuntimeError(f"a bug with {config}")


async def test_credentials_are_hidden_when_an_adapter_crashes_with_them(log):
    events: list[object] = []
    async with PersistenceStore(adapter=Buggy(), restart_policy=AT_ONCE) as store:
        store.events.subscribe(events.append)
        with pytest.raises(ActorCrashed) as crashed:
            await store.save_bridge_config(a_config())
    assert "a bug with BridgeConfig(id='bot'" in whole_text(crashed.value)
    assert SECRET not in whole_text(crashed.value)
    assert any(entry["event"] == "actor_crashed" for entry in log)
    assert SECRET not in repr(log)
    assert SECRET not in repr(events)


@pytest.mark.parametrize("table", ["DROP TABLE", "NO COLUMN", "TRIGGER"])
async def test_credentials_are_hidden_when_the_database_refuses_them(tmp_path, log, caplog, table):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "bot.db"
    async with PersistenceStore(f"sqlite:///{path}", restart_policy=AT_ONCE) as store:
        with closing(sqlite3.connect(path)) as connection:
            if table == "DROP TABLE":
                connection.execute("DROP TABLE trunkline_bridge_configs")
            elif table == "NO COLUMN":
                connection.execute("ALTER TABLE trunkline_bridge_configs DROP COLUMN document")
            else:
                connection.execute(
                    "CREATE TRIGGER no BEFORE INSERT ON trunkline_bridge_configs"
                    " BEGIN SELECT RAISE(ABORT, 'no room for bridges'); END"
                )
            connection.commit()
        with pytest.raises(TrunklineError) as refused:
            await store.save_bridge_config(a_config())
    assert SECRET not in whole_text(refused.value)
    assert SECRET not in repr(log)
    assert SECRET not in caplog.text


async def test_credentials_are_hidden_when_postgres_refuses_them(postgres_url, log, caplog):
    import psycopg

    caplog.set_level(logging.DEBUG)
    async with PersistenceStore(postgres_url, restart_policy=AT_ONCE) as store:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            # What PostgreSQL says of it quotes the row, up to 64 letters of each column.
            connection.execute(
                "ALTER TABLE trunkline_bridge_configs ADD CHECK (document NOT LIKE '%s3cret%')"
            )
        with pytest.raises(TrunklineError) as refused:
            await store.save_bridge_config(a_config(id="b", credentials={"t": SECRET}))
    assert SECRET not in whole_text(refused.value)
    assert SECRET not in repr(log)
    assert SECRET not in caplog.text


async def test_a_config_in_use_keeps_its_credentials():
    async with PersistenceStore("memory://") as store:
        saved = await store.save_bridge_config(a_config())
        assert saved.credentials == {"token": SECRET}
        assert (await store.get_bridge_config("bot")).credentials == {"token": SECRET}


# -- on the disk ---------------------------------------------------------------------------------


def bytes_on_disk(folder) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_without_a_key_credentials_are_on_the_disk_as_they_are(tmp_path):
    async with PersistenceStore(f"sqlite:///{tmp_path}/bot.db") as store:
        await store.save_bridge_config(a_config())
        assert SECRET.encode() in bytes_on_disk(tmp_path)


async def test_with_a_key_credentials_are_nowhere_on_the_disk(tmp_path):
    url, key = f"sqlite:///{tmp_path}/bot.db", Fernet.generate_key()
    config = a_config(credentials={"secret-name": SECRET, "nested": [{"deep": "s3cret-too"}]})
    async with PersistenceStore(url, encryption_key=key) as store:
        assert await store.save_bridge_config(config) == config
        assert await store.save_bridge_config(config.bump_revision())
        there = bytes_on_disk(tmp_path)
    there += bytes_on_disk(tmp_path)
    assert b"trunkline_bridge_configs" in there
    for secret in (SECRET, "secret-name", "s3cret-too", key.decode()):
        assert secret.encode() not in there
    async with PersistenceStore(url, encryption_key=key) as store:
        assert (await store.get_bridge_config("bot")).credentials == config.credentials
        [listed] = await store.list_bridge_configs()
        [(_, scanned)] = await store.scan("bridge_configs")
        assert listed.credentials == scanned.credentials == config.credentials


@pytest.mark.parametrize("url", ["memory://", "sqlite://"])
async def test_the_adapter_never_sees_what_is_encrypted(url):
    seen: list[BridgeConfig] = []

    def spy(kind, *arguments):
        class Spy(kind):
            def save_bridge_config(self, config):
                seen.append(config)
                return super().save_bridge_config(config)

        return Spy(*arguments)

    adapter = (
        spy(MemoryPersistenceAdapter)
        if url == "memory://"
        else spy(SQLPersistenceAdapter, "sqlite://")
    )
    async with PersistenceStore(adapter=adapter, encryption_key=Fernet.generate_key()) as store:
        config = await store.save_bridge_config(a_config())
        assert config == replace(a_config(), **times(config))
        assert SECRET not in str(seen[0].credentials)
        assert seen[0] == replace(config, credentials=seen[0].credentials)


def times(config: BridgeConfig) -> dict[str, object]:
    return {"inserted_at": config.inserted_at, "updated_at": config.updated_at}


async def test_the_same_credentials_are_encrypted_otherwise_each_time(tmp_path):
    path = tmp_path / "bot.db"
    async with PersistenceStore(f"sqlite:///{path}", encryption_key=Fernet.generate_key()) as store:
        for one in ("a", "b"):
            await store.save_bridge_config(a_config(id=one))
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT document ->> 'credentials' FROM trunkline_bridge_configs"
        ).fetchall()
    assert len(set(rows)) == 2


async def test_a_config_without_credentials_needs_no_key(tmp_path):
    url = f"sqlite:///{tmp_path}/bot.db"
    async with PersistenceStore(url, encryption_key=Fernet.generate_key()) as store:
        config = await store.save_bridge_config(a_config(credentials={}))
    async with PersistenceStore(url) as store:
        assert await store.get_bridge_config("bot") == config


# -- keys ----------------------------------------------------------------------------------------


@pytest.fixture
async def encrypted(tmp_path):
    """A file with one encrypted config: its URL, and the key."""
    url, key = f"sqlite:///{tmp_path}/bot.db", Fernet.generate_key()
    async with PersistenceStore(url, encryption_key=key) as store:
        await store.save_bridge_config(a_config())
    return url, key


async def get(store):
    return (await store.get_bridge_config("bot")).credentials


async def list_and_look(store):
    (config,) = await store.list_bridge_configs()
    return config.credentials["token"]


async def scan_and_look(store):
    ((_, config),) = await store.scan("bridge_configs")
    return config.credentials.get("token")


READS = {"get": get, "list": list_and_look, "scan": scan_and_look}


@pytest.mark.parametrize("read", READS)
async def test_a_wrong_key_is_a_clear_error_that_names_the_bridge(encrypted, read):
    url, _ = encrypted
    async with PersistenceStore(url, encryption_key=Fernet.generate_key()) as store:
        with pytest.raises(ConfigurationError) as refused:
            await READS[read](store)
    assert str(refused.value) == (
        "credentials of bridge 'bot' cannot be decrypted with this encryption_key"
    )
    assert "gAAAA" not in whole_text(refused.value)


@pytest.mark.parametrize("read", READS)
async def test_no_key_is_a_clear_error_that_names_the_bridge(encrypted, read):
    url, _ = encrypted
    async with PersistenceStore(url) as store:
        with pytest.raises(ConfigurationError) as refused:
            await READS[read](store)
    assert str(refused.value) == "credentials of bridge 'bot' are encrypted: give encryption_key="
    assert "gAAAA" not in whole_text(refused.value)


async def test_a_bridge_with_another_key_does_not_hide_the_others(encrypted):
    url, _ = encrypted
    key = Fernet.generate_key()
    async with PersistenceStore(url, encryption_key=key) as store:
        mine = await store.save_bridge_config(a_config(id="mine"))
        bot, listed = await store.list_bridge_configs()
        assert [one for one, _ in await store.scan("bridge_configs")] == ["bot", "mine"]
        assert (bot.id, listed) == ("bot", mine)
        assert "gAAAA" not in repr(bot) + repr(bot.credentials)


@pytest.mark.parametrize(
    "look", [dict, list, len, bool, repr, lambda c: c | {}, lambda c: c.items(), lambda c: c["a"]]
)
async def test_credentials_that_cannot_be_decrypted_are_never_taken_for_none(encrypted, look):
    url, _ = encrypted
    async with PersistenceStore(url) as store:
        (config,) = await store.list_bridge_configs()
    if look is repr:
        assert look(config.credentials) == "***"
    else:
        with pytest.raises(ConfigurationError, match="are encrypted"):
            look(config.credentials)


async def test_a_config_that_cannot_be_decrypted_is_saved_with_its_credentials(encrypted):
    url, key = encrypted
    async with PersistenceStore(url) as store:
        (config,) = await store.list_bridge_configs()
        saved = await store.save_bridge_config(replace(config.bump_revision(), enabled=False))
        assert (saved.revision, saved.enabled) == (1, False)
        assert await store.list_bridge_configs() == [saved]
    async with PersistenceStore(url, encryption_key=key) as store:
        config = await store.get_bridge_config("bot")
        assert (config.credentials, config.enabled) == ({"token": SECRET}, False)


async def test_with_a_wrong_key_the_rest_of_the_store_works_and_the_config_can_be_replaced(
    encrypted,
):
    url, _ = encrypted
    async with PersistenceStore(url, encryption_key=Fernet.generate_key()) as store:
        assert (await store.counts())["bridge_configs"] == 1
        config = await store.save_bridge_config(a_config(credentials={"token": "new"}))
        assert await store.get_bridge_config("bot") == config
        await store.delete_bridge_config("bot")
        assert await store.list_bridge_configs() == []


async def test_what_was_tampered_with_is_refused(encrypted, tmp_path):
    url, key = encrypted
    with closing(sqlite3.connect(tmp_path / "bot.db")) as connection:
        connection.execute(
            "UPDATE trunkline_bridge_configs SET document = replace(document, 'gAAAA', 'gAAAB')"
        )
        connection.commit()
    async with PersistenceStore(url, encryption_key=key) as store:
        with pytest.raises(ConfigurationError, match="'bot' cannot be decrypted"):
            await store.get_bridge_config("bot")


async def test_credentials_from_before_there_was_a_key_can_be_read(tmp_path):
    url, key = f"sqlite:///{tmp_path}/bot.db", Fernet.generate_key()
    async with PersistenceStore(url) as store:
        await store.save_bridge_config(a_config())
    async with PersistenceStore(url, encryption_key=key) as store:
        config = await store.get_bridge_config("bot")
        assert config.credentials == {"token": SECRET}
        await store.save_bridge_config(config.bump_revision())
    async with PersistenceStore(url) as store:
        with pytest.raises(ConfigurationError, match="are encrypted"):
            await store.get_bridge_config("bot")


async def test_a_key_is_rotated_by_putting_a_new_one_in_front(encrypted):
    url, old = encrypted
    new = Fernet.generate_key()
    async with PersistenceStore(url, encryption_key=[new, old]) as store:
        config = await store.get_bridge_config("bot")
        assert config.credentials == {"token": SECRET}
        await store.save_bridge_config(config)
    async with PersistenceStore(url, encryption_key=new) as store:
        assert await store.get_bridge_config("bot") == config
    async with PersistenceStore(url, encryption_key=old) as store:
        with pytest.raises(ConfigurationError, match="cannot be decrypted"):
            await store.get_bridge_config("bot")


async def test_the_first_key_encrypts_and_each_of_them_decrypts(encrypted):
    url, old = encrypted
    async with PersistenceStore(url, encryption_key=(old, Fernet.generate_key())) as store:
        config = await store.save_bridge_config(await store.get_bridge_config("bot"))
    async with PersistenceStore(url, encryption_key=old) as store:
        assert await store.get_bridge_config("bot") == config


async def test_a_key_may_be_a_str(encrypted):
    url, key = encrypted
    async with PersistenceStore(url, encryption_key=key.decode()) as store:
        assert (await store.get_bridge_config("bot")).credentials == {"token": SECRET}


@pytest.mark.parametrize(
    "key",
    [
        "",
        b"",
        "not-a-key-but-a-s3cret-t0ken",
        "ключ",
        Fernet.generate_key()[:-1],
        b"\xff" * 44,
        [],
        [Fernet.generate_key(), "s3cret-t0ken"],
        [None],
        5,
        object(),
    ],
    ids=range(11),
)
def test_a_key_that_is_none_is_refused_at_once_and_not_shown(key):
    with pytest.raises(ConfigurationError) as refused:
        PersistenceStore("memory://", encryption_key=key)
    assert str(refused.value) == (
        "encryption_key is no Fernet key: make one with Fernet.generate_key()"
    )
    assert SECRET not in "".join(traceback.format_exception_only(refused.value))


def test_without_cryptography_a_key_names_the_extra_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigurationError) as refused:
        PersistenceStore("memory://", encryption_key=Fernet.generate_key())
    assert "pip install 'trunkline[crypto]'" in str(refused.value)


async def test_without_cryptography_a_store_without_a_key_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.delitem(sys.modules, "cryptography.fernet")
    async with PersistenceStore("memory://") as store:
        await store.save_bridge_config(a_config())
        assert (await store.get_bridge_config("bot")).credentials == {"token": SECRET}


async def test_what_was_encrypted_by_hand_is_not_taken_for_credentials():
    token = Fernet(Fernet.generate_key()).encrypt(b"{}").decode()
    for key in (None, Fernet.generate_key()):
        async with PersistenceStore("memory://", encryption_key=key) as store:
            with pytest.raises(InvalidModel, match="of bridge 'bot' are encrypted already"):
                await store.save_bridge_config(a_config(credentials={"$trunkline-fernet": token}))
            assert await store.list_bridge_configs() == []
