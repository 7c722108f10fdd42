"""Signal keys in a SQL database."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Any, ClassVar

import sqlalchemy as sa

from trunkline.actors import Call
from trunkline.backends.sql import AdvisoryLocks
from trunkline.signal.adapter import ABSENT, Commit, KeyName, SignalAdapter, Versioned, unreadable

__all__ = ("SQLSignalAdapter",)

_metadata = sa.MetaData()

entries = sa.Table(
    "trunkline_signal",
    _metadata,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("family", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
)


def _create(connection: sa.Connection) -> None:
    """Version 1, of trunkline 0.1."""
    sa.Table(
        "trunkline_signal",
        sa.MetaData(),
        sa.Column("family", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
    ).create(connection)


def _add_namespace(connection: sa.Connection) -> None:
    """Version 2: a namespace leads the primary key."""
    connection.exec_driver_sql("ALTER TABLE trunkline_signal RENAME TO trunkline_signal_1")
    _metadata.create_all(connection)
    connection.exec_driver_sql(
        "INSERT INTO trunkline_signal (namespace, family, id, version, value)"
        " SELECT 'default', family, id, version, value FROM trunkline_signal_1"
    )
    connection.exec_driver_sql("DROP TABLE trunkline_signal_1")


MIGRATIONS = (_create, _add_namespace)

_IN_NAMESPACE = entries.c.namespace == sa.bindparam("namespace")

_DELETE = sa.delete(entries).where(
    _IN_NAMESPACE, entries.c.family == sa.bindparam("family_"), entries.c.id == sa.bindparam("id_")
)

_DELETE_EMPTY = _DELETE.where(entries.c.version == ABSENT)


class SQLSignalAdapter(AdvisoryLocks, SignalAdapter):
    """Entries in a table, each with its version."""

    sql_tables: ClassVar = (entries,)
    migrations: ClassVar = MIGRATIONS

    def run_together(self, calls: Sequence[Call]) -> None:
        commits = [call for call in calls if call.handler is SignalAdapter.commit]
        if not (commits and self.database.writes_concurrently):
            super().run_together(calls)
            return
        locked = self._lock([call.args[0] for call in commits])
        super().run_together(calls)
        for call in commits:
            if call.value:
                changes = call.args[0].changes.items()
                locked.difference_update(name for name, value in changes if value is not None)
        if locked:
            self.database.connection.execute(_DELETE_EMPTY, [self._key(*name) for name in locked])

    def _lock(self, commits: Sequence[Commit]) -> set[KeyName]:
        """Lock what these commits touch until they are committed; the names that are locked.

        A commit that only stores values locks its rows as it writes them. One about all entries
        excludes all other commits.
        """
        is_whole = any(one.clear or one.expected_entries is not None for one in commits)
        kind = "" if is_whole else "_shared"
        self._ask(f"SELECT pg_advisory_xact_lock{kind}(:key)", "commits")
        if is_whole:
            return set()
        deciding = (one for one in commits if one.expected or None in one.changes.values())
        names = {name for one in deciding for name in (*one.changes, *one.expected)}
        self.database.lock_rows(entries, [self._row(name, ABSENT, b"") for name in sorted(names)])
        return names

    def _row(self, name: KeyName, version: int, value: bytes) -> dict[str, Any]:
        row = {"namespace": self.namespace, "family": name.family, "id": name.id}
        return {**row, "version": version, "value": value}

    def _key(self, family: str, entry_id: str) -> dict[str, str]:
        return {"namespace": self.namespace, "family_": family, "id_": entry_id}

    def get(self, names: Collection[KeyName]) -> dict[KeyName, Versioned]:
        rows = self.database.find(entries, [(self.namespace, *name) for name in names])
        found = {KeyName(*row[1:3]): Versioned(*row[3:]) for row in rows}
        for name, entry in found.items():
            # SQLite takes values of any type in any column.
            if type(entry.version) is not int or type(entry.value) is not bytes:
                raise unreadable(name)
        return found

    def commit(self, commit: Commit) -> bool:
        connection, namespace = self.database.connection, {"namespace": self.namespace}
        if commit.expected_entries is not None:
            count = sa.select(sa.func.count()).select_from(entries).where(_IN_NAMESPACE)
            if connection.execute(count, namespace).scalar() != commit.expected_entries:
                return False
        if commit.expected:
            stored = self.get(commit.expected)
            for name, version in commit.expected.items():
                entry = stored.get(name)
                if (ABSENT if entry is None else entry.version) != version:
                    return False
        if commit.clear:
            connection.execute(sa.delete(entries).where(_IN_NAMESPACE), namespace)
        changes = sorted(commit.changes.items(), key=itemgetter(0))
        rows = [
            self._row(name, commit.version, value) for name, value in changes if value is not None
        ]
        self.database.upsert(entries, rows)
        deleted = [self._key(*name) for name, value in changes if value is None]
        if deleted and not commit.clear:
            connection.execute(_DELETE, deleted)
        return True

    def names(self) -> Sequence[KeyName]:
        statement = sa.select(entries.c.family, entries.c.id).where(_IN_NAMESPACE)
        rows = self.database.connection.execute(statement, {"namespace": self.namespace})
        return sorted(KeyName(*row) for row in rows)

    def summary(self) -> dict[str, int]:
        family = entries.c.family
        statement = sa.select(family, sa.func.count()).where(_IN_NAMESPACE).group_by(family)
        rows = self.database.connection.execute(statement, {"namespace": self.namespace})
        return {row[0]: row[1] for row in sorted(rows)}
