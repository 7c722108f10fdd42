"""What a database must be able to do for the fsm store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import msgspec

from trunkline.backends import Adapter

__all__ = ("FSMAdapter", "Fields", "Record", "RecordKey", "Step")

#: Data by name: plain Python values, all of which `trunkline.backends.codec` can encode. The store
#: checks and copies what a caller passes in, so that an adapter may keep it.
Fields: TypeAlias = dict[Any, Any]


class RecordKey(msgspec.Struct, frozen=True, gc=False):
    """Identifies a record in its namespace: a bot's name, and an encoded key of that bot."""

    bot_name: str
    key: str


class Step(msgspec.Struct, frozen=True, gc=False):
    """The position of a conversation in its flow."""

    flow: str | None = None
    state: str | None = None


class Record(msgspec.Struct, frozen=True):
    """A stored conversation."""

    step: Step = Step()
    fields: Fields = {}
    #: Milliseconds since 1970; `None` for ever.
    expires_at_ms: int | None = None


class FSMAdapter(Adapter, ABC):
    """The contract of the fsm. Subclass it and run `trunkline.testing.FSMContract`.

    Every change gives the record a new time to live, `ttl_ms` from now, or none if that is `None`.
    An expired record counts as missing. A change of a missing record begins with an empty one. Each
    method is atomic, also between processes. The names of data keep the order in which they were
    added. Fields that a method returns belong to the caller, who may change them.

    Every method may raise `UnreadableRecord` for a stored record that cannot be decoded; `save` and
    `clear` never need to decode it.
    """

    store: ClassVar = "fsm"

    #: Called with each record that an adapter drops because it holds too many. The store sets it.
    #: It must be called in the event loop's thread, and so only if `blocking` is false.
    on_dropped: Callable[[RecordKey, Record], None] | None = None

    @abstractmethod
    def load(self, key: RecordKey) -> Record | None:
        """The record, if there is one. Reading stores nothing."""

    @abstractmethod
    def save(self, key: RecordKey, step: Step, fields: Fields, ttl_ms: int | None) -> None:
        """Replace the whole record."""

    @abstractmethod
    def set_state(
        self, key: RecordKey, state: str | None, ttl_ms: int | None, remove_empty: bool
    ) -> None:
        """Change the state alone; flow and data stay.

        With `remove_empty`, a record that is empty after that is removed.
        """

    @abstractmethod
    def set_data(
        self, key: RecordKey, fields: Fields, ttl_ms: int | None, remove_empty: bool
    ) -> None:
        """Replace the data; the step stays.

        With `remove_empty`, a record that is empty after that is removed.
        """

    @abstractmethod
    def update_data(self, key: RecordKey, fields: Fields, ttl_ms: int | None) -> Fields:
        """Merge `fields` into the data, name by name; returns the data after it."""

    @abstractmethod
    def clear(self, key: RecordKey) -> None:
        """Remove the record. A missing one is no error."""

    @abstractmethod
    def compare_and_set(
        self,
        key: RecordKey,
        expected: Step,
        step: Step,
        fields: Fields | None,
        ttl_ms: int | None,
    ) -> Step | None:
        """Change the step if it is `expected`, and replace the data unless `fields` is `None`.

        The step of a missing record is `Step()`.

        Returns:
            `None` if it was changed, else the stored step, unchanged.
        """

    def sweep(self, limit: int) -> list[tuple[RecordKey, Record]]:
        """Remove up to `limit` expired records, and return them.

        A database that removes them by itself has nothing to return.
        """
        return []

    def summary(self) -> dict[tuple[str, Step], int]:
        """How many conversations each bot has at each step, for `trunkline inspect`."""
        raise NotImplementedError(f"{type(self).__name__} does not support summaries")
