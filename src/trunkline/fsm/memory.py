"""The fsm in memory: for tests, and for bots that may forget."""

from __future__ import annotations

from itertools import islice
from typing import ClassVar

from trunkline.fsm.adapter import Place, Record
from trunkline.fsm.records import Kept, RecordFSMAdapter, WallClock, wall_clock_ms

__all__ = ("MemoryFSMAdapter",)


class MemoryFSMAdapter(RecordFSMAdapter):
    """Records in a dictionary of this process."""

    blocking: ClassVar = False

    def __init__(self, clock: WallClock = wall_clock_ms) -> None:
        super().__init__(clock)
        self._records: dict[Place, Kept] = {}

    def _read(self, place: Place) -> Kept | None:
        return self._records.get(place)

    def _write(self, place: Place, kept: Kept | None) -> None:
        if kept is None:
            del self._records[place]
        else:
            self._records[place] = kept

    def sweep(self, limit: int) -> list[tuple[Place, Record]]:
        over = ((place, kept) for place, kept in self._records.items() if self._is_over(kept))
        swept = [(place, kept.record) for place, kept in islice(over, limit)]
        for place, _ in swept:
            del self._records[place]
        return swept
