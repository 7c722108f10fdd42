"""SQL databases through SQLAlchemy Core: opened by URL, one schema for SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool
from xxhash import xxh3_64_intdigest

from trunkline.backends.adapter import Adapter
from trunkline.backends.url import hide_password
from trunkline.backends.workers import ConnectionLost
from trunkline.errors import ConfigurationError, InvalidModel, StoreUnavailable

__all__ = ("AdvisoryLocks", "Database", "Migration", "insert_if_absent", "upsert")

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

_SQLITE_MISTAKES = {"SQLITE_NOTADB", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_AUTH"}

#: SQLSTATE classes of a server that cannot serve: connection, resources, operator, system, and a
#: statement that took too long.
_POSTGRES_UNAVAILABLE = ("08", "53", "57", "58", "25006")
#: Wrong user, password or database name.
_POSTGRES_MISTAKES = ("28", "3D")
#: Two transactions stood in each other's way; trying again helps.
_POSTGRES_RETRY = ("40001", "40P01", "55P03")


class Database:
    """A connection to a SQL database, made when it is needed and made again when it was lost.

    It belongs to one thread at a time.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory), or `postgresql://user:password@host/db`.
        component: whose schema it is: `persistence`, `fsm`, `signal`.
        migrations: the steps that lead from an empty database to the present schema; the number of
            steps is the version.
        timeout_ms: how long one statement, or waiting for a lock, may take.

    Raises:
        ConfigurationError: the URL cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        component: str,
        migrations: Sequence[Migration],
        timeout_ms: int = 5_000,
    ) -> None:
        self.url = url
        self.shown_url = hide_password(url)
        self.component = component
        self._migrations = migrations
        self._timeout_ms = timeout_ms
        self._engine = _create_engine(url, self.shown_url, timeout_ms)
        self._connection: sa.Connection | None = None
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

    def sibling(self) -> Database:
        """Another connection to the same database."""
        return Database(
            self.url,
            component=self.component,
            migrations=self._migrations,
            timeout_ms=self._timeout_ms,
        )

    def open(self) -> None:
        """Connect, and bring the schema to the present version.

        Raises:
            StoreUnavailable: the server cannot be reached.
            ConfigurationError: it is no database, or one of a newer version.
        """
        if self.is_sqlite:
            _check_sqlite_path(self._engine.url)
        with self.transaction():
            self._migrate()

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
            ConnectionLost: there is no connection, or it broke.
            StoreUnavailable: the database cannot do it now: disk full, locked, too slow.
        """
        try:
            connection = self._connect()
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("BEGIN READ ONLY" if read_only else "BEGIN")
        except DBAPIError as error:
            failure = self._translate(error)
            self._drop_connection()
            if isinstance(failure, StoreUnavailable) and not _is_busy(error):
                failure = ConnectionLost(str(failure))
            raise failure from None
        try:
            yield
            connection.exec_driver_sql("COMMIT")
        except DBAPIError as error:
            self._roll_back(error.connection_invalidated)
            raise self._translate(error) from None
        except BaseException:
            self._roll_back(broken=False)
            raise

    def _connect(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            self.connections += 1
        return self._connection

    def _roll_back(self, broken: bool) -> None:
        """Undo what the transaction did. SQLite may have done so itself, on a full disk."""
        if broken or self._connection is None:
            self._drop_connection()
            return
        try:
            if self.is_sqlite:
                dbapi = self._connection.connection.dbapi_connection
                if isinstance(dbapi, sqlite3.Connection) and not dbapi.in_transaction:
                    return
            self._connection.exec_driver_sql("ROLLBACK")
        except DBAPIError:
            self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.invalidate() if not self.is_sqlite else None
                connection.close()
            except DBAPIError:
                pass  # it was broken already, which is why it is dropped

    def _migrate(self) -> None:
        connection = self.connection
        if not self.is_sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        _VERSIONS.create(connection, checkfirst=True)
        version, present = self.schema_version(), len(self._migrations)
        if version > present:
            raise ConfigurationError(
                f"{self.shown_url} has version {version} of the {self.component} schema, and this"
                f" trunkline knows versions up to {present}: upgrade trunkline"
            )
        if version == present:
            return
        for step in self._migrations[version:]:
            step(connection)
        connection.execute(
            upsert(_VERSIONS, sqlite=self.is_sqlite),
            {"component": self.component, "version": present},
        )

    def _translate(self, error: DBAPIError) -> Exception:
        """What `error` means to a caller. Never the statement's parameters: they may be secrets."""
        cause = error.orig
        where = f"{self.component} at {self.shown_url}"
        if isinstance(cause, sqlite3.Error):
            code = getattr(cause, "sqlite_errorname", None) or ""
            if any(code.startswith(mistake) for mistake in _SQLITE_MISTAKES):
                return ConfigurationError(f"{where}: {cause} ({code})")
            if isinstance(cause, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                return error
            if code in ("SQLITE_ERROR", "SQLITE_RANGE", "SQLITE_MISMATCH", "SQLITE_MISUSE"):
                return error
            return StoreUnavailable(f"{where}: {cause} ({code or type(cause).__name__})")
        state = getattr(cause, "sqlstate", None) or ""
        text = _first_line(cause)
        if isinstance(error, DataError):
            return InvalidModel(f"{where}: {text}")
        if state.startswith(_POSTGRES_MISTAKES) or "authentication failed" in text:
            return ConfigurationError(f"{where}: {text}")
        if error.connection_invalidated or not state:
            return ConnectionLost(f"{where}: {text}")
        if state.startswith(_POSTGRES_UNAVAILABLE + _POSTGRES_RETRY):
            return StoreUnavailable(f"{where}: {text} ({state})")
        return error


@cache
def upsert(table: sa.Table, *, sqlite: bool) -> Any:
    """`INSERT … ON CONFLICT DO UPDATE` of a whole row of `table`, by its primary key."""
    insert = _insert(table, sqlite)
    keys = [column.name for column in table.primary_key]
    changed = {c.name: insert.excluded[c.name] for c in table.c if c.name not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)


@cache
def insert_if_absent(table: sa.Table, *, sqlite: bool) -> Any:
    """`INSERT … ON CONFLICT DO NOTHING` into `table`, whichever of its constraints it meets."""
    return _insert(table, sqlite).on_conflict_do_nothing()


def _insert(table: sa.Table, sqlite: bool) -> Any:
    return sqlite_insert(table) if sqlite else postgresql_insert(table)


def _create_engine(url: str, shown_url: str, timeout_ms: int) -> sa.Engine:
    scheme, _, rest = url.partition("://")
    if scheme == "postgresql":
        url = f"postgresql+psycopg://{rest}"
    seconds = max(1, timeout_ms // 1000)
    connect_args: Mapping[str, Any]
    if scheme.startswith("sqlite"):
        connect_args = {"check_same_thread": False, "timeout": timeout_ms / 1000}
    else:
        connect_args = {"connect_timeout": seconds, "tcp_user_timeout": timeout_ms}
    try:
        engine = sa.create_engine(
            url,
            # One thread holds one connection; a pool would only hide when it is lost.
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            json_serializer=_dump_json,
            json_deserializer=msgspec.json.decode,
            connect_args=dict(connect_args),
        )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ConfigurationError(f"{shown_url!r} is no database URL: {error}") from None
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{shown_url!r} needs {error.name}: pip install 'trunkline[postgres]'"
        ) from None
    prepare = _prepare_sqlite if engine.dialect.name == "sqlite" else _prepare_postgres(timeout_ms)
    event.listen(engine, "connect", prepare)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    for pragma in (
        "journal_mode = WAL",  # readers do not wait for the writer
        "synchronous = FULL",  # a commit that returned is on disk
        "foreign_keys = ON",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _prepare_postgres(timeout_ms: int) -> Callable[[Any, object], None]:
    def prepare(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = {timeout_ms}")
            cursor.execute(f"SET lock_timeout = {timeout_ms}")

    return prepare


def _sqlite_path(url: sa.URL) -> Path | None:
    """The file of a SQLite URL; `None` for a database in memory."""
    database = url.database
    if not database or database == ":memory:" or "mode=memory" in database:
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


def _is_busy(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorname", None) or ""
    return code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _first_line(error: BaseException | None) -> str:
    """The message of a PostgreSQL error without its DETAIL, which quotes stored values."""
    diagnostics = getattr(error, "diag", None)
    primary = getattr(diagnostics, "message_primary", None)
    return str(primary or error).strip().partition("\n")[0]


class AdvisoryLocks(Adapter):
    """Locks among processes for adapters of a `Database`: PostgreSQL's advisory locks.

    They belong to the connection, and so end when their owner dies. SQLite has none: there a lock
    holds within its process.
    """

    database: Database

    def _adopt_locks(self) -> None:
        self.lease_ms = 0 if self.database.is_sqlite else 15_000
        #: token → the connection that took the lock, by its number.
        self._held: dict[str, int] = {}

    def try_lock(self, key: str, token: str) -> bool:
        taken = self._ask("SELECT pg_try_advisory_lock(:key)", key)
        if taken:
            self._held[token] = self.database.connections
        return taken

    def renew_lock(self, key: str, token: str) -> bool:
        return self._held.get(token) == self.database.connections

    def unlock(self, key: str, token: str) -> None:
        if self._held.pop(token, None) == self.database.connections:
            self._ask("SELECT pg_advisory_unlock(:key)", key)

    def _ask(self, statement: str, key: str) -> bool:
        number = xxh3_64_intdigest(f"{self.database.component}:{key}".encode()) - 2**63
        return bool(self.database.connection.execute(sa.text(statement), {"key": number}).scalar())
