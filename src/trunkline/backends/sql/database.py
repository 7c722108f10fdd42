"""A SQL database: its connection, transactions, schema versions, and what is executed inside.

What differs between databases is in a subclass for each, in a module of the database's name.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from operator import itemgetter
from pathlib import Path
from time import monotonic, sleep
from typing import Any, ClassVar, NamedTuple, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from trunkline.backends.errors import Conflict, ConnectionLost
from trunkline.backends.url import hide_password
from trunkline.errors import ConfigurationError, TrunklineError

__all__ = ("Database", "Migration", "Result", "StatementOf", "database_at")


#: One step from a schema version to the next. It runs inside a transaction.
Migration: TypeAlias = Callable[[sa.Connection], None]

#: The versions of the schemas: one row a store, since several may share a database.
_VERSIONS = sa.Table(
    "trunkline_schema",
    sa.MetaData(),
    sa.Column("component", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

#: Between two attempts to begin, where another process holds the lock, in seconds at most.
_LONGEST_REST = 0.01


#: Makes a statement for a table out of the database's own INSERT.
StatementOf: TypeAlias = Callable[[sa.Table, Any], Any]


class Result(NamedTuple):
    """What a statement returned."""

    #: The rows, all of them.
    rows: Sequence[Any]
    #: How many rows an INSERT, UPDATE or DELETE has changed.
    rowcount: int


class Database(ABC):
    """A connection to a SQL database, made when it is needed and made again when it was lost.

    It belongs to one thread at a time. `database_at` chooses the subclass.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory), or `postgresql://user:password@host/db`.
        component: whose schema it is: `persistence`, `fsm`, `signal`, `inbox`.
        migrations: the steps that lead from an empty database to the present schema; the number of
            steps is the version. `None` leaves the schema as it is.
        timeout_ms: how long one statement, or waiting for a lock, may take.
        read_only: leave the file of a SQLite database as it is: no write-ahead log is made.

    Raises:
        ConfigurationError: the URL cannot work.
    """

    #: What SQLAlchemy calls the database with its driver, and what else a URL may call it.
    drivernames: ClassVar[tuple[str, ...]]
    #: Whether several connections can write at once.
    writes_concurrently: ClassVar[bool]
    #: How long a lock between processes lasts if it is not renewed; 0 if there are none.
    lease_ms: ClassVar[int]

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
        #: What errors begin with.
        self._shown = f"{component} at {self.shown_url}"
        self._parsed_url = sa.make_url(url)
        self._migrations = migrations
        self._timeout_ms = timeout_ms
        self._read_only = read_only
        self._engine = self._create_engine()
        self._connection: sa.Connection | None = None
        # The driver's connection, on which SQLAlchemy's stands.
        self._driver: Any = None
        #: How often it has connected; another number is another session of the server.
        self.connections = 0

    @property
    def connection(self) -> sa.Connection:
        """The connection of the transaction that is under way."""
        assert self._connection is not None, "outside a transaction"
        return self._connection

    # -- opening ---------------------------------------------------------------------------------

    @property
    def is_memory(self) -> bool:
        """Whether the database ends with its only connection."""
        return False

    @property
    def file(self) -> Path | None:
        """The file of an embedded database; `None` for one in memory and for a server."""
        return None

    @abstractmethod
    def identity(self) -> str:
        """The same for two URLs that lead to one database. Inside a transaction."""

    def sibling(self, *, read_only: bool = False) -> Database:
        """Another connection to the same database, whose schema is left as it is."""
        return type(self)(
            self.url,
            component=self.component,
            migrations=None,
            timeout_ms=self._timeout_ms,
            read_only=read_only,
        )

    def open(self) -> None:
        """Connect, and bring the schema to the present version.

        Raises:
            StoreUnavailable: the server cannot be reached.
            ConfigurationError: it is not a database, or one of a newer version.
        """
        with self.transaction(read_only=self._migrations is None):
            if self._migrations is not None:
                self._migrate(self._migrations)

    def close(self) -> None:
        """Close the connection."""
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

    def _create_engine(self) -> sa.Engine:
        try:
            return sa.create_engine(
                self._parsed_url.set(drivername=self.drivernames[0]),
                # One thread holds one connection; a pool would only hide when it is lost.
                poolclass=NullPool,
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,
                json_serializer=lambda value: msgspec.json.encode(value).decode(),
                json_deserializer=msgspec.json.decode,
                connect_args=self._connect_args(),
            )
        except ArgumentError:
            raise ConfigurationError(
                f"{self.shown_url!r}: a file is sqlite:///relative.db or sqlite:////absolute/path.db"
            ) from None
        except ImportError as error:
            raise ConfigurationError(
                f"{self.shown_url!r} needs psycopg: pip install 'trunkline[postgres]' ({error})"
            ) from None

    @abstractmethod
    def _connect_args(self) -> dict[str, Any]:
        """What the driver is told besides the URL."""

    def _migrate(self, migrations: Sequence[Migration]) -> None:
        connection = self.connection
        self._lock_schemas()
        _VERSIONS.create(connection, checkfirst=True)
        version, present = self.schema_version(), len(migrations)
        if version > present:
            raise ConfigurationError(
                f"{self.shown_url} has version {version} of the {self.component} schema, and this"
                f" trunkline knows versions up to {present}: upgrade trunkline"
            )
        with self.without_timeout():
            for step in migrations[version:]:
                step(connection)
        # Also if it stays the same: that a database can only be read is found out now.
        self.upsert(_VERSIONS, [{"component": self.component, "version": present}])

    @abstractmethod
    def _lock_schemas(self) -> None:
        """Let no other process migrate a schema before this transaction ends."""

    # -- transactions ----------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[None]:
        """A transaction; everything executed on `connection` inside is committed on leaving.

        Raises:
            ConnectionLost: the connection broke.
            Conflict: another transaction stood in the way.
            StoreUnavailable: the database cannot do it now: away, disk full, too slow.
            ConfigurationError: it never can: a wrong password, a file that cannot be written to.
            StoreError: it refused a statement, for a reason that is not one of these.
        """
        self._begin(read_only)
        try:
            yield
            self._commit()
        except DBAPIError as error:
            failure = self._translate(error)
            self._roll_back(is_broken=self._is_broken(error))
            raise failure from None
        except BaseException:
            self._roll_back()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction that only reads, and sees one instant for as long as it takes."""
        with self.transaction(read_only=True):
            self._prepare_snapshot()
            with self.without_timeout():
                yield

    @abstractmethod
    def without_timeout(self) -> AbstractContextManager[None]:
        """What is done inside may take as long as it takes, such as an index on a large table."""

    @abstractmethod
    def changes(self) -> int | None:
        """See `Adapter.changes`."""

    def data_version(self) -> object | None:
        """A value that is another one after any change, by this process or another.

        `None` where the database does not tell. Asked inside of a transaction that may write.
        """
        return None

    def _begin(self, read_only: bool) -> None:
        deadline = monotonic() + self._timeout_ms / 1000
        while True:
            is_fresh = self._connection is None
            try:
                if self._connection is None:
                    self._connection = self._engine.connect()
                    self._driver = self._connection.connection.dbapi_connection
                    self.connections += 1
                self._send_begin(read_only)
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

    @abstractmethod
    def _send_begin(self, read_only: bool) -> None: ...

    @abstractmethod
    def _commit(self) -> None: ...

    @abstractmethod
    def _prepare_snapshot(self) -> None:
        """Have the transaction that was just begun see one instant."""

    def _roll_back(self, *, is_broken: bool = False) -> None:
        """Undo what the transaction did. SQLite may have done so itself, on a full disk."""
        if (is_broken or self.connection.invalidated) and not self.is_memory:
            self._drop_connection()
        elif self._in_transaction:
            try:
                self.connection.exec_driver_sql("ROLLBACK")
            except DBAPIError:
                self._drop_connection()

    @property
    def _in_transaction(self) -> bool:
        """Whether a transaction is under way, as far as the driver knows."""
        return True

    def _drop_connection(self) -> None:
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            try:
                connection.invalidate()
                connection.close()
            except DBAPIError:
                pass  # it was broken already, which is why it is dropped

    @abstractmethod
    def _translate(self, error: DBAPIError) -> TrunklineError:
        """What `error` means to a caller. Never the statement's parameters: they may be secret."""

    @abstractmethod
    def _is_broken(self, error: DBAPIError) -> bool:
        """Whether the connection cannot be used after `error`."""

    # -- statements ------------------------------------------------------------------------------

    @abstractmethod
    def execute(self, statement: sa.Executable, parameters: Mapping[str, Any]) -> Result:
        """Execute a statement that is made once, and so needs compiling only once."""

    def upsert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert whole rows of `table`, or update those that exist, by its primary key.

        Of rows with one key, the last is stored. A column with `info={"kept_on_update": True}`
        keeps the value that it was inserted with.
        """
        if len(rows) > 1:
            # PostgreSQL does not update a row twice in one statement.
            key_of = itemgetter(*(column.name for column in table.primary_key))
            rows = list({key_of(row): row for row in rows}.values())
        if rows:
            self._insert(upsert_of, table, rows)

    def insert_absent(
        self, table: sa.Table, rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[Sequence[Any]]:
        """Insert whole rows, unless they violate a constraint of `table`.

        Returns:
            The primary keys of the rows that were inserted.
        """
        return self._insert(insert_absent_of, table, rows) if rows else ()

    def lock_rows(self, table: sa.Table, empty_rows: Sequence[Mapping[str, Any]]) -> None:
        """Lock the rows with the primary keys of `empty_rows` until the transaction ends.

        Only rows can be locked, and so an empty one is inserted where there is none: whoever calls
        this removes it in the end. Every process locks in the same order, or two transactions might
        wait for each other. Where a transaction that writes is alone, it does nothing.
        """
        if self.writes_concurrently and empty_rows:
            self._insert(lock_of, table, empty_rows)

    @abstractmethod
    def _insert(
        self, statement_of: StatementOf, table: sa.Table, rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[Any]:
        """Execute an INSERT of whole rows; the rows that it returns."""

    @abstractmethod
    def find(
        self,
        table: sa.Table,
        keys: Collection[Sequence[str]],
        columns: Sequence[sa.Column[Any]] = (),
        *,
        by: Sequence[sa.Column[Any]] = (),
        key_share: bool = False,
    ) -> Sequence[Any]:
        """The rows of `table` with these keys, which are all texts; in any order.

        Args:
            table: whose rows.
            keys: of each, the values in the order of `by`.
            columns: what to return of each row; all by default.
            by: the columns of a key; those of the primary key by default.
            key_share: lock the rows, so that nobody deletes them before this transaction ends.
        """

    @abstractmethod
    def delete(
        self,
        table: sa.Table,
        keys: Collection[Sequence[str]],
        *,
        by: Sequence[sa.Column[Any]] = (),
    ) -> None:
        """Delete the rows of `table` with these keys, as `find` finds them."""

    @abstractmethod
    def position(self, column: Any, text: str) -> Any:
        """Where `text` begins in `column`, counted from 1; 0 if it does not occur."""

    def for_update(self, select: sa.Select[Any], *, skip_locked: bool = False) -> sa.Select[Any]:
        """`select`, with its rows locked until the transaction ends.

        Where a transaction that writes is alone, as on SQLite, no row needs a lock.
        """
        return select

    def lock_key(self, key: str) -> None:
        """Wait until no other transaction holds `key`, and hold it until this one ends."""
        self.lock_keys([key])

    @abstractmethod
    def lock_keys(self, keys: Collection[str]) -> None:
        """`lock_key` for many keys, in an order that every process keeps."""

    # -- other processes ---------------------------------------------------------------------------

    def clock_ms(self) -> int | None:
        """The server's clock: milliseconds since 1970; `None` if this machine's is as good."""
        return None

    @abstractmethod
    def notify(self, channel: str, sender: str) -> None:
        """Wake those that `wait_notice` on `channel`, once this transaction is committed.

        Args:
            channel: what it is about.
            sender: who has changed something.
        """

    @abstractmethod
    def wait_notice(self, channel: str, sender: str, timeout_ms: int) -> bool:
        """Wait for a notice of anybody but `sender`, outside a transaction; whether one came."""


def upsert_of(table: sa.Table, insert: Any) -> Any:
    """`INSERT … ON CONFLICT DO UPDATE` of a whole row of `table`, by its primary key."""
    keys = [column.name for column in table.primary_key]
    changed = {
        column.name: insert.excluded[column.name]
        for column in table.c
        if column.name not in keys and not column.info.get("kept_on_update")
    }
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)


def lock_of(table: sa.Table, insert: Any) -> Any:
    """`INSERT … ON CONFLICT` of a whole row of `table`, which locks the one that exists."""
    keys = [column.name for column in table.primary_key]
    unchanged = {keys[-1]: insert.excluded[keys[-1]]}
    return insert.on_conflict_do_update(index_elements=keys, set_=unchanged, where=sa.false())


def insert_absent_of(table: sa.Table, insert: Any) -> Any:
    """`INSERT … ON CONFLICT DO NOTHING`, whichever constraint it violates; returns keys."""
    return insert.on_conflict_do_nothing().returning(*table.primary_key)


def database_at(
    url: str,
    *,
    component: str,
    migrations: Sequence[Migration] | None,
    timeout_ms: int = 5_000,
    read_only: bool = False,
) -> Database:
    """The `Database` for a URL, with the same arguments; not yet connected."""
    shown_url = hide_password(url)
    try:
        parsed = sa.make_url(url)
        backend, drivername = parsed.get_backend_name().lower(), parsed.drivername.lower()
    except (ArgumentError, ValueError):
        # What these say may quote the password.
        raise ConfigurationError(f"{shown_url!r} is not a database URL") from None
    try:
        # The module is named after the database.
        kind: type[Database] | None = import_module(f"{__package__}.{backend}").DATABASE
    except (ModuleNotFoundError, AttributeError):
        kind = None
    if kind is None or drivername not in kind.drivernames:
        raise ConfigurationError(f"{shown_url!r}: a database is sqlite:// or postgresql://")
    if "@" in (parsed.host or ""):
        raise ConfigurationError(f"{shown_url!r}: an '@' in a password is written %40")
    return kind(
        url,
        component=component,
        migrations=migrations,
        timeout_ms=timeout_ms,
        read_only=read_only,
    )
