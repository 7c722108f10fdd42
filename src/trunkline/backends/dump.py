"""What is stored, as rows: for `trunkline inspect` and `trunkline copy`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

__all__ = ("Key", "Row", "Schema", "Table")

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
