"""The settings of a line: their names and types, from keywords, a mapping or the environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypedDict

from trunkline.actors import Clock, RestartPolicy
from trunkline.errors import ConfigurationError

__all__ = ("RouterSettings", "parse_settings", "refuse_unknown")


class RouterSettings(TypedDict, total=False):
    """Settings of a line's router: those of `SessionRouter`, which has their defaults."""

    partition_count: int
    ttl_ms: int
    max_entries_per_partition: int
    prune_interval_ms: int
    stale_retention_ms: int
    call_timeout_ms: int
    clock: Clock
    restart_policy: RestartPolicy | None


#: Settings that are objects of Python, and so cannot come from a file or the environment.
_OBJECTS = ("clock", "restart_policy")

#: Settings of a line that may come from a mapping or from the environment, with their types.
_TYPES: dict[str, type] = {
    "url": str,
    "persistence": str,
    "fsm": str,
    "signal": str,
    "inbox": str,
    "encryption_key": str,
    "name": str,
    "namespace": str,
    "stop_timeout_ms": int,
    **{name: int for name in RouterSettings.__annotations__ if name not in _OBJECTS},
}


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise `ConfigurationError` for a name that is no setting, with the nearest one."""
    known = (*_TYPES, *_OBJECTS)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise ConfigurationError(f"unknown setting {name!r}{hint}")


def parse_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `Trunkline` from a mapping; numbers may be strings.

    Raises:
        ConfigurationError: an unknown setting, or a string that is no number.
    """
    refuse_unknown(settings)
    return {name: _parse(name, value) for name, value in settings.items()}


def _parse(name: str, value: Any) -> Any:
    if name in ("persistence", "fsm", "signal", "inbox") and value == "":
        return None
    if _TYPES.get(name) is int and isinstance(value, str):
        try:
            return int(value.replace("_", ""))
        except ValueError:
            raise ConfigurationError(f"{name} is a whole number, not {value!r}") from None
    return value
