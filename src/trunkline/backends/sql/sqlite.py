"""SQLite: an embedded database, durable by its write-ahead log."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from math import inf
from operator import itemgetter
from pathlib import Path
from time import monotonic, sleep
from typing import Any, ClassVar, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from trunkline.backends.errors import Conflict
from trunkline.backends.sql.database import Database, Result, StatementOf
from trunkline.errors import (
    ConfigurationError,
    InvalidModel,
    StoreError,
    StoreUnavailable,
    TrunklineError,
)

__all__ = ("DATABASE", "SQLite")

#: How long SQLite itself waits for a lock, in seconds. It asks ever more seldom, so that under
#: steady load from other processes it might ask in vain for long; we ask again after a short rest.
_LOCK_WAIT = 0.1

#: How many steps of its virtual machine SQLite takes between two looks at the clock: about 1 ms.
_STEPS_A_LOOK = 20_000

#: Between two looks for notices of other processes, in seconds. Each takes some microseconds.
_POLL = 0.05

#: Notices of other processes: of each sender the number of its notices on a channel.
_CREATE_NOTICES = (
    "CREATE TABLE IF NOT EXISTS trunkline_notices (channel TEXT NOT NULL, sender TEXT NOT NULL,"
    " number INTEGER NOT NULL, PRIMARY KEY (channel, sender)) WITHOUT ROWID"
)
_NOTIFY = (
    "INSERT INTO trunkline_notices VALUES (?, ?, 1)"
    " ON CONFLICT (channel, sender) DO UPDATE SET number = number + 1"
)
_HAS_NOTICES = "SELECT 1 FROM sqlite_master WHERE name = 'trunkline_notices'"
_READ_NOTICES = "SELECT sender, number FROM trunkline_notices WHERE channel = ? AND sender <> ?"

#: Rows that one statement stores at most; SQLite takes some 30,000 values.
_ROWS_A_STATEMENT = 128

#: Names of errors, by how they begin: not a database, or not writable; another connection holds a
#: lock; a file that should be opened anew.
_MISTAKES = ("SQLITE_NOTADB", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_AUTH")
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
_BROKEN = ("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CANTOPEN")
#: Names of errors that say that a statement does not fit the tables, or a value the column.
_REFUSED = ("SQLITE_ERROR", "SQLITE_RANGE", "SQLITE_MISMATCH", "SQLITE_MISUSE", "SQLITE_CONSTRAINT")


class SQLite(Database):
    """One file, one writer at a time. Statements go to the driver: SQLAlchemy takes longer."""

    drivernames: ClassVar = ("sqlite", "sqlite+pysqlite")
    writes_concurrently: ClassVar = False
    lease_ms: ClassVar = 0

    #: Whether statements may take as long as they take, and when the one under way is overdue.
    _is_untimed = False
    _deadline = inf

    #: The connection on which the table of notices is known to exist; what the last look at it
    #: found, and the version of the database then.
    _notices_on = 0
    _notices: Sequence[Any] | None = None
    _version: object = None

    # -- connecting ------------------------------------------------------------------------------

    def _create_engine(self) -> sa.Engine:
        engine = super()._create_engine()
        event.listen(engine, "connect", self._prepare)
        event.listen(engine, "before_cursor_execute", self._start_clock)
        return engine

    def _connect_args(self) -> dict[str, Any]:
        return {"check_same_thread": False, "timeout": min(_LOCK_WAIT, self._timeout_ms / 1000)}

    def _prepare(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.set_progress_handler(self._is_overdue, _STEPS_A_LOOK)
        if self._read_only:
            return
        for pragma in (
            "journal_mode = WAL",  # readers do not wait for the writer
            "synchronous = FULL",  # a commit that returned is on disk
            "foreign_keys = ON",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    def _start_clock(self, *_event: object) -> None:
        self._deadline = inf if self._is_untimed else monotonic() + self._timeout_ms / 1000

    def _is_overdue(self) -> bool:
        """Asked by SQLite; true interrupts the statement under way."""
        return monotonic() > self._deadline

    def open(self) -> None:
        # Clearer than SQLite's "unable to open database file".
        path = self.file
        if path is not None and not str(self._parsed_url.database).startswith("file:"):
            if path.is_dir():
                raise ConfigurationError(f"{path} is a folder, not a database file")
            if not path.parent.is_dir():
                raise ConfigurationError(f"the folder of {path} does not exist")
        super().open()

    @property
    def is_memory(self) -> bool:
        return self.file is None

    @property
    def file(self) -> Path | None:
        """The file; `None` for a database in memory."""
        database = self._parsed_url.database
        if not database or database in (":memory:", "file::memory:"):
            return None
        if self._parsed_url.query.get("mode") == "memory":
            return None
        return Path(database.removeprefix("file:"))

    def identity(self) -> str:
        if self.file is None:
            return f"memory:{id(self)}"
        status = self.file.stat()
        return f"{status.st_dev}:{status.st_ino}"

    # -- transactions ----------------------------------------------------------------------------

    def _send_begin(self, read_only: bool) -> None:
        # A transaction that may write takes the write lock at once: one that starts to read and
        # then finds another writer before it could not be saved by waiting.
        self._drive("BEGIN" if read_only else "BEGIN IMMEDIATE")

    def _commit(self) -> None:
        self._drive("COMMIT")

    def _lock_schemas(self) -> None:
        """A transaction that writes is alone."""

    def _prepare_snapshot(self) -> None:
        """Every transaction sees one instant."""

    @property
    def _in_transaction(self) -> bool:
        in_transaction: bool = self._driver.in_transaction
        return in_transaction

    def changes(self) -> int:
        changes: int = self._driver.total_changes
        return changes

    def data_version(self) -> object:
        ((by_others,),) = self._drive("PRAGMA data_version").rows
        return self.connections, by_others, self.changes()

    @contextmanager
    def without_timeout(self) -> Iterator[None]:
        self._is_untimed = True
        try:
            yield
        finally:
            self._is_untimed = False

    # -- statements ------------------------------------------------------------------------------

    def execute(self, statement: sa.Executable, parameters: Mapping[str, Any]) -> Result:
        text, wanted = _compiled(statement)
        values = [parameters[name] if is_given else value for name, is_given, value in wanted]
        return self._drive(text, values)

    def _insert(
        self, statement_of: StatementOf, table: sa.Table, rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[Any]:
        # Many rows a statement: the driver releases the interpreter's lock with each, and the event
        # loop, which wants it too, does not return it at once. Powers of two, so that the driver
        # meets few different statements, and caches them all.
        values = itemgetter(*table.columns.keys())
        returned: list[Any] = []
        start = 0
        while start < len(rows):
            size = min(_ROWS_A_STATEMENT, 1 << (len(rows) - start).bit_length() - 1)
            part = rows[start : start + size]
            text = _insert_of(statement_of, table, size)
            returned += self._drive(text, [*chain.from_iterable(map(values, part))]).rows
            start += size
        return returned

    def find(
        self,
        table: sa.Table,
        keys: Collection[Sequence[str]],
        columns: Sequence[sa.Column[Any]] = (),
        *,
        by: Sequence[sa.Column[Any]] = (),
        key_share: bool = False,
    ) -> Sequence[Any]:
        wanted = msgspec.json.encode([tuple(key) for key in keys], enc_hook=str.__str__)
        return self._drive(_find(table, tuple(columns), tuple(by)), [wanted.decode()]).rows

    def _drive(self, text: str, parameters: Sequence[Any] = ()) -> Result:
        """Have the driver execute `text`. What it raises is what SQLAlchemy makes of it."""
        self._start_clock()
        try:
            cursor = self._driver.execute(text, parameters)
            # Rows are read here as well: a damaged file may only be noticed at the second.
            return Result(cursor.fetchall(), cursor.rowcount)
        except sqlite3.Error as error:
            wrapped = DBAPIError.instance(text, None, error, sqlite3.Error, hide_parameters=True)
            raise wrapped from None

    def position(self, column: Any, text: str) -> Any:
        return sa.func.instr(column, text)

    def lock_keys(self, keys: Collection[str]) -> None:
        """A transaction that writes is alone."""

    def delete(
        self,
        table: sa.Table,
        keys: Collection[Sequence[str]],
        *,
        by: Sequence[sa.Column[Any]] = (),
    ) -> None:
        if keys:
            wanted = msgspec.json.encode([tuple(key) for key in keys])
            self._drive(_delete(table, tuple(by)), [wanted.decode()])

    # -- other processes -------------------------------------------------------------------------

    def notify(self, channel: str, sender: str) -> None:
        if self._notices_on != self.connections:
            self._drive(_CREATE_NOTICES)
            self._notices_on = self.connections
        self._drive(_NOTIFY, (channel, sender))

    def wait_notice(self, channel: str, sender: str, timeout_ms: int) -> bool:
        deadline = monotonic() + timeout_ms / 1000
        while True:
            with self.transaction(read_only=True):
                version = self.data_version()
                if version != self._version:
                    self._version = version
                    notices = self._read_notices(channel, sender)
                    before, self._notices = self._notices, notices
                    if before is not None and notices != before:
                        return True
            if monotonic() >= deadline:
                return False
            sleep(min(_POLL, max(deadline - monotonic(), 0.0)))

    def _read_notices(self, channel: str, sender: str) -> Sequence[Any]:
        """Who has sent how many notices, but for `sender`."""
        if not self._drive(_HAS_NOTICES).rows:
            return ()
        return self._drive(_READ_NOTICES, (channel, sender)).rows

    # -- errors ----------------------------------------------------------------------------------

    def _translate(self, error: DBAPIError) -> TrunklineError:
        cause, code = error.orig, _code(error)
        # A text that is not UTF-8 is quoted, and may be a secret.
        reason = str(cause).partition(" with text ")[0]
        text = f"{self._shown}: {reason} ({code or type(cause).__name__})"
        if code.startswith("SQLITE_INTERRUPT"):
            return StoreUnavailable(
                f"{self._shown}: a statement took longer than {self._timeout_ms} ms"
            )
        if code.startswith(_MISTAKES):
            return ConfigurationError(text)
        if code.startswith(_BUSY):
            return Conflict(text)
        if code.startswith("SQLITE_TOOBIG"):
            return InvalidModel(text)
        if code.startswith(_REFUSED) or isinstance(cause, sqlite3.ProgrammingError):
            return StoreError(text)
        return StoreUnavailable(text)

    def _is_broken(self, error: DBAPIError) -> bool:
        return _code(error).startswith(_BROKEN)


def _code(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlite_errorname", None) or ""


_SQLITE = sqlite.dialect(paramstyle="qmark")


@cache
def _compiled(statement: sa.Executable) -> tuple[str, Sequence[tuple[str, bool, Any]]]:
    """What the driver takes: the text, and its parameters in their order.

    Of each parameter: the name, whether its value has to be given, and else what it is.
    """
    compiled: Any = cast(Any, statement).compile(dialect=_SQLITE)
    names = compiled.positiontup
    return str(compiled), [
        (name, compiled.binds[name].required, compiled.params[name]) for name in names
    ]


@cache
def _insert_of(statement_of: StatementOf, table: sa.Table, size: int) -> str:
    """An INSERT of `size` rows, the values in the order of the columns."""
    text, _ = _compiled(statement_of(table, sqlite.insert(table)))
    row = f"({', '.join('?' for _ in table.columns)})"
    return text.replace(row, ", ".join([row] * size), 1)


@cache
def _find(
    table: sa.Table, columns: tuple[sa.Column[Any], ...], by: tuple[sa.Column[Any], ...]
) -> str:
    """Takes the keys as one text of JSON."""
    keys = [column.name for column in by or table.primary_key]
    parts = ", ".join(f"json_extract(value, '$[{i}]') AS {key}" for i, key in enumerate(keys))
    given = ", ".join(f"one.{column.name}" for column in columns or table.columns)
    same = " AND ".join(f"one.{key} = wanted.{key}" for key in keys)
    # CROSS JOIN tells SQLite to look up each of the keys.
    return (
        f"SELECT {given} FROM (SELECT {parts} FROM json_each(?)) AS wanted"
        f" CROSS JOIN {table.name} AS one ON {same}"
    )


@cache
def _delete(table: sa.Table, by: tuple[sa.Column[Any], ...]) -> str:
    """Takes the keys as one text of JSON."""
    keys = [column.name for column in by or table.primary_key]
    parts = ", ".join(f"json_extract(value, '$[{i}]')" for i in range(len(keys)))
    return (
        f"DELETE FROM {table.name} WHERE ({', '.join(keys)}) IN (SELECT {parts} FROM json_each(?))"
    )


DATABASE = SQLite
