"""For tests of programs and adapters that use trunkline: a clock, faults, contract suites."""

from __future__ import annotations

import sys
from importlib import import_module
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
from anyio.lowlevel import checkpoint

from trunkline.actors import Actor, ActorRef
from trunkline.errors import ActorCrashed

if TYPE_CHECKING:
    from trunkline.contracts.fsm import FSMContract
    from trunkline.contracts.inbox import InboxContract
    from trunkline.contracts.persistence import PersistenceContract
    from trunkline.contracts.signal import SignalContract

__all__ = (
    "FSMContract",
    "InboxContract",
    "InjectedCrash",
    "ManualClock",
    "PersistenceContract",
    "SignalContract",
    "crash",
)

#: The contract suites need pytest; the rest of this module does not.
_CONTRACTS = {
    "FSMContract": "trunkline.contracts.fsm",
    "InboxContract": "trunkline.contracts.inbox",
    "PersistenceContract": "trunkline.contracts.persistence",
    "SignalContract": "trunkline.contracts.signal",
}


def __getattr__(name: str) -> Any:
    try:
        home = _CONTRACTS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    if home not in sys.modules:
        import pytest

        # So that a failure shows what was compared, as in a test module.
        pytest.register_assert_rewrite(home)
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_CONTRACTS})


class ManualClock:
    """A clock that moves only by `advance_ms`, for `clock=`.

    Tasks that sleep on it (the router's prune) wake in the next iteration of the event loop after
    it has moved past their time.

    Args:
        start_ms: the first instant.

    Example:
        >>> clock = ManualClock(1_000)
        >>> clock.advance_ms(500)
        >>> clock()
        1500
    """

    def __init__(self, start_ms: int = 0) -> None:
        self._now_ms = start_ms
        self._sleepers: list[tuple[int, anyio.Event]] = []

    def __call__(self) -> int:
        return self._now_ms

    def advance_ms(self, duration_ms: int) -> None:
        """Move on by `duration_ms`, and wake the tasks whose time has come.

        Raises:
            ValueError: `duration_ms` is negative; a monotonic clock does not run backwards.
            TypeError: it is not an int.
        """
        if type(duration_ms) is not int:
            raise TypeError(f"a clock moves by an int of milliseconds, not by {duration_ms!r}")
        if duration_ms < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-duration_ms} ms")
        self._now_ms += duration_ms
        for wake_ms, event in sorted(self._sleepers, key=itemgetter(0)):
            if wake_ms <= self._now_ms:
                event.set()

    async def sleep_ms(self, duration_ms: int) -> None:
        """Sleep until the clock was moved on by `duration_ms`."""
        if duration_ms <= 0:
            await checkpoint()
            return
        sleeper = (self._now_ms + duration_ms, anyio.Event())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1].wait()
        finally:
            self._sleepers.remove(sleeper)


class InjectedCrash(Exception):
    """The exception of `crash`."""


async def crash(handle: ActorRef[Any]) -> None:
    """Crash an actor as a bug in a handler does; it is down when this returns.

    Its supervisor restarts it after the backoff of its restart policy.
    """
    try:
        await handle.call(_raise_injected_crash)
    except ActorCrashed:
        pass


def _raise_injected_crash(_actor: Actor) -> NoReturn:
    raise InjectedCrash("crash() was called")
