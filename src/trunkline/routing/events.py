"""The events of a router, with the fields of the ancestor's telemetry."""

from __future__ import annotations

from typing import Any, Literal

from trunkline.observe import Event, Events
from trunkline.routing.key import SessionKey
from trunkline.routing.route import FallbackReason, Resolution, ResolutionSource, Route

__all__ = (
    "PartitionCrashed",
    "PartitionEvent",
    "PartitionRestarted",
    "RouteDeleted",
    "RouteEvicted",
    "RouteFallback",
    "RouteResolved",
    "RouteSet",
    "RouteStale",
    "RouterGaveUp",
    "RoutesPruned",
    "publish_resolution",
)


class PartitionEvent(Event, frozen=True, kw_only=True):
    """Something that happened in one partition of a router."""

    #: Its index, from 0.
    partition: int


class RouteSet(PartitionEvent, frozen=True, kw_only=True):
    """The program set a route. A route that a fallback stores has a `fallback` event instead."""

    name: str = "set"
    session_key: SessionKey
    #: Records that were evicted for this one.
    evicted: int
    #: Records in the partition, expired ones included.
    entries: int


class RouteDeleted(PartitionEvent, frozen=True, kw_only=True):
    """The program deleted a record, fresh or expired."""

    name: str = "deleted"
    session_key: SessionKey
    entries: int


class RouteResolved(PartitionEvent, frozen=True, kw_only=True):
    """A `resolve` ended, with a route or without one."""

    name: str = "resolved"
    session_key: SessionKey
    outcome: Literal["hit", "fallback", "miss"]
    source: ResolutionSource | None = None
    #: Why it was not a hit. A `miss` has one, `session_unavailable`, if the partition is down.
    reason: FallbackReason | None = None
    #: Whether the route is not from the key's own record.
    fallback: bool = False
    stale: bool = False


class RouteFallback(PartitionEvent, frozen=True, kw_only=True):
    """`resolve` took a fallback. Its `resolved` event follows."""

    name: str = "fallback"
    session_key: SessionKey
    source: ResolutionSource
    reason: FallbackReason
    stale: bool


class RouteStale(PartitionEvent, frozen=True, kw_only=True):
    """An expired record was removed."""

    name: str = "stale"
    session_key: SessionKey
    #: Who found it: a `get` or `resolve`, or a prune.
    reason: Literal["read", "prune"]


class RouteEvicted(PartitionEvent, frozen=True, kw_only=True):
    """A record was removed to make room for another one."""

    name: str = "evicted"
    session_key: SessionKey
    route: Route
    #: `capacity`: the partition was full, and this was its least recently used record.
    reason: Literal["capacity"] = "capacity"
    entries: int


class RoutesPruned(PartitionEvent, frozen=True, kw_only=True):
    """A prune removed expired records from the partition. Each has a `stale` event before this."""

    name: str = "pruned"
    #: Records that it removed.
    count: int
    entries: int


class PartitionCrashed(PartitionEvent, frozen=True, kw_only=True):
    """A bug crashed the partition, and its records are lost. It will be restarted."""

    name: str = "crashed"
    error: Exception


class PartitionRestarted(PartitionEvent, frozen=True, kw_only=True):
    """The partition is up again, and empty."""

    name: str = "restarted"
    #: Restarts so far.
    restarts: int


class RouterGaveUp(Event, frozen=True, kw_only=True):
    """Partitions crashed more often than the restart policy allows. Every call raises `error`."""

    name: str = "gave_up"
    error: Exception


def publish_resolution(events: Events, instance: str, resolution: Resolution) -> None:
    """Publish the events of a `resolve` that found a route."""
    common: dict[str, Any] = {
        "instance": instance,
        "partition": resolution.partition,
        "session_key": resolution.session_key,
        "source": resolution.source,
        "reason": resolution.fallback_reason,
        "stale": resolution.stale,
    }
    if resolution.fallback_reason is not None:
        events.publish(RouteFallback(**common))
    outcome: Literal["hit", "fallback"] = "fallback" if resolution.fallback else "hit"
    events.publish(RouteResolved(**common, outcome=outcome, fallback=resolution.fallback))
