"""The state of one conversation."""

from __future__ import annotations

from typing import Any

import msgspec

from trunkline.errors import ConfigurationError
from trunkline.validation import text_problem

__all__ = ("FSMState", "plain_text")


class FSMState(msgspec.Struct, frozen=True):
    """Which step of which flow a user is at, and what was collected on the way."""

    #: The step; `None` where data was stored without one.
    state: str | None = None
    #: The flow that is active.
    flow: str | None = None
    #: A map of what JSON or msgpack holds, and datetimes, sets, Decimals and tuples.
    data: dict[Any, Any] = {}


def plain_text(name: str, value: object) -> str | None:
    """`value`, if it is `None` or a string that every database can store; of an enum its value.

    Raises:
        ConfigurationError: it is neither; the message says it of `name`.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is a str or None, not {value!r}")
    problem = text_problem(value)
    if problem is not None:
        raise ConfigurationError(f"{name} {value!r} {problem}, and cannot be stored")
    return str.__str__(value)
