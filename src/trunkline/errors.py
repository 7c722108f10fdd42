"""Every exception that trunkline raises, in one tree.

Catch `TrunklineError` for all of them, or a built-in where one fits: a bad key is also a
`ValueError`, a missing route also a `LookupError`, a call that took too long also a `TimeoutError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = (
    "ActorCrashed",
    "ActorStopped",
    "AlreadyBound",
    "AmbiguousMatch",
    "CallTimeout",
    "ConfigurationError",
    "InboxFull",
    "InvalidModel",
    "InvalidRoute",
    "InvalidSessionKey",
    "LockLost",
    "NoRoute",
    "NotFound",
    "NotRecorded",
    "PartitionUnavailable",
    "RestartIntensityExceeded",
    "RouteExpired",
    "RouteNotFound",
    "StoreError",
    "StoreUnavailable",
    "TransactionConflict",
    "TransitionError",
    "TrunklineError",
    "TurnLost",
    "UnreadableRecord",
)


class TrunklineError(Exception):
    """Root of the tree. An actor that raises one has answered its caller; it has not crashed."""


class ConfigurationError(TrunklineError, ValueError):
    """A setting, a URL or an argument that can never work; the message names the value."""


class InvalidSessionKey(TrunklineError, ValueError):
    """A session key of the wrong shape, with a part that is no string, or with an empty part."""


class InvalidRoute(TrunklineError, ValueError):
    """A route that names no external room."""


class InvalidModel(TrunklineError, ValueError):
    """A room, message or other model with a field that is unknown, or of a wrong type or value."""


class NotFound(TrunklineError, LookupError):
    """What was asked for is not stored."""


class RouteNotFound(NotFound):
    """No route is stored under this key."""


class RouteExpired(NotFound):
    """The route of this key has expired. Raised once, then `RouteNotFound`."""


class NoRoute(NotFound):
    """Neither the key, nor its room, nor a fallback gave a route."""


class AmbiguousMatch(TrunklineError, LookupError):
    """More than one thing matched where one was asked for."""

    #: What matched, in the order of ids.
    matches: Sequence[object]

    def __init__(self, message: str, matches: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.matches = matches


class AlreadyBound(TrunklineError):
    """An external id is bound to another room already."""

    #: The id of the room it is bound to.
    room_id: str | None

    def __init__(self, message: str, room_id: str | None = None) -> None:
        super().__init__(message)
        self.room_id = room_id


class TransactionConflict(TrunklineError):
    """Another transaction changed what this one has read; nothing of this one was stored."""


class TransitionError(TrunklineError):
    """A flow does not declare this step."""


class ActorCrashed(TrunklineError):
    """The handler of this call raised an exception that is a bug; it is chained as the cause."""


class ActorStopped(TrunklineError):
    """The actor has stopped for good, or was never started: no call on it will be served."""


class CallTimeout(TrunklineError, TimeoutError):
    """No reply came within the call's timeout."""

    #: Whether the call was begun, and so may still have its effect. If not, it never will be.
    begun: bool

    def __init__(self, message: str, *, begun: bool = False) -> None:
        super().__init__(message)
        self.begun = begun


class RestartIntensityExceeded(TrunklineError):
    """Actors crashed more often than their supervisor allows, and it gave up."""


class PartitionUnavailable(TrunklineError):
    """The partition that holds this key is down, and no fallback was given."""


class StoreError(TrunklineError):
    """The database behind a store refused a call, or answered what no store expects."""


class StoreUnavailable(StoreError):
    """The database or server behind a store does not answer, or not in time.

    Nothing was stored, unless the message says that the call may have been.
    """


class UnreadableRecord(StoreError):
    """A stored row cannot be decoded; the message names its table and its key."""


class LockLost(TrunklineError):
    """A lock ended before it was released: another process may have held it meanwhile."""


class InboxFull(TrunklineError):
    """As many items of the session wait as its policy allows; nothing was stored."""


class TurnLost(TrunklineError):
    """The turn was cancelled, interrupted or taken over: what it did now does not stand."""


class NotRecorded(TrunklineError):
    """An answer was sent, and that could not be stored: do not send it again."""

    #: The `Message` as it should be stored: `sent`, with its external id.
    answer: Any

    def __init__(self, message: str, answer: Any = None) -> None:
        super().__init__(message)
        self.answer = answer
