"""What `trunkline inspect` and `trunkline copy` need of an adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeAlias

import msgspec

from trunkline.errors import ConfigurationError

__all__ = ("Dumpable", "Key", "Row", "Schema", "Table")

#: One record as it is stored: its key, then the rest. Values stay encoded, and encrypted if they
#: are. The rows of a store are the same whatever its adapter: those of its SQL tables, without the
#: namespace.
Row: TypeAlias = tuple[Any, ...]
Key: TypeAlias = tuple[Any, ...]


class Schema(msgspec.Struct, frozen=True):
    """The version of a store's schema, and the one that its adapter works with.

    Both are `None` where a database has no schemas.
    """

    version: int | None = None
    known_version: int | None = None

    @property
    def is_known(self) -> bool:
        return self.version == self.known_version

    @property
    def advice(self) -> str:
        """What to do about a version that is not known."""
        if (self.version or 0) > (self.known_version or 0):
            return "upgrade trunkline"
        return "start a bot on it once, which migrates it"


class Table(ABC):
    """Rows of one kind, those of the adapter's namespace."""

    #: What they are: `messages`.
    name: str
    #: How many of a row's values are its key.
    key_width: int

    def count(self, at_ms: int = 0) -> int:
        """How many rows there are, without those that have expired at `at_ms`."""
        return sum(map(len, self.dump(at_ms, keys_only=True)))

    @abstractmethod
    def dump(self, at_ms: int = 0, *, keys_only: bool = False) -> Iterator[Sequence[Row]]:
        """The rows, a page of about a megabyte at a time.

        Args:
            at_ms: rows that have expired at this instant are left out.
            keys_only: give the keys alone.
        """

    @abstractmethod
    def present(self, keys: Collection[Key]) -> set[Key]:
        """Those of `keys` that are stored."""

    @abstractmethod
    def load(self, rows: Sequence[Row]) -> None:
        """Insert rows, or replace those with the same keys. Inside a transaction that may write."""

    @abstractmethod
    def erase(self) -> None:
        """Delete every row. Inside a transaction that may write."""


class Dumpable:
    """Part of the contract of every adapter: what is stored, as tables of rows.

    An adapter whose data is to be copied overrides `tables`, and what else has a better answer
    than the default here. Everything but `namespaces` is about the adapter's own namespace.
    """

    blocking: ClassVar[bool]
    namespace: str

    @property
    def tables(self) -> Sequence[Table]:
        """What the store keeps; a table that others refer to stands before them.

        Tables, `schema` and `namespaces` are used inside a `snapshot` or a transaction.
        """
        raise ConfigurationError(f"{type(self).__name__} does not support copying")

    def open(self) -> None:
        raise NotImplementedError

    def exists(self) -> bool:
        """Whether there is something to connect to. A server may still be unreachable."""
        return True

    def attach(self) -> None:
        """Connect as `open` does, but create, migrate and change nothing.

        Raises:
            StoreUnavailable: the server cannot be reached.
            ConfigurationError: there is no such file, or it is not a database.
        """
        if not self.blocking:
            raise ConfigurationError("what is kept in memory ends with its process")
        self.open()

    def share(self, other: Dumpable) -> bool:
        """Use the connection of another adapter on the same database; whether that is possible.

        What both read inside one `snapshot` is then of the same instant.
        """
        return False

    def identity(self) -> str | None:
        """The same for two adapters that lead to one database; `None` if that is not known.

        It keeps a copy from deleting its own source. Without it, `force` is refused between two
        databases of this adapter's class.
        """
        return None

    def snapshot(self) -> AbstractContextManager[None]:
        """What is read inside is of one instant where the database can do that.

        It may take as long as it takes.
        """
        return nullcontext()

    def schema(self) -> Schema | None:
        """The version of what is stored; `None` if nothing of this store is there."""
        return Schema() if self.namespaces() else None

    def namespaces(self) -> list[str]:
        """All namespaces that hold something, sorted."""
        return [self.namespace]
