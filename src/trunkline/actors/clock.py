"""Where time comes from: a function that returns milliseconds, or a settable clock in tests."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

import anyio

__all__ = ("Clock", "SleepingClock", "monotonic_ms", "sleep_ms", "wall_clock_ms")


class Clock(Protocol):
    """Tells an instant in milliseconds, counted from any fixed point, never running backwards."""

    def __call__(self) -> int: ...


@runtime_checkable
class SleepingClock(Protocol):
    """A clock that also decides when a sleeper wakes, as `trunkline.testing.ManualClock` does."""

    def __call__(self) -> int: ...

    async def sleep_ms(self, duration_ms: int) -> None: ...


def monotonic_ms() -> int:
    """The monotonic clock of the operating system, in milliseconds."""
    return time.monotonic_ns() // 1_000_000


def wall_clock_ms() -> int:
    """The wall clock of the operating system, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


async def sleep_ms(clock: Clock, duration_ms: int) -> None:
    """Sleep for `duration_ms` on `clock` if it can wake sleepers, else on the event loop's time."""
    if isinstance(clock, SleepingClock):
        await clock.sleep_ms(duration_ms)
    else:
        await anyio.sleep(duration_ms / 1000)
