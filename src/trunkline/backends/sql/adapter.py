"""Bases of the adapters of a SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from typing import ClassVar, Self

import sqlalchemy as sa
from xxhash import xxh3_64_intdigest

from trunkline.backends.adapter import Adapter
from trunkline.backends.dump import Schema
from trunkline.backends.registry import AdapterOptions
from trunkline.backends.sql.database import Database, Migration, database_at
from trunkline.backends.sql.dump import SQLTable
from trunkline.errors import ConfigurationError

__all__ = ("AdvisoryLocks", "SQLAdapter")


class SQLAdapter(Adapter):
    """Base of the adapters of a `Database`. A domain adds its tables and methods.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory), or `postgresql://…`.
        namespace: leads every key and lock.
        timeout_ms: how long one statement, or waiting for a lock, may take.
    """

    #: The tables of the store, those that others refer to first, and the steps that make them.
    sql_tables: ClassVar[Sequence[sa.Table]]
    migrations: ClassVar[Sequence[Migration]]

    def __init__(self, url: str, *, namespace: str = "default", timeout_ms: int = 5_000) -> None:
        self.namespace = namespace
        self._adopt(
            database_at(
                url, component=self.store, migrations=self.migrations, timeout_ms=timeout_ms
            )
        )

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls(url, namespace=options.namespace, timeout_ms=options.timeout_ms)

    def _adopt(self, database: Database) -> None:
        """Work on `database` from now on. What belongs to a connection begins anew."""
        self.database = database
        self.readers = 0 if database.is_memory else 1

    def sibling(self) -> Self:
        other = copy(self)
        other._adopt(self.database.sibling())
        return other

    def open(self) -> None:
        self.database.open()

    def close(self) -> None:
        self.database.close()

    def transaction(self, *, read_only: bool = False) -> AbstractContextManager[None]:
        return self.database.transaction(read_only=read_only)

    def changes(self) -> int | None:
        return self.database.changes()

    # -- dumping ---------------------------------------------------------------------------------

    @property
    def tables(self) -> Sequence[SQLTable]:
        return [SQLTable(self.database, table, self.namespace) for table in self.sql_tables]

    def exists(self) -> bool:
        file = self.database.file
        return file is None or file.exists()

    def attach(self) -> None:
        if self.database.is_memory:
            raise ConfigurationError("what is kept in memory ends with its process")
        if not self.exists():
            raise ConfigurationError(f"{self.database.file} does not exist")
        self._adopt(self.database.sibling(read_only=True))
        self.open()

    def share(self, other: Adapter) -> bool:
        if isinstance(other, SQLAdapter):
            self._adopt(other.database)
        return isinstance(other, SQLAdapter)

    def identity(self) -> str:
        return self.database.identity()

    def snapshot(self) -> AbstractContextManager[None]:
        return self.database.snapshot()

    def schema(self) -> Schema | None:
        version = self.database.schema_version(self.store)
        return Schema(version, len(self.migrations)) if version else None

    def namespaces(self) -> list[str]:
        """Each is found by one look into the index of a table."""
        found: set[str] = set()
        for table in self.sql_tables:
            column = table.c.namespace
            name: str | None = ""
            while name is not None:
                found.add(name)
                statement = sa.select(sa.func.min(column)).where(column > name)
                name = self.database.connection.execute(statement).scalar()
        return sorted(found - {""})


class AdvisoryLocks(SQLAdapter):
    """Locks between processes for adapters of a `Database`: PostgreSQL's advisory locks.

    They belong to the connection, and so end when their owner dies. SQLite has none: there a lock
    holds within its process.
    """

    def _adopt(self, database: Database) -> None:
        super()._adopt(database)
        self.lease_ms = database.lease_ms
        #: token → the connection that took the lock, by its number.
        self._held: dict[str, int] = {}

    def try_lock(self, key: str, token: str) -> bool:
        if self.renew_lock(key, token):
            return True  # asked again: the server would count the lock twice
        taken = self._ask("SELECT pg_try_advisory_lock(:key)", key)
        if taken:
            self._held[token] = self.database.connections
        return taken

    def renew_lock(self, key: str, token: str) -> bool:
        return self._held.get(token) == self.database.connections

    def unlock(self, key: str, token: str) -> bool:
        is_held = self.renew_lock(key, token)
        if is_held:
            self._ask("SELECT pg_advisory_unlock(:key)", key)
        # What is not in here was given back before: a batch may be run a second time.
        return self._held.pop(token, None) is None or is_held

    def _ask(self, statement: str, key: str) -> bool:
        name = "\0".join((self.database.component, self.namespace, key))
        number = xxh3_64_intdigest(name.encode()) - 2**63
        return bool(self.database.connection.execute(sa.text(statement), {"key": number}).scalar())
