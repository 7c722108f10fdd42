"""The fsm in a SQL database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import msgspec
import sqlalchemy as sa

from trunkline.actors import Call
from trunkline.actors.clock import wall_clock_ms
from trunkline.backends import AdapterOptions
from trunkline.backends.sql import AdvisoryLocks, Database
from trunkline.errors import UnreadableRecord
from trunkline.fsm.adapter import Fields, Record, RecordKey, Step
from trunkline.fsm.records import (
    RecordFSMAdapter,
    WallClock,
    decode_fields,
    encode_fields,
    unreadable,
)

__all__ = ("SQLFSMAdapter",)

_metadata = sa.MetaData()

records = sa.Table(
    "trunkline_fsm",
    _metadata,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("bot_name", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("flow", sa.Text),
    sa.Column("state", sa.Text),
    #: A msgpack map of encoded names to encoded values.
    sa.Column("fields", sa.LargeBinary, nullable=False),
    #: Milliseconds since 1970.
    sa.Column("expires_at_ms", sa.BigInteger),
)
_ends = records.c.expires_at_ms
sa.Index(
    "trunkline_fsm_by_end",
    records.c.namespace,
    _ends,
    sqlite_where=_ends.is_not(None),
    postgresql_where=_ends.is_not(None),
)


def _create(connection: sa.Connection) -> None:
    """Version 1, of trunkline 0.1."""
    connection.exec_driver_sql(
        f"CREATE TABLE trunkline_fsm (bot_name TEXT NOT NULL, key TEXT NOT NULL, flow TEXT,"
        f" state TEXT, fields {_bytes_type(connection)} NOT NULL, expires_at_ms BIGINT,"
        " PRIMARY KEY (bot_name, key))"
    )
    connection.exec_driver_sql(
        "CREATE INDEX trunkline_fsm_by_expiry ON trunkline_fsm (expires_at_ms)"
        " WHERE expires_at_ms IS NOT NULL"
    )


def _bytes_type(connection: sa.Connection) -> str:
    return sa.LargeBinary().compile(connection.dialect)


def _add_namespace(connection: sa.Connection) -> None:
    """Version 2: a namespace leads the primary key and the index."""
    connection.exec_driver_sql("ALTER TABLE trunkline_fsm RENAME TO trunkline_fsm_1")
    connection.exec_driver_sql("DROP INDEX trunkline_fsm_by_expiry")
    _metadata.create_all(connection)
    columns = "bot_name, key, flow, state, fields, expires_at_ms"
    connection.exec_driver_sql(
        f"INSERT INTO trunkline_fsm (namespace, {columns})"
        f" SELECT 'default', {columns} FROM trunkline_fsm_1"
    )
    connection.exec_driver_sql("DROP TABLE trunkline_fsm_1")


MIGRATIONS = (_create, _add_namespace)

# Without the empty rows of `_lock`, which are not reported.
_EXPIRED = (records.c.namespace == sa.bindparam("namespace")) & _ends.between(
    1, sa.bindparam("now")
)


class SQLFSMAdapter(AdvisoryLocks, RecordFSMAdapter):
    """Records in a table. A batch reads its records once and writes each changed one once.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory), or `postgresql://…`.
        clock: milliseconds since 1970.
        namespace: leads every key and lock.
        timeout_ms: how long one statement, or waiting for a lock, may take.
    """

    sql_tables: ClassVar = (records,)
    migrations: ClassVar = MIGRATIONS

    def __init__(
        self,
        url: str,
        clock: WallClock = wall_clock_ms,
        *,
        namespace: str = "default",
        timeout_ms: int = 5_000,
    ) -> None:
        RecordFSMAdapter.__init__(self, clock)
        AdvisoryLocks.__init__(self, url, namespace=namespace, timeout_ms=timeout_ms)

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls(url, options.clock, namespace=options.namespace, timeout_ms=options.timeout_ms)

    def _adopt(self, database: Database) -> None:
        super()._adopt(database)
        # What the batch under way has read, as rows and as records; and what of that it has
        # changed. `None` stands for what is missing.
        self._rows: dict[RecordKey, Any] | None = None
        self._batch: dict[RecordKey, Record | None] = {}
        self._changed: set[RecordKey] = set()
        # Data that was decoded in this batch, by identity, as it is stored: most changes keep it.
        self._stored: dict[int, tuple[Fields, bytes]] = {}

    def run_together(self, calls: Sequence[Call]) -> None:
        keys = {call.args[0] for call in calls if call.args and isinstance(call.args[0], RecordKey)}
        if self.database.writes_concurrently:
            self._lock(keys)
        self._rows, self._batch = self._select(keys), {}
        self._changed, self._stored = set(), {}
        try:
            super().run_together(calls)
            self._write_changed(self._rows)
        finally:
            self._rows = None

    def clear(self, key: RecordKey) -> None:
        assert self._rows is not None, "outside a batch"
        self._batch[key] = None
        if key in self._rows:
            self._changed.add(key)

    def sweep(self, limit: int) -> list[tuple[RecordKey, Record]]:
        statement = sa.select(records).where(_EXPIRED).order_by(_ends).limit(limit)
        statement = self.database.for_update(statement, skip_locked=True)
        parameters = {"namespace": self.namespace, "now": self._clock()}
        found = self.database.connection.execute(statement, parameters).all()
        swept = []
        for row in found:
            key = RecordKey(row.bot_name, row.key)
            try:
                swept.append((key, _record(key, row)))
            except UnreadableRecord:
                swept.append((key, Record(Step(row.flow, row.state))))
        if swept:
            self._remove(key for key, _ in swept)
        return swept

    def summary(self) -> dict[tuple[str, Step], int]:
        columns = (records.c.bot_name, records.c.flow, records.c.state)
        statement = (
            sa.select(*columns, sa.func.count())
            .where(records.c.namespace == self.namespace)
            .where(_ends.is_(None) | (_ends > self._clock()))
            .group_by(*columns)
        )
        rows = self.database.connection.execute(statement)
        return {(bot_name, Step(flow, state)): count for bot_name, flow, state, count in rows}

    def _read(self, key: RecordKey) -> Record | None:
        if self._rows is None:
            row = self._select([key]).get(key)
            return None if row is None else _record(key, row)
        if key not in self._batch:
            row = self._rows.get(key)
            if row is None:
                return None
            record = self._batch[key] = _record(key, row)
            self._stored[id(record.fields)] = (record.fields, row[5])
        return self._batch[key]

    def _write(self, key: RecordKey, record: Record) -> None:
        assert self._rows is not None, "outside a batch"
        self._batch[key] = record
        self._changed.add(key)

    def _lock(self, keys: Collection[RecordKey]) -> None:
        """Keep others from changing the records of `keys` before the commit."""
        ordered = sorted(keys, key=lambda key: (key.bot_name, key.key))
        empty = Record(expires_at_ms=0)
        self.database.lock_rows(records, [self._row(key, empty) for key in ordered])

    def _select(self, keys: Iterable[RecordKey]) -> dict[RecordKey, Any]:
        primary_keys = [(self.namespace, key.bot_name, key.key) for key in keys]
        return {RecordKey(row[1], row[2]): row for row in self.database.find(records, primary_keys)}

    def _write_changed(self, rows: Mapping[RecordKey, Any]) -> None:
        changed = {key: self._batch[key] for key in self._changed}
        written = [self._row(key, record) for key, record in changed.items() if record is not None]
        if written:
            self.database.upsert(records, written)
        removed = [key for key, record in changed.items() if record is None]
        if self.database.writes_concurrently:
            # The empty rows that were inserted for their locks and are not needed.
            removed += [key for key, row in rows.items() if key not in changed and row[-1] == 0]
        if removed:
            self._remove(removed)

    def _remove(self, keys: Iterable[RecordKey]) -> None:
        self.database.connection.execute(
            sa.delete(records).where(
                records.c.namespace == self.namespace,
                records.c.bot_name == sa.bindparam("bot"),
                records.c.key == sa.bindparam("key_"),
            ),
            [{"bot": key.bot_name, "key_": key.key} for key in keys],
        )

    def _row(self, key: RecordKey, record: Record) -> dict[str, Any]:
        stored = self._stored.get(id(record.fields))
        return {
            "namespace": self.namespace,
            "bot_name": key.bot_name,
            "key": key.key,
            "flow": record.step.flow,
            "state": record.step.state,
            "fields": stored[1] if stored else msgspec.msgpack.encode(encode_fields(record.fields)),
            "expires_at_ms": record.expires_at_ms,
        }


def _record(key: RecordKey, row: Any) -> Record:
    _, _, _, flow, state, fields, expires_at_ms = row
    try:
        return Record(Step(flow, state), decode_fields(_decode_map(fields)), expires_at_ms)
    except Exception as error:
        raise unreadable(key, error) from error


_decode_map = msgspec.msgpack.Decoder(dict[bytes, bytes]).decode
