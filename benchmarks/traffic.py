"""Sessions to measure with: keys and routes as a bot on Telegram has them, and the bare tables."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

from cachetools import LRUCache

from trunkline import Resolution, Route, RouteRecord, SessionKey, SessionRouter
from trunkline.actors import monotonic_ms
from trunkline.routing.key import plain_partition

TTL_MS = 1_800_000

PARTITIONS = 8


class Sessions(NamedTuple):
    keys: list[SessionKey]
    routes: list[Route]

    def shuffled_keys(self, seed: int) -> list[SessionKey]:
        return random.Random(seed).sample(self.keys, len(self.keys))

    def shuffled_pairs(self, seed: int) -> list[tuple[SessionKey, Route]]:
        pairs = list(zip(self.keys, self.routes, strict=True))
        return random.Random(seed).sample(pairs, len(pairs))


def make_sessions(count: int) -> Sessions:
    """So many rooms. The objects are the caller's own: the tables hold references to them."""
    rooms = [f"-100{1_000_000_000 + index}" for index in range(count)]
    return Sessions(
        [SessionKey("telegram", "support_bot", room) for room in rooms],
        [Route(room) for room in rooms],
    )


def capacity_for(sessions: int, partitions: int) -> int:
    """Entries of a partition that hold its share with room to spare: nothing is evicted."""
    return 1_000 + 2 * sessions // partitions


class BareTable(LRUCache[SessionKey, RouteRecord]):
    """A bounded LRU of records that carry their expiry, which is checked when one is read.

    It is cachetools' LRU cache with one method, and not the router's `RouteTable`. That keeps an
    index of expiry as well, so that a prune costs what has expired, and copies of threads.
    """

    def read(self, key: SessionKey, now_ms: int) -> RouteRecord | None:
        try:
            record = self[key]
        except KeyError:
            return None
        if record.expires_at_ms <= now_ms:
            del self[key]
        return record


class BareTables:
    """What a bot would have without the actors: bare tables, and the hash that picks one.

    The loops are written out in place. They call nothing that the router does not call as well.
    """

    def __init__(self, capacity: int, partitions: int = PARTITIONS) -> None:
        self._tables = [BareTable(capacity) for _ in range(partitions)]

    def set(self, pairs: Iterable[tuple[SessionKey, Route]]) -> None:
        tables, count = self._tables, len(self._tables)
        for key, route in pairs:
            now = monotonic_ms()
            tables[plain_partition(key, count)][key] = RouteRecord(route, now, now + TTL_MS)

    def resolve(self, keys: list[SessionKey]) -> None:
        tables, count = self._tables, len(self._tables)
        for key in keys:
            index = plain_partition(key, count)
            now = monotonic_ms()
            record = tables[index].read(key, now)
            assert record is not None
            if record.expires_at_ms > now:
                route = record.route
                Resolution(
                    route.external_room_id, route, index, key, "state_hit", False, False, None
                )

    def look_up(self, keys: list[SessionKey]) -> None:
        """`resolve` without making a `Resolution` of what it found."""
        tables, count = self._tables, len(self._tables)
        for key in keys:
            now = monotonic_ms()
            record = tables[plain_partition(key, count)].read(key, now)
            assert record is not None
            if record.expires_at_ms > now:
                _ = record.route


def fill_bare(sessions: Sessions) -> BareTables:
    """Bare tables that hold `sessions`."""
    bare = BareTables(capacity_for(len(sessions.keys), PARTITIONS))
    bare.set(zip(*sessions, strict=True))
    return bare


class RouterLoops:
    """The same loops over a router, as a bot writes them."""

    def __init__(self, router: SessionRouter) -> None:
        self.router = router

    async def set(self, pairs: Iterable[tuple[SessionKey, Route]]) -> None:
        router = self.router
        for key, route in pairs:
            await router.set(key, route)

    async def resolve(self, keys: list[SessionKey]) -> None:
        router = self.router
        for key in keys:
            await router.resolve(key)
