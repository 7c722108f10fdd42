"""The state of one conversation."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ("FSMState",)


class FSMState(msgspec.Struct, frozen=True):
    """Which step of which flow a user is at, and what was collected on the way."""

    #: The step; `None` where data was stored without one.
    state: str | None = None
    #: The flow that is active.
    flow: str | None = None
    #: A map of what JSON or msgpack holds, and datetimes, sets, Decimals and tuples.
    data: dict[Any, Any] = {}
