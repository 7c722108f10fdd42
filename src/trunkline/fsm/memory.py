"""The fsm in memory: for tests, and for bots that may forget."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import ClassVar

from trunkline.fsm.adapter import Place, Record, Step
from trunkline.fsm.records import Kept, RecordFSMAdapter, WallClock, wall_clock_ms

__all__ = ("MemoryFSMAdapter",)


class MemoryFSMAdapter(RecordFSMAdapter):
    """Records in a dictionary of this process."""

    blocking: ClassVar = False

    def __init__(self, clock: WallClock = wall_clock_ms) -> None:
        super().__init__(clock)
        self._records: dict[Place, Kept] = {}
        # Time to live → when each record's is over. Those of one time to live end in the order of
        # their last changes, so that a sweep looks at no others than it removes.
        self._ends: dict[int, OrderedDict[Place, int]] = {}

    def save(self, place: Place, record: Record, ttl_ms: int | None) -> None:
        if self._ends:
            self._forget_end(place)
        super().save(place, record, ttl_ms)
        end = self._records[place].expires_at_ms
        if ttl_ms is not None and end is not None:
            self._ends.setdefault(ttl_ms, OrderedDict())[place] = end

    def sweep(self, limit: int) -> list[tuple[Place, Record]]:
        now = self._clock()
        swept: list[tuple[Place, Record]] = []
        for ends in self._ends.values():
            while ends and len(swept) < limit and next(iter(ends.values())) <= now:
                place, _ = ends.popitem(last=False)
                swept.append((place, self._records.pop(place).record))
        self._ends = {ttl_ms: ends for ttl_ms, ends in self._ends.items() if ends}
        return swept

    def summary(self) -> dict[tuple[str, Step], int]:
        counts: Counter[tuple[str, Step]] = Counter()
        for place, kept in self._records.items():
            if not self._is_over(kept):
                counts[place.bot_name, kept.record.step] += 1
        return dict(counts)

    def _read(self, place: Place) -> Kept | None:
        return self._records.get(place)

    def _write(self, place: Place, kept: Kept | None) -> None:
        if kept is None:
            self._forget_end(place)
            del self._records[place]
        else:
            self._records[place] = kept

    def _forget_end(self, place: Place) -> None:
        for ends in self._ends.values():
            ends.pop(place, None)
