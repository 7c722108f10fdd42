"""The fsm in a SQL database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar, Self

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert

from trunkline.actors import Call
from trunkline.actors.clock import wall_clock_ms
from trunkline.backends import AdapterOptions
from trunkline.backends.sql import AdvisoryLocks, Database
from trunkline.fsm.adapter import Place, Record, Step
from trunkline.fsm.records import Kept, RecordFSMAdapter, WallClock

__all__ = ("SQLFSMAdapter",)

_metadata = sa.MetaData()

records = sa.Table(
    "trunkline_fsm",
    _metadata,
    sa.Column("bot_name", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("flow", sa.Text),
    sa.Column("state", sa.Text),
    #: A msgpack map of encoded names to encoded values.
    sa.Column("fields", sa.LargeBinary, nullable=False),
    #: Milliseconds since 1970.
    sa.Column("expires_at_ms", sa.BigInteger),
)
sa.Index(
    "trunkline_fsm_by_expiry",
    records.c.expires_at_ms,
    sqlite_where=records.c.expires_at_ms.is_not(None),
    postgresql_where=records.c.expires_at_ms.is_not(None),
)


def _create(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


MIGRATIONS = (_create,)

# Without the empty rows of `_lock`, of which nobody has to hear.
_OVER = records.c.expires_at_ms.between(1, sa.bindparam("now"))

_insert = postgresql_insert(records)
#: Puts an empty row where there is none, and locks the one that is there.
_LOCK = _insert.on_conflict_do_update(
    index_elements=[records.c.bot_name, records.c.key],
    set_={"key": _insert.excluded.key},
    where=sa.false(),
)


class SQLFSMAdapter(AdvisoryLocks, RecordFSMAdapter):
    """Records in a table. A batch reads its records once and writes each changed one once.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory), or `postgresql://…`.
        clock: tells milliseconds since 1970.
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
        database = Database(url, component="fsm", migrations=MIGRATIONS, timeout_ms=timeout_ms)
        AdvisoryLocks.__init__(self, database, namespace)

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls(url, options.clock, namespace=options.namespace, timeout_ms=options.timeout_ms)

    def _adopt(self, database: Database) -> None:
        super()._adopt(database)
        self.readers = 0 if database.is_memory else 1
        # What the batch under way has read, and what of that it has changed.
        self._batch: dict[Place, Kept | None] | None = None
        self._changed: set[Place] = set()

    def run_together(self, calls: Sequence[Call]) -> None:
        places = {call.args[0] for call in calls if call.args and isinstance(call.args[0], Place)}
        if not self.database.is_sqlite:
            self._lock(places)
        self._batch, self._changed = self._select(places), set()
        try:
            super().run_together(calls)
            self._write_changed()
        finally:
            self._batch = None

    def sweep(self, limit: int) -> list[tuple[Place, Record]]:
        statement = sa.select(records).where(_OVER).order_by(records.c.expires_at_ms).limit(limit)
        if not self.database.is_sqlite:
            statement = statement.with_for_update(skip_locked=True)
        found = self.database.connection.execute(statement, {"now": self._clock()}).all()
        swept = [(Place(row[0], row[1]), _kept(row).record) for row in found]
        if swept:
            self._remove(place for place, _ in swept)
        return swept

    def summary(self) -> dict[tuple[str, Step], int]:
        columns = (records.c.bot_name, records.c.flow, records.c.state)
        ends = records.c.expires_at_ms
        statement = (
            sa.select(*columns, sa.func.count())
            .where(ends.is_(None) | (ends > self._clock()))
            .group_by(*columns)
        )
        rows = self.database.connection.execute(statement)
        return {(bot_name, Step(flow, state)): count for bot_name, flow, state, count in rows}

    def _read(self, place: Place) -> Kept | None:
        if self._batch is None:
            return self._select([place]).get(place)
        return self._batch.get(place)

    def _write(self, place: Place, kept: Kept | None) -> None:
        assert self._batch is not None, "outside a batch"
        self._batch[place] = kept
        self._changed.add(place)

    def _lock(self, places: Collection[Place]) -> None:
        """See to it that nobody else changes the records at `places` before the commit.

        SQLite has one writer anyhow. On PostgreSQL a row can only be locked if it is there. Rows
        are locked in one order by everybody, or two batches might wait for each other.
        """
        if places:
            ordered = sorted(places, key=lambda place: (place.bot_name, place.key))
            empty = Kept(Record(), expires_at_ms=0)
            self.database.connection.execute(_LOCK, [_row(place, empty) for place in ordered])

    def _select(self, places: Iterable[Place]) -> dict[Place, Kept | None]:
        keys = [(place.bot_name, place.key) for place in places]
        return {Place(row[0], row[1]): _kept(row) for row in self.database.find(records, keys)}

    def _write_changed(self) -> None:
        assert self._batch is not None
        kept = {place: self._batch[place] for place in self._changed}
        rows = [_row(place, one) for place, one in kept.items() if one is not None]
        if rows:
            self.database.upsert(records, rows)
        removed = [place for place, one in kept.items() if one is None]
        if not self.database.is_sqlite:
            # The empty rows that were put to be locked, where nothing came of it.
            removed += [
                place
                for place, one in self._batch.items()
                if place not in kept and one is not None and one.expires_at_ms == 0
            ]
        if removed:
            self._remove(removed)

    def _remove(self, places: Iterable[Place]) -> None:
        self.database.connection.execute(
            sa.delete(records).where(
                records.c.bot_name == sa.bindparam("bot"), records.c.key == sa.bindparam("key_")
            ),
            [{"bot": place.bot_name, "key_": place.key} for place in places],
        )


def _kept(row: Any) -> Kept:
    _, _, flow, state, fields, expires_at_ms = row
    return Kept(Record(Step(flow, state), _decode_fields(fields)), expires_at_ms)


_decode_fields = msgspec.msgpack.Decoder(dict[bytes, bytes]).decode


def _row(place: Place, kept: Kept) -> dict[str, Any]:
    return {
        "bot_name": place.bot_name,
        "key": place.key,
        "flow": kept.record.step.flow,
        "state": kept.record.step.state,
        "fields": msgspec.msgpack.encode(kept.record.fields),
        "expires_at_ms": kept.expires_at_ms,
    }
