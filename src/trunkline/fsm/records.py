"""The fsm over records that are read and written whole, and how records are encoded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from trunkline.actors.clock import wall_clock_ms
from trunkline.backends.codec import copy_fields, decode, encode
from trunkline.errors import UnreadableRecord
from trunkline.fsm.adapter import Fields, FSMAdapter, Record, RecordKey, Step

__all__ = ("RecordFSMAdapter", "WallClock", "decode_fields", "encode_fields", "unreadable")

#: Milliseconds since 1970. Not monotonic: times to live must survive a restart.
WallClock: TypeAlias = Callable[[], int]

_NO_RECORD = Record()


def encode_fields(fields: Fields) -> dict[bytes, bytes]:
    """Every name and value, encoded: for databases that store bytes."""
    return {encode(name): encode(value) for name, value in fields.items()}


def decode_fields(encoded: Mapping[bytes, bytes]) -> dict[Any, Any]:
    """What `encode_fields` was given."""
    return {decode(name): decode(value) for name, value in encoded.items()}


def unreadable(key: RecordKey, error: Exception) -> UnreadableRecord:
    """What to raise from `error`, which decoding the record of `key` has raised."""
    return UnreadableRecord(
        f"the fsm record of bot {key.bot_name!r}, key {key.key} cannot be decoded: {error}"
    )


class RecordFSMAdapter(FSMAdapter):
    """Operations as functions from record to record. A subclass keeps the records."""

    def __init__(self, clock: WallClock = wall_clock_ms) -> None:
        self._clock = clock

    @abstractmethod
    def _read(self, key: RecordKey) -> Record | None:
        """The stored record, expired or not. Its fields must not be changed."""

    @abstractmethod
    def _write(self, key: RecordKey, record: Record) -> None:
        """Store the record."""

    def load(self, key: RecordKey) -> Record | None:
        record = self._live(key)
        if record is _NO_RECORD:
            return None
        return Record(record.step, copy_fields(record.fields), record.expires_at_ms)

    def save(self, key: RecordKey, step: Step, fields: Fields, ttl_ms: int | None) -> None:
        self._write(key, Record(step, fields, None if ttl_ms is None else self._clock() + ttl_ms))

    def set_state(
        self, key: RecordKey, state: str | None, ttl_ms: int | None, remove_empty: bool
    ) -> None:
        record = self._live(key)
        self._replace(key, Step(record.step.flow, state), record.fields, ttl_ms, remove_empty)

    def set_data(
        self, key: RecordKey, fields: Fields, ttl_ms: int | None, remove_empty: bool
    ) -> None:
        self._replace(key, self._live(key).step, fields, ttl_ms, remove_empty)

    def update_data(self, key: RecordKey, fields: Fields, ttl_ms: int | None) -> Fields:
        record = self._live(key)
        merged = {**record.fields, **fields}
        self.save(key, record.step, merged, ttl_ms)
        return copy_fields(merged)

    def compare_and_set(
        self,
        key: RecordKey,
        expected: Step,
        step: Step,
        fields: Fields | None,
        ttl_ms: int | None,
    ) -> Step | None:
        record = self._live(key)
        if record.step != expected:
            return record.step
        self.save(key, step, record.fields if fields is None else fields, ttl_ms)
        return None

    def _live(self, key: RecordKey) -> Record:
        record = self._read(key)
        if record is None:
            return _NO_RECORD
        ends = record.expires_at_ms
        return record if ends is None or ends > self._clock() else _NO_RECORD

    def _replace(
        self, key: RecordKey, step: Step, fields: Fields, ttl_ms: int | None, remove_empty: bool
    ) -> None:
        if remove_empty and not fields and step.state is None and step.flow is None:
            self.clear(key)
        else:
            self.save(key, step, fields, ttl_ms)
