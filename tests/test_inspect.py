from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import anyio
import psycopg
import pytest

from tests.stock import (
    CONVERSATIONS,
    MESSAGES,
    SECRETS,
    SENT_AT,
    end_conversations,
    fill,
)
from trunkline.admin import inspect_database
from trunkline.cli import main
from trunkline.errors import ConfigurationError
from trunkline.fsm import FSMAdapter, FSMStore
from trunkline.fsm.adapter import RecordKey, Step
from trunkline.fsm.memory import MemoryFSMAdapter
from trunkline.persistence import Message, PersistenceStore, Room
from trunkline.persistence.memory import MemoryPersistenceAdapter
from trunkline.signal.adapter import Commit, KeyName
from trunkline.signal.memory import MemorySignalAdapter

COUNTS = {
    "rooms": 2,
    "participants": 2,
    "threads": 1,
    "messages": MESSAGES,
    "room_bindings": 2,
    "onboarding_flows": 1,
    "bridge_configs": 2,
    "routing_policies": 1,
    "ingress_subscriptions": 2,
}
STEPS = [
    ("café", None, None, 1),
    ("café", None, "waiting", 1),
    ("shop", "register", "get_email", CONVERSATIONS // 3),
    ("shop", "register", "get_name", CONVERSATIONS - CONVERSATIONS // 3),
]
FAMILIES = {"pre-key": 20, "session": 2}
INBOX = {"sessions": 1, "waiting": 3, "running": 1, "failed": 1}


@pytest.fixture(autouse=True)
def in_a_terminal_of_80_columns(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bot_db():
    fill("sqlite:///bot.db")
    return "sqlite:///bot.db"


@pytest.fixture(params=["sqlite", "postgres"])
def sql_url(request):
    """The URL of an empty SQL database of each kind."""
    if request.param == "sqlite":
        return "sqlite:///bot.db"
    return request.getfixturevalue("postgres_url")


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def inspect_as_json(capsys, *arguments):
    assert main(["inspect", "--json", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def default_namespace(capsys, *arguments):
    return inspect_as_json(capsys, *arguments)["namespaces"]["default"]


def steps(found):
    return [(one["bot_name"], one["flow"], one["state"], one["count"]) for one in found]


# -- what it shows -----------------------------------------------------------------------------


def test_json_shows_all_that_a_sql_database_holds(capsys, sql_url):
    fill(sql_url)
    found = inspect_as_json(capsys, sql_url)
    [contents] = found["namespaces"].values()
    assert contents["counts"] == COUNTS
    assert steps(contents["conversations"]) == STEPS
    assert contents["families"] == FAMILIES
    assert contents["inbox"] == INBOX
    assert [*found["stores"]] == ["persistence", "fsm", "signal", "inbox"]
    for schema in found["stores"].values():
        assert schema["version"] == schema["known_version"] >= 1


def test_json_shows_all_that_valkey_holds(capsys, valkey_url):
    fill(valkey_url, ["fsm", "signal", "inbox"])
    found = inspect_as_json(capsys, valkey_url)
    assert [*found["stores"]] == ["fsm", "signal", "inbox"]
    for schema in found["stores"].values():
        assert schema == {"version": None, "known_version": None}
    [contents] = found["namespaces"].values()
    assert contents["counts"] is None
    assert steps(contents["conversations"]) == STEPS
    assert contents["families"] == FAMILIES
    assert contents["inbox"] == INBOX


def test_the_newest_messages_come_first_with_the_names_of_room_and_sender(capsys, sql_url):
    fill(sql_url, ["persistence"])
    newest = default_namespace(capsys, "--newest", "3", sql_url)["newest_messages"]
    ids = [one["message"]["id"] for one in newest]
    assert len(ids) == 3
    assert ids == sorted(ids, reverse=True)
    assert {(one["room_name"], one["sender_name"]) for one in newest} == {("Lobby", "Ada z")}


@pytest.mark.parametrize("url", ["sqlite:///bot.db", "postgres"])
def test_the_newest_messages_are_the_latest_whatever_their_ids(request, capsys, url):
    url = request.getfixturevalue("postgres_url") if url == "postgres" else url
    times = {"a": 3, "z": 1, "m": 3, "b": 2}

    async def fill_with_them():
        async with PersistenceStore(url) as store:
            for id_, minute in times.items():
                room = await store.save_room(Room.new(name=f"room of {id_}"))
                sent_at = SENT_AT + timedelta(minutes=minute)
                await store.save_message(
                    Message.new(id=id_, room_id=room.id, content=id_, inserted_at=sent_at)
                )

    anyio.run(fill_with_them)
    newest = default_namespace(capsys, "--newest", "3", url)["newest_messages"]
    assert [one["message"]["id"] for one in newest] == ["m", "a", "b"]


def test_any_adapter_can_find_the_newest_messages():
    adapter = MemoryPersistenceAdapter()
    room = adapter.save_room(Room.new(name="Lobby"))
    for number in range(1_500):
        adapter.save_message(
            Message.new(
                id=f"{-number % 1_000:04}-{number}",
                room_id=room.id,
                inserted_at=SENT_AT + timedelta(seconds=number),
            )
        )
    newest = adapter.newest_messages(3)
    assert [one.inserted_at for one in newest] == [
        SENT_AT + timedelta(seconds=number) for number in (1_499, 1_498, 1_497)
    ]


def test_the_report_is_plain_fits_the_terminal_and_has_every_count(capsys, bot_db):
    assert main(["inspect", bot_db]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    for kind, count in COUNTS.items():
        assert re.search(rf"^  {kind.replace('_', ' ')} +{count}\b", text, re.MULTILINE)
    assert "Persistence, schema version 2" in text
    assert "14 conversations of 2 bots" in text
    assert re.search(rf"shop +register +get_name +{CONVERSATIONS - CONVERSATIONS // 3}\b", text)
    assert re.search(r"pre-key +20 +entries", text)
    for kind, count in INBOX.items():
        assert re.search(rf"^  {kind} +{count} *$", text, re.MULTILINE)
    assert re.search(r"Lobby +Ada z +\d+: żółw \\x1b\[31m", text)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_control_characters_of_users_do_not_reach_the_terminal(options):
    evil = "\x1b[2J\x9b31m"

    async def fill_with_them():
        async with PersistenceStore("sqlite:///bot.db") as store:
            room = await store.save_room(Room.new(name=evil))
            await store.save_message(Message.new(room_id=room.id, content=evil))
        async with FSMStore("sqlite:///bot.db") as store:
            await store.init(evil)
            await store.set_state(evil, 1, evil)

    anyio.run(fill_with_them)
    command = [sys.executable, "-m", "trunkline", "inspect", *options, "sqlite:///bot.db"]
    shown = subprocess.run(command, capture_output=True, check=True, timeout=300).stdout.decode()
    assert shown.replace("\n", "").isprintable()
    if options:
        found = json.loads(shown)
        [contents] = found["namespaces"].values()
        assert contents["newest_messages"][0]["room_name"] == evil
        assert contents["conversations"][0]["bot_name"] == evil


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
def test_every_namespace_is_shown_or_the_one_that_is_asked_for(request, capsys, kind):
    url = "sqlite:///bot.db" if kind == "sqlite" else request.getfixturevalue(f"{kind}_url")

    async def fill_with_them():
        for count, namespace in enumerate(("shop", "ü}:fsm:[*"), 1):
            async with FSMStore(url, namespace=namespace) as store:
                await store.init("bot")
                for key in range(count):
                    await store.set_state("bot", key, "waiting")

    anyio.run(fill_with_them)
    found = inspect_as_json(capsys, url)["namespaces"]
    assert {name: steps(one["conversations"]) for name, one in found.items()} == {
        "shop": [("bot", None, "waiting", 1)],
        "ü}:fsm:[*": [("bot", None, "waiting", 2)],
    }
    assert main(["inspect", url]) == 0
    text = capsys.readouterr().out
    assert text.index(", namespace shop") < text.index(", namespace ü}:fsm:[*")
    assert [*inspect_as_json(capsys, "--namespace", "shop", url)["namespaces"]] == ["shop"]


def test_newest_messages_can_be_left_out(capsys, bot_db):
    assert main(["inspect", "--newest", "0", bot_db]) == 0
    assert "Newest messages" not in capsys.readouterr().out


def test_of_many_steps_the_first_are_shown(capsys):
    async def fill_with_steps():
        from trunkline.fsm import FSMStore

        async with FSMStore("sqlite:///bot.db") as store:
            await store.init("bot")
            for number in range(45):
                await store.set_state("bot", number, f"step-{number:02}")

    anyio.run(fill_with_steps)
    assert main(["inspect", "sqlite:///bot.db"]) == 0
    text = capsys.readouterr().out
    assert text.count("step-") == 30
    assert "and 15 more steps; --json gives all" in text


def test_a_store_that_is_not_there_is_not_shown(capsys):
    fill("sqlite:///bot.db", ["signal"])
    assert main(["inspect", "sqlite:///bot.db"]) == 0
    text = capsys.readouterr().out
    assert "Signal" in text
    assert "Persistence" not in text
    assert "Fsm" not in text


def test_empty_stores_are_shown_as_empty(capsys):
    async def open_all():
        from trunkline import Trunkline

        async with Trunkline("sqlite:///bot.db"):
            pass

    anyio.run(open_all)
    assert main(["inspect", "sqlite:///bot.db"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  messages +0\b", text, re.MULTILINE)
    assert "0 conversations of 0 bots" in text
    assert "no entries" in text


def test_conversations_whose_time_is_over_are_not_counted(capsys, sql_url):
    end_conversations(sql_url, 3)
    assert default_namespace(capsys, sql_url)["conversations"] == []


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_neither_credentials_nor_values_are_shown(capsys, bot_db, options):
    assert main(["inspect", *options, bot_db]) == 0
    text = capsys.readouterr().out
    assert not any(secret in text for secret in SECRETS)
    assert "älice" not in text


def test_a_database_is_looked_into_beside_a_bot_that_writes_to_it(sql_url):
    async def look():
        async with PersistenceStore(sql_url) as store:
            room = await store.get_or_create_room_by_external_binding("irc", "libera", "#x")
            await store.save_message(Message.new(room_id=room.id, content="hello"))
            inspection = await anyio.to_thread.run_sync(inspect_database, sql_url)
            await store.save_message(Message.new(room_id=room.id, content="still here"))
            return inspection

    inspection = anyio.run(look)
    assert inspection.namespaces["default"].counts["messages"] == 1


# -- what it leaves alone ----------------------------------------------------------------------


def test_a_file_that_does_not_exist_is_reported_and_not_created(capsys):
    assert main(["inspect", "sqlite:///missing.db"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "trunkline: missing.db does not exist\n"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_database_of_another_program_is_reported_and_left_as_it_is(capsys, options):
    with closing(sqlite3.connect("other.db")) as connection:
        connection.execute("CREATE TABLE notes (text)")
    before = digest("other.db")
    assert main(["inspect", *options, "sqlite:///other.db"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "trunkline: sqlite:///other.db holds none of trunkline's stores\n"
    assert digest("other.db") == before
    assert [path.name for path in Path().iterdir()] == ["other.db"]


def test_a_backup_without_a_write_ahead_log_is_shown_and_left_as_it_is(capsys, bot_db):
    with closing(sqlite3.connect("bot.db")) as connection:
        connection.execute("VACUUM INTO 'backup.db'")
    before = digest("backup.db")
    assert default_namespace(capsys, "sqlite:///backup.db")["counts"] == COUNTS
    assert digest("backup.db") == before


def test_an_empty_postgresql_is_reported_and_stays_empty(capsys, postgres_url):
    assert main(["inspect", postgres_url]) == 1
    assert "holds none of trunkline's stores" in capsys.readouterr().err
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        assert found.fetchone() == (0,)


def test_an_empty_valkey_is_reported(capsys, valkey_url):
    assert main(["inspect", valkey_url]) == 1
    assert capsys.readouterr().err == f"trunkline: {valkey_url} holds none of trunkline's stores\n"


def test_a_store_of_another_version_is_reported_and_not_read(capsys, bot_db):
    with closing(sqlite3.connect("bot.db")) as connection, connection:
        connection.execute("UPDATE trunkline_schema SET version = 99 WHERE component = 'fsm'")
    assert main(["inspect", bot_db]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Fsm, schema version 99 This trunkline works with schema version 2" in text
    assert "did not look inside: upgrade trunkline." in text
    assert "Persistence, schema version 2 rooms" in text
    found = inspect_as_json(capsys, bot_db)
    assert found["stores"]["fsm"] == {"version": 99, "known_version": 2}
    assert found["namespaces"]["default"]["conversations"] is None
    with closing(sqlite3.connect("bot.db")) as connection:
        query = "SELECT version FROM trunkline_schema WHERE component = 'fsm'"
        assert connection.execute(query).fetchone() == (99,)


# -- what can be wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://", "what is kept in memory ends with its process"),
        ("sqlite://", "what is kept in memory ends with its process"),
        ("sqlite:///.", "is a folder, not a database file"),
        ("sqlite:///text.db", "file is not a database"),
        ("bot.db", "a store's URL looks like"),
        ("mysql://me:hunter2@localhost/bot", "no adapter for 'mysql://me:***@localhost/bot'"),
        ("postgresql://me:hunter2@127.0.0.1:1/bot", "postgresql://me:***@127.0.0.1:1/bot"),
        ("valkey://me:hunter2@127.0.0.1:1/0", "valkey://me:***@127.0.0.1:1/0"),
    ],
)
def test_a_url_that_cannot_work_ends_with_2_and_one_line_without_the_password(capsys, url, told):
    Path("text.db").write_text("This is no database, but a text of some length.\n" * 99)
    assert main(["inspect", url]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("trunkline: ")
    assert captured.err.count("\n") == 1
    assert told in captured.err
    assert "hunter2" not in captured.err


def test_a_wrong_password_is_not_shown(capsys, valkey_server, valkey_url):
    valkey_server.execute("ACL", "SETUSER", "ada", "on", ">right", "~*", "+@all")
    try:
        assert main(["inspect", valkey_url.replace("://", "://ada:hunter2@")]) == 2
    finally:
        valkey_server.execute("ACL", "DELUSER", "ada")
    captured = capsys.readouterr()
    assert "ada:***@" in captured.err
    assert "hunter2" not in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--newest", "-1", "x"], ["--newest", "1001", "x"]])
def test_wrong_usage_ends_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", *arguments])
    assert exit_.value.code == 2


def test_tables_that_are_missing_are_reported_in_one_line(capsys, bot_db):
    with closing(sqlite3.connect("bot.db")) as connection, connection:
        connection.execute("DROP TABLE trunkline_fsm")
    assert main(["inspect", bot_db]) == 2
    assert "sqlite:///bot.db: no such table: trunkline_fsm" in capsys.readouterr().err


# -- adapters of other people --------------------------------------------------------------------


def test_an_fsm_adapter_need_not_be_able_to_tell_what_it_holds():
    class Plain(MemoryFSMAdapter):
        summary = FSMAdapter.summary

    with pytest.raises(NotImplementedError, match="Plain does not support summaries"):
        Plain().summary()


def test_a_signal_adapter_counts_what_it_holds_by_its_names():
    adapter = MemorySignalAdapter()
    adapter.commit(Commit({KeyName("session", "a"): b"1", KeyName("pre-key", "1"): b"2"}, 1))
    assert adapter.summary() == {"session": 1, "pre-key": 1}


def test_the_fsm_in_memory_reports_what_it_holds():
    now = [0]
    adapter = MemoryFSMAdapter(lambda: now[0])
    for number, state in enumerate(("a", "a", "b")):
        key, ttl_ms = RecordKey("bot", str(number)), 10 if state == "b" else None
        adapter.save(key, Step("flow", state), {}, ttl_ms)
    assert adapter.summary() == {("bot", Step("flow", "a")): 2, ("bot", Step("flow", "b")): 1}
    now[0] = 10
    assert adapter.summary() == {("bot", Step("flow", "a")): 2}


def test_inspecting_raises_what_the_command_prints():
    with pytest.raises(ConfigurationError, match="does not exist"):
        inspect_database("sqlite:///missing.db")
