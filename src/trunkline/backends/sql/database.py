"""A connection to a SQL database: transactions, schema versions, and what is executed inside."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from trunkline.backends.errors import Conflict, ConnectionLost
from trunkline.backends.sql import statements
from trunkline.backends.sql.engine import check_sqlite_path, create_engine, sqlite_path
from trunkline.backends.sql.errors import first_line, is_broken, translate
from trunkline.backends.url import hide_password
from trunkline.errors import ConfigurationError, StoreError

__all__ = ("Database", "Migration", "Result")


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


#: Between two attempts to begin, where another process holds the lock, in seconds at most.
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
        self._engine = create_engine(url, self.shown_url, timeout_ms, set_up=not read_only)
        self._connection: sa.Connection | None = None
        # What SQLAlchemy's connection stands on.
        self._driver: Any = None
        #: How often it has connected; another number is another session of the server.
        self.connections = 0
        self.is_sqlite = self._engine.dialect.name == "sqlite"
        #: A database in memory is gone with its only connection.
        self.is_memory = self.is_sqlite and sqlite_path(self._engine.url) is None

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
        text, wanted = statements.sqlite_text(statement)
        values = [parameters[name] if is_given else value for name, is_given, value in wanted]
        return self._drive(text, values)

    def upsert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert whole rows of `table`, or update those that are there, by its primary key."""
        if not self.is_sqlite:
            self.connection.execute(statements.upsert(table, sqlite=False), rows)
            return
        self._drive_rows(statements.upsert, table, rows)

    def insert_absent(
        self, table: sa.Table, rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[Sequence[Any]]:
        """Insert whole rows, unless they meet a constraint of `table`.

        Returns:
            The primary keys of the rows that were inserted.
        """
        if not rows:
            return ()
        if not self.is_sqlite:
            statement = statements.insert_absent(table, sqlite=False)
            return self.connection.execute(statement, rows).all()
        return self._drive_rows(statements.insert_absent, table, rows)

    def insert_if_absent(self, table: sa.Table, row: Mapping[str, Any]) -> bool:
        """Insert a whole row, unless it meets any constraint of `table`; whether it did not."""
        return bool(self.insert_absent(table, [row]))

    def _drive_rows(
        self,
        statement: Callable[..., Any],
        table: sa.Table,
        rows: Sequence[Mapping[str, Any]],
    ) -> list[Any]:
        """Have SQLite's driver execute an INSERT of whole rows; the rows that it returns."""
        # Many rows a statement: the driver lets go of the interpreter's lock with each, and the
        # event loop, which wants it too, does not give it back at once. Powers of two, so that the
        # driver meets few different statements, and remembers them all.
        values = itemgetter(*table.columns.keys())
        returned: list[Any] = []
        start = 0
        while start < len(rows):
            size = min(_ROWS_A_STATEMENT, 1 << (len(rows) - start).bit_length() - 1)
            part = rows[start : start + size]
            text = statements.sqlite_rows(statement, table, size)
            returned += self._drive(text, [*chain.from_iterable(map(values, part))]).rows
            start += size
        return returned

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
        text = statements.find(table, tuple(columns), sqlite=self.is_sqlite)
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

    def read_only(self) -> Database:
        """A connection to what is there: nothing is created, migrated, or set up anew."""
        return Database(
            self.url,
            component=self.component,
            migrations=None,
            timeout_ms=self._timeout_ms,
            read_only=True,
        )

    def open(self) -> None:
        """Connect, and bring the schema to the present version.

        Raises:
            StoreUnavailable: the server cannot be reached.
            ConfigurationError: it is no database, or one of a newer version.
        """
        if self.is_sqlite:
            check_sqlite_path(self._engine.url)
        with self.transaction(read_only=self._migrations is None):
            if self._migrations is not None:
                self._migrate(self._migrations)

    def close(self) -> None:
        """Let go of the connection."""
        self._drop_connection()
        self._engine.dispose()

    def schema_version(self, component: str | None = None) -> int:
        """The version of a component's schema, by default its own; 0 if there is none.

        Inside a transaction.
        """
        if not sa.inspect(self.connection).has_table(_VERSIONS.name):
            return 0
        wanted = _VERSIONS.c.component == (component or self.component)
        return self.connection.execute(sa.select(_VERSIONS.c.version).where(wanted)).scalar() or 0

    @property
    def file(self) -> Path | None:
        """The file of a SQLite database; `None` for one in memory and for a server."""
        if self.is_memory or not self.is_sqlite:
            return None
        return Path(str(self._engine.url.database).removeprefix("file:"))

    def identity(self) -> str:
        """The same for two URLs that lead to one database. Inside a transaction."""
        if self.file is not None:
            status = self.file.stat()
            return f"{status.st_dev}:{status.st_ino}"
        row = self.connection.exec_driver_sql(
            "SELECT pg_postmaster_start_time(), current_database(), current_schema()"
        ).one()
        return ":".join(map(str, row))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction that reads one instant, for as long as it takes."""
        try:
            with self.transaction(read_only=True):
                if not self.is_sqlite:
                    setting = "TRANSACTION ISOLATION LEVEL REPEATABLE READ"
                    self.connection.exec_driver_sql(f"SET {setting}")
                with self.unhurried():
                    yield
        except DBAPIError as error:  # tables that others have changed or deleted
            raise StoreError(f"{self.shown_url}: {first_line(error.orig)}") from None

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
            self._roll_back(is_broken=is_broken(error, failure))
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
                raise ConfigurationError(f"{self.shown_url}: {first_line(error.orig)}") from None
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
        return translate(error, f"{self.component} at {self.shown_url}")
