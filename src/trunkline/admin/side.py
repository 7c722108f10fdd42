"""A database as an operator sees it: a place to look into, to copy from and to copy to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, TypeAlias

import msgspec

from trunkline.backends import AdapterOptions, open_adapter
from trunkline.errors import ConfigurationError

__all__ = ("STORES", "Key", "Row", "Schema", "Shelf", "Side", "open_side")

#: What a database may hold, in the order in which it is told of.
STORES = ("persistence", "fsm", "signal")

#: One thing that a database holds, as it is stored: its key, then the rest. Values stay encoded,
#: and encrypted if they are.
Row: TypeAlias = tuple[Any, ...]
Key: TypeAlias = tuple[str, ...]


class Schema(msgspec.Struct, frozen=True):
    """The version of a store's tables, and the one that this trunkline works with.

    Both are `None` where there are no tables.
    """

    version: int | None = None
    known_version: int | None = None

    @property
    def is_known(self) -> bool:
        return self.version == self.known_version


class Shelf(ABC):
    """Things of one kind in one store of a database, row by row.

    Rows are the same whatever database they come from: those of the SQL tables.
    """

    #: What stands here: `messages`.
    name: str
    #: How much of a row is its key.
    key_width: int

    @abstractmethod
    def count(self, at_ms: int) -> int:
        """How many rows there are, without those whose time is over at `at_ms`."""

    @abstractmethod
    def pages(self, at_ms: int) -> Iterator[Sequence[Row]]:
        """The same rows, a page of about a megabyte at a time."""

    @abstractmethod
    def keys(self, at_ms: int) -> Iterator[Sequence[Key]]:
        """The keys of the same rows, a page at a time."""

    @abstractmethod
    def present(self, keys: Collection[Key]) -> set[Key]:
        """Those of `keys` that are here."""

    @abstractmethod
    def put(self, rows: Sequence[Row]) -> None:
        """Insert rows, or replace those with the same keys."""


class Side(ABC):
    """One database. Nothing is created, migrated or changed unless a method says so.

    Raises:
        ConfigurationError: the URL cannot work, or leads to no database that outlives a process.
    """

    #: The URL without its password.
    shown_url: str
    #: The stores that such a database can hold.
    can_hold: tuple[str, ...]

    @abstractmethod
    def open(self) -> None:
        """Connect.

        Raises:
            StoreUnavailable: the server cannot be reached.
            ConfigurationError: there is no such file, or it is no database, or a password is wrong.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of connections."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is something to open. A server may still be away."""

    @abstractmethod
    def identity(self) -> str:
        """The same for two URLs that lead to one database. After `open`."""

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[None]:
        """What is read inside is as it was at one instant, where the database can do that."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """What is put on shelves inside is committed on leaving, or not at all."""

    @abstractmethod
    def stores(self) -> dict[str, Schema]:
        """The stores that are here.

        Inside a snapshot or a transaction, as all that follows.
        """

    @abstractmethod
    def adapter(self, store: str) -> Any:
        """The adapter of a store, to be asked only."""

    @abstractmethod
    def shelves(self, store: str) -> tuple[Shelf, ...]:
        """What a store keeps, those that others refer to first."""

    @abstractmethod
    def create(self, stores: Collection[str]) -> None:
        """Make or migrate what these stores are kept in. Outside of a transaction."""

    @abstractmethod
    def erase(self, store: str) -> None:
        """Remove all that a store keeps."""


def open_side(url: str) -> Side:
    """The database at `url`, not yet connected.

    Raises:
        ConfigurationError: it cannot work.
    """
    adapter = open_adapter("fsm", url, AdapterOptions())
    if not adapter.blocking:
        raise ConfigurationError(f"{url}: what is in memory is gone with its process")
    # Imported where it is used: a program loads only the drivers that it uses.
    kind = "redis" if hasattr(adapter, "server") else "sql"
    module: Any = import_module(f"trunkline.admin.{kind}")
    side: Side = module.SIDE(url)
    return side
