"""SQL databases through SQLAlchemy Core: opened by URL, one schema for SQLite and PostgreSQL."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from functools import cache
from itertools import chain
from operator import itemgetter
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    OperationalError,
)
from sqlalchemy.pool import NullPool
from xxhash import xxh3_64_intdigest

from trunkline.backends.adapter import Adapter
from trunkline.backends.url import hide_password
from trunkline.backends.workers import Conflict, ConnectionLost
from trunkline.errors import ConfigurationError, InvalidModel, StoreUnavailable

__all__ = ("AdvisoryLocks", "Database", "Migration", "Result", "SQLAdapter")

R = TypeVar("R")

#: One step from a schema version to the next. It runs inside a transaction.
Migration: TypeAlias = Callable[[sa.Connection], None]

#: Where the versions of the schemas stand: one row a store, since several may share a database.
_VERSIONS = sa.Table(
    "trunkline_schema",
    sa.MetaData(),
    sa.Column("component", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

#: Any number will do, as long as every trunkline takes the same: it keeps two processes from
#: migrating one PostgreSQL database at once.
_MIGRATION_LOCK = 7_446_821

#: SQLite's names of errors, by how they begin: what is no database, or cannot be written to;
#: another connection holds a lock; a bug in a statement; a file that should be opened anew.
_SQLITE_MISTAKES = ("SQLITE_NOTADB", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_AUTH")
_SQLITE_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
_SQLITE_BUGS = ("SQLITE_ERROR", "SQLITE_RANGE", "SQLITE_MISMATCH", "SQLITE_MISUSE")
_SQLITE_BROKEN = ("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CANTOPEN")

#: PostgreSQL's SQLSTATEs, by how they begin: wrong user, password, database or schema, or missing
#: rights; a session that is over, or leads to a server that only reads; another transaction holds
#: a lock or was first; a server that cannot do it now.
_POSTGRES_MISTAKES = ("28", "3D", "3F", "42501")
_POSTGRES_LOST = ("08", "57P", "25006", "25P03")
_POSTGRES_CONFLICTS = ("40001", "40P01", "55P03")
_POSTGRES_UNAVAILABLE = ("53", "57", "58")
#: A server that refuses a connection sends no SQLSTATE along.
_POSTGRES_REFUSALS = re.compile(
    "authentication failed|no password supplied|no pg_hba.conf entry|not permitted to log in"
    "|(role|database) .* does not exist|permission denied"
)

#: How long SQLite itself waits for a lock, in seconds. It asks ever more seldom, so that under
#: steady load from other processes it might ask in vain for long; we ask again after a short rest.
_SQLITE_WAIT = 0.1
_LONGEST_REST = 0.01


#: Rows that one statement stores at most; SQLite takes some 30,000 values.
_ROWS_A_STATEMENT = 128


class Result(NamedTuple):
    """What came of a statement."""

    #: The rows it gave, all of them.
    rows: Sequence[Any]
    #: How many rows an INSERT, UPDATE or DELETE has changed.
    rowcount: int


class Database:
    """A connection to a SQL database, made when it is needed and made again when it was lost.

    It belongs to one thread at a time.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory), or `postgresql://user:password@host/db`.
        component: whose schema it is: `persistence`, `fsm`, `signal`.
        migrations: the steps that lead from an empty database to the present schema; the number of
            steps is the version. `None` leaves the schema as it is.
        timeout_ms: how long one statement, or waiting for a lock, may take.
        read_only: leave the file of a SQLite database as it is: no write-ahead log is made.

    Raises:
        ConfigurationError: the URL cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        component: str,
        migrations: Sequence[Migration] | None,
        timeout_ms: int = 5_000,
        read_only: bool = False,
    ) -> None:
        self.url = url
        self.shown_url = hide_password(url)
        self.component = component
        self._migrations = migrations
        self._timeout_ms = timeout_ms
        self._engine = _create_engine(url, self.shown_url, timeout_ms, set_up=not read_only)
        self._connection: sa.Connection | None = None
        # What SQLAlchemy's connection stands on.
        self._driver: Any = None
        #: How often it has connected; another number is another session of the server.
        self.connections = 0
        self.is_sqlite = self._engine.dialect.name == "sqlite"
        #: A database in memory is gone with its only connection.
        self.is_memory = self.is_sqlite and _sqlite_path(self._engine.url) is None

    @property
    def connection(self) -> sa.Connection:
        """The connection of the transaction that is under way."""
        assert self._connection is not None, "outside a transaction"
        return self._connection

    def execute(self, statement: sa.Executable, parameters: Mapping[str, Any]) -> Result:
        """Execute a statement that is made once, and so needs compiling only once.

        On SQLite it goes to the driver: SQLAlchemy takes longer than the database itself.
        """
        if not self.is_sqlite:
            result = self.connection.execute(statement, parameters)
            return Result(result.all() if result.returns_rows else (), result.rowcount)
        text, wanted = _sqlite_text(statement)
        values = [parameters[name] if is_given else value for name, is_given, value in wanted]
        return self._drive(text, values)

    def upsert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert whole rows of `table`, or update those that are there, by its primary key."""
        if not self.is_sqlite:
            self.connection.execute(_upsert(table, sqlite=False), rows)
            return
        # Many rows a statement: the driver lets go of the interpreter's lock with each, and the
        # event loop, which wants it too, does not give it back at once. Powers of two, so that the
        # driver meets few different statements, and remembers them all.
        values = itemgetter(*table.columns.keys())
        start = 0
        while start < len(rows):
            size = min(_ROWS_A_STATEMENT, 1 << (len(rows) - start).bit_length() - 1)
            part = rows[start : start + size]
            self._drive(_sqlite_upsert(table, size), [*chain.from_iterable(map(values, part))])
            start += size

    def insert_if_absent(self, table: sa.Table, row: Mapping[str, Any]) -> bool:
        """Insert a whole row, unless it meets any constraint of `table`; whether it did not."""
        statement = _insert_if_absent(table, sqlite=self.is_sqlite)
        return self.execute(statement, row).rowcount == 1

    def find(
        self,
        table: sa.Table,
        keys: Collection[Sequence[str]],
        columns: Sequence[sa.Column[Any]] = (),
    ) -> Sequence[Any]:
        """The rows of `table` with these primary keys, which are all texts; in any order.

        Args:
            table: whose rows.
            keys: of each, the values in the order of the primary key.
            columns: what to give of each row; all by default.
        """
        names = [column.name for column in table.primary_key]
        text = _find(table, tuple(columns), sqlite=self.is_sqlite)
        if self.is_sqlite:
            wanted = msgspec.json.encode([tuple(key) for key in keys], enc_hook=str.__str__)
            return self._drive(text, [wanted.decode()]).rows
        lists = {name: [key[place] for key in keys] for place, name in enumerate(names)}
        return self.connection.execute(sa.text(text), lists).all()

    def _drive(self, text: str, parameters: Sequence[Any] = ()) -> Result:
        """Have SQLite's driver execute `text`. What it raises is what SQLAlchemy makes of it."""
        try:
            cursor = self._driver.execute(text, parameters)
            # Rows are read here as well: a damaged file may only be noticed at the second.
            return Result(cursor.fetchall(), cursor.rowcount)
        except sqlite3.Error as error:
            wrapped = DBAPIError.instance(text, None, error, sqlite3.Error, hide_parameters=True)
            raise wrapped from None

    def sibling(self) -> Database:
        """Another connection to the same database, whose schema is left to this one."""
        return Database(
            self.url, component=self.component, migrations=None, timeout_ms=self._timeout_ms
        )

    def open(self) -> None:
        """Connect, and bring the schema to the present version.

        Raises:
            StoreUnavailable: the server cannot be reached.
            ConfigurationError: it is no database, or one of a newer version.
        """
        if self.is_sqlite:
            _check_sqlite_path(self._engine.url)
        with self.transaction(read_only=self._migrations is None):
            if self._migrations is not None:
                self._migrate(self._migrations)

    def close(self) -> None:
        """Let go of the connection."""
        self._drop_connection()
        self._engine.dispose()

    def schema_version(self) -> int:
        """The version of the component's schema; 0 if there is none. Inside a transaction."""
        statement = sa.select(_VERSIONS.c.version).where(_VERSIONS.c.component == self.component)
        return self.connection.execute(statement).scalar() or 0

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[None]:
        """A transaction; everything executed on `connection` inside is committed on leaving.

        On SQLite a transaction that may write takes the write lock at once: one that starts to
        read and then finds another writer before it could not be saved by waiting.

        Raises:
            ConnectionLost: the connection broke.
            Conflict: another transaction stood in the way.
            StoreUnavailable: the database cannot do it now: away, disk full, too slow.
            ConfigurationError: it never can: a wrong password, a file that cannot be written to.
        """
        self._begin(read_only)
        try:
            yield
            self._commit()
        except DBAPIError as error:
            failure = self._translate(error)
            self._roll_back(is_broken=_is_broken(error, failure))
            raise failure from None
        except BaseException:
            self._roll_back()
            raise

    def _begin(self, read_only: bool) -> None:
        deadline = monotonic() + self._timeout_ms / 1000
        if self.is_sqlite:
            begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        else:
            begin = "BEGIN READ ONLY" if read_only else "BEGIN"
        while True:
            is_fresh = self._connection is None
            try:
                connection = self._connect()
                if self.is_sqlite:
                    self._drive(begin)
                else:
                    connection.exec_driver_sql(begin)
                return
            except DBAPIError as error:
                failure = self._translate(error)
                if isinstance(failure, Conflict) and monotonic() < deadline:
                    sleep(random.uniform(0.0, _LONGEST_REST))
                    continue
                if not isinstance(failure, Conflict):
                    self._drop_connection()
                if isinstance(failure, ConnectionLost) and not is_fresh:
                    continue  # it broke since it was last used, and the server may be back
                raise failure from None

    def _connect(self) -> sa.Connection:
        if self._connection is None:
            try:
                self._connection = self._engine.connect()
            except DBAPIError as error:
                if self._translate(error) is not error:
                    raise
                raise ConfigurationError(f"{self.shown_url}: {_first_line(error.orig)}") from None
            self._driver = self._connection.connection.dbapi_connection
            self.connections += 1
        return self._connection

    def _commit(self) -> None:
        if self.is_sqlite:
            self._drive("COMMIT")
            return
        if self._driver.info.transaction_status.name == "INERROR":
            # PostgreSQL would roll back and call it a success.
            raise RuntimeError("a statement of this transaction failed, and nobody took notice")
        self.connection.exec_driver_sql("COMMIT")

    def _roll_back(self, *, is_broken: bool = False) -> None:
        """Undo what the transaction did. SQLite may have done so itself, on a full disk."""
        if (is_broken or self.connection.invalidated) and not self.is_memory:
            self._drop_connection()
            return
        if self.is_sqlite and not self._driver.in_transaction:
            return
        try:
            self.connection.exec_driver_sql("ROLLBACK")
        except DBAPIError:
            self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            try:
                connection.invalidate() if not self.is_sqlite else None
                connection.close()
            except DBAPIError:
                pass  # it was broken already, which is why it is dropped

    def _migrate(self, migrations: Sequence[Migration]) -> None:
        connection = self.connection
        if not self.is_sqlite:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {self._timeout_ms}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        _VERSIONS.create(connection, checkfirst=True)
        version, present = self.schema_version(), len(migrations)
        if version > present:
            raise ConfigurationError(
                f"{self.shown_url} has version {version} of the {self.component} schema, and this"
                f" trunkline knows versions up to {present}: upgrade trunkline"
            )
        with self.unhurried():
            for step in migrations[version:]:
                step(connection)
        # Also if it stays the same: that a database can only be read is found out now.
        self.upsert(_VERSIONS, [{"component": self.component, "version": present}])

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """What is done inside may take as long as it takes, such as an index on a large table."""
        if self.is_sqlite:
            yield
            return
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
            self.connection.exec_driver_sql(f"SET LOCAL {setting} = 0")
        dbapi_connection = self._driver
        patience, dbapi_connection.patience = dbapi_connection.patience, None
        try:
            yield
        finally:
            dbapi_connection.patience = patience

    def _translate(self, error: DBAPIError) -> Exception:
        """What `error` means to a caller. Never the statement's parameters: they may be secrets."""
        where = f"{self.component} at {self.shown_url}"
        if isinstance(error.orig, sqlite3.Error):
            return _translate_sqlite(error, where)
        return _translate_postgres(error, where)


def _translate_sqlite(error: DBAPIError, where: str) -> Exception:
    cause, code = error.orig, _sqlite_code(error)
    if isinstance(cause, sqlite3.IntegrityError | sqlite3.ProgrammingError):
        return error
    if code.startswith(_SQLITE_BUGS):
        return error
    # A text that is no UTF-8 is quoted, and may be a secret.
    reason = str(cause).partition(" with text ")[0]
    text = f"{where}: {reason} ({code or type(cause).__name__})"
    if code.startswith(_SQLITE_MISTAKES):
        return ConfigurationError(text)
    if code.startswith(_SQLITE_BUSY):
        return Conflict(text)
    if code.startswith("SQLITE_TOOBIG"):
        return InvalidModel(text)
    return StoreUnavailable(text)


def _translate_postgres(error: DBAPIError, where: str) -> Exception:
    state = getattr(error.orig, "sqlstate", None) or ""
    text = f"{where}: {_first_line(error.orig)}"
    if isinstance(error, DataError):
        return InvalidModel(text)
    if state.startswith(_POSTGRES_MISTAKES):
        return ConfigurationError(text)
    if not state and _POSTGRES_REFUSALS.search(text):
        return ConfigurationError(text)
    if error.connection_invalidated or (isinstance(error, OperationalError) and not state):
        return ConnectionLost(text)
    if state.startswith(_POSTGRES_LOST):
        return ConnectionLost(f"{text} ({state})")
    if state.startswith(_POSTGRES_CONFLICTS):
        return Conflict(f"{text} ({state})")
    if state.startswith(_POSTGRES_UNAVAILABLE):
        return StoreUnavailable(f"{text} ({state})")
    # What follows the first line quotes stored values.
    error.args = (str(error.args[0]).partition("\n")[0],)
    return error


def _is_broken(error: DBAPIError, failure: Exception) -> bool:
    """Whether the connection is of no more use after `error`, which means `failure`."""
    return isinstance(failure, ConnectionLost) or _sqlite_code(error).startswith(_SQLITE_BROKEN)


def _sqlite_code(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlite_errorname", None) or ""


@cache
def _sqlite_text(statement: sa.Executable) -> tuple[str, Sequence[tuple[str, bool, Any]]]:
    """What SQLite's driver takes: the text, and its parameters in their order.

    Of each parameter: the name, whether its value has to be given, and else what it is.
    """
    compiled: Any = cast(Any, statement).compile(dialect=_SQLITE)
    names = compiled.positiontup
    return str(compiled), [
        (name, compiled.binds[name].required, compiled.params[name]) for name in names
    ]


_SQLITE = sqlite.dialect(paramstyle="qmark")


@cache
def _sqlite_upsert(table: sa.Table, size: int) -> str:
    """The upsert of `size` rows, the values in the order of the columns."""
    text, _ = _sqlite_text(_upsert(table, sqlite=True))
    row = f"({', '.join('?' for _ in table.columns)})"
    return text.replace(row, ", ".join([row] * size), 1)


@cache
def _find(table: sa.Table, columns: tuple[sa.Column[Any], ...], *, sqlite: bool) -> str:
    """Takes the keys as one parameter each part on PostgreSQL, and all as JSON on SQLite."""
    keys = [column.name for column in table.primary_key]
    if sqlite:
        parts = ", ".join(f"json_extract(value, '$[{i}]') AS {key}" for i, key in enumerate(keys))
        wanted = f"(SELECT {parts} FROM json_each(?)) AS wanted"
    else:
        parts = ", ".join(f"CAST(:{key} AS text[])" for key in keys)
        wanted = f"unnest({parts}) AS wanted ({', '.join(keys)})"
    given = ", ".join(f"one.{column.name}" for column in columns or table.columns)
    same = " AND ".join(f"one.{key} = wanted.{key}" for key in keys)
    # Tells SQLite to go by what is wanted, and to look each up.
    join = "CROSS JOIN" if sqlite else "JOIN"
    return f"SELECT {given} FROM {wanted} {join} {table.name} AS one ON {same}"


@cache
def _upsert(table: sa.Table, *, sqlite: bool) -> Any:
    """`INSERT … ON CONFLICT DO UPDATE` of a whole row of `table`, by its primary key."""
    insert = _insert(table, sqlite)
    keys = [column.name for column in table.primary_key]
    changed = {c.name: insert.excluded[c.name] for c in table.c if c.name not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)


@cache
def _insert_if_absent(table: sa.Table, *, sqlite: bool) -> Any:
    """`INSERT … ON CONFLICT DO NOTHING`, whichever of the constraints it meets."""
    insert = _insert(table, sqlite).on_conflict_do_nothing()
    # SQLAlchemy counts the rows of an INSERT only where it is told to.
    return insert.execution_options(preserve_rowcount=True)


def _insert(table: sa.Table, sqlite: bool) -> Any:
    return sqlite_insert(table) if sqlite else postgresql_insert(table)


def _create_engine(url: str, shown_url: str, timeout_ms: int, *, set_up: bool) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        drivername = _DRIVERS.get(parsed.drivername.lower())
    except (ArgumentError, ValueError):
        # What these say may quote the password.
        raise ConfigurationError(f"{shown_url!r} is no database URL") from None
    if drivername is None:
        raise ConfigurationError(f"{shown_url!r}: a database is sqlite:// or postgresql://")
    if "@" in (parsed.host or ""):
        raise ConfigurationError(f"{shown_url!r}: an '@' in a password is written %40")
    connect_args: dict[str, Any]
    if drivername == "sqlite":
        connect_args = {"check_same_thread": False, "timeout": min(_SQLITE_WAIT, timeout_ms / 1000)}
    else:
        seconds = max(1, timeout_ms // 1000)
        # A server that vanished without a word is noticed, also while we wait for its answer.
        patience = {
            "connect_timeout": seconds,
            "tcp_user_timeout": timeout_ms,
            "keepalives_idle": seconds,
            "keepalives_interval": seconds,
        }
        connect_args = {name: patience[name] for name in patience.keys() - parsed.query.keys()}
    try:
        engine = sa.create_engine(
            parsed.set(drivername=drivername),
            # One thread holds one connection; a pool would only hide when it is lost.
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            json_serializer=_dump_json,
            json_deserializer=msgspec.json.decode,
            connect_args=connect_args,
        )
    except ArgumentError:
        raise ConfigurationError(
            f"{shown_url!r}: a file is sqlite:///relative.db or sqlite:////absolute/path.db"
        ) from None
    except ImportError as error:
        raise ConfigurationError(
            f"{shown_url!r} needs psycopg: pip install 'trunkline[postgres]' ({error})"
        ) from None
    if drivername == "sqlite":
        if set_up:
            event.listen(engine, "connect", _prepare_sqlite)
    else:
        event.listen(engine, "do_connect", _connect_postgres)
        event.listen(engine, "connect", _prepare_postgres(timeout_ms))
    return engine


_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    for pragma in (
        "journal_mode = WAL",  # readers do not wait for the writer
        "synchronous = FULL",  # a commit that returned is on disk
        "foreign_keys = ON",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _connect_postgres(
    _dialect: object, _record: object, args: list[Any], kwargs: dict[str, Any]
) -> Any:
    return _impatient_connection().connect(*args, **kwargs)


def _prepare_postgres(timeout_ms: int) -> Callable[[Any, object], None]:
    settings = {
        "statement_timeout": timeout_ms,
        # Shorter than the second after which PostgreSQL looks for a deadlock: a batch holds many
        # locks, and had better let go of them and take them one by one.
        "lock_timeout": max(1, timeout_ms // 20),
        # A process that is frozen in the middle of a batch lets go of its locks.
        "idle_in_transaction_session_timeout": timeout_ms,
    }
    statement = "; ".join(f"SET {name} = {value}" for name, value in settings.items())

    def prepare(connection: Any, _record: object) -> None:
        connection.execute(statement)
        # The server itself ends a statement that takes too long, if it still can.
        connection.patience = timeout_ms / 1000 + _GRACE

    return prepare


#: How much longer a server's answer may take than the server was told, in seconds.
_GRACE = 0.5


@cache
def _impatient_connection() -> Any:
    """A connection of psycopg that does not wait for a frozen server for ever."""
    from psycopg import Connection, OperationalError

    class ImpatientConnection(Connection[Any]):
        #: How long an answer may take, in seconds; `None` for ever.
        patience: float | None = None

        def wait(self, gen: Generator[Any, Any, R], *args: Any, **kwargs: Any) -> R:
            if self.patience is not None:
                gen = self._limited(gen, monotonic() + self.patience)
            return super().wait(gen, *args, **kwargs)

        def _limited(self, gen: Generator[Any, Any, R], deadline: float) -> Generator[Any, Any, R]:
            """`gen`, which yields what it waits for, and gets nothing every 100 ms."""
            ready = None
            while True:
                try:
                    wanted = gen.send(ready)
                except StopIteration as end:
                    return cast(R, end.value)
                ready = yield wanted
                if not ready and monotonic() > deadline:
                    self.close()
                    raise OperationalError("the server does not answer")

    return ImpatientConnection


def _sqlite_path(url: sa.URL) -> Path | None:
    """The file of a SQLite URL; `None` for a database in memory."""
    database = url.database
    if not database or database in (":memory:", "file::memory:"):
        return None
    if url.query.get("mode") == "memory":
        return None
    return Path(database)


def _check_sqlite_path(url: sa.URL) -> None:
    """Say what is wrong with a path better than SQLite's "unable to open database file"."""
    path = _sqlite_path(url)
    if path is None or str(path).startswith("file:"):
        return
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder, not a database file")
    if not path.parent.is_dir():
        raise ConfigurationError(f"the folder of {path} does not exist")


def _dump_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _first_line(error: BaseException | None) -> str:
    """The message of a PostgreSQL error without its DETAIL, which quotes stored values."""
    diagnostics = getattr(error, "diag", None)
    primary = getattr(diagnostics, "message_primary", None)
    return str(primary or error).strip().partition("\n")[0]


class SQLAdapter(Adapter):
    """Base of the adapters of a `Database`. A domain adds its tables and methods."""

    def __init__(self, database: Database) -> None:
        self._adopt(database)

    def _adopt(self, database: Database) -> None:
        """Work on `database` from now on. What belongs to a connection begins anew."""
        self.database = database

    def sibling(self) -> Self:
        other = copy(self)
        other._adopt(self.database.sibling())
        return other

    def open(self) -> None:
        self.database.open()

    def close(self) -> None:
        self.database.close()

    def transaction(self, *, read_only: bool = False) -> AbstractContextManager[None]:
        return self.database.transaction(read_only=read_only)


class AdvisoryLocks(SQLAdapter):
    """Locks among processes for adapters of a `Database`: PostgreSQL's advisory locks.

    They belong to the connection, and so end when their owner dies. SQLite has none: there a lock
    holds within its process.
    """

    def _adopt(self, database: Database) -> None:
        super()._adopt(database)
        self.lease_ms = 0 if database.is_sqlite else 15_000
        #: token → the connection that took the lock, by its number.
        self._held: dict[str, int] = {}

    def try_lock(self, key: str, token: str) -> bool:
        if self.renew_lock(key, token):
            return True  # asked again: the server would count the lock twice
        taken = self._ask("SELECT pg_try_advisory_lock(:key)", key)
        if taken:
            self._held[token] = self.database.connections
        return taken

    def renew_lock(self, key: str, token: str) -> bool:
        return self._held.get(token) == self.database.connections

    def unlock(self, key: str, token: str) -> None:
        if self._held.get(token) == self.database.connections:
            self._ask("SELECT pg_advisory_unlock(:key)", key)
        self._held.pop(token, None)

    def _ask(self, statement: str, key: str) -> bool:
        number = xxh3_64_intdigest(f"{self.database.component}:{key}".encode()) - 2**63
        return bool(self.database.connection.execute(sa.text(statement), {"key": number}).scalar())
