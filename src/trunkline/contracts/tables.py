"""What every adapter must do whose data is copied: its tables give back what they were given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import pytest

from trunkline.backends import Adapter, Row, Table
from trunkline.errors import ConfigurationError

__all__ = ("FAR_MS", "TableTests")

#: The first millisecond of the year 2100.
FAR_MS = 4_102_444_800_000


class TableTests:
    """Skipped for an adapter without `tables`."""

    #: For some of the tables: rows, sorted by their keys.
    sample_rows: ClassVar[Mapping[str, Sequence[Row]]]
    #: How many of the rows expire at `FAR_MS`; the others never do.
    expiring: ClassVar[int] = 0

    @contextmanager
    def _filled(self, adapter: Adapter) -> Iterator[dict[Table, Sequence[Row]]]:
        """The adapter, open, with the rows in its tables."""
        adapter.open()
        try:
            try:
                tables = {table.name: table for table in adapter.tables}
            except ConfigurationError as error:
                pytest.skip(str(error))
            filled = {tables[name]: rows for name, rows in self.sample_rows.items()}
            for table, rows in filled.items():
                with adapter.transaction():
                    table.load(rows)
            yield filled
        finally:
            adapter.close()

    async def test_a_table_dumps_the_rows_that_were_loaded(self, adapter: Adapter) -> None:
        with self._filled(adapter) as filled, adapter.snapshot():
            for table, rows in filled.items():
                keys = [row[: table.key_width] for row in rows]
                assert sorted(row for page in table.dump() for row in page) == rows
                assert sorted(key for page in table.dump(keys_only=True) for key in page) == keys
                assert table.count() == len(rows)
                assert adapter.namespaces() == [adapter.namespace]

    async def test_a_table_leaves_out_rows_that_have_expired(self, adapter: Adapter) -> None:
        with self._filled(adapter) as filled, adapter.snapshot():
            for table, rows in filled.items():
                live = len(rows) - self.expiring
                assert (table.count(FAR_MS - 1), table.count(FAR_MS)) == (len(rows), live)
                assert sum(map(len, table.dump(FAR_MS))) == live

    async def test_a_table_finds_the_keys_that_are_present(self, adapter: Adapter) -> None:
        with self._filled(adapter) as filled, adapter.snapshot():
            for table, rows in filled.items():
                keys = [row[: table.key_width] for row in rows]
                absent = tuple(f"{part}?" for part in keys[0])
                assert table.present([*keys, absent]) == set(keys)

    async def test_loading_rows_again_changes_nothing(self, adapter: Adapter) -> None:
        with self._filled(adapter) as filled:
            for table, rows in filled.items():
                with adapter.transaction():
                    table.load(rows)
                with adapter.snapshot():
                    assert sorted(row for page in table.dump() for row in page) == rows

    async def test_an_erased_table_is_empty(self, adapter: Adapter) -> None:
        with self._filled(adapter) as filled:
            for table in reversed(filled):
                with adapter.transaction():
                    table.erase()
            with adapter.snapshot():
                assert [table.count() for table in filled] == [0] * len(filled)
