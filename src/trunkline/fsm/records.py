"""The fsm over records that are read and written whole: what every operation makes of one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from trunkline.actors.clock import wall_clock_ms
from trunkline.backends.codec import Key, Unstorable, encode
from trunkline.errors import ConfigurationError
from trunkline.fsm.adapter import Fields, FSMAdapter, Place, Record, Step

__all__ = ("Kept", "RecordFSMAdapter", "WallClock", "encode_fields")

#: Tells milliseconds since 1970. Not monotonic: times to live must survive a restart.
WallClock: TypeAlias = Callable[[], int]


def encode_fields(key: Key, data: object) -> Fields:
    """Every name and value of a map, encoded: refused before anything changes, and a copy.

    Args:
        key: whose data it is, for the error.
        data: a map of what `encode` takes.

    Raises:
        ConfigurationError: it is no map, or holds what cannot be stored.
    """
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"data of {key!r} is a map, not {type(data).__name__}")
    fields = {}
    for name, value in data.items():
        try:
            fields[encode(name)] = encode(value)
        except Unstorable as error:
            raise ConfigurationError(
                f"data {name!r} of {key!r} cannot be stored: {error}"
            ) from None
    return fields


class Kept(msgspec.Struct, frozen=True):
    """A record with the instant at which its time is over, if it ever is."""

    record: Record
    expires_at_ms: int | None = None


class RecordFSMAdapter(FSMAdapter):
    """Operations as functions from record to record. A subclass keeps the records."""

    def __init__(self, clock: WallClock = wall_clock_ms) -> None:
        self._clock = clock

    @abstractmethod
    def _read(self, place: Place) -> Kept | None:
        """What is kept, its time over or not."""

    @abstractmethod
    def _write(self, place: Place, kept: Kept | None) -> None:
        """Keep it, or remove what is kept."""

    def load(self, place: Place) -> Record | None:
        kept = self._read(place)
        if kept is None or self._is_over(kept):
            return None
        return kept.record

    def save(self, place: Place, record: Record, ttl_ms: int | None) -> None:
        expires_at_ms = None if ttl_ms is None else self._clock() + ttl_ms
        self._write(place, Kept(record, expires_at_ms))

    def set_state(self, place: Place, state: str | None, ttl_ms: int | None) -> None:
        record = self.load(place) or Record()
        self.save(place, replace(record, step=Step(record.step.flow, state)), ttl_ms)

    def set_data(self, place: Place, fields: Fields, ttl_ms: int | None) -> None:
        self.save(place, replace(self.load(place) or Record(), fields=fields), ttl_ms)

    def update_data(self, place: Place, fields: Fields, ttl_ms: int | None) -> Fields:
        record = self.load(place) or Record()
        merged = {**record.fields, **fields}
        self.save(place, Record(record.step, merged), ttl_ms)
        return merged

    def clear(self, place: Place) -> None:
        if self._read(place) is not None:
            self._write(place, None)

    def compare_and_set(
        self,
        place: Place,
        expected: Step,
        step: Step,
        fields: Fields | None,
        ttl_ms: int | None,
    ) -> Step | None:
        record = self.load(place) or Record()
        if record.step != expected:
            return record.step
        self.save(place, Record(step, record.fields if fields is None else fields), ttl_ms)
        return None

    def _is_over(self, kept: Kept) -> bool:
        return kept.expires_at_ms is not None and kept.expires_at_ms <= self._clock()
