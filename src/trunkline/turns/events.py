"""What happens in an inbox, as events and as counters."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from trunkline.observe import Event
from trunkline.routing.key import SessionKey

__all__ = ("Quantiles", "TurnEvent", "TurnStats", "Window")


class TurnEvent(Event, frozen=True, kw_only=True):
    """Something that happened to items of a session.

    `name` is one of `accepted duplicate dropped started interrupted cancelled resumed finished
    failed retried expired taken_over lost stuck`.
    """

    session_key: SessionKey
    #: The ids of the items.
    items: tuple[str, ...] = ()
    #: The attempt of their turn; 0 outside a turn.
    attempt: int = 0
    #: How long the oldest item has waited, and how long the handler has run.
    waited_ms: int | None = None
    run_ms: int | None = None
    #: What the handler raised, as text.
    error: str | None = None


class Quantiles(msgspec.Struct, frozen=True):
    """Of the last 1,024 turns, in milliseconds; 0 without one."""

    p50: int = 0
    p99: int = 0


class TurnStats(msgspec.Struct, frozen=True):
    """What a `Turns` does, and what it did so far."""

    #: Turns that run in this process.
    running: int
    #: Items and sessions in the inbox, as of the last look at the store: every half lease.
    waiting: int
    sessions: int
    #: How long the item that waits longest has waited, as of the same look.
    oldest_waiting_ms: int
    #: event → how often it happened in this process.
    events: dict[str, int]
    wait: Quantiles
    run: Quantiles


class Window:
    """The last 1,024 durations."""

    def __init__(self) -> None:
        self._values: deque[int] = deque(maxlen=1_024)

    def add(self, value: int) -> None:
        self._values.append(value)

    def quantiles(self) -> Quantiles:
        ordered: Sequence[int] = sorted(self._values)
        if not ordered:
            return Quantiles()
        count = len(ordered)
        # The smallest value that so many percent do not exceed.
        return Quantiles(ordered[-(-count * 50 // 100) - 1], ordered[-(-count * 99 // 100) - 1])
