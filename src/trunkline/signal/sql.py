"""Signal keys in a SQL database."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Self

import sqlalchemy as sa

from trunkline.actors import Call
from trunkline.backends import AdapterOptions
from trunkline.backends.sql import AdvisoryLocks, Database
from trunkline.signal.adapter import ABSENT, Commit, KeyName, SignalAdapter, Versioned

__all__ = ("SQLSignalAdapter",)

_metadata = sa.MetaData()

entries = sa.Table(
    "trunkline_signal",
    _metadata,
    sa.Column("family", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
)


def _create(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


MIGRATIONS = (_create,)

_DELETE = sa.delete(entries).where(
    entries.c.family == sa.bindparam("family_"), entries.c.id == sa.bindparam("id_")
)

#: Any number, the same in every trunkline: commits among processes go one after another, since
#: an entry that is not there cannot be locked.
_COMMIT_LOCK = 7_446_822


class SQLSignalAdapter(AdvisoryLocks, SignalAdapter):
    """Entries in a table, each with its version.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory), or `postgresql://…`.
        timeout_ms: how long one statement, or waiting for a lock, may take.
    """

    sql_tables: ClassVar = (entries,)
    migrations: ClassVar = MIGRATIONS

    def __init__(self, url: str, *, namespace: str = "default", timeout_ms: int = 5_000) -> None:
        super().__init__(
            Database(url, component="signal", migrations=MIGRATIONS, timeout_ms=timeout_ms),
            namespace,
        )

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls(url, namespace=options.namespace, timeout_ms=options.timeout_ms)

    def _adopt(self, database: Database) -> None:
        super()._adopt(database)
        self.readers = 0 if database.is_memory else 1

    def run_together(self, calls: Sequence[Call]) -> None:
        if not self.database.is_sqlite and any(
            call.handler is SignalAdapter.commit for call in calls
        ):
            statement = sa.text("SELECT pg_advisory_xact_lock(:key)")
            self.database.connection.execute(statement, {"key": _COMMIT_LOCK})
        super().run_together(calls)

    def get(self, names: Collection[KeyName]) -> dict[KeyName, Versioned]:
        rows = self.database.find(entries, names)
        return {
            KeyName(family, one): Versioned(version, value) for family, one, version, value in rows
        }

    def commit(self, commit: Commit) -> bool:
        connection = self.database.connection
        if commit.expected_entries is not None:
            count = sa.select(sa.func.count()).select_from(entries)
            if connection.execute(count).scalar() != commit.expected_entries:
                return False
        if commit.expected:
            standing = self.get(commit.expected)
            for name, version in commit.expected.items():
                entry = standing.get(name)
                if (ABSENT if entry is None else entry.version) != version:
                    return False
        if commit.clear:
            connection.execute(sa.delete(entries))
        rows: list[dict[str, Any]] = []
        deleted: list[dict[str, str]] = []
        for (family, entry_id), value in commit.changes.items():
            if value is None:
                deleted.append({"family_": family, "id_": entry_id})
            else:
                row = {"family": family, "id": entry_id}
                rows.append({**row, "version": commit.version, "value": value})
        if rows:
            self.database.upsert(entries, rows)
        if deleted and not commit.clear:
            connection.execute(_DELETE, deleted)
        return True

    def names(self) -> Sequence[KeyName]:
        statement = sa.select(entries.c.family, entries.c.id)
        return sorted(KeyName(*row) for row in self.database.connection.execute(statement))

    def summary(self) -> dict[str, int]:
        family = entries.c.family
        statement = sa.select(family, sa.func.count()).group_by(family).order_by(family)
        return {row[0]: row[1] for row in self.database.connection.execute(statement)}
