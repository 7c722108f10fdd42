"""A row of the report: one figure, what it is compared with, and the budget that it has to keep."""

from __future__ import annotations

from typing import Literal

import msgspec

#: The parts of the report, in its order.
SECTIONS = (
    "one caller",
    "other libraries",
    "sessions",
    "partitions",
    "callers",
    "events",
    "memory",
    "prune",
    "import",
    "messages, SQLite",
    "messages, PostgreSQL",
    "fsm, memory",
    "fsm, SQLite",
    "fsm, Valkey",
    "signal, memory",
    "signal, SQLite",
    "turns, memory",
    "turns, Valkey",
    "turns, SQLite",
    "turns, PostgreSQL",
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    #: One of `SECTIONS`.
    section: str
    #: What was done.
    work: str
    #: Our figure.
    figure: float
    unit: Literal["ns", "ms", "B"]
    #: Whether both figures are shown as calls a second.
    per_second: bool = False
    #: What it is compared with, and the figure of that in the same unit.
    against: str | None = None
    peer: float | None = None
    #: Whether the question is how many times faster we are, and not how much more we take.
    speedup: bool = False
    #: What the design allows: of the ratio if there is one, else of our figure.
    budget: float | None = None
    #: Where it stands on the axis of a plot: how many sessions, partitions, callers.
    x: int | None = None

    @property
    def ratio(self) -> float | None:
        """Our figure over the peer's; the other way round for a speedup."""
        if self.peer is None:
            return None
        return self.peer / self.figure if self.speedup else self.figure / self.peer

    @property
    def kept(self) -> bool | None:
        """Whether the budget is kept; `None` if there is none."""
        if self.budget is None:
            return None
        measured = self.figure if self.ratio is None else self.ratio
        return measured >= self.budget if self.speedup else measured <= self.budget
