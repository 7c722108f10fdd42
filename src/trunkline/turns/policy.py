"""How the messages of one session become turns."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from trunkline.errors import ConfigurationError
from trunkline.validation import require_non_negative, require_positive

__all__ = ("LONGEST_DELAY_MS", "LONGEST_RETRY_DELAY_MS", "TurnPolicy", "WhenFull", "WhileBusy")

WhileBusy = Literal["collect", "queue", "latest", "interrupt", "steer", "drop", "concurrent"]
WhenFull = Literal["refuse", "drop_oldest"]

#: Between two attempts of a turn the delay doubles, up to this.
LONGEST_RETRY_DELAY_MS = 60_000

#: Later instants would not fit into every database. It is ten years.
LONGEST_DELAY_MS = 10 * 365 * 86_400_000

_POSITIVE = ("max_waiting", "turn_timeout_ms", "max_attempts")
_NON_NEGATIVE = ("quiet_ms", "max_quiet_ms", "retry_delay_ms")


class TurnPolicy(msgspec.Struct, frozen=True):
    """When a turn begins, what it contains, and what becomes of one that fails.

    Raises:
        ConfigurationError: a value that cannot work.
    """

    #: What becomes of an item that comes while a turn of its session runs:
    #: `collect` (all that wait become the next turn), `queue` (each is a turn of its own),
    #: `latest` (the newest becomes the next turn, the others are skipped), `interrupt` (the running
    #: turn is cancelled and begins again with the new items), `steer` (it joins the running turn),
    #: `drop` (it is not stored), `concurrent` (it runs at once as a turn of its own).
    while_busy: WhileBusy = "collect"
    #: A turn begins when its session has been quiet for so long …
    quiet_ms: int = 0
    #: … but not later than this after its first item.
    max_quiet_ms: int = 5_000
    #: Items of one session that may wait.
    max_waiting: int = 100
    #: `refuse` raises `InboxFull`, `drop_oldest` drops the item that has waited longest.
    when_full: WhenFull = "refuse"
    #: How long a handler may run. One that takes longer is cancelled, and has failed.
    turn_timeout_ms: int = 300_000
    #: After so many attempts the items of a turn are `failed`.
    max_attempts: int = 3
    #: Between the first two attempts; it doubles with each, with jitter, up to a minute.
    retry_delay_ms: int = 1_000
    #: An item that has waited so long for its first turn is removed; `None` for never.
    expire_after_ms: int | None = None

    def __post_init__(self) -> None:
        if self.while_busy not in get_args(WhileBusy):
            raise ConfigurationError(
                f"while_busy is one of {', '.join(get_args(WhileBusy))}, not {self.while_busy!r}"
            )
        if self.when_full not in get_args(WhenFull):
            raise ConfigurationError(
                f"when_full is one of {', '.join(get_args(WhenFull))}, not {self.when_full!r}"
            )
        for name in _POSITIVE:
            require_positive(name, getattr(self, name))
        for name in _NON_NEGATIVE:
            require_non_negative(name, getattr(self, name))
        if self.expire_after_ms is not None:
            require_positive("expire_after_ms", self.expire_after_ms)
        if self.retry_delay_ms > LONGEST_RETRY_DELAY_MS:
            raise ConfigurationError(f"retry_delay_ms is up to {LONGEST_RETRY_DELAY_MS}")
