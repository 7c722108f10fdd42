"""The budget of local calls: so many run in their callers' tasks before the event loop must run."""

from __future__ import annotations

from typing import Protocol

from anyio.lowlevel import RunVar

from trunkline.actors.future import asyncio_loop, call_soon_from_thread

__all__ = ("LocalTurns",)

#: Local calls in a row, of all actors of an event loop together: a millisecond or two.
_ALL_ACTORS = 1_024

#: Local calls in a row of one actor. The number is that of tokio's cooperative budget.
_ONE_ACTOR = 128

#: Local calls that an actor borrows at a time. A divisor of both.
_PART = 16


class _Borrower(Protocol):
    def drop_turns(self) -> None: ...


class LocalTurns:
    """The local calls that may still be made before the event loop has run.

    The actors of one event loop share them and borrow them in small parts, so that a call on an
    actor that has some counts down one number. A call that finds none is queued. As soon as the
    event loop runs, everything that was borrowed is taken back, and all can be borrowed again.
    """

    __slots__ = ("_borrowers", "_call_soon", "_left")

    def __init__(self) -> None:
        self._borrowers: set[_Borrower] = set()
        self._left = _ALL_ACTORS
        loop = asyncio_loop()
        self._call_soon = call_soon_from_thread() if loop is None else loop.call_soon

    @classmethod
    def of_this_event_loop(cls) -> LocalTurns:
        try:
            return _OF_EVENT_LOOP.get()
        except LookupError:
            _OF_EVENT_LOOP.set(cls())
            return _OF_EVENT_LOOP.get()

    def lend(self, borrower: _Borrower, borrowed: int) -> int:
        """More turns for an actor that has borrowed so many; 0 if its next call must be queued."""
        if borrowed >= _ONE_ACTOR or not self._left:
            return 0
        if not self._borrowers:
            self._call_soon(self.take_back)
        self._borrowers.add(borrower)
        self._left -= _PART
        return _PART

    def take_back(self) -> None:
        """The event loop runs, or has run since the last local call."""
        self._left = _ALL_ACTORS
        for borrower in self._borrowers:
            borrower.drop_turns()
        self._borrowers.clear()


_OF_EVENT_LOOP: RunVar[LocalTurns] = RunVar("trunkline.local_turns")
