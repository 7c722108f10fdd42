"""PostgreSQL through psycopg: several writers, row locks, and locks between processes."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from time import monotonic
from typing import Any, ClassVar, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError
from xxhash import xxh3_64_hexdigest

from trunkline.backends.errors import Conflict, ConnectionLost
from trunkline.backends.sql.database import Database, Result, StatementOf
from trunkline.errors import (
    ConfigurationError,
    InvalidModel,
    StoreError,
    StoreUnavailable,
    TrunklineError,
)

__all__ = ("DATABASE", "PostgreSQL")

R = TypeVar("R")

#: Any number will do, as long as every trunkline takes the same: it keeps two processes from
#: migrating one database at once.
_MIGRATION_LOCK = 7_446_821

#: How much longer a server's answer may take than the server was told, in seconds.
_GRACE = 0.5

#: PostgreSQL takes settings in milliseconds as a C int.
_LARGEST_SETTING = 2**31 - 1

#: SQLSTATEs, by how they begin: wrong user, password, database or schema, or missing rights; a
#: session that is over, or leads to a server that only reads; another transaction holds a lock or
#: was first; a server that cannot do it now.
_MISTAKES = ("28", "3D", "3F", "42501")
_LOST = ("08", "57P", "25006", "25P03")
_CONFLICTS = ("40001", "40P01", "55P03")
_UNAVAILABLE = ("53", "57", "58")
#: A server that refuses a connection sends no SQLSTATE along.
_REFUSALS = re.compile(
    "authentication failed|no password supplied|no pg_hba.conf entry|not permitted to log in"
    "|(role|database) .* does not exist|permission denied"
)


class PostgreSQL(Database):
    """A server. One that stops answering is noticed, also while its answer is awaited."""

    drivernames: ClassVar = ("postgresql+psycopg", "postgresql")
    writes_concurrently: ClassVar = True
    lease_ms: ClassVar = 15_000
    _changes = 0
    #: The connection that listens for notices.
    _listens_on = 0

    # -- connecting ------------------------------------------------------------------------------

    def _create_engine(self) -> sa.Engine:
        engine = super()._create_engine()
        event.listen(engine, "do_connect", _connect)
        event.listen(engine, "connect", self._prepare)
        event.listen(engine, "after_cursor_execute", self._count_changes)
        return engine

    def _connect_args(self) -> dict[str, Any]:
        seconds = max(1, self._timeout_ms // 1000)
        wanted = {
            "connect_timeout": seconds,
            "tcp_user_timeout": min(self._timeout_ms, _LARGEST_SETTING),
            "keepalives_idle": seconds,
            "keepalives_interval": seconds,
        }
        return {name: wanted[name] for name in wanted.keys() - self._parsed_url.query.keys()}

    def _prepare(self, connection: Any, _record: object) -> None:
        from psycopg.types.array import ListBinaryDumper

        timeout_ms = min(self._timeout_ms, _LARGEST_SETTING)
        settings = {
            "statement_timeout": timeout_ms,
            # Shorter than the second after which PostgreSQL looks for a deadlock: a batch holds
            # many locks, and had better release them and take them one by one.
            "lock_timeout": max(1, timeout_ms // 20),
            # A process that is frozen in the middle of a batch releases its locks.
            "idle_in_transaction_session_timeout": timeout_ms,
        }
        connection.execute("; ".join(f"SET {name} = {settings[name]}" for name in settings))
        # Texts in a list that is sent as text would each be escaped.
        connection.adapters.register_dumper(list, ListBinaryDumper)
        # The server itself ends a statement that takes too long, if it still can.
        connection.answer_timeout = self._timeout_ms / 1000 + _GRACE

    def _count_changes(
        self,
        _connection: sa.Connection,
        cursor: Any,
        statement: str,
        _parameters: object,
        _context: object,
        _many: bool,
    ) -> None:
        if cursor.rowcount > 0 and not statement.startswith("SELECT"):
            self._changes += cursor.rowcount

    def identity(self) -> str:
        row = self.connection.exec_driver_sql(
            "SELECT pg_postmaster_start_time(), current_database(), current_schema()"
        ).one()
        return ":".join(map(str, row))

    # -- transactions ----------------------------------------------------------------------------

    def _send_begin(self, read_only: bool) -> None:
        self.connection.exec_driver_sql("BEGIN READ ONLY" if read_only else "BEGIN")

    def _commit(self) -> None:
        if self._has_failed:
            # PostgreSQL would roll back and call it a success.
            raise StoreError("a statement of this transaction failed, and was not handled")
        self.connection.exec_driver_sql("COMMIT")

    @property
    def _has_failed(self) -> bool:
        return bool(self._driver.info.transaction_status.name == "INERROR")

    def changes(self) -> int | None:
        return None if self._has_failed else self._changes

    def _prepare_snapshot(self) -> None:
        self.connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    def _lock_schemas(self) -> None:
        timeout_ms = min(self._timeout_ms, _LARGEST_SETTING)
        self.connection.exec_driver_sql(f"SET LOCAL lock_timeout = {timeout_ms}")
        self.connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")

    @contextmanager
    def without_timeout(self) -> Iterator[None]:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
            self.connection.exec_driver_sql(f"SET LOCAL {setting} = 0")
        driver = self._driver
        driver.answer_timeout, timeout = None, driver.answer_timeout
        try:
            yield
        finally:
            driver.answer_timeout = timeout

    # -- statements ------------------------------------------------------------------------------

    def execute(self, statement: sa.Executable, parameters: Mapping[str, Any]) -> Result:
        result = self.connection.execute(statement, parameters)
        return Result(result.all() if result.returns_rows else (), result.rowcount)

    def _insert(
        self, statement_of: StatementOf, table: sa.Table, rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[Any]:
        # A list a column: with a parameter for each value, each batch is another statement.
        names = [column.name for column in table.columns]
        lists = {f"given_{name}": [row[name] for row in rows] for name in names}
        result = self.connection.execute(_insert_of(statement_of, table), lists)
        return result.all() if result.returns_rows else ()

    def find(
        self,
        table: sa.Table,
        keys: Collection[Sequence[str]],
        columns: Sequence[sa.Column[Any]] = (),
        *,
        by: Sequence[sa.Column[Any]] = (),
        key_share: bool = False,
    ) -> Sequence[Any]:
        names = [column.name for column in by or table.primary_key]
        lists = {name: [key[place] for key in keys] for place, name in enumerate(names)}
        statement = _find(table, tuple(columns), tuple(by), key_share=key_share)
        return self.connection.execute(statement, lists).all()

    def position(self, column: Any, text: str) -> Any:
        return sa.func.strpos(column, text)

    def for_update(self, select: sa.Select[Any], *, skip_locked: bool = False) -> sa.Select[Any]:
        return select.with_for_update(skip_locked=skip_locked)

    def lock_keys(self, keys: Collection[str]) -> None:
        if keys:
            self.connection.execute(_LOCK_KEYS, {"keys": [*keys]})

    def delete(
        self,
        table: sa.Table,
        keys: Collection[Sequence[str]],
        *,
        by: Sequence[sa.Column[Any]] = (),
    ) -> None:
        if keys:
            names = [column.name for column in by or table.primary_key]
            lists = {name: [key[place] for key in keys] for place, name in enumerate(names)}
            self.connection.execute(_delete(table, tuple(by)), lists)

    # -- other processes -------------------------------------------------------------------------

    def clock_ms(self) -> int | None:
        return int(self.connection.execute(_CLOCK).scalar_one())

    def notify(self, channel: str, sender: str) -> None:
        name = _channel_name(channel)
        self.connection.execute(_NOTIFY, {"channel": name, "sender": sender})

    def wait_notice(self, channel: str, sender: str, timeout_ms: int) -> bool:
        if self._listens_on != self.connections or self._connection is None:
            with self.transaction():
                self.connection.exec_driver_sql(f'LISTEN "{_channel_name(channel)}"')
            self._listens_on = self.connections
        try:
            notices = [*self._driver.notifies(timeout=timeout_ms / 1000, stop_after=1)]
        except self._driver_error as error:
            self._drop_connection()
            raise ConnectionLost(f"{self.component} at {self.shown_url}: {error}") from None
        return any(notice.payload != sender for notice in notices)

    @property
    def _driver_error(self) -> type[Exception]:
        from psycopg import Error

        return Error

    # -- errors ----------------------------------------------------------------------------------

    def _translate(self, error: DBAPIError) -> TrunklineError:
        state = getattr(error.orig, "sqlstate", None) or ""
        text = f"{self._shown}: {_first_line(error.orig)}" + (f" ({state})" if state else "")
        if isinstance(error, DataError):
            return InvalidModel(text)
        if state.startswith(_MISTAKES) or (not state and _REFUSALS.search(text)):
            return ConfigurationError(text)
        if error.connection_invalidated or (isinstance(error, OperationalError) and not state):
            return ConnectionLost(text)
        if state.startswith(_LOST):
            return ConnectionLost(text)
        if state.startswith(_CONFLICTS):
            return Conflict(text)
        if state.startswith(_UNAVAILABLE):
            return StoreUnavailable(text)
        if self._driver is None and not isinstance(error, IntegrityError):
            return ConfigurationError(text)  # of connecting: an unknown option, say
        return StoreError(text)

    def _is_broken(self, error: DBAPIError) -> bool:
        return isinstance(self._translate(error), ConnectionLost)


def _first_line(error: BaseException | None) -> str:
    """The message of an error without its DETAIL, which quotes stored values."""
    diagnostics = getattr(error, "diag", None)
    primary = getattr(diagnostics, "message_primary", None)
    return str(primary or error).strip().partition("\n")[0]


@cache
def _insert_of(statement_of: StatementOf, table: sa.Table) -> Any:
    """Takes the values as one list for each column."""
    names = table.columns.keys()
    types = [column.type.compile(dialect=_DIALECT).partition(" ")[0] for column in table.columns]
    lists = ", ".join(
        f"CAST(:given_{name} AS {kind}[])" for name, kind in zip(names, types, strict=True)
    )
    given = sa.text(f"SELECT * FROM unnest({lists})").columns(*map(sa.column, names))
    return statement_of(table, postgresql.insert(table).from_select(names, given))


_DIALECT: Any = postgresql.dialect()  # type: ignore[no-untyped-call]


@cache
def _find(
    table: sa.Table,
    columns: tuple[sa.Column[Any], ...],
    by: tuple[sa.Column[Any], ...],
    *,
    key_share: bool,
) -> sa.TextClause:
    """Takes the keys as one list of texts for each part of a key."""
    keys = [column.name for column in by or table.primary_key]
    parts = ", ".join(f"CAST(:{key} AS text[])" for key in keys)
    given = ", ".join(f"one.{column.name}" for column in columns or table.columns)
    same = " AND ".join(f"one.{key} = wanted.{key}" for key in keys)
    return sa.text(
        f"SELECT {given} FROM unnest({parts}) AS wanted ({', '.join(keys)})"
        f" JOIN {table.name} AS one ON {same}" + (" FOR KEY SHARE OF one" if key_share else "")
    )


@cache
def _delete(table: sa.Table, by: tuple[sa.Column[Any], ...]) -> sa.TextClause:
    """Takes the keys as one list of texts for each part of a key."""
    keys = [column.name for column in by or table.primary_key]
    parts = ", ".join(f"CAST(:{key} AS text[])" for key in keys)
    same = " AND ".join(f"one.{key} = wanted.{key}" for key in keys)
    return sa.text(
        f"DELETE FROM {table.name} AS one USING unnest({parts}) AS wanted ({', '.join(keys)})"
        f" WHERE {same}"
    )


_LOCK_KEYS = sa.text(
    "SELECT pg_advisory_xact_lock(number) FROM (SELECT hashtextextended(key, 0) AS number"
    " FROM unnest(CAST(:keys AS text[])) AS given (key) ORDER BY number) AS ordered"
)

_CLOCK = sa.text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)")

_NOTIFY = sa.text("SELECT pg_notify(:channel, :sender)")


@cache
def _channel_name(channel: str) -> str:
    """A name that PostgreSQL takes, which is at most 63 characters."""
    return f"trunkline_{xxh3_64_hexdigest(channel.encode())}"


def _connect(_dialect: object, _record: object, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return _connection_class().connect(*args, **kwargs)


@cache
def _connection_class() -> Any:
    """A connection of psycopg that does not wait for a frozen server for ever."""
    from psycopg import Connection, OperationalError

    class DeadlineConnection(Connection[Any]):
        #: How long an answer may take, in seconds; `None` for ever.
        answer_timeout: float | None = None

        def wait(self, gen: Generator[Any, Any, R], *args: Any, **kwargs: Any) -> R:
            if self.answer_timeout is not None:
                gen = self._limited(gen, monotonic() + self.answer_timeout)
            return super().wait(gen, *args, **kwargs)

        def _limited(self, gen: Generator[Any, Any, R], deadline: float) -> Generator[Any, Any, R]:
            """`gen`, which yields what it waits for, and is sent nothing every 100 ms."""
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

    return DeadlineConnection


DATABASE = PostgreSQL
