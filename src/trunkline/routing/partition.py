"""A partition: the actor that holds the routes of its share of the rooms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trunkline.actors import Actor, Clock
from trunkline.errors import NoRoute, RouteExpired, RouteNotFound
from trunkline.observe import Events
from trunkline.routing.events import (
    RouteEvicted,
    RouteResolved,
    RouteSet,
    RouteStale,
    publish_resolution,
)
from trunkline.routing.key import SessionKey
from trunkline.routing.route import FallbackReason, Resolution, ResolutionSource, Route, RouteRecord
from trunkline.routing.stats import Counters
from trunkline.routing.table import RouteTable

__all__ = ("Partition",)


class Partition(Actor):
    """Handlers over one `RouteTable`. Keys and routes that reach it are valid.

    Args:
        index: which partition it is.
        instance: the router's name, for events.
        capacity: how many records it holds.
        ttl_ms: how long a route is fresh by default.
        stale_retention_ms: how long a prune leaves an expired record in place.
        clock: tells milliseconds.
        counters: what it counts into; they outlive it.
        events: whom it tells.
    """

    def __init__(
        self,
        index: int,
        *,
        instance: str,
        capacity: int,
        ttl_ms: int,
        stale_retention_ms: int,
        clock: Clock,
        counters: Counters,
        events: Events,
    ) -> None:
        self._index = index
        self._instance = instance
        self._ttl_ms = ttl_ms
        self._stale_retention_ms = stale_retention_ms
        self._clock = clock
        self._counters = counters
        self._events = events
        self._table = RouteTable(capacity)

    def __len__(self) -> int:
        """Records held, expired ones included."""
        return len(self._table)

    def set(self, key: SessionKey, route: Route, ttl_ms: int | None = None) -> None:
        now = self._clock()
        table = self._table
        table[key] = RouteRecord(route, now, now + (self._ttl_ms if ttl_ms is None else ttl_ms))
        self._counters.sets += 1
        evicted = self._note_evicted() if table.evicted else 0
        if self._events.subscribers:
            self._events.publish(
                RouteSet(
                    instance=self._instance,
                    partition=self._index,
                    session_key=key,
                    evicted=evicted,
                    entries=len(table),
                )
            )

    def set_many(self, routes: Mapping[SessionKey, Route], ttl_ms: int | None = None) -> None:
        for key, route in routes.items():
            self.set(key, route, ttl_ms)

    def get(self, key: SessionKey) -> RouteRecord:
        now = self._clock()
        record = self._table.read(key, now)
        if record is None:
            raise RouteNotFound(f"no route for {str(key)!r}")
        if record.expires_at_ms <= now:
            self._note_stale(key)
            age_ms = now - record.expires_at_ms
            raise RouteExpired(f"route for {str(key)!r} expired {age_ms} ms ago")
        return record

    def resolve(self, key: SessionKey, fallback: Route | None = None) -> Resolution:
        now = self._clock()
        record = self._table.read(key, now)
        if record is None or record.expires_at_ms <= now:
            return self._resolve_beyond(key, record, fallback, now)
        self._counters.hits += 1
        route = record.route
        resolution = Resolution(
            route.external_room_id, route, self._index, key, "state_hit", False, False, None
        )
        if self._events.subscribers:
            publish_resolution(self._events, self._instance, resolution)
        return resolution

    def resolve_many(
        self, keys: Iterable[SessionKey], fallback: Route | None = None
    ) -> dict[SessionKey, Resolution]:
        resolutions = {}
        for key in keys:
            try:
                resolutions[key] = self.resolve(key, fallback)
            except NoRoute:
                continue
        return resolutions

    def delete(self, key: SessionKey) -> bool:
        if self._table.pop(key, None) is None:
            return False
        self._counters.deletes += 1
        return True

    def keys(self) -> list[SessionKey]:
        """Every key held now, for a prune to walk over in slices."""
        return list(self._table)

    def prune(self, keys: Sequence[SessionKey]) -> int:
        """Remove those of `keys` whose records expired; how many did."""
        table = self._table
        expired_by = self._clock() - self._stale_retention_ms
        pruned = 0
        for key in keys:
            record = table.peek(key)
            if record is not None and record.expires_at_ms <= expired_by:
                del table[key]
                pruned += 1
        self._counters.pruned += pruned
        return pruned

    def _resolve_beyond(
        self, key: SessionKey, expired: RouteRecord | None, fallback: Route | None, now: int
    ) -> Resolution:
        """`resolve` for a key without a fresh record of its own."""
        stale = expired is not None
        if stale:
            self._note_stale(key)
        if key.thread_id is not None:
            room = key.room_scope
            record = self._table.read(room, now)
            if record is not None and record.expires_at_ms > now:
                self._counters.thread_fallbacks += 1
                reason: FallbackReason = "stale" if stale else "thread_scope_miss"
                return self._take_fallback(
                    key, record.route, "partition_fallback", reason, stale, now
                )
            if record is not None:
                self._note_stale(room)
                stale = True
        if fallback is not None:
            self._counters.provided_fallbacks += 1
            reason = "stale" if stale else "miss"
            return self._take_fallback(key, fallback, "provided_fallback", reason, stale, now)
        self._counters.misses += 1
        if self._events.subscribers:
            self._events.publish(
                RouteResolved(
                    instance=self._instance,
                    partition=self._index,
                    session_key=key,
                    outcome="miss",
                    source=None,
                    reason=None,
                    stale=stale,
                )
            )
        raise NoRoute(f"no route for {str(key)!r}, and no valid fallback")

    def _take_fallback(
        self,
        key: SessionKey,
        route: Route,
        source: ResolutionSource,
        reason: FallbackReason,
        stale: bool,
        now: int,
    ) -> Resolution:
        self._table[key] = RouteRecord(route, now, now + self._ttl_ms)
        if self._table.evicted:
            self._note_evicted()
        resolution = Resolution(
            route.external_room_id, route, self._index, key, source, True, stale, reason
        )
        if self._events.subscribers:
            publish_resolution(self._events, self._instance, resolution)
        return resolution

    def _note_stale(self, key: SessionKey) -> None:
        self._counters.stale += 1
        if self._events.subscribers:
            self._events.publish(
                RouteStale(instance=self._instance, partition=self._index, session_key=key)
            )

    def _note_evicted(self) -> int:
        """Count and tell what the table evicted; how many that were."""
        evicted, self._table.evicted = self._table.evicted, []
        self._counters.evicted += len(evicted)
        if self._events.subscribers:
            for key, record in evicted:
                self._events.publish(
                    RouteEvicted(
                        instance=self._instance,
                        partition=self._index,
                        session_key=key,
                        route=record.route,
                        entries=len(self._table),
                    )
                )
        return len(evicted)
