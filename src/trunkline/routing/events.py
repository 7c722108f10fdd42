"""What a router tells its subscribers, with the fields of the ancestor's telemetry."""

from __future__ import annotations

from typing import Literal

from trunkline.observe import Event, Events
from trunkline.routing.key import SessionKey
from trunkline.routing.route import FallbackReason, Resolution, ResolutionSource, Route

__all__ = (
    "PartitionCrashed",
    "PartitionEvent",
    "PartitionRestarted",
    "RouteEvicted",
    "RouteFallback",
    "RouteResolved",
    "RouteSet",
    "RouteStale",
    "RoutesPruned",
    "publish_resolution",
)


class PartitionEvent(Event, frozen=True, kw_only=True):
    """Something that happened in one partition of a router."""

    #: Its index, from 0.
    partition: int


class RouteSet(PartitionEvent, frozen=True, kw_only=True):
    """A route was set by the program. What a fallback stores is told by `fallback`."""

    name: str = "set"
    session_key: SessionKey
    #: Records that this one pushed out.
    evicted: int
    #: Records in the partition, expired ones included.
    entries: int


class RouteResolved(PartitionEvent, frozen=True, kw_only=True):
    """`resolve` has its answer, or none."""

    name: str = "resolved"
    session_key: SessionKey
    outcome: Literal["hit", "fallback", "miss"]
    source: ResolutionSource | None
    reason: FallbackReason | None
    stale: bool


class RouteFallback(PartitionEvent, frozen=True, kw_only=True):
    """`resolve` took a fallback; told before its `resolved`."""

    name: str = "fallback"
    session_key: SessionKey
    source: ResolutionSource
    reason: FallbackReason
    stale: bool


class RouteStale(PartitionEvent, frozen=True, kw_only=True):
    """A read met an expired record and removed it."""

    name: str = "stale"
    session_key: SessionKey


class RouteEvicted(PartitionEvent, frozen=True, kw_only=True):
    """The least recently used record made room for another."""

    name: str = "evicted"
    session_key: SessionKey
    route: Route
    entries: int


class RoutesPruned(PartitionEvent, frozen=True, kw_only=True):
    """A prune removed expired records from the partition."""

    name: str = "pruned"
    #: How many.
    count: int
    entries: int


class PartitionCrashed(PartitionEvent, frozen=True, kw_only=True):
    """The partition met a bug and lost its records; it will be started again."""

    name: str = "crashed"
    error: Exception


class PartitionRestarted(PartitionEvent, frozen=True, kw_only=True):
    """The partition is up again, empty."""

    name: str = "restarted"
    #: How often so far.
    restarts: int


def publish_resolution(events: Events, instance: str, resolution: Resolution) -> None:
    """Tell of an answer of `resolve`, and of the fallback that gave it."""
    if resolution.fallback_reason is not None:
        events.publish(
            RouteFallback(
                instance=instance,
                partition=resolution.partition,
                session_key=resolution.session_key,
                source=resolution.source,
                reason=resolution.fallback_reason,
                stale=resolution.stale,
            )
        )
    events.publish(
        RouteResolved(
            instance=instance,
            partition=resolution.partition,
            session_key=resolution.session_key,
            outcome="fallback" if resolution.fallback else "hit",
            source=resolution.source,
            reason=resolution.fallback_reason,
            stale=resolution.stale,
        )
    )
