"""The fsm in memory: for tests, and for bots that may forget."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import ClassVar, Self

from trunkline.actors.clock import wall_clock_ms
from trunkline.backends import AdapterOptions
from trunkline.fsm.adapter import Fields, Record, RecordKey, Step
from trunkline.fsm.records import RecordFSMAdapter, WallClock
from trunkline.validation import require_positive

__all__ = ("MemoryFSMAdapter",)


class MemoryFSMAdapter(RecordFSMAdapter):
    """Records in dictionaries of this process.

    Args:
        clock: milliseconds since 1970.
        max_conversations: how many of each bot are kept. One more evicts the conversation whose
            last change is the oldest.
        namespace: has no effect, since no other store sees this memory.
    """

    blocking: ClassVar = False

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls(options.clock, namespace=options.namespace)

    def __init__(
        self,
        clock: WallClock = wall_clock_ms,
        *,
        max_conversations: int = 100_000,
        namespace: str = "default",
    ) -> None:
        super().__init__(clock)
        self.namespace = namespace
        self._max_conversations = require_positive("max_conversations", max_conversations)
        # bot name → key → record, in the order of their last changes.
        self._bots: dict[str, OrderedDict[str, Record]] = {}
        # Time to live → when each record expires. Those of one time to live expire in the order of
        # their last changes, so that a sweep looks at no other records than it removes.
        self._ends: dict[int, OrderedDict[RecordKey, int]] = {}

    def count(self) -> int:
        """How many conversations are kept."""
        return sum(map(len, self._bots.values()))

    def save(self, key: RecordKey, step: Step, fields: Fields, ttl_ms: int | None) -> None:
        if ttl_ms is None:
            self._write(key, Record(step, fields))
            return
        end = self._clock() + ttl_ms
        self._write(key, Record(step, fields, end))
        self._ends.setdefault(ttl_ms, OrderedDict())[key] = end

    def clear(self, key: RecordKey) -> None:
        self._forget_end(key)
        records = self._bots.get(key.bot_name)
        if records is not None:
            records.pop(key.key, None)

    def sweep(self, limit: int) -> list[tuple[RecordKey, Record]]:
        now = self._clock()
        swept: list[tuple[RecordKey, Record]] = []
        for ends in self._ends.values():
            while ends and len(swept) < limit and next(iter(ends.values())) <= now:
                key, _ = ends.popitem(last=False)
                swept.append((key, self._bots[key.bot_name].pop(key.key)))
        self._ends = {ttl_ms: ends for ttl_ms, ends in self._ends.items() if ends}
        return swept

    def summary(self) -> dict[tuple[str, Step], int]:
        now = self._clock()
        counts: Counter[tuple[str, Step]] = Counter()
        for bot_name, records in self._bots.items():
            for record in records.values():
                if record.expires_at_ms is None or record.expires_at_ms > now:
                    counts[bot_name, record.step] += 1
        return dict(counts)

    def _read(self, key: RecordKey) -> Record | None:
        records = self._bots.get(key.bot_name)
        return None if records is None else records.get(key.key)

    def _write(self, key: RecordKey, record: Record) -> None:
        if self._ends:
            self._forget_end(key)
        records = self._bots.get(key.bot_name)
        if records is None:
            records = self._bots[key.bot_name] = OrderedDict()
        records[key.key] = record
        records.move_to_end(key.key)
        if len(records) > self._max_conversations:
            oldest, dropped = records.popitem(last=False)
            dropped_key = RecordKey(key.bot_name, oldest)
            self._forget_end(dropped_key)
            if self.on_dropped is not None:
                self.on_dropped(dropped_key, dropped)

    def _forget_end(self, key: RecordKey) -> None:
        for ends in self._ends.values():
            ends.pop(key, None)
