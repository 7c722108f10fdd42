"""Routes: where the answers of a conversation go, and what the router returns for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from trunkline.errors import InvalidRoute
from trunkline.routing.key import SessionKey

__all__ = (
    "AnyRoute",
    "FallbackReason",
    "Fallbacks",
    "Resolution",
    "ResolutionSource",
    "Route",
    "RouteRecord",
    "first_valid_route",
    "valid_route",
)

ResolutionSource: TypeAlias = Literal["state_hit", "partition_fallback", "provided_fallback"]
FallbackReason: TypeAlias = Literal["stale", "miss", "thread_scope_miss", "session_unavailable"]


class Route(msgspec.Struct, frozen=True):
    """Where the answers of a conversation go.

    A mapping is accepted wherever a route is; its keys beyond these fields go to `extra`. A route
    is checked where it is used: one without `external_room_id` is refused there.
    """

    #: The room's id on its platform, a string or an int. Never `None`.
    external_room_id: Any
    #: The platform's name, where it differs from the session key's channel.
    channel_type: str | None = None
    #: The connection to answer through.
    bridge_id: str | None = None
    #: The bot's own id of the room.
    room_id: str | None = None
    #: The platform's id of the thread to answer in.
    thread_id: str | None = None
    #: Anything else that the bot wants to find with the route. An object in it that refers to a
    #: `Resolution` or `RouteRecord` of this route is never freed.
    extra: dict[str, Any] = {}


class RouteRecord(msgspec.Struct, frozen=True, gc=False):
    """A stored route and its times, in milliseconds of the router's clock."""

    route: Route
    #: When it was set.
    updated_at_ms: int
    #: The first instant at which it is no longer fresh.
    expires_at_ms: int


# gc=False as for RouteRecord: a hundred thousand of them would have the garbage collector look at
# everything that the process holds, and block the event loop for as long.
class Resolution(msgspec.Struct, frozen=True, gc=False):
    """The answer of `SessionRouter.resolve`."""

    #: The room's id on its platform: `route.external_room_id`.
    external_room_id: Any
    route: Route
    #: The partition that holds the key.
    partition: int
    session_key: SessionKey
    #: `state_hit`: the key's own record; `partition_fallback`: its room's; `provided_fallback`:
    #: one that the caller passed in.
    source: ResolutionSource
    #: Whether it is not the key's own record.
    fallback: bool
    #: Whether an expired record was found before this route.
    stale: bool
    #: Why a fallback was taken; `None` for a hit.
    fallback_reason: FallbackReason | None


#: What is accepted wherever a route is taken.
AnyRoute: TypeAlias = Route | Mapping[str, Any]

#: What is accepted as fallbacks: routes in the order of preference, or just one.
Fallbacks: TypeAlias = AnyRoute | Iterable[AnyRoute]

_FIELDS = frozenset(Route.__struct_fields__) - {"extra"}


def valid_route(key: SessionKey, route: AnyRoute) -> Route:
    """`route` as a `Route` that names an external room.

    Raises:
        InvalidRoute: it is not a route; the message names `key`.
    """
    if not isinstance(route, Route):
        if not isinstance(route, Mapping):
            raise InvalidRoute(
                f"route for {str(key)!r} is a Route or a mapping, not {type(route).__name__}"
            )
        route = _from_mapping(route)
    if route.external_room_id is None:
        raise InvalidRoute(f"route for {str(key)!r} has no external_room_id")
    return route


def first_valid_route(fallbacks: Fallbacks) -> Route | None:
    """The first of `fallbacks` that names an external room; `None` if there is none."""
    if isinstance(fallbacks, (Route, Mapping)):
        fallbacks = (fallbacks,)
    elif not isinstance(fallbacks, Iterable):
        return None
    for fallback in fallbacks:
        if isinstance(fallback, Mapping):
            fallback = _from_mapping(fallback)
        if isinstance(fallback, Route) and fallback.external_room_id is not None:
            return fallback
    return None


def _from_mapping(mapping: Mapping[str, Any]) -> Route:
    fields = {name: mapping[name] for name in _FIELDS if name in mapping}
    extra = {name: value for name, value in mapping.items() if name not in _FIELDS}
    nested = extra.pop("extra", None)
    if isinstance(nested, Mapping):
        extra = {**nested, **extra}
    elif nested is not None:
        extra["extra"] = nested
    return Route(fields.pop("external_room_id", None), **fields, extra=extra)
