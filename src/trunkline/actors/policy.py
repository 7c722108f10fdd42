"""How often an actor may crash, and how long it rests before it is started again."""

from __future__ import annotations

import random
from collections import deque

import msgspec

from trunkline.errors import ConfigurationError
from trunkline.validation import require_non_negative, require_positive

__all__ = ("CrashHistory", "RestartPolicy")


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Restart intensity and backoff, after the supervisors of Erlang/OTP.

    The n-th crash of an actor within the window is followed by a rest of
    `min_backoff_ms * 2 ** (n - 1)`, at most `max_backoff_ms`, shortened by a random part of up to
    `jitter` so that actors that fell together do not rise together.

    Raises:
        ConfigurationError: a number that makes no sense, by name.
    """

    #: Crashes that a supervisor forgives within `within_ms`, over all of its actors.
    max_restarts: int = 15
    #: Length of the window in which crashes are counted, in milliseconds.
    within_ms: int = 60_000
    #: Rest after a first crash, in milliseconds.
    min_backoff_ms: int = 100
    #: Longest rest, in milliseconds.
    max_backoff_ms: int = 5_000
    #: Part of the rest that is left to chance, from 0.0 to 1.0.
    jitter: float = 0.25

    def __post_init__(self) -> None:
        require_non_negative("max_restarts", self.max_restarts)
        require_positive("within_ms", self.within_ms)
        require_positive("min_backoff_ms", self.min_backoff_ms)
        require_positive("max_backoff_ms", self.max_backoff_ms)
        if type(self.jitter) not in (int, float) or not 0.0 <= self.jitter <= 1.0:
            raise ConfigurationError(f"jitter must be from 0.0 to 1.0, not {self.jitter!r}")

    def backoff_ms(self, crashes: int) -> float:
        """The rest after the n-th crash within the window, in milliseconds."""
        # 2 ** 62 is past any sensible max_backoff_ms, and keeps the shift small.
        rest = min(self.max_backoff_ms, self.min_backoff_ms << min(crashes - 1, 62))
        return rest * (1.0 - self.jitter * random.random())


class CrashHistory:
    """The instants of recent crashes; older ones are forgotten."""

    def __init__(self, within_ms: int) -> None:
        self._within_ms = within_ms
        self._instants: deque[int] = deque()

    def add(self, now_ms: int) -> int:
        """Note a crash at `now_ms`; the number of crashes within the window, this one included."""
        self._instants.append(now_ms)
        while self._instants[0] <= now_ms - self._within_ms:
            self._instants.popleft()
        return len(self._instants)
