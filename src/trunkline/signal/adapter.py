"""What a database must be able to do for the signal store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from trunkline.backends import Adapter

__all__ = ("ABSENT", "Changes", "Commit", "KeyName", "SignalAdapter", "Versioned")

#: The version of what is not stored.
ABSENT = 0


class KeyName(NamedTuple):
    """The name of one entry: its family, and its id in it."""

    family: str
    id: str


class Versioned(NamedTuple):
    """An encoded value with the version that its last change gave it: any number but 0."""

    version: int
    value: bytes


#: Encoded values by name; `None` deletes.
Changes: TypeAlias = Mapping[KeyName, bytes | None]


class Commit(msgspec.Struct, frozen=True):
    """Changes that are stored wholly or not at all."""

    changes: Changes
    #: The version that each changed entry gets.
    version: int
    #: The versions that entries must still have; where one differs, nothing is stored.
    expected: Mapping[KeyName, int] = {}
    #: Whether everything else is deleted first.
    clear: bool = False
    #: The lock among processes that must still be held, with its token.
    lease: tuple[str, str] | None = None


class SignalAdapter(Adapter, ABC):
    """The contract of signal. Subclass it and run `trunkline.testing.SignalContract`."""

    @abstractmethod
    def get(self, names: Collection[KeyName]) -> dict[KeyName, Versioned]:
        """The entries that are there, all read at one instant."""

    @abstractmethod
    def commit(self, commit: Commit) -> bool:
        """Store the changes wholly and at one instant, also among processes.

        Returns:
            False if an entry no longer has the version that is expected of it, or the lease has
            ended; nothing is stored then.
        """

    @abstractmethod
    def names(self) -> Sequence[KeyName]:
        """The name of every entry, sorted."""
