"""The budget of local calls: so many run in their callers' tasks before the event loop must run."""

from __future__ import annotations

from typing import Protocol

from anyio.lowlevel import RunVar

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
    """The local calls that may still be made before a call must take the mailbox.

    The actors of one event loop share them and borrow them in small parts, so that a call on an
    actor that has some counts down one number. A call that finds none is queued. It lets the event
    loop run, and no calls before and after that are in a row: all turns can be borrowed again.
    """

    __slots__ = ("_borrowers", "_left", "_refused")

    def __init__(self) -> None:
        self._borrowers: set[_Borrower] = set()
        self._left = _ALL_ACTORS
        self._refused = False

    @classmethod
    def of_this_event_loop(cls) -> LocalTurns:
        try:
            return _OF_EVENT_LOOP.get()
        except LookupError:
            _OF_EVENT_LOOP.set(cls())
            return _OF_EVENT_LOOP.get()

    def lend(self, borrower: _Borrower, borrowed: int) -> int:
        """More turns for an actor that has borrowed so many; 0 if its next call must be queued."""
        if borrowed >= _ONE_ACTOR or self._left < _PART:
            self._refused = True
            return 0
        self._borrowers.add(borrower)
        self._left -= _PART
        return _PART

    def give_back(self, unused: int) -> None:
        self._left += unused

    def renew(self) -> None:
        """If a call was refused: lend all again. For a task that has just waited."""
        if self._refused:
            self._refused = False
            self._left = _ALL_ACTORS
            for borrower in self._borrowers:
                borrower.drop_turns()
            self._borrowers.clear()

    def forget(self, borrower: _Borrower) -> None:
        """The actor has ended."""
        self._borrowers.discard(borrower)


_OF_EVENT_LOOP: RunVar[LocalTurns] = RunVar("trunkline.local_turns")
