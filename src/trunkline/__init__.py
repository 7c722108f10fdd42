"""trunkline: durable turns and a session router for async bots.

The names below are imported when they are first asked for, so that a bot that only routes does not
import a database.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trunkline.fsm import FSMState, FSMStore
    from trunkline.line import Trunkline
    from trunkline.persistence import PersistenceStore
    from trunkline.routing import (
        PruneResult,
        Resolution,
        Route,
        RouteRecord,
        SessionKey,
        SessionRouter,
    )
    from trunkline.signal import SignalStore
    from trunkline.turns import Inbox, Turn, TurnPolicy, Turns

__version__ = "0.1.0"

__all__ = (
    "FSMState",
    "FSMStore",
    "Inbox",
    "PersistenceStore",
    "PruneResult",
    "Resolution",
    "Route",
    "RouteRecord",
    "SessionKey",
    "SessionRouter",
    "SignalStore",
    "Trunkline",
    "Turn",
    "TurnPolicy",
    "Turns",
)

_HOME = {
    "FSMState": "trunkline.fsm",
    "FSMStore": "trunkline.fsm",
    "Inbox": "trunkline.turns",
    "PersistenceStore": "trunkline.persistence",
    "PruneResult": "trunkline.routing",
    "Resolution": "trunkline.routing",
    "Route": "trunkline.routing",
    "RouteRecord": "trunkline.routing",
    "SessionKey": "trunkline.routing",
    "SessionRouter": "trunkline.routing",
    "SignalStore": "trunkline.signal",
    "Trunkline": "trunkline.line",
    "Turn": "trunkline.turns",
    "TurnPolicy": "trunkline.turns",
    "Turns": "trunkline.turns",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *(name for name in _HOME if name not in globals())]
