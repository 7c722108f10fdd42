"""A SQL table, for `trunkline inspect` and `trunkline copy`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import sqlalchemy as sa

from trunkline.backends.dump import Key, Row, Table
from trunkline.backends.sql.database import Database

__all__ = ("SQLTable",)

_PREFIX = "trunkline_"

#: How many rows a page has at most, and how many characters about.
_PAGE_ROWS, _PAGE_BYTES = 2_000, 1 << 20

_STREAMED = {"stream_results": True, "yield_per": 50}


class SQLTable(Table):
    """The rows of a SQL table in one namespace."""

    def __init__(self, database: Database, table: sa.Table, namespace: str) -> None:
        self.name = table.name.removeprefix(_PREFIX)
        self._database = database
        self._table = table
        self._namespace = namespace
        self._key = [one for one in table.primary_key if one.name != "namespace"]
        self._columns = [*self._key, *(one for one in table.columns if not one.primary_key)]
        self.key_width = len(self._key)

    def count(self, at_ms: int = 0) -> int:
        statement = sa.select(sa.func.count()).select_from(self._table).where(*self._where(at_ms))
        return self._database.connection.execute(statement).scalar_one()

    def dump(self, at_ms: int = 0, *, keys_only: bool = False) -> Iterator[Sequence[Row]]:
        columns = self._key if keys_only else self._columns
        # The namespace comes first, since it may be the whole key.
        statement = (
            sa.select(self._table.c.namespace, *columns)
            .where(*self._where(at_ms))
            .order_by(*self._key)
        )
        page: list[Row] = []
        size = 0
        # A few at a time, since a single row may be large.
        for row in self._database.connection.execute(statement, execution_options=_STREAMED):
            page.append(tuple(row)[1:])
            size += sum(len(one) for one in row if isinstance(one, str | bytes))
            if len(page) == _PAGE_ROWS or size >= _PAGE_BYTES:
                yield page
                page, size = [], 0
        if page:
            yield page

    def present(self, keys: Collection[Key]) -> set[Key]:
        wanted = [(self._namespace, *key) for key in keys]
        columns = [self._table.c.namespace, *self._key]
        return {tuple(row)[1:] for row in self._database.find(self._table, wanted, columns)}

    def load(self, rows: Sequence[Row]) -> None:
        names = ["namespace", *(column.name for column in self._columns)]
        self._database.upsert(
            self._table, [dict(zip(names, (self._namespace, *row), strict=True)) for row in rows]
        )

    def erase(self) -> None:
        with self._database.without_timeout():
            self._database.connection.execute(sa.delete(self._table).where(*self._where(0)))

    def _where(self, at_ms: int) -> Iterator[sa.ColumnElement[bool]]:
        yield self._table.c.namespace == self._namespace
        if "expires_at_ms" in self._table.c and at_ms:
            ends = self._table.c.expires_at_ms
            yield ends.is_(None) | (ends > at_ms)
