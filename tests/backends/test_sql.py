"""SQL databases: transactions, schema versions, lost connections, and errors that say why."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from contextlib import closing

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import NullPool

from tests.servers.writer import open_with_steps, processes
from trunkline.backends import Conflict, ConnectionLost
from trunkline.backends.sql import Database, database_at
from trunkline.backends.sql.postgresql import _MIGRATION_LOCK
from trunkline.errors import ConfigurationError, InvalidModel, StoreError, StoreUnavailable

words = sa.Table(
    "words",
    sa.MetaData(),
    sa.Column("word", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer),
)


def make_words(connection: sa.Connection) -> None:
    words.create(connection)


def add_word(word: str):
    """A migration that adds a word."""

    def step(connection: sa.Connection) -> None:
        connection.execute(sa.insert(words), {"word": word})

    return step


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'words.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def connect():
    """Opens databases, which are closed when the test is over."""
    opened = []

    def connect(url: str, *steps, component: str = "words", timeout_ms: int = 2_000) -> Database:
        migrations = (make_words, *steps)
        opened.append(
            database_at(url, component=component, migrations=migrations, timeout_ms=timeout_ms)
        )
        opened[-1].open()
        return opened[-1]

    yield connect
    for database in opened:
        database.close()


def add(database: Database, word: str) -> None:
    database.connection.execute(sa.insert(words), {"word": word})


def add_together(database: Database, *together: str) -> None:
    with database.transaction():
        for word in together:
            add(database, word)


def stored(database: Database) -> list[str]:
    with database.transaction(read_only=True):
        return sorted(database.connection.execute(sa.select(words.c.word)).scalars())


# -- transactions ----------------------------------------------------------------------------------


def test_what_was_done_in_a_transaction_is_there_for_others_once_it_is_left(url, connect):
    database, other = connect(url), connect(url)
    with database.transaction():
        add(database, "a")
        assert stored(other) == []
    assert stored(other) == ["a"]


def test_a_transaction_that_is_left_by_an_exception_has_done_nothing(url, connect):
    database = connect(url)

    def change_ones_mind() -> None:
        with database.transaction():
            add(database, "a")
            raise KeyError

    with pytest.raises(KeyError):
        change_ones_mind()
    add_together(database, "b")
    assert stored(database) == ["b"]


def test_a_statement_that_fails_undoes_the_transaction_and_the_next_one_works(url, connect):
    database = connect(url)
    with pytest.raises(StoreError):
        add_together(database, "a", "a")
    add_together(database, "b")
    assert stored(database) == ["b"]


def test_a_failure_that_was_swallowed_is_not_committed_as_a_success(postgres_url, connect):
    database = connect(postgres_url)

    def swallow() -> None:
        with database.transaction():
            add(database, "a")
            with pytest.raises(IntegrityError):
                add(database, "a")

    with pytest.raises(StoreError, match="failed, and was not handled"):
        swallow()
    assert stored(database) == []


def test_a_database_in_memory_lasts_as_long_as_its_connection(connect):
    for url in ("sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"):
        database = connect(url)
        assert database.is_memory
        with pytest.raises(StoreError):
            add_together(database, "a", "a")
        add_together(database, "b")
        assert stored(database) == ["b"]
    shared = connect("sqlite:///file:words?mode=memory&cache=shared&uri=true")
    assert shared.is_memory


def test_a_transaction_that_sqlite_has_rolled_back_itself_is_over(connect):
    database = connect("sqlite://")
    add_together(database, "a")

    def meet_it() -> None:
        with database.transaction():
            add(database, "b")
            database.connection.exec_driver_sql("INSERT OR ROLLBACK INTO words VALUES ('a', 1)")

    with pytest.raises(StoreError):
        meet_it()
    add_together(database, "c")
    assert stored(database) == ["a", "c"]


def test_upsert_replaces_a_row_and_insert_absent_says_which_were_not_there(url, connect):
    database = connect(url)
    with database.transaction():
        for number in (1, 2):
            database.upsert(words, [{"word": "a", "number": number}])
        made = [
            bool(database.insert_absent(words, [{"word": word, "number": 3}]))
            for word in ("a", "b", "b")
        ]
    assert made == [False, True, False]
    with database.transaction():
        rows = database.connection.execute(sa.select(words).order_by(words.c.word)).all()
    assert rows == [("a", 2), ("b", 3)]


@pytest.mark.parametrize("count", [1, 2, 3, 127, 128, 129, 1000])
def test_upsert_of_many_rows_stores_each_of_them(url, connect, count):
    database = connect(url)
    rows = [{"number": number, "word": f"word {number}"} for number in range(count)]
    with database.transaction():
        database.upsert(words, rows)
        database.upsert(words, [{"word": "word 0", "number": -1}])
    with database.transaction():
        found = database.connection.execute(sa.select(words.c.number)).scalars().all()
    assert sorted(found) == [-1, *range(1, count)]


def test_find_gives_the_rows_that_are_there(url, connect):
    database = connect(url)
    odd = ["", "it's", 'a "quoted" one', "[1]", "null", "\u2028", "\U0001f600", "%"]
    with database.transaction():
        database.upsert(words, [{"word": word, "number": len(word)} for word in odd])
        assert list(database.find(words, [])) == []
        wanted = [(word,) for word in [*odd, "missing", odd[1]]]
        found = database.find(words, wanted[:-2])
        assert sorted(map(tuple, found)) == sorted((word, len(word)) for word in odd)
        names = database.find(words, wanted[1:3], [words.c.word])
        assert {row[0] for row in names} == {odd[1], odd[2]}


def test_a_text_of_another_type_is_text(url, connect):
    class Name(str):
        def __str__(self):
            return "something else"

    database = connect(url)
    with database.transaction():
        database.upsert(words, [{"word": Name("a"), "number": 1}])
        assert [tuple(row) for row in database.find(words, [(Name("a"),)])] == [("a", 1)]


def test_a_parameter_that_was_forgotten_is_no_null(tmp_path, connect):
    database = connect(f"sqlite:///{tmp_path / 'words.db'}")
    statement = sa.select(words.c.number).where(words.c.word == sa.bindparam("word"))
    with database.transaction(), pytest.raises(KeyError):
        database.execute(statement, {"wrod": "a"})


def test_damage_behind_the_first_row_is_an_answer_and_no_bug(tmp_path, connect):
    path = tmp_path / "words.db"
    database = connect(f"sqlite:///{path}")
    rows = [{"word": f"{number:04}" + "x" * 900, "number": number} for number in range(200)]
    with database.transaction():
        database.upsert(words, rows)
    database.close()
    damage(path, b"0100x")

    with pytest.raises(StoreUnavailable, match="SQLITE_CORRUPT"), database.transaction():
        database.execute(sa.select(words.c.word, words.c.number), {})
    with database.transaction():
        assert len(database.find(words, [(rows[0]["word"],)])) == 1


def damage(path, text):
    """Spoil the page of a database file that holds `text`."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    leaf = 13
    (start,) = (
        start
        for start in range(0, len(content), size)
        if content[start] == leaf and text in content[start : start + size]
    )
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)


def test_a_text_that_cannot_be_read_is_not_shown(tmp_path, connect):
    path = tmp_path / "words.db"
    database = connect(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO words VALUES (CAST(x'73656372657420FF' AS TEXT), 1)")
    with (
        pytest.raises(StoreUnavailable, match="Could not decode") as caught,
        database.transaction(),
    ):
        database.execute(sa.select(words.c.word), {})
    assert "secret" not in str(caught.value)


def test_find_of_more_keys_than_a_statement_takes_parameters(url, connect):
    database = connect(url)
    with database.transaction():
        rows = [{"word": str(number), "number": number} for number in range(70_000)]
        database.upsert(words, rows)
        assert len(database.find(words, [(row["word"],) for row in rows])) == 70_000


def test_find_looks_each_key_up(tmp_path, connect):
    database = connect(f"sqlite:///{tmp_path / 'words.db'}")
    seen = []
    with database.transaction():
        driver = database.connection.connection.dbapi_connection
        driver.set_trace_callback(seen.append)
        database.find(words, [("a",)])
        driver.set_trace_callback(None)
        plan = driver.execute(f"EXPLAIN QUERY PLAN {seen[-1]}").fetchall()
    steps = [step[-1] for step in plan]
    assert any(step.startswith("SEARCH one") for step in steps), steps
    assert not any(step.startswith("SCAN one") for step in steps), steps


def test_a_statement_that_sqlite_refuses_is_what_sqlalchemy_makes_of_it(tmp_path, connect):
    database = connect(f"sqlite:///{tmp_path / 'words.db'}")
    statement, row = sa.insert(words), {"word": "secret", "number": 1}
    with database.transaction():
        database.execute(statement, row)
    with database.transaction(), pytest.raises(IntegrityError) as caught:
        database.execute(statement, row)
    assert "secret" not in str(caught.value)
    with database.transaction():
        assert list(database.find(words, [("secret",)])) == [("secret", 1)]


def test_sqlite_is_set_up_to_be_durable_and_to_let_readers_read(tmp_path, connect):
    database = connect(f"sqlite:///{tmp_path / 'words.db'}")
    pragmas = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    for connection in (database, sibling := database.sibling()):
        with connection.transaction(read_only=True):
            for pragma, value in pragmas.items():
                found = connection.connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()
                assert found == value, pragma
    sibling.close()


def test_postgresql_is_set_up_to_give_up_in_time(postgres_url, connect):
    database = connect(postgres_url, timeout_ms=4_000)
    settings = {
        "statement_timeout": "4s",
        "lock_timeout": "200ms",
        "idle_in_transaction_session_timeout": "4s",
        "transaction_isolation": "read committed",
    }
    with database.transaction():
        for name, value in settings.items():
            assert database.connection.exec_driver_sql(f"SHOW {name}").scalar() == value, name


def test_timeouts_in_a_url_take_precedence(postgres_url, connect):
    database = connect(f"{postgres_url}&connect_timeout=77")
    with database.transaction():
        parameters = database._driver.info.get_parameters()
    assert parameters["connect_timeout"] == "77"
    assert parameters["keepalives_idle"] == "2"


def test_a_read_only_transaction_changes_nothing_on_postgresql(postgres_url, connect):
    database = connect(postgres_url)
    with pytest.raises(StoreUnavailable, match="read-only"), database.transaction(read_only=True):
        add(database, "a")
    assert stored(database) == []


# -- schema versions -------------------------------------------------------------------------------


def version(database: Database) -> int:
    with database.transaction(read_only=True):
        return database.schema_version()


def test_opening_makes_the_schema_and_opening_again_leaves_it(url, connect):
    for _ in range(2):
        database = connect(url, add_word("a"))
        assert version(database) == 2
        assert stored(database) == ["a"]


def test_opening_takes_an_older_schema_through_the_steps_it_lacks(url, connect):
    connect(url, add_word("a")).close()
    database = connect(url, add_word("a"), add_word("b"), add_word("c"))
    assert version(database) == 4
    assert stored(database) == ["a", "b", "c"]


def test_a_step_that_fails_leaves_the_schema_as_it_was(url, connect):
    connect(url, add_word("a")).close()
    with pytest.raises(StoreError):
        connect(url, add_word("a"), add_word("b"), add_word("a"))
    database = connect(url, add_word("a"))
    assert version(database) == 2
    assert stored(database) == ["a"]


def test_a_schema_of_a_newer_version_is_refused_and_left_alone(url, connect):
    connect(url, add_word("a"), add_word("b")).close()
    with pytest.raises(
        ConfigurationError,
        match=r"has version 3 of the words schema, .* knows versions up to 2: upgrade trunkline",
    ):
        connect(url, add_word("a"))
    assert version(connect(url, add_word("a"), add_word("b"))) == 3


def test_several_components_keep_their_versions_apart_in_one_database(url, connect):
    database = connect(url, add_word("a"))
    other = database_at(
        url, component="other", migrations=(add_word("x"), add_word("y"), add_word("z"))
    )
    with closing(other):
        other.open()
        assert version(other) == 3
        assert version(database) == 2
        assert stored(other) == ["a", "x", "y", "z"]


def test_processes_that_open_a_database_at_once_make_its_schema_once(url, tmp_path):
    count = 6
    barrier, failures = processes.Barrier(count), processes.SimpleQueue()
    openers = [
        processes.Process(target=open_with_steps, args=(url, barrier, failures))
        for _ in range(count)
    ]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(300)
    assert [opener.exitcode for opener in openers] == [0] * count
    assert failures.empty(), failures.get()


def test_opening_waits_for_another_process_that_takes_the_schema_further(postgres_url, connect):
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    migrating = sa.create_engine(url, poolclass=NullPool).connect()
    migrating.exec_driver_sql(f"SELECT pg_advisory_lock({_MIGRATION_LOCK})")
    timer = threading.Timer(0.5, migrating.close)
    timer.start()
    database = connect(postgres_url, timeout_ms=5_000)  # waits 250 ms for any other lock
    timer.join()
    assert version(database) == 1


def test_a_step_may_take_longer_than_a_call(postgres_url, connect):
    def take_long(connection: sa.Connection) -> None:
        threading.Event().wait(0.2)  # as Python may, between statements
        connection.exec_driver_sql("SELECT pg_sleep(1)")

    database = connect(postgres_url, take_long, timeout_ms=100)
    assert version(database) == 2
    with pytest.raises(StoreUnavailable, match="timeout"), database.transaction():
        take_long(database.connection)


def test_a_sibling_leaves_the_schema_to_the_one_it_comes_from(url, connect):
    database = connect(url)
    with closing(database.sibling()) as sibling, database.transaction():
        add(database, "a")
        sibling.open()  # does not wait for the transaction
        assert stored(sibling) == []


# -- lost connections ------------------------------------------------------------------------------


def backend(database: Database) -> int:
    """The process of the server that serves a database's connection."""
    with database.transaction():
        pid: int = database.connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    return pid


def end(server, pid: int) -> None:
    """End a backend as an administrator would, and wait until it has."""
    assert server.execute(f"SELECT pg_terminate_backend({pid}, 10000)") == [(True,)]


def test_a_connection_that_broke_between_transactions_is_made_again(
    postgres_url, postgres_server, connect
):
    database = connect(postgres_url)
    before = database.connections
    end(postgres_server, backend(database))
    with database.transaction():
        add(database, "a")
    assert stored(database) == ["a"]
    assert database.connections == before + 1


def test_a_connection_that_breaks_in_a_transaction_undoes_it(
    postgres_url, postgres_server, connect
):
    database = connect(postgres_url)
    pid = backend(database)

    def break_off() -> None:
        with database.transaction():
            add(database, "a")
            end(postgres_server, pid)
            add(database, "b")

    with pytest.raises(ConnectionLost, match="terminating connection"):
        break_off()
    assert stored(database) == []


def test_a_connection_that_breaks_before_the_commit_is_no_success(
    postgres_url, postgres_server, connect
):
    database = connect(postgres_url)
    pid = backend(database)

    def break_off() -> None:
        with database.transaction():
            add(database, "a")
            end(postgres_server, pid)

    with pytest.raises(ConnectionLost):
        break_off()
    assert stored(database) == []


def test_a_connection_that_broke_does_not_hide_an_exception(postgres_url, postgres_server, connect):
    database = connect(postgres_url)
    pid = backend(database)

    def fail() -> None:
        with database.transaction():
            end(postgres_server, pid)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert stored(database) == []


def test_a_connection_that_broke_without_the_adapter_saying_so_is_made_again(
    postgres_url, postgres_server, connect
):
    database = connect(postgres_url)
    pid = backend(database)

    def fail() -> None:
        with database.transaction():
            end(postgres_server, pid)
            with pytest.raises(DBAPIError):
                add(database, "a")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    add_together(database, "b")
    assert stored(database) == ["b"]


def test_a_backend_that_stands_still_is_given_up(postgres_url, connect):
    database = connect(postgres_url, timeout_ms=200)
    pid = backend(database)

    def meet_it() -> None:
        with database.transaction():
            os.kill(pid, signal.SIGSTOP)
            add(database, "a")

    try:
        with pytest.raises(ConnectionLost, match="does not answer"):
            meet_it()
        add_together(database, "b")  # through another backend
    finally:
        os.kill(pid, signal.SIGCONT)
    assert stored(database) == ["b"]


# -- others in the way -----------------------------------------------------------------------------


def test_a_transaction_waits_for_another_process_to_let_go_of_sqlite(tmp_path, connect):
    path = tmp_path / "words.db"
    database = connect(f"sqlite:///{path}")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.3, other.execute, ["COMMIT"])
        timer.start()
        with database.transaction():
            assert not other.in_transaction
            add(database, "a")
        timer.join()
    assert stored(database) == ["a"]


def test_sqlite_that_is_locked_for_too_long_is_a_conflict(tmp_path, connect):
    path = tmp_path / "words.db"
    database = connect(f"sqlite:///{path}", timeout_ms=200)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Conflict, match="database is locked"), database.transaction():
            pytest.fail("it was not locked")
        assert stored(database) == [], "one can still read"
    with database.transaction():
        add(database, "a")


def test_a_row_that_is_locked_for_too_long_is_a_conflict(postgres_url, connect):
    database, other = connect(postgres_url), connect(postgres_url)
    with other.transaction():
        add(other, "a")
        with pytest.raises(Conflict, match="lock timeout"), database.transaction():
            add(database, "a")


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("40001", Conflict),  # serialization_failure
        ("40P01", Conflict),  # deadlock_detected
        ("53100", StoreUnavailable),  # disk_full
        ("53200", StoreUnavailable),  # out_of_memory
        ("57014", StoreUnavailable),  # query_canceled
        ("58030", StoreUnavailable),  # io_error
        ("25006", ConnectionLost),  # read_only_sql_transaction: the server became a standby
        ("57P01", ConnectionLost),  # admin_shutdown
        ("08006", ConnectionLost),  # connection_failure
        ("42501", ConfigurationError),  # insufficient_privilege
        ("22001", InvalidModel),  # string_data_right_truncation
        ("XX000", StoreError),  # internal_error: nothing that a store expects
    ],
)
def test_what_the_server_says_is_translated_to_what_it_means(postgres_url, connect, state, kind):
    database = connect(postgres_url)

    def meet() -> None:
        with database.transaction():
            add(database, "a")
            database.connection.exec_driver_sql(
                f"DO $$ BEGIN RAISE 'no luck' USING ERRCODE = '{state}'; END $$"
            )

    with pytest.raises(kind, match="no luck") as met:
        meet()
    assert type(met.value) is kind
    with database.transaction():
        add(database, "b")
    assert stored(database) == ["b"]


def test_a_value_is_not_shown_in_an_error(url, connect):
    database = connect(url)
    with pytest.raises(StoreError) as refused:
        add_together(database, "hunter2", "hunter2")
    assert "hunter2" not in str(refused.value) + repr(refused.value)
    shown = traceback.format_exception(refused.value)
    assert "hunter2" not in "".join(shown).replace('"hunter2", "hunter2"', "")


# -- URLs and files that cannot work ---------------------------------------------------------------


def refused(url: str, kind: type[Exception] = ConfigurationError) -> str:
    """What is said of a database that cannot be opened; its password is nowhere in it."""
    with pytest.raises(kind) as caught:
        database_at(url, component="words", migrations=(make_words,), timeout_ms=2_000).open()
    assert type(caught.value) in (kind, ConnectionLost)
    shown = "".join(traceback.format_exception(caught.value))
    shown += repr(caught.value) + repr(caught.value.args)
    assert "hunter2" not in shown
    return str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "words.db"
    path.write_bytes(b"Dear diary, " * 1_000)
    assert "file is not a database (SQLITE_NOTADB)" in refused(f"sqlite:///{path}")
    assert path.read_bytes() == b"Dear diary, " * 1_000


def test_a_folder_is_refused(tmp_path):
    assert refused(f"sqlite:///{tmp_path}") == f"{tmp_path} is a folder, not a database file"


def test_a_folder_that_is_missing_is_named(tmp_path):
    path = tmp_path / "missing" / "words.db"
    assert refused(f"sqlite:///{path}") == f"the folder of {path} does not exist"


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    path = tmp_path / "loop.db"
    path.symlink_to(path)
    assert "unable to open database file (SQLITE_CANTOPEN" in refused(f"sqlite:///{path}")


def test_a_file_that_can_only_be_read_is_refused(tmp_path, connect):
    path = tmp_path / "words.db"
    connect(f"sqlite:///{path}").close()
    url = f"sqlite:///file:{path}?mode=ro&uri=true"
    assert "attempt to write a readonly database (SQLITE_READONLY)" in refused(url)


def test_a_new_file_that_could_only_be_read_is_refused(tmp_path):
    url = f"sqlite:///file:{tmp_path / 'words.db'}?mode=ro&uri=true"
    assert "unable to open database file (SQLITE_CANTOPEN)" in refused(url)


def test_a_file_that_becomes_read_only_says_so_until_it_is_not(tmp_path, connect):
    database = connect(f"sqlite:///{tmp_path / 'words.db'}")
    with database.transaction():
        database.connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(ConfigurationError, match="SQLITE_READONLY"), database.transaction():
        add(database, "a")
    with database.transaction():
        database.connection.exec_driver_sql("PRAGMA query_only = OFF")
        add(database, "b")
    assert stored(database) == ["b"]


def test_a_file_that_was_damaged_is_opened_anew_and_says_so(tmp_path, connect):
    path = tmp_path / "words.db"
    database = connect(f"sqlite:///{path}")
    add_together(database, "a")
    database.close()
    content = path.read_bytes()
    path.write_bytes(content[: 3 * 4096] + b"\xff" * (len(content) - 3 * 4096))
    with pytest.raises(StoreUnavailable, match=r"malformed \(SQLITE_CORRUPT"):
        stored(database)
    damaged = database.connections
    path.write_bytes(content)
    assert stored(database) == ["a"]
    assert database.connections == damaged + 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://words.db", "a file is sqlite:///relative.db"),
        ("sqlite+aiosqlite:///words.db", "a database is sqlite:// or postgresql://"),
        ("postgresql+asyncpg://bot:hunter2@host/db", "a database is sqlite:// or postgresql://"),
        ("postgresql+psycopg2://bot:hunter2@host/db", "a database is sqlite:// or postgresql://"),
        ("mysql://bot:hunter2@host/db", "a database is sqlite:// or postgresql://"),
        ("postgresql://bot:hunter2", "is not a database URL"),
        ("postgresql://bot@host:hunter2/db", "is not a database URL"),
        ("postgresql://bot:hun@hunter2@host/db", "an '@' in a password is written %40"),
        ("postgresql://bot:hunter2@127.0.0.1/db?colour=blue", 'invalid connection option "colour"'),
    ],
)
def test_a_url_that_cannot_work_is_refused(url, said):
    assert said in refused(url)


def test_a_wrong_password_is_reported_and_not_shown(postgres_server):
    with postgres_server.user_with_password("bot", "right") as url:
        assert 'password authentication failed for user "bot"' in refused(url("hunter2"))
        assert "no password supplied" in refused(url(""))
        psycopg.connect(url("right")).close()


def test_a_database_that_is_not_there_is_named(postgres_server):
    url = postgres_server.url("nowhere", password="hunter2")
    assert 'database "nowhere" does not exist' in refused(url)


def test_a_user_who_is_not_there_is_named(postgres_server):
    url = postgres_server.url(user="nobody", password="hunter2")
    assert 'role "nobody" does not exist' in refused(url)


def test_a_user_who_may_not_create_tables_is_reported(postgres_server, postgres_url):
    name = postgres_url.partition("@/")[2].partition("?")[0]
    with postgres_server.user_with_password("bot", "right") as url:
        assert "permission denied for schema public" in refused(url("right", name))


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:1", "/nowhere", "no-such-host.invalid"])
def test_a_server_that_cannot_be_reached_is_unavailable(host):
    address = f"/db?host={host}" if host.startswith("/") else f"{host}/db"
    said = refused(f"postgresql://bot:hunter2@{address}", StoreUnavailable)
    assert said.startswith(f"words at postgresql://bot:***@{address}: ")
    # Versions of psycopg differ in whether they wrap what the system's resolver says.
    assert "fail" in said or "not known" in said
    assert "\n" not in said


def test_nothing_that_is_logged_shows_the_password(caplog, postgres_server):
    with caplog.at_level(logging.DEBUG):
        refused("postgresql://bot:hunter2@127.0.0.1:1/db", StoreUnavailable)
        database = database_at(
            postgres_server.url(password="hunter2"), component="words", migrations=()
        )
        with closing(database), database.transaction():
            database.connection.exec_driver_sql("SELECT 1")
    assert "hunter2" not in caplog.text
    assert "hunter2" not in repr(database) + repr(database._engine) + str(
        vars(database)["shown_url"]
    )


def test_without_the_driver_the_extra_is_named():
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from trunkline.persistence import PersistenceStore\n"
        "try: PersistenceStore('postgresql://bot:hunter2@host/db')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert run.stdout.startswith("ConfigurationError 'postgresql://bot:***@host/db' needs psycopg")
    assert "pip install 'trunkline[postgres]'" in run.stdout


# -- what a call costs its neighbours --------------------------------------------------------------


def test_a_statement_that_takes_too_long_is_interrupted(url, connect):
    database = connect(url, timeout_ms=100)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"

    def wait() -> None:
        with database.transaction():
            add(database, "a")
            database.execute(sa.text(endless), {})

    with pytest.raises(StoreUnavailable, match=r"longer than 100 ms|statement timeout"):
        wait()
    assert stored(database) == []
    add_together(database, "b")
    assert stored(database) == ["b"]


def test_a_migration_may_take_longer_than_a_statement(url, connect):
    def take_long(connection: sa.Connection) -> None:
        if connection.dialect.name == "sqlite":
            rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 4000000)"
            connection.exec_driver_sql(f"{rows} SELECT count(*) FROM n").scalar()
        else:
            connection.exec_driver_sql("SELECT pg_sleep(0.7)")

    database = connect(url, take_long, timeout_ms=500)
    assert version(database) == 2


def test_the_changes_of_a_transaction_are_counted(url, connect):
    database = connect(url)
    with database.transaction():
        before = database.changes()
        assert stored_inside(database) == []
        assert database.changes() == before
        add(database, "a")
        assert database.changes() > before


def test_a_transaction_in_which_a_statement_failed_does_not_say_what_it_changed(
    postgres_url, connect
):
    database = connect(postgres_url)

    def fail() -> None:
        with database.transaction():
            with pytest.raises(DBAPIError):
                database.connection.exec_driver_sql("SELECT 1 / 0")
            assert database.changes() is None
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def stored_inside(database: Database) -> list[str]:
    return [row[0] for row in database.connection.exec_driver_sql("SELECT word FROM words")]
