from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import ClassVar

import anyio
import psycopg
import pytest

from tests.stock import (
    CAFE,
    CHAT,
    KEY,
    MESSAGES,
    SECRETS,
    SHOP,
    STORES,
    end_conversations,
    fill,
    rows,
)
from trunkline.admin import TargetNotEmpty, copy_database
from trunkline.backends import Table, register_adapter, registry
from trunkline.cli import main
from trunkline.errors import ConfigurationError, NotFound
from trunkline.fsm import FSMStore
from trunkline.persistence import Message, PersistenceStore, Room
from trunkline.signal import SignalStore
from trunkline.signal.adapter import KeyName, Versioned
from trunkline.signal.memory import MemorySignalAdapter
from trunkline.turns import Inbox, Turns

#: For a process that may hang instead.
PATIENCE = 300

KEPT_IN_VALKEY = ["fsm", "signal", "inbox"]


@pytest.fixture(autouse=True)
def in_a_terminal_of_80_columns(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def url_of(request):
    """Makes the URL of an empty database of a kind."""
    made = []

    def make(kind):
        made.append(kind)
        if kind == "sqlite":
            return f"sqlite:///{kind}-{len(made)}.db"
        if kind == "other valkey":
            return request.getfixturevalue("valkey_url").removesuffix("0") + "1"
        return request.getfixturevalue(f"{kind}_url")

    return make


@pytest.fixture
def bot_db():
    fill("sqlite:///bot.db")
    return "sqlite:///bot.db"


class Interrupted(Exception):
    """Stands for whatever ends a copy in the middle."""


def interrupt_after(pages):
    """Ends a copy after so many reports of progress."""
    told = []

    def on_progress(name, done, total):
        told.append(done)
        if len(told) == pages:
            raise Interrupted

    return on_progress


def messages_in(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT count(*) FROM trunkline_messages").fetchone()[0]


def many_messages(url, count, size=10):
    """A room with many messages, put there without the store, which would take longer."""
    fill(url, ["persistence"])
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        row = connection.execute("SELECT * FROM trunkline_messages LIMIT 1").fetchone()
        room_id, instant = row[2], row[-2]
        document = json.loads(row[-1]) | {"content": "x" * size, "external_id": None}
        connection.executemany(
            f"INSERT INTO trunkline_messages VALUES ({', '.join('?' * len(row))})",
            (
                (
                    *("default", id_, room_id, None, None, None, None, None, instant),
                    json.dumps(document | {"id": id_}),
                )
                for id_ in (f"many-{number:09}" for number in range(count))
            ),
        )


# -- what is copied ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("sqlite", "sqlite"),
        ("sqlite", "postgres"),
        ("postgres", "sqlite"),
        ("sqlite", "valkey"),
        ("postgres", "valkey"),
        ("valkey", "sqlite"),
        ("valkey", "postgres"),
        ("valkey", "other valkey"),
    ],
)
def test_a_copy_holds_every_row_as_it_was_stored(url_of, capsys, source, target):
    stores = KEPT_IN_VALKEY if "valkey" in source + target else STORES
    from_, to = url_of(source), url_of(target)
    fill(from_, stores)
    assert main(["copy", from_, to]) == 0
    assert rows(to) == rows(from_)
    captured = capsys.readouterr()
    # A server that may lose an inbox when it dies is named in a warning.
    assert [line for line in captured.err.splitlines() if "inbox_may_be_lost" not in line] == []
    assert "All counts agree." in captured.out


def test_the_stores_read_a_copy_as_they_read_its_source(url_of, bot_db):
    postgres, valkey = url_of("postgres"), url_of("valkey")
    copy_database(bot_db, postgres)
    copy_database(postgres, valkey, only=KEPT_IN_VALKEY)

    async def read():
        async with PersistenceStore(postgres, encryption_key=KEY) as store:
            room = await store.get_room_by_external_binding("matrix", "bridge", "!x:example.org")
            newest = await store.get_messages(room.id, limit=1)
            found = await store.get_message_by_external_id("telegram", "support", 7)
            assert newest[0].content == f"{MESSAGES - 1}: żółw \x1b[31m🐢 \0"
            assert found.content == "7: żółw \x1b[31m🐢 \0"
            assert (await store.get_bridge_config("b1")).credentials == {"token": SECRETS[0]}
            assert len(await store.directory_search("participant", {"name": "ADA"})) == 2
        async with FSMStore(valkey) as store:
            for bot_name, conversations in (("shop", SHOP), ("café", CAFE)):
                await store.init(bot_name)
                for key, state in conversations.items():
                    assert await store.get_state(bot_name, key) == state
        async with SignalStore(valkey, encryption_key=KEY) as store:
            session = await store.get("session", ["älice.0", "bob.0"])
            assert session == {"älice.0": SECRETS[1], "bob.0": [b"\x00", "two"]}

    anyio.run(read)


def test_of_several_participants_the_same_one_is_found_by_an_external_id(bot_db):
    copy_database(bot_db, "sqlite:///copy.db")

    async def find():
        async with PersistenceStore("sqlite:///copy.db") as store:
            return await store.get_or_create_participant_by_external_id("telegram", 7)

    assert anyio.run(find).id == "z"


def test_what_is_encrypted_stays_so(bot_db):
    copy_database(bot_db, "sqlite:///copy.db")
    stored = Path("copy.db").read_bytes()
    assert not any(secret.encode() in stored for secret in SECRETS)

    async def read(key):
        async with SignalStore("sqlite:///copy.db", encryption_key=key) as store:
            return await store.get("session", ["älice.0"])

    assert anyio.run(read, KEY) == {"älice.0": SECRETS[1]}
    with pytest.raises(ConfigurationError, match="encryption_key"):
        anyio.run(read, None)


@pytest.mark.parametrize("target", ["sqlite", "postgres", "valkey"])
def test_conversations_that_have_ended_are_left_behind(url_of, bot_db, target):
    end_conversations(bot_db, 3)
    to = url_of(target)
    report = copy_database(bot_db, to, only=["fsm"])
    assert report.agrees
    assert report.copied == len(SHOP) + len(CAFE)
    assert {bot_name for bot_name, _ in rows(to)["fsm"]} == {"shop", "café"}


def test_a_copy_goes_on_to_work(url_of, bot_db):
    to = url_of("postgres")
    copy_database(bot_db, to)

    async def work():
        async with PersistenceStore(to) as store:
            room = await store.get_or_create_room_by_external_binding("telegram", "support", -100)
            await store.save_message(Message.new(room_id=room.id, content="after the move"))
            assert (await store.get_messages(room.id, limit=1))[0].content == "after the move"
            assert (await store.counts())["rooms"] == 2

    anyio.run(work)


@pytest.mark.parametrize("only", [["persistence"], ["fsm", "signal"], ["inbox"]])
def test_only_the_stores_that_are_named_are_copied(bot_db, only):
    options = [word for store in only for word in ("--only", store)]
    assert main(["copy", *options, bot_db, "sqlite:///copy.db"]) == 0
    assert rows("sqlite:///copy.db") == rows(bot_db, only)


def test_stores_of_the_target_that_are_not_copied_stay_as_they_are(bot_db):
    fill("sqlite:///copy.db", ["signal"])
    before = rows("sqlite:///copy.db")
    assert main(["copy", "--force", "--only", "fsm", bot_db, "sqlite:///copy.db"]) == 0
    assert rows("sqlite:///copy.db") == before | rows(bot_db, ["fsm"])


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_copy_is_of_one_instant_though_a_bot_works_on(url_of, kind):
    from_ = url_of(kind)
    fill(from_)
    before = rows(from_)

    def work_on(name, done, total):
        statement = "DELETE FROM trunkline_messages WHERE id IN ({}); DELETE FROM trunkline_signal"
        ids = ", ".join(f"'{key[0]}'" for key in list(before["messages"])[:100])
        if done == 0 and name == "bridge_configs":
            execute(from_, statement.format(ids))

    report = copy_database(from_, "sqlite:///copy.db", on_progress=work_on)
    assert report.agrees
    assert rows("sqlite:///copy.db") == before
    assert len(rows(from_)["messages"]) == MESSAGES - 100


def execute(url, script):
    """Run SQL in a database, outside any store."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(script)
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(script)


def test_a_backup_without_a_write_ahead_log_can_be_copied(bot_db):
    execute(bot_db, "VACUUM INTO 'backup.db'")
    before = Path("backup.db").read_bytes()
    assert main(["copy", "sqlite:///backup.db", "sqlite:///copy.db"]) == 0
    assert rows("sqlite:///copy.db") == rows(bot_db)
    assert Path("backup.db").read_bytes() == before


def test_memory_does_not_grow_with_what_is_copied():
    many_messages("sqlite:///bot.db", 3_000, size=10_000)
    copy_database("sqlite:///bot.db", "sqlite:///warm.db", only=["persistence"])
    tracemalloc.start()
    try:
        copy_database("sqlite:///bot.db", "sqlite:///copy.db", only=["persistence"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert Path("copy.db").stat().st_size > 30_000_000
    assert peak < 8_000_000


# -- the inbox -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
def test_the_items_of_a_copied_inbox_are_handled_and_its_steps_are_not_repeated(
    url_of, bot_db, kind
):
    """The turn of a process that ran at the source is taken over."""
    there = url_of("postgres") if kind == "sqlite" else bot_db
    if kind == "sqlite":
        copy_database(bot_db, there)
    copy = url_of(kind)
    copy_database(there, copy, only=["inbox"])
    assert rows(copy) == rows(bot_db, ["inbox"])
    handled = []
    handled_last = anyio.Event()

    async def answer(turn):
        text = turn.items[0].payload
        if text == "running":
            text += ": " + await turn.step("generate", not_again)
        handled.append((text, turn.attempt, len(turn.items)))
        if text == "is alone":
            handled_last.set()

    async def not_again():
        raise AssertionError("the step has returned before")

    async def work():
        async with Inbox(copy, encryption_key=KEY) as inbox:
            async with Turns(inbox, answer):
                await handled_last.wait()
            again = await inbox.accept(CHAT, "running", external_id="é1")
            assert again.outcome == "duplicate"
            await inbox.retry((await inbox.list("failed"))[0].id)
            counts = await inbox.counts()
            assert (counts.waiting, counts.running, counts.failed) == (2, 0, 0)

    anyio.run(work)
    assert handled == [(f"running: {SECRETS[1]}", 2, 1), ("waits", 1, 1), ("is alone", 1, 1)]


def test_a_resumed_copy_has_each_session_of_the_inbox_with_its_items():
    """A session's row is there already, and names other items than it does now."""

    async def accept(*payloads):
        async with Inbox("sqlite:///bot.db") as inbox:
            for payload in payloads:
                await inbox.accept(CHAT, payload)

    anyio.run(accept, "one")
    copy_database("sqlite:///bot.db", "sqlite:///copy.db")
    anyio.run(accept, "two", "three")
    assert copy_database("sqlite:///bot.db", "sqlite:///copy.db", resume=True).agrees
    assert rows("sqlite:///copy.db") == rows("sqlite:///bot.db")


# -- a target that is not empty ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
def test_a_target_that_is_not_empty_is_refused_and_left_as_it_is(url_of, capsys, bot_db, kind):
    to = url_of(kind)
    fill(to, ["signal"])
    before = rows(to)
    assert main(["copy", "--only", "fsm", "--only", "signal", bot_db, to]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"trunkline: {shown(to)} is not empty: 22 rows of signal;"
        " --resume continues a copy, --force deletes first what is there\n"
    )
    assert rows(to) == before


def shown(url):
    return url.replace("postgres:@", "postgres:***@")


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
def test_force_deletes_first_what_is_there(url_of, bot_db, kind):
    to = url_of(kind)
    stores = KEPT_IN_VALKEY if kind == "valkey" else STORES
    fill("sqlite:///others.db")
    execute("sqlite:///others.db", "UPDATE trunkline_signal SET id = 'other-' || id")
    execute("sqlite:///others.db", "UPDATE trunkline_fsm SET bot_name = 'other'")
    assert copy_database("sqlite:///others.db", to, only=stores).agrees
    assert rows(to, stores) == rows("sqlite:///others.db", stores) != rows(bot_db, stores)
    options = [word for store in stores for word in ("--only", store)]
    assert main(["copy", "--force", *options, bot_db, to]) == 0
    assert rows(to, stores) == rows(bot_db, stores)


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
def test_what_is_no_copy_cannot_be_resumed(url_of, capsys, bot_db, kind):
    to = url_of(kind)
    fill("sqlite:///others.db", ["signal"])
    execute("sqlite:///others.db", "UPDATE trunkline_signal SET id = 'x' WHERE id = '7'")
    copy_database("sqlite:///others.db", to)
    before = rows(to)
    assert main(["copy", "--resume", "--only", "signal", bot_db, to]) == 2
    assert "lacks 1 of its rows of signal" in capsys.readouterr().err
    assert rows(to) == before


def test_an_empty_target_with_tables_is_no_obstacle(bot_db):
    fill("sqlite:///copy.db")
    for table in rows("sqlite:///copy.db"):
        execute("sqlite:///copy.db", f"PRAGMA foreign_keys = ON; DELETE FROM trunkline_{table}")
    assert main(["copy", bot_db, "sqlite:///copy.db"]) == 0
    assert rows("sqlite:///copy.db") == rows(bot_db)


def test_one_may_not_both_resume_and_force(bot_db):
    with pytest.raises(SystemExit):
        main(["copy", "--resume", "--force", bot_db, "sqlite:///copy.db"])
    with pytest.raises(ConfigurationError, match="either"):
        copy_database(bot_db, "sqlite:///copy.db", resume=True, force=True)


# -- namespaces --------------------------------------------------------------------------------

#: The second looks like a part of a Redis key.
NAMESPACES = ["shop", "ü}:fsm:[*"]


def fill_namespaces(url, stores):
    """Put things of the same ids, but other contents, into each namespace."""

    async def put(namespace):
        if "persistence" in stores:
            async with PersistenceStore(url, namespace=namespace) as store:
                await store.save_room(Room.new(id="r", name=f"of {namespace}"))
                await store.save_message(Message.new(id="m", room_id="r", content=namespace))
        async with FSMStore(url, namespace=namespace) as store:
            await store.init("bot")
            await store.set_state("bot", 1, f"of {namespace}")
        async with SignalStore(url, namespace=namespace) as store:
            await store.set({"session": {"ada": f"of {namespace}"}})
        if "inbox" in stores:
            async with Inbox(url, namespace=namespace) as inbox:
                await inbox.accept(CHAT, f"of {namespace}", external_id=1)

    for namespace in NAMESPACES:
        anyio.run(put, namespace)


@pytest.mark.parametrize(
    ("source", "target"),
    [("sqlite", "postgres"), ("postgres", "sqlite"), ("sqlite", "valkey"), ("valkey", "sqlite")],
)
def test_all_namespaces_are_copied_and_stay_apart(url_of, source, target):
    stores = KEPT_IN_VALKEY if "valkey" in source + target else STORES
    from_, to = url_of(source), url_of(target)
    fill_namespaces(from_, stores)
    report = copy_database(from_, to)
    assert report.agrees
    assert {one.namespace for one in report.tables} == set(NAMESPACES)
    # A message has a room, and an item a session and a mark.
    extra = {"persistence": 1, "inbox": 2}
    assert report.copied == len(NAMESPACES) * sum(1 + extra.get(store, 0) for store in stores)
    for namespace in NAMESPACES:
        assert rows(to, stores, namespace) == rows(from_, stores, namespace)
    one, other = (rows(to, stores, namespace) for namespace in NAMESPACES)
    assert [*one] == [*other]
    assert one["fsm"] != other["fsm"]
    assert one["signal"] != other["signal"]
    assert not any(rows(to, stores).values())


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
def test_one_namespace_is_copied_beside_others_that_stay_as_they_are(url_of, capsys, kind):
    stores = KEPT_IN_VALKEY if kind == "valkey" else STORES
    fill_namespaces("sqlite:///bot.db", stores)
    one, other = NAMESPACES
    to = url_of(kind)
    assert main(["copy", "--namespace", other, "sqlite:///bot.db", to]) == 0
    before = rows(to, stores, other)
    assert main(["copy", "--namespace", one, "sqlite:///bot.db", to]) == 0
    assert main(["copy", "--namespace", one, "sqlite:///bot.db", to]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["copy", "--force", "--namespace", one, "sqlite:///bot.db", to]) == 0
    assert rows(to, stores, one) == rows("sqlite:///bot.db", stores, one)
    assert rows(to, stores, other) == before


def test_a_namespace_that_is_missing_ends_with_1(capsys, bot_db):
    for command in (["copy", bot_db, "sqlite:///copy.db"], ["inspect", bot_db]):
        assert main([*command, "--namespace", "nobody's"]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.endswith('holds nothing in the namespace "nobody\'s"\n')
    assert not Path("copy.db").exists()


# -- interrupted -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("sqlite", "sqlite"),
        ("sqlite", "postgres"),
        ("postgres", "sqlite"),
        ("sqlite", "valkey"),
        ("valkey", "postgres"),
    ],
)
def test_a_copy_is_resumed_wherever_it_was_interrupted(url_of, source, target):
    stores = KEPT_IN_VALKEY if "valkey" in source + target else STORES
    from_, to = url_of(source), url_of(target)
    fill(from_, stores)
    wanted = rows(from_)
    reports = []
    copy_database(from_, to, on_progress=lambda *told: reports.append(told))
    for pages in {1, len(reports) // 3, len(reports) // 2, len(reports)}:
        with pytest.raises(Interrupted):
            copy_database(from_, to, force=True, on_progress=interrupt_after(pages))
        there = sum(len(found) for name, found in rows(to).items() if "inbox" not in name)
        report = copy_database(from_, to, resume=True)
        assert report.agrees
        assert report.copied + there == sum(map(len, wanted.values())) == reports[-1][2]
        assert sum(table.kept for table in report.tables) == there
        assert rows(to) == wanted


def test_resuming_a_finished_copy_changes_nothing(capsys, bot_db):
    copy_database(bot_db, "sqlite:///copy.db")
    assert main(["copy", "--resume", bot_db, "sqlite:///copy.db"]) == 0
    assert re.search(rf"messages +0 +{MESSAGES} +{MESSAGES} +{MESSAGES}\b", capsys.readouterr().out)
    assert rows("sqlite:///copy.db") == rows(bot_db)


def test_a_resumed_copy_brings_what_came_meanwhile():
    many_messages("sqlite:///bot.db", 5_000)

    def interrupt(name, done, total):
        if name == "messages" and done > 1_500:
            raise Interrupted

    with pytest.raises(Interrupted):
        copy_database("sqlite:///bot.db", "sqlite:///copy.db", on_progress=interrupt)
    assert 0 < messages_in("copy.db") < 5_000
    execute(
        "sqlite:///bot.db",
        "CREATE TEMP TABLE one AS SELECT * FROM trunkline_messages LIMIT 1;"
        "UPDATE one SET id = '0', document = json_set(document, '$.id', '0');"
        "INSERT INTO trunkline_messages SELECT * FROM one",
    )
    assert copy_database("sqlite:///bot.db", "sqlite:///copy.db", resume=True).agrees
    assert rows("sqlite:///copy.db") == rows("sqlite:///bot.db")


def start(*arguments):
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-m", "trunkline", "copy", *arguments], **pipes)


@pytest.mark.slow
def test_a_copy_into_sqlite_that_was_killed_is_resumed(capsys):
    many_messages("sqlite:///bot.db", 30_000)
    with start("sqlite:///bot.db", "sqlite:///copy.db") as process:
        deadline = monotonic() + PATIENCE
        held = None
        while held is None:
            assert process.poll() is None, process.stderr.read()
            assert monotonic() < deadline
            held = hold_in_the_middle("copy.db")
        # It waits for the lock that is held here, in the middle of the messages.
        process.kill()
        process.wait()
        held.close()
    there = messages_in("copy.db")
    assert 0 < there < 30_000
    assert main(["copy", "--resume", "sqlite:///bot.db", "sqlite:///copy.db"]) == 0
    assert re.search(rf"messages +{30_450 - there:,} +{there:,} ", capsys.readouterr().out)
    assert rows("sqlite:///copy.db") == rows("sqlite:///bot.db")
    with closing(sqlite3.connect("copy.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def hold_in_the_middle(path):
    """A connection that holds the write lock, once there are some messages."""
    if not Path(path).exists():
        return None
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("SELECT count(*) FROM trunkline_messages").fetchone()[0]:
            return connection
    except sqlite3.OperationalError:
        pass  # there are no tables yet
    connection.close()
    return None


@pytest.mark.slow
def test_a_copy_into_postgresql_that_was_killed_is_resumed(postgres_url):
    many_messages("sqlite:///bot.db", 20_000)
    # The target's tables, without rows.
    execute("sqlite:///bot.db", "VACUUM INTO 'empty.db'")
    execute("sqlite:///empty.db", "PRAGMA foreign_keys = ON; DELETE FROM trunkline_rooms")
    for table in ("participants", "onboarding_flows", "bridge_configs", "ingress_subscriptions"):
        execute("sqlite:///empty.db", f"PRAGMA foreign_keys = ON; DELETE FROM trunkline_{table}")
    copy_database("sqlite:///empty.db", postgres_url)
    with psycopg.connect(postgres_url) as blocker, psycopg.connect(postgres_url) as watcher:
        # A row under the id of a message in the middle, not committed: the copy waits for it.
        blocker.execute("SET session_replication_role = replica")  # without a room
        blocker.execute(
            "INSERT INTO trunkline_messages (namespace, id, room_id, inserted_at_us, document)"
            " VALUES ('default', 'many-000012345', 'r', 0, '{}')"
        )
        with start("sqlite:///bot.db", postgres_url) as process:
            deadline = monotonic() + PATIENCE
            while not waiting_for_a_lock(watcher):
                assert process.poll() is None, process.stderr.read()
                assert monotonic() < deadline
            process.kill()
            process.wait()
        blocker.rollback()
    there = len(rows(postgres_url)["messages"])
    assert 1_000 < there < 13_000
    report = copy_database("sqlite:///bot.db", postgres_url, resume=True)
    assert report.agrees
    assert rows(postgres_url) == rows("sqlite:///bot.db")


def waiting_for_a_lock(watcher):
    found = watcher.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    ).fetchone()[0]
    watcher.rollback()
    return found > 0


@pytest.mark.slow
def test_ctrl_c_ends_a_copy_in_one_line(bot_db, postgres_url):
    copy_database(bot_db, postgres_url)
    with psycopg.connect(postgres_url) as blocker, psycopg.connect(postgres_url) as watcher:
        blocker.execute("LOCK TABLE trunkline_signal")
        with start("--force", bot_db, postgres_url) as process:
            deadline = monotonic() + PATIENCE
            while not waiting_for_a_lock(watcher):
                assert process.poll() is None, process.stderr.read()
                assert monotonic() < deadline
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
            assert process.stderr.read() == b"trunkline: interrupted\n"
    assert rows(postgres_url) == rows(bot_db)


# -- when the counts differ ----------------------------------------------------------------------


OLD_KEYS = {
    "signal": [
        ("SADD", "trunkline:{signal}:families", "session"),
        ("HSET", "trunkline:{signal}:family:session", "ada", "1:x"),
    ],
    "fsm": [("HSET", 'trunkline:fsm:["bot", "1"]', "x", 1, "state", "=waiting")],
}


@pytest.mark.parametrize("store", OLD_KEYS)
def test_a_server_of_an_older_version_is_refused_and_left_as_it_is(
    valkey_server, valkey_url, store
):
    """Opening a store would migrate it, and it may still serve an older bot."""
    for command in OLD_KEYS[store]:  # type: ignore[attr-defined]
        valkey_server.execute(*command)
    keys = sorted(valkey_server.execute("KEYS", "*"))
    with pytest.raises(ConfigurationError, match=f"version 1 of the {store}.*start a bot on it"):
        copy_database(valkey_url, "sqlite:///copy.db")
    assert sorted(valkey_server.execute("KEYS", "*")) == keys
    assert not Path("copy.db").exists()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_counts_that_differ_end_with_1(url_of, capsys, bot_db, kind):
    to = url_of(kind)
    copy_database(bot_db, to)
    execute(to, LOSE_ROWS[kind])
    assert main(["copy", "--force", bot_db, to]) == 1
    captured = capsys.readouterr()
    assert captured.err == ("trunkline: the counts of signal keys differ: 22 in FROM, 20 in TO\n")
    assert "The counts differ." in captured.out
    assert re.search(r"signal keys +22 +0 +22 +20\b", captured.out)


#: Let a database lose some rows without a word.
LOSE_ROWS = {
    "sqlite": "CREATE TRIGGER lose BEFORE INSERT ON trunkline_signal"
    " WHEN NEW.family = 'session' BEGIN SELECT RAISE(IGNORE); END",
    "postgres": "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS"
    " 'BEGIN IF NEW.family = ''session'' THEN RETURN NULL; END IF; RETURN NEW; END';"
    " CREATE TRIGGER lose BEFORE INSERT ON trunkline_signal"
    " FOR EACH ROW EXECUTE FUNCTION lose()",
}


# -- what can be wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("from_", "to", "told"),
    [
        ("memory://", "sqlite:///copy.db", "what is kept in memory ends with its process"),
        ("sqlite:///bot.db", "memory://", "what is kept in memory ends with its process"),
        ("sqlite:///bot.db", "sqlite://", "what is kept in memory ends with its process"),
        ("sqlite:///missing.db", "sqlite:///copy.db", "missing.db does not exist"),
        ("sqlite:///bot.db", "sqlite:///no/copy.db", "the folder of no/copy.db does not exist"),
        ("sqlite:///bot.db", "sqlite:///./bot.db", "are the same database"),
        ("sqlite:///bot.db", "sqlite:///link.db", "are the same database"),
        ("sqlite:///bot.db", "sqlite:///text.db", "file is not a database"),
        ("sqlite:///bot.db", "postgresql://me:hunter2@127.0.0.1:1/x", "me:***@127.0.0.1:1/x"),
        ("sqlite:///bot.db", "valkey://me:hunter2@127.0.0.1:1/0", "me:***@127.0.0.1:1/0"),
        ("postgresql://me:hunter2@127.0.0.1:1/x", "sqlite:///copy.db", "me:***@127.0.0.1:1/x"),
    ],
)
def test_what_cannot_work_ends_with_2_and_one_line(capsys, bot_db, from_, to, told):
    Path("text.db").write_text("This is no database, but a text of some length.\n" * 99)
    Path("link.db").symlink_to("bot.db")
    before = rows(bot_db)
    assert main(["copy", "--force", from_, to]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("trunkline: ")
    assert captured.err.count("\n") == 1
    assert told in captured.err
    assert "hunter2" not in captured.err
    assert not Path("copy.db").exists()
    assert rows(bot_db) == before


@pytest.mark.parametrize("kind", ["postgres", "valkey"])
def test_a_database_is_not_copied_onto_itself_under_another_name(url_of, capsys, kind):
    url = url_of(kind)
    other = url.replace("127.0.0.1", "localhost").replace(
        "postgresql://postgres:@", "postgresql://postgres@"
    )
    assert other != url
    fill(url, ["signal"])
    before = rows(url)
    assert main(["copy", "--force", url, other]) == 2
    assert "are the same database" in capsys.readouterr().err
    assert rows(url) == before


def test_nothing_to_copy_ends_with_1(capsys):
    execute("sqlite:///other.db", "CREATE TABLE notes (text)")
    assert main(["copy", "sqlite:///other.db", "sqlite:///copy.db"]) == 1
    assert capsys.readouterr().err == (
        "trunkline: sqlite:///other.db holds none of trunkline's stores\n"
    )
    assert not Path("copy.db").exists()


def test_a_store_that_is_not_there_cannot_be_copied(capsys):
    fill("sqlite:///bot.db", ["signal"])
    assert main(["copy", "--only", "fsm", "sqlite:///bot.db", "sqlite:///copy.db"]) == 1
    assert capsys.readouterr().err == "trunkline: sqlite:///bot.db holds no fsm store\n"
    with pytest.raises(ConfigurationError, match="'fms'"):
        copy_database("sqlite:///bot.db", "sqlite:///copy.db", only=["fms"])


def test_valkey_refuses_persistence_rather_than_leave_it_behind(capsys, bot_db, valkey_url):
    assert main(["copy", bot_db, valkey_url]) == 2
    assert "cannot hold the persistence store of sqlite:///bot.db" in capsys.readouterr().err
    assert rows(valkey_url) == {}


def test_an_empty_persistence_is_nothing_that_valkey_would_lack(valkey_url):
    bot_db = "sqlite:///bot.db"
    fill(bot_db, ["persistence", *KEPT_IN_VALKEY])
    for table in ("rooms", "participants", "onboarding_flows", "bridge_configs"):
        execute(bot_db, f"PRAGMA foreign_keys = ON; DELETE FROM trunkline_{table}")
    execute(bot_db, "DELETE FROM trunkline_ingress_subscriptions")
    assert main(["copy", bot_db, valkey_url]) == 0
    assert rows(valkey_url) == rows(bot_db, KEPT_IN_VALKEY)


@pytest.mark.parametrize("side", ["from", "to"])
def test_a_schema_of_another_version_is_refused(capsys, bot_db, side):
    fill("sqlite:///other.db", ["fsm"])
    execute("sqlite:///other.db", "UPDATE trunkline_schema SET version = 99")
    urls = ["sqlite:///other.db", "sqlite:///copy.db"]
    if side == "to":
        urls = [bot_db, "sqlite:///other.db"]
    assert main(["copy", *urls]) == 2
    assert "sqlite:///other.db has version 99 of the fsm schema" in capsys.readouterr().err
    assert main(["copy", "--force", *urls]) == 2
    assert "99" in capsys.readouterr().err


def test_a_full_disk_is_reported_in_one_line_and_the_copy_resumed(capsys, small_disk):
    many_messages("sqlite:///bot.db", 4_000, size=1_000)
    to = f"sqlite:///{small_disk}/copy.db"
    assert main(["copy", "sqlite:///bot.db", to]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "full" in captured.err
    os.system(f"mount -o remount,size=40m {small_disk}")
    assert main(["copy", "--resume", "sqlite:///bot.db", to]) == 0
    assert rows(to) == rows("sqlite:///bot.db")


def test_the_library_raises_what_the_command_prints(bot_db):
    execute("sqlite:///other.db", "CREATE TABLE notes (text)")
    with pytest.raises(NotFound):
        copy_database("sqlite:///other.db", "sqlite:///copy.db")
    copy_database(bot_db, "sqlite:///copy.db")
    with pytest.raises(TargetNotEmpty):
        copy_database(bot_db, "sqlite:///copy.db")


# -- a good Unix tool --------------------------------------------------------------------------


def test_a_report_for_a_pipe_is_plain_and_fits_the_terminal(capsys, bot_db):
    assert main(["copy", bot_db, "sqlite:///copy.db"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(rf"^  messages +{MESSAGES} +0 +{MESSAGES} +{MESSAGES} *$", text, re.MULTILINE)


def test_progress_is_shown_on_a_terminal_and_cleared(bot_db):
    screen, terminal = pty.openpty()
    os.set_blocking(screen, False)
    try:
        subprocess.run(
            [sys.executable, "-m", "trunkline", "copy", bot_db, "sqlite:///copy.db"],
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
            timeout=PATIENCE,
            check=True,
        )
        shown = os.read(screen, 100_000)
    finally:
        os.close(screen)
        os.close(terminal)
    assert b"copying " in shown
    assert shown.endswith(b"\x1b[2K")


# -- adapters of other people --------------------------------------------------------------------


class EntryTable(Table):
    """Entries of a dictionary as rows of family, id, version, value."""

    name = "signal"
    key_width = 2

    def __init__(self, entries):
        self.entries = entries

    def dump(self, at_ms=0, *, keys_only=False):
        for name, entry in sorted(self.entries.items()):
            yield [tuple(name) if keys_only else (*name, *entry)]

    def present(self, keys):
        return set(keys) & set(self.entries)

    def load(self, rows):
        for family, id_, version, value in rows:
            self.entries[KeyName(family, id_)] = Versioned(version, value)

    def erase(self):
        self.entries.clear()


class ElsewhereAdapter(MemorySignalAdapter):
    """Stands for a database that trunkline does not know."""

    blocking = True
    databases: ClassVar = {}

    def __init__(self, url, namespace):
        super().__init__()
        self.url, self.namespace = url, namespace
        self._entries = self.databases.setdefault(url, {}).setdefault(namespace, {})

    @classmethod
    def from_url(cls, url, options):
        return cls(url, options.namespace)

    @property
    def tables(self):
        return [EntryTable(self._entries)]

    def namespaces(self):
        return [name for name, entries in self.databases[self.url].items() if entries]

    def identity(self):
        return self.url.lower()


class AnonymousAdapter(ElsewhereAdapter):
    """Has no identity, and one database under URLs that differ in case."""

    @classmethod
    def from_url(cls, url, options):
        return cls(url.lower(), options.namespace)

    def identity(self):
        return None


class OpaqueAdapter(MemorySignalAdapter):
    """Has what a store needs, and nothing for `copy`."""

    blocking = True

    @classmethod
    def from_url(cls, url, options):
        return cls()


@pytest.fixture
def elsewhere(monkeypatch):
    """The URL of an empty database of a scheme that the test has registered."""
    monkeypatch.setattr(registry, "_adapters", dict(registry._adapters))
    monkeypatch.setattr(ElsewhereAdapter, "databases", {})
    register_adapter("elsewhere", ElsewhereAdapter)
    register_adapter("anonymous", AnonymousAdapter)
    register_adapter("opaque", OpaqueAdapter)
    return "elsewhere://a"


def test_a_copy_goes_through_anybodys_adapter_and_back(capsys, bot_db, elsewhere):
    assert main(["copy", "--only", "signal", bot_db, elsewhere]) == 0
    assert rows(elsewhere) == rows(bot_db, ["signal"])
    assert main(["copy", elsewhere, "elsewhere://b"]) == 0
    assert main(["copy", "elsewhere://b", "sqlite:///back.db"]) == 0
    assert rows("sqlite:///back.db") == rows(bot_db, ["signal"])
    capsys.readouterr()
    assert main(["inspect", "--json", elsewhere]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["namespaces"]["default"]["families"] == {"pre-key": 20, "session": 2}


def test_anybodys_adapter_gets_the_same_checks(capsys, bot_db, elsewhere):
    copy_database(bot_db, elsewhere, only=["signal"])
    before = rows(elsewhere)
    for arguments, reason in (
        (["--only", "signal", bot_db, elsewhere], "is not empty"),
        (["--force", elsewhere, "elsewhere://A"], "are the same database"),
        ([bot_db, elsewhere], "cannot hold the persistence store"),
    ):
        assert main(["copy", *arguments]) == 2
        assert reason in capsys.readouterr().err
    del ElsewhereAdapter.databases[elsewhere]["default"][KeyName("pre-key", "7")]
    report = copy_database(bot_db, elsewhere, only=["signal"], resume=True)
    assert (report.copied, report.tables[0].kept) == (1, 21)
    assert rows(elsewhere) == before


def test_what_may_be_the_source_itself_is_not_deleted(bot_db, elsewhere):
    copy_database(bot_db, "anonymous://a", only=["signal"])
    before = rows("anonymous://a")
    with pytest.raises(ConfigurationError, match=r"may be the same database.* no identity\(\)"):
        copy_database("anonymous://a", "anonymous://A", force=True)
    assert rows("anonymous://a") == before
    copy_database("anonymous://a", "anonymous://b")
    copy_database(bot_db, "anonymous://b", only=["signal"], force=True)
    assert rows("anonymous://b") == before


@pytest.mark.parametrize("direction", [1, -1])
def test_an_adapter_without_tables_is_refused(capsys, elsewhere, direction):
    fill("sqlite:///keys.db", ["signal"])
    ends = ["sqlite:///keys.db", "opaque://x"][::direction]
    assert main(["copy", *ends]) == 2
    assert "OpaqueAdapter does not support copying" in capsys.readouterr().err
