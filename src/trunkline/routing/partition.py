"""A partition: the actor that holds the routes of its share of the rooms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from trunkline.actors import Actor, Clock
from trunkline.errors import NoRoute, RouteExpired, RouteNotFound
from trunkline.observe import Events
from trunkline.routing.events import (
    PartitionEvent,
    RouteDeleted,
    RouteEvicted,
    RouteResolved,
    RouteSet,
    RouteStale,
    publish_resolution,
)
from trunkline.routing.key import SessionKey
from trunkline.routing.route import FallbackReason, Resolution, Route, RouteRecord
from trunkline.routing.stats import Counters
from trunkline.routing.table import Entry, RouteTable

__all__ = ("Partition",)


class Partition(Actor):
    """Handlers over one `RouteTable`. Keys and routes that reach it are valid.

    Args:
        index: which partition it is.
        instance: the router's name, for events.
        capacity: how many records it holds.
        ttl_ms: how long a route is fresh by default.
        stale_retention_ms: how long a prune leaves an expired record in place.
        clock: returns milliseconds.
        counters: its counts, which outlive it.
        events: where it publishes.
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
        table.store(key, route, now, now + (self._ttl_ms if ttl_ms is None else ttl_ms))
        self._counters.sets += 1
        evicted = self._note_evicted() if table.evicted else 0
        if self._events.subscribers:
            self._publish(RouteSet, session_key=key, evicted=evicted, entries=len(table))

    def set_many(self, routes: Mapping[SessionKey, Route], ttl_ms: int | None = None) -> None:
        for key, route in routes.items():
            self.set(key, route, ttl_ms)

    def get(self, key: SessionKey) -> RouteRecord:
        now = self._clock()
        entry = self._table.use(key)
        if entry is not None:
            if entry.expires_at_ms > now and self._is_current(key, entry):
                return RouteRecord(entry.route, entry.updated_at_ms, entry.expires_at_ms)
            if self._remove_outdated(key, entry, now):
                age_ms = now - entry.expires_at_ms
                raise RouteExpired(f"route for {str(key)!r} expired {age_ms} ms ago")
        raise RouteNotFound(f"no route for {str(key)!r}")

    def resolve(self, key: SessionKey, fallback: Route | None = None) -> Resolution:
        return self.resolve_held(key) or self._resolve_missing(key, fallback)

    def resolve_held(self, key: SessionKey) -> Resolution | None:
        """`resolve` by the record of the key or of its room.

        Without a fresh one it changes nothing and returns `None`: only then a caller has to look at
        its fallbacks.
        """
        now = self._clock()
        entry = self._table.use(key)
        if (
            entry is None
            or entry.expires_at_ms <= now
            or (entry.source is not None and not self._is_current(key, entry))
        ):
            return None if key.thread_id is None else self._resolve_by_room(key, entry, now)
        self._counters.hits += 1
        route = entry.route
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
        if not self._table.remove(key):
            return False
        self._counters.deletes += 1
        self._publish(RouteDeleted, session_key=key, entries=len(self._table))
        return True

    def keys(self) -> list[SessionKey]:
        """Every key that is held, also if its record has expired."""
        return list(self._table)

    def prune(self, limit: int) -> tuple[int, bool]:
        """Remove expired records after their retention; look at `limit` records at most.

        Returns:
            How many it removed, and whether there may be more.
        """
        expired_by = self._clock() - self._stale_retention_ms
        removed, more = self._table.remove_expired(expired_by, limit)
        self._counters.pruned += len(removed)
        if self._events.subscribers:
            for key in removed:
                self._publish(RouteStale, session_key=key, reason="prune")
        return len(removed), more

    def _is_current(self, key: SessionKey, entry: Entry) -> bool:
        """Whether `entry` is the key's own, or a copy of what its room has now.

        Using a copy uses the room's entry as well, so that the room is not evicted before it.
        """
        return entry.source is None or self._table.use(key.room_scope) is entry.source

    def _resolve_by_room(
        self, key: SessionKey, outdated: Entry | None, now: int
    ) -> Resolution | None:
        """`resolve` for a thread without a fresh record of its own, by copying its room's."""
        table, room = self._table, key.room_scope
        source = table.use(room)
        if source is None or source.expires_at_ms <= now:
            return None
        stale = outdated is not None and self._remove_outdated(key, outdated, now)
        route, expires_at_ms = source.route, source.expires_at_ms
        table.store(key, route, now, expires_at_ms, source)
        if table.use(room) is None:
            # A table for one record: the copy has evicted its source, and now stands alone.
            table.store(key, route, now, expires_at_ms)
        self._counters.thread_fallbacks += 1
        reason: FallbackReason = "stale" if stale else "thread_scope_miss"
        return self._by_fallback(key, route, "partition_fallback", stale, reason)

    def _resolve_missing(self, key: SessionKey, fallback: Route | None) -> Resolution:
        """`resolve` for a key that has no fresh record, and whose room has none either."""
        now = self._clock()
        stale = False
        for scope in dict.fromkeys((key, key.room_scope)):
            entry = self._table.peek(scope)
            if entry is not None and self._remove_outdated(scope, entry, now):
                stale = True
        if fallback is not None:
            self._table.store(key, fallback, now, now + self._ttl_ms)
            self._counters.provided_fallbacks += 1
            reason: FallbackReason = "stale" if stale else "miss"
            return self._by_fallback(key, fallback, "provided_fallback", stale, reason)
        self._counters.misses += 1
        self._publish(RouteResolved, session_key=key, outcome="miss", stale=stale)
        raise NoRoute(f"no route for {str(key)!r}, and no valid fallback")

    def _by_fallback(
        self,
        key: SessionKey,
        route: Route,
        source: Literal["partition_fallback", "provided_fallback"],
        stale: bool,
        reason: FallbackReason,
    ) -> Resolution:
        """The resolution by a fallback that has been stored."""
        if self._table.evicted:
            self._note_evicted()
        resolution = Resolution(
            route.external_room_id, route, self._index, key, source, True, stale, reason
        )
        if self._events.subscribers:
            publish_resolution(self._events, self._instance, resolution)
        return resolution

    def _remove_outdated(self, key: SessionKey, entry: Entry, now: int) -> bool:
        """Remove what has expired, or is a copy of what its room no longer has; whether it expired.

        Only an expired record counts as stale.
        """
        self._table.remove(key)
        if entry.expires_at_ms > now:
            return False
        self._counters.stale += 1
        self._publish(RouteStale, session_key=key, reason="read")
        return True

    def _note_evicted(self) -> int:
        """Count and publish what the table evicted; how many records that were."""
        evicted, self._table.evicted = self._table.evicted, []
        self._counters.evicted += len(evicted)
        if self._events.subscribers:
            entries = len(self._table)
            for key, entry in evicted:
                self._publish(RouteEvicted, session_key=key, route=entry.route, entries=entries)
        return len(evicted)

    def _publish(self, kind: type[PartitionEvent], **fields: Any) -> None:
        if self._events.subscribers:
            self._events.publish(kind(instance=self._instance, partition=self._index, **fields))
