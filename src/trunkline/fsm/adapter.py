"""What a database must be able to do for the fsm store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeAlias

import msgspec

from trunkline.backends import Adapter

__all__ = ("FSMAdapter", "Fields", "Place", "Record", "Step")

#: A map of data, each name and each value encoded. An adapter only copies and merges them.
Fields: TypeAlias = Mapping[bytes, bytes]


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where a record is kept: a bot's name and an encoded key. Bots never see each other's."""

    bot_name: str
    key: str


class Step(msgspec.Struct, frozen=True, gc=False):
    """Where a conversation stands in its flow."""

    flow: str | None = None
    state: str | None = None


class Record(msgspec.Struct, frozen=True):
    """What is kept of one conversation."""

    step: Step = Step()
    fields: Fields = {}


class FSMAdapter(Adapter, ABC):
    """The contract of the fsm. Subclass it and run `trunkline.testing.FSMContract`.

    Every change gives the record a new time to live, `ttl_ms` from now, or none if that is `None`.
    A record whose time is over is not there. A change of what is not there begins with an empty
    record. Each method is atomic, also among processes.
    """

    store: ClassVar = "fsm"

    #: Told by an adapter that keeps no more than so many, of each that it has dropped. The store
    #: sets it. It is for the event loop's thread, and so for adapters that do not wait for I/O.
    on_dropped: Callable[[Place, Record], None] | None = None

    @abstractmethod
    def load(self, place: Place) -> Record | None:
        """The record, if there is one. Reading stores nothing."""

    @abstractmethod
    def save(self, place: Place, record: Record, ttl_ms: int | None) -> None:
        """Replace the whole record."""

    @abstractmethod
    def set_state(self, place: Place, state: str | None, ttl_ms: int | None) -> None:
        """Change the state alone; flow and data stay."""

    @abstractmethod
    def set_data(self, place: Place, fields: Fields, ttl_ms: int | None) -> None:
        """Replace the data; the step stays."""

    @abstractmethod
    def update_data(self, place: Place, fields: Fields, ttl_ms: int | None) -> Fields:
        """Merge `fields` into the data, name by name; the data after it."""

    @abstractmethod
    def clear(self, place: Place) -> None:
        """Remove the record. One that is not there is no error."""

    @abstractmethod
    def compare_and_set(
        self,
        place: Place,
        expected: Step,
        step: Step,
        fields: Fields | None,
        ttl_ms: int | None,
    ) -> Step | None:
        """Change the step if it is `expected`, and replace the data unless `fields` is `None`.

        What is not there has the step `Step()`.

        Returns:
            `None` if it was changed, else the step that stands, unchanged.
        """

    def sweep(self, limit: int) -> list[tuple[Place, Record]]:
        """Remove up to `limit` records whose time is over, and give them.

        A database that removes them itself has nothing to give.
        """
        return []

    def summary(self) -> dict[tuple[str, Step], int]:
        """How many conversations each bot has at each step, for `trunkline inspect`."""
        raise NotImplementedError(f"{type(self).__name__} cannot tell what it holds as a whole")
