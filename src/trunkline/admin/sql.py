"""SQLite and PostgreSQL as an operator sees them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from trunkline.admin.side import STORES, Key, Row, Schema, Shelf, Side
from trunkline.backends.sql import Database
from trunkline.errors import ConfigurationError
from trunkline.fsm.sql import MIGRATIONS as FSM_MIGRATIONS
from trunkline.fsm.sql import SQLFSMAdapter, records
from trunkline.persistence.schema import MIGRATIONS as PERSISTENCE_MIGRATIONS
from trunkline.persistence.schema import tables
from trunkline.persistence.sql import SQLPersistenceAdapter
from trunkline.signal.sql import MIGRATIONS as SIGNAL_MIGRATIONS
from trunkline.signal.sql import SQLSignalAdapter, entries

__all__ = ("SQLSide",)

_MIGRATIONS = {
    "persistence": PERSISTENCE_MIGRATIONS,
    "fsm": FSM_MIGRATIONS,
    "signal": SIGNAL_MIGRATIONS,
}

_TABLES: dict[str, Sequence[sa.Table]] = {
    "persistence": tables,
    "fsm": (records,),
    "signal": (entries,),
}

_ADAPTERS = {
    "persistence": SQLPersistenceAdapter,
    "fsm": SQLFSMAdapter,
    "signal": SQLSignalAdapter,
}

_VERSIONS = sa.table("trunkline_schema", sa.column("component"), sa.column("version"))

#: How long one statement of a copy, or waiting for a lock, may take.
_PATIENCE_MS = 60_000


class ExistingDatabase(Database):
    """A database that is only read: nothing is created, migrated, or set up anew."""

    def __init__(self, url: str) -> None:
        super().__init__(url, component="database", migrations=None, read_only=True)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction that sees one instant, for as long as it takes."""
        with self.transaction(read_only=True):
            if not self.is_sqlite:
                for setting in (
                    "TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                    "LOCAL idle_in_transaction_session_timeout = 0",
                ):
                    self.connection.exec_driver_sql(f"SET {setting}")
            with self.unhurried():
                yield


class SQLSide(Side):
    """A SQL database.

    Args:
        url: `sqlite:///file.db` or `postgresql://…`.
    """

    can_hold = STORES

    def __init__(self, url: str) -> None:
        self._url = url
        self._existing = ExistingDatabase(url)
        if self._existing.is_memory:
            raise ConfigurationError(f"{url}: what is in memory is gone with its process")
        self._writable: Database | None = None
        # The one whose transaction is under way.
        self._current: Database = self._existing
        self.shown_url = self._existing.shown_url

    def open(self) -> None:
        if not self.exists():
            raise ConfigurationError(f"{self._file} does not exist")
        self._existing.open()

    def close(self) -> None:
        self._existing.close()
        if self._writable is not None:
            self._writable.close()

    def exists(self) -> bool:
        return self._file is None or self._file.exists()

    def identity(self) -> str:
        if self._file is not None:
            status = self._file.stat()
            return f"{status.st_dev}:{status.st_ino}"
        with self.snapshot():
            row = self.connection.exec_driver_sql(
                "SELECT pg_postmaster_start_time(), current_database(), current_schema()"
            ).one()
        return ":".join(map(str, row))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        self._current = self._existing
        with self._clear_errors(), self._existing.snapshot():
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        assert self._writable is not None, "before create"
        self._current = self._writable
        with self._clear_errors(), self._writable.transaction():
            yield

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """What a store would call a bug is here a database that others have changed."""
        try:
            yield
        except DBAPIError as error:
            # The first line names table or constraint; those after it quote what is stored.
            reason = str(error.orig).partition("\n")[0]
            raise ConfigurationError(f"{self.shown_url}: {reason}") from None

    def stores(self) -> dict[str, Schema]:
        if not sa.inspect(self.connection).has_table(_VERSIONS.name):
            return {}
        rows = self.connection.execute(sa.select(_VERSIONS.c.component, _VERSIONS.c.version))
        versions = {row.component: row.version for row in rows}
        return {
            store: Schema(versions[store], len(_MIGRATIONS[store]))
            for store in STORES
            if store in versions
        }

    def adapter(self, store: str) -> Any:
        adapter = _ADAPTERS[store](self._url)
        adapter.database = self._current
        return adapter

    def shelves(self, store: str) -> tuple[Shelf, ...]:
        return tuple(TableShelf(self, table) for table in _TABLES[store])

    def create(self, stores: Collection[str]) -> None:
        for store in stores:
            database = Database(self._url, component=store, migrations=_MIGRATIONS[store])
            try:
                database.open()
            finally:
                database.close()
        self._writable = Database(
            self._url, component="database", migrations=None, timeout_ms=_PATIENCE_MS
        )

    def erase(self, store: str) -> None:
        names = [table.name for table in reversed(_TABLES[store])]
        if self.is_sqlite:
            for name in names:
                self.connection.exec_driver_sql(f"DELETE FROM {name}")
        else:
            self.connection.exec_driver_sql(f"TRUNCATE {', '.join(names)}")

    @property
    def database(self) -> Database:
        """The one whose snapshot or transaction is under way."""
        return self._current

    @property
    def connection(self) -> sa.Connection:
        """The connection of the snapshot or transaction that is under way."""
        return self._current.connection

    @property
    def is_sqlite(self) -> bool:
        return self._current.is_sqlite

    @property
    def _file(self) -> Path | None:
        """The file of a SQLite database; `None` for a server."""
        if not self._existing.is_sqlite:
            return None
        return Path(str(sa.make_url(self._url).database).removeprefix("file:"))


class TableShelf(Shelf):
    """The rows of a table, read and written in the side's transaction."""

    def __init__(self, side: SQLSide, table: sa.Table) -> None:
        self.name = table.name.removeprefix("trunkline_")
        self._side = side
        self._table = table
        self._key = list(table.primary_key)
        self._columns = [*self._key, *(one for one in table.columns if not one.primary_key)]
        self.key_width = len(self._key)

    def count(self, at_ms: int) -> int:
        statement = sa.select(sa.func.count()).select_from(self._table).where(self._alive(at_ms))
        return self._side.connection.execute(statement).scalar_one()

    def pages(self, at_ms: int) -> Iterator[Sequence[Row]]:
        return self._read(self._columns, at_ms)

    def keys(self, at_ms: int) -> Iterator[Sequence[Key]]:
        return self._read(self._key, at_ms)

    def present(self, keys: Collection[Key]) -> set[Key]:
        return {tuple(row) for row in self._side.database.find(self._table, keys, self._key)}

    def put(self, rows: Sequence[Row]) -> None:
        names = [column.name for column in self._columns]
        self._side.database.upsert(
            self._table, [dict(zip(names, row, strict=True)) for row in rows]
        )

    def _read(self, columns: Sequence[sa.Column[Any]], at_ms: int) -> Iterator[Sequence[Row]]:
        statement = sa.select(*columns).where(self._alive(at_ms)).order_by(*self._key)
        page: list[Row] = []
        size = 0
        # A few at a time, since a single row may be large.
        for row in self._side.connection.execute(statement, execution_options=_STREAMED):
            page.append(tuple(row))
            size += sum(len(one) for one in row if isinstance(one, str | bytes))
            if len(page) == _PAGE_ROWS or size >= _PAGE_BYTES:
                yield page
                page, size = [], 0
        if page:
            yield page

    def _alive(self, at_ms: int) -> Any:
        ends = self._table.columns.get("expires_at_ms")
        return sa.true() if ends is None else ends.is_(None) | (ends > at_ms)


#: How many rows a page has at most, and how many characters about.
_PAGE_ROWS, _PAGE_BYTES = 2_000, 1 << 20

_STREAMED = {"stream_results": True, "yield_per": 50}


#: For `open_side`.
SIDE = SQLSide
