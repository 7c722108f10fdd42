"""Bases of the adapters of a SQL database."""

from __future__ import annotations

from contextlib import AbstractContextManager
from copy import copy
from typing import Self

import sqlalchemy as sa
from xxhash import xxh3_64_intdigest

from trunkline.backends.adapter import Adapter
from trunkline.backends.sql.database import Database
from trunkline.backends.sql.dump import SQLDump

__all__ = ("AdvisoryLocks", "SQLAdapter")


class SQLAdapter(SQLDump, Adapter):
    """Base of the adapters of a `Database`. A domain adds its tables and methods."""

    def __init__(self, database: Database, namespace: str = "default") -> None:
        self.namespace = namespace
        self._adopt(database)

    def _adopt(self, database: Database) -> None:
        """Work on `database` from now on. What belongs to a connection begins anew."""
        self.database = database

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
