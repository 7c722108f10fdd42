"""The inbox in memory: for tests, and for bots that may forget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import ClassVar, Self

from msgspec.structs import replace

from trunkline.actors.clock import wall_clock_ms
from trunkline.backends import AdapterOptions
from trunkline.turns.adapter import (
    Applied,
    Beat,
    InboxAdapter,
    ItemRow,
    Loaded,
    Owner,
    is_running,
    item_row,
    short_mark,
)
from trunkline.turns.item import InboxCounts
from trunkline.turns.policy import TurnPolicy
from trunkline.turns.session import Change, Session

__all__ = ("MemoryInboxAdapter",)

#: Entries of the heap that are old and yet kept, besides as many as there are sessions.
_OLD_ENTRIES = 64


class MemoryInboxAdapter(InboxAdapter):
    """Sessions in a dictionary of this process.

    Args:
        clock: milliseconds since 1970.
        namespace: has no effect, since no other store sees this memory.
    """

    blocking: ClassVar = False

    def __init__(
        self, clock: Callable[[], int] = wall_clock_ms, *, namespace: str = "default"
    ) -> None:
        self.namespace = namespace
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        #: The latest instant that the clock has shown.
        self._latest_ms = 0
        #: Those of sessions, and those that have failed, in the order of their ids.
        self._rows: dict[str, ItemRow] = {}
        self._failed: dict[str, ItemRow] = {}
        #: mark → item id and when it is over.
        self._marks: dict[bytes, tuple[str, int]] = {}
        #: The same of items without an external id, which are over sooner.
        self._short_marks: dict[bytes, tuple[str, int]] = {}
        self._steps: dict[str, dict[str, bytes]] = {}
        #: session → when its turn may begin; and the same as a heap with entries that may be old.
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._owners: dict[str, Owner] = {}
        #: owner → turn → session.
        self._claims: dict[str, dict[str, str]] = {}
        self._policy: TurnPolicy | None = None

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls(options.clock, namespace=options.namespace)

    # -- sessions ----------------------------------------------------------------------------------

    def load(self, keys: Collection[str], marks: Mapping[bytes, str]) -> Loaded:
        now_ms = self._clock()
        self._latest_ms = max(self._latest_ms, now_ms)
        sessions = {key: self._sessions[key] for key in keys if key in self._sessions}
        seen = {}
        for mark in marks:
            known = self._marks.get(mark) or self._short_marks.get(mark)
            if known is not None and known[1] > now_ms:
                seen[mark] = known[0]
        return Loaded(now_ms, sessions, seen)

    def apply(
        self, changes: Sequence[Change], items: Mapping[str, str], groups: Mapping[str, str]
    ) -> Applied:
        for change in changes:
            self._apply_one(change)
        rows = {item_id: self._rows[item_id] for item_id in items if item_id in self._rows}
        steps = {group: dict(self._steps.get(group, {})) for group in groups}
        return Applied(rows=rows, steps=steps)

    def _apply_one(self, change: Change) -> None:
        key, rows = change.key, self._rows
        for entry, item in change.added:
            rows[entry.id] = item_row(key, entry, item)
        for mark, item_id in change.marks.items():
            marks = self._short_marks if mark == short_mark(item_id) else self._marks
            marks.pop(mark, None)
            marks[mark] = (item_id, self.mark_expiry_ms(change, item_id, mark))
        for item_id, payload in change.replaced.items():
            rows[item_id] = replace(rows[item_id], payload=payload)
        for entry, attempts, error in change.failed:
            row = rows.pop(entry.id)
            self._failed[entry.id] = replace(row, attempts=attempts, error=error)
        for item_id in change.revived:
            row = self._failed.pop(item_id)
            rows[item_id] = replace(row, attempts=0, error=None)
        for item_id in change.removed:
            rows.pop(item_id, None)
        for turn_id, owner in change.released.items():
            self._claims.get(owner, {}).pop(turn_id, None)
        for turn_id, owner in change.claimed.items():
            self._claims.setdefault(owner, {})[turn_id] = key
        for (group, name), value in change.steps.items():
            self._steps.setdefault(group, {})[name] = value
        for group in change.ended_groups:
            self._steps.pop(group, None)
        if change.session.is_empty:
            self._sessions.pop(key, None)
            self._due.pop(key, None)
            return
        self._sessions[key] = change.session
        due_at_ms = change.due_at_ms
        if due_at_ms is None:
            self._due.pop(key, None)
        elif self._due.get(key) != due_at_ms:
            self._due[key] = due_at_ms
            self._push(due_at_ms, key)

    def _push(self, due_at_ms: int, key: str) -> None:
        heappush(self._heap, (due_at_ms, key))
        if len(self._heap) > 2 * len(self._due) + _OLD_ENTRIES:
            self._heap = [(due_at_ms, key) for key, due_at_ms in self._due.items()]
            heapify(self._heap)

    def peek(self, keys: Collection[str]) -> Mapping[str, Session]:
        return {key: self._sessions[key] for key in keys if key in self._sessions}

    def due(self, limit: int, *, urgent_only: bool) -> tuple[list[str], int | None]:
        now_ms = self._clock()
        found: list[tuple[int, str]] = []
        heap, last_ms = self._heap, 0 if urgent_only else now_ms
        while heap and len(found) < limit and heap[0][0] <= last_ms:
            entry = heappop(heap)
            if self._due.get(entry[1]) == entry[0] and entry not in found:
                found.append(entry)
        for entry in found:
            heappush(heap, entry)
        later = self._next_due_ms(found)
        return [key for _, key in found], None if later is None else max(later - now_ms, 0)

    def _next_due_ms(self, found: Sequence[tuple[int, str]]) -> int | None:
        """When the next session is due that is not in `found`."""
        heap, skipped = self._heap, []
        while heap:
            due_at_ms, key = heap[0]
            if self._due.get(key) != due_at_ms:
                heappop(heap)  # old
            elif (due_at_ms, key) in found:
                skipped.append(heappop(heap))
            else:
                break
        later = heap[0][0] if heap else None
        for entry in skipped:
            heappush(heap, entry)
        return later

    def recover(self) -> int:
        now_ms, latest_ms = self._clock(), self._latest_ms
        self._latest_ms = now_ms
        if now_ms >= latest_ms:
            return 0
        late = [key for key, due_at_ms in self._due.items() if due_at_ms > now_ms]
        for key in late:
            self._due[key] = now_ms
            self._push(now_ms, key)
        return len(late)

    # -- items -------------------------------------------------------------------------------------

    def rows(self, after: str | None, limit: int, *, failed: bool) -> Sequence[ItemRow]:
        rows = self._failed if failed else self._rows
        # Ids are made in the order of time; what was revived is out of order.
        return [rows[key] for key in sorted(rows) if after is None or key > after][:limit]

    def row(self, item_id: str) -> ItemRow | None:
        return self._rows.get(item_id) or self._failed.get(item_id)

    def remove_failed(self, item_id: str) -> bool:
        return self._failed.pop(item_id, None) is not None

    def counts(self) -> InboxCounts:
        sessions = self._sessions.values()
        return InboxCounts(
            len(sessions),
            sum(session.waiting_count for session in sessions),
            sum(session.running_count for session in sessions),
            len(self._failed),
        )

    def load_policy(self) -> TurnPolicy | None:
        return self._policy

    def save_policy(self, policy: TurnPolicy) -> None:
        self._policy = policy

    def sweep(self, limit: int) -> int:
        now_ms = self._clock()
        expired: list[bytes] = []
        # They are in the order of their ends, unless the clock was set back meanwhile.
        for marks in (self._marks, self._short_marks):
            for mark, (_, end) in marks.items():
                if end > now_ms or len(expired) == limit:
                    break
                expired.append(mark)
        for mark in expired:
            self._marks.pop(mark, None)
            self._short_marks.pop(mark, None)
        return len(expired)

    # -- processes ---------------------------------------------------------------------------------

    def register(self, owner: Owner) -> None:
        self._owners[owner.id] = owner

    def unregister(self, owner_id: str) -> None:
        self._owners.pop(owner_id, None)

    def beat(self, owner_id: str) -> Beat:
        claims = {}
        for turn_id, key in self._claims.get(owner_id, {}).items():
            session = self._sessions.get(key)
            claims[turn_id] = (key, session is not None and is_running(session, turn_id))
        owner = self._owners.get(owner_id)
        is_alive = owner is not None and not owner.is_buried
        if owner is not None and is_alive:
            self._owners[owner_id] = replace(owner, beat=owner.beat + 1)
        return Beat(is_alive, claims, tuple(self._owners.values()))

    def mark_buried(self, owner_id: str) -> None:
        owner = self._owners.get(owner_id)
        if owner is not None:
            self._owners[owner_id] = replace(owner, is_buried=True)

    def sessions_of(self, owner_id: str, limit: int) -> list[str]:
        return [*dict.fromkeys(self._claims.get(owner_id, {}).values())][:limit]
