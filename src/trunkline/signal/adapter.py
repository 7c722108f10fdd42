"""The contract of the adapters of the signal store."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import msgspec

from trunkline.backends import Adapter
from trunkline.errors import UnreadableRecord

__all__ = (
    "ABSENT",
    "AdapterBug",
    "Changes",
    "Commit",
    "KeyName",
    "SignalAdapter",
    "Versioned",
    "unreadable",
)

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

    def __repr__(self) -> str:
        # The value stays out: it is a secret.
        return f"<Versioned {self.version}>"


#: Encoded values by name; `None` deletes.
Changes: TypeAlias = Mapping[KeyName, bytes | None]


class Commit(msgspec.Struct, frozen=True):
    """Changes that are stored all together or not at all."""

    changes: Changes
    #: The version that each changed entry gets.
    version: int
    #: The versions that entries must still have; where one differs, nothing is stored.
    expected: Mapping[KeyName, int] = {}
    #: Whether everything else is deleted first.
    clear: bool = False
    #: How many entries there must be; `None` if any number will do.
    expected_entries: int | None = None
    #: The lock among processes that must still be held, with its token.
    lease: tuple[str, str] | None = None

    def __repr__(self) -> str:
        # The values stay out: they are secrets.
        return f"<Commit {self.version} of {len(self.changes)} changes>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("version", self.version)]


def unreadable(name: KeyName) -> UnreadableRecord:
    """The error for an entry that cannot be decoded. It names the entry, and never quotes it."""
    return UnreadableRecord(f"signal: the stored {name.family} {name.id!r} cannot be decoded")


class AdapterBug(Exception):
    """An adapter raised an exception that is a bug: shown with its place, without its message."""


class SignalAdapter(Adapter, ABC):
    """The contract of signal. Subclass it and run `trunkline.testing.SignalContract`.

    An exception that is a bug is shown as an `AdapterBug`, since its message may quote a secret.
    """

    store: ClassVar = "signal"

    def redacted(self, error: Exception) -> AdapterBug:
        bug = AdapterBug(
            f"{type(error).__qualname__} in {type(self).__qualname__}; its message is left out,"
            " since it may quote a secret"
        )
        bug.add_note("".join(traceback.format_tb(error.__traceback__)).rstrip())
        return bug

    @abstractmethod
    def get(self, names: Collection[KeyName]) -> dict[KeyName, Versioned]:
        """The entries that exist, all read at one instant.

        Raises:
            UnreadableRecord: one of them is damaged; see `unreadable`.
        """

    @abstractmethod
    def commit(self, commit: Commit) -> bool:
        """Store all of the changes at one instant, also as other processes see it.

        Returns:
            False if an entry no longer has the version that is expected of it, there are not as
            many entries as expected, or the lease has ended; nothing is stored then.
        """

    @abstractmethod
    def names(self) -> Sequence[KeyName]:
        """The name of every entry, sorted."""

    def summary(self) -> dict[str, int]:
        """How many entries each family has, for `trunkline inspect`."""
        return dict(Counter(name.family for name in self.names()))
