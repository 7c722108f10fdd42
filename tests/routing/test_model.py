"""The router against a model of it: dictionaries and loops, as plain as can be."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trunkline import Resolution, Route, RouteRecord, SessionKey, SessionRouter
from trunkline.actors import RestartPolicy
from trunkline.errors import NoRoute, PartitionUnavailable, RouteExpired, RouteNotFound
from trunkline.routing.partition import Partition
from trunkline.testing import ManualClock, crash

TTL_MS = 100
PRUNE_INTERVAL_MS = 250
PARTITIONS = 2


class Record(NamedTuple):
    route: Route
    updated: int
    expires: int
    #: How often something was stored before it: tells records with equal fields apart.
    serial: int
    #: The serial of the room's record that it is a copy of.
    source: int | None = None


class Model:
    """What a router should do. A partition is an ordered dictionary, least recently used first."""

    def __init__(self, capacity: int, retention: int, now: int) -> None:
        self.capacity = capacity
        self.retention = retention
        self.now = now
        self.next_prune = now + PRUNE_INTERVAL_MS
        self.partitions = [OrderedDict[SessionKey, Record]() for _ in range(PARTITIONS)]
        self.counts = [Counter[str]() for _ in range(PARTITIONS)]
        self.evicted: list[list[SessionKey]] = [[] for _ in range(PARTITIONS)]
        self.stored = 0

    def set(self, index: int, key: SessionKey, route: Route, ttl: int | None) -> None:
        self._store(index, key, route, TTL_MS if ttl is None else ttl)
        self.counts[index]["sets"] += 1

    def get(self, index: int, key: SessionKey) -> Record | type[Exception]:
        found = self._read(index, key)
        if isinstance(found, Record):
            return found
        return RouteExpired if found == "expired" else RouteNotFound

    def resolve(
        self, index: int, key: SessionKey, fallback: Route | None
    ) -> tuple[Route, str, bool, str | None] | type[Exception]:
        """Route, source, stale and reason."""
        counts = self.counts[index]
        own = self._read(index, key)
        if isinstance(own, Record):
            counts["hits"] += 1
            return own.route, "state_hit", False, None
        stale = own == "expired"
        if key.thread_id is not None:
            room = SessionKey(*key[:3])
            of_room = self._read(index, room)
            if isinstance(of_room, Record):
                counts["thread_fallbacks"] += 1
                ttl = of_room.expires - self.now
                self._store(index, key, of_room.route, ttl, source=of_room.serial)
                partition = self.partitions[index]
                if room in partition:
                    partition.move_to_end(room)
                else:
                    partition[key] = partition[key]._replace(source=None)
                reason = "stale" if stale else "thread_scope_miss"
                return of_room.route, "partition_fallback", stale, reason
            stale = stale or of_room == "expired"
        if fallback is None:
            counts["misses"] += 1
            return NoRoute
        counts["provided_fallbacks"] += 1
        self._store(index, key, fallback, TTL_MS)
        return fallback, "provided_fallback", stale, "stale" if stale else "miss"

    def delete(self, index: int, key: SessionKey) -> bool:
        if key not in self.partitions[index]:
            return False
        del self.partitions[index][key]
        self.counts[index]["deletes"] += 1
        return True

    def prune(self) -> int:
        pruned = 0
        for index, partition in enumerate(self.partitions):
            for key, record in list(partition.items()):
                if record.expires + self.retention <= self.now:
                    del partition[key]
                    self.counts[index]["pruned"] += 1
                    pruned += 1
        return pruned

    def advance(self, duration: int) -> bool:
        """Whether the time for a prune came."""
        self.now += duration
        if self.now < self.next_prune:
            return False
        self.prune()
        self.next_prune = self.now + PRUNE_INTERVAL_MS
        return True

    def crash(self, index: int) -> None:
        self.partitions[index].clear()
        self.counts[index]["restarts"] += 1

    def _read(self, index: int, key: SessionKey) -> Record | str:
        partition = self.partitions[index]
        if key not in partition:
            return "absent"
        if partition[key].expires <= self.now:
            del partition[key]
            self.counts[index]["stale"] += 1
            return "expired"
        partition.move_to_end(key)
        source = partition[key].source
        if source is not None:
            of_room = partition.get(room := SessionKey(*key[:3]))
            if of_room is not None:
                partition.move_to_end(room)
            if of_room is None or of_room.serial != source:
                del partition[key]
                return "absent"
        return partition[key]

    def _store(
        self, index: int, key: SessionKey, route: Route, ttl: int, source: int | None = None
    ) -> None:
        partition = self.partitions[index]
        if key not in partition and len(partition) == self.capacity:
            oldest = next(iter(partition))
            del partition[oldest]
            self.evicted[index].append(oldest)
            self.counts[index]["evicted"] += 1
        self.stored += 1
        partition[key] = Record(route, self.now, self.now + ttl, self.stored, source)
        partition.move_to_end(key)


class WatchedClock(ManualClock):
    """Tells how often somebody went to sleep on it: after each prune by time, the router does."""

    naps = 0

    async def sleep_ms(self, duration_ms: int) -> None:
        self.naps += 1
        await super().sleep_ms(duration_ms)


class Comparison:
    """A router and its model. Every step does the same to both and compares what came of it."""

    def __init__(self, capacity: int, retention: int) -> None:
        self.clock = WatchedClock(5_000)
        self.router = SessionRouter(
            partition_count=PARTITIONS,
            ttl_ms=TTL_MS,
            max_entries_per_partition=capacity,
            prune_interval_ms=PRUNE_INTERVAL_MS,
            stale_retention_ms=retention,
            clock=self.clock,
            restart_policy=RestartPolicy(
                max_restarts=1_000_000, min_backoff_ms=1, max_backoff_ms=1
            ),
        )
        self.model = Model(capacity, retention, self.clock())
        self.met_down = 0
        self.evicted: list[list[SessionKey]] = [[] for _ in range(PARTITIONS)]
        self.router.events.subscribe(
            lambda event: (
                event.name == "evicted" and self.evicted[event.partition].append(event.session_key)  # type: ignore[attr-defined]
            )
        )

    async def set(self, key: SessionKey, route: Route, ttl: int | None) -> None:
        await self.router.set(key, route, ttl)
        self.model.set(self._index(key), key, route, ttl)

    async def set_many(self, routes: dict[SessionKey, Route], ttl: int | None) -> None:
        await self.router.set_many(routes, ttl)
        for key, route in routes.items():
            self.model.set(self._index(key), key, route, ttl)

    async def get(self, key: SessionKey) -> None:
        expected = self.model.get(self._index(key), key)
        if isinstance(expected, Record):
            assert await self.router.get(key) == RouteRecord(*expected[:3])
        else:
            with pytest.raises(expected):
                await self.router.get(key)

    async def resolve(self, key: SessionKey, fallbacks: list[Any]) -> None:
        expected = self.model.resolve(self._index(key), key, _first_valid(fallbacks))
        if isinstance(expected, tuple):
            assert await self.router.resolve(key, fallbacks) == self._resolution(key, *expected)
        else:
            with pytest.raises(expected):
                await self.router.resolve(key, fallbacks)

    async def resolve_many(self, keys: list[SessionKey], fallbacks: list[Any]) -> None:
        found = await self.router.resolve_many(keys, fallbacks)
        expected = {}
        # One call a partition, in the order in which the partitions were first met.
        indexes = dict.fromkeys(map(self._index, keys))
        for index in indexes:
            for key in dict.fromkeys(key for key in keys if self._index(key) == index):
                resolved = self.model.resolve(index, key, _first_valid(fallbacks))
                if isinstance(resolved, tuple):
                    expected[key] = self._resolution(key, *resolved)
        assert found == expected

    async def delete(self, key: SessionKey) -> None:
        assert await self.router.delete(key) == self.model.delete(self._index(key), key)

    async def prune(self) -> None:
        assert (await self.router.prune()).pruned == self.model.prune()

    async def advance(self, duration: int) -> None:
        naps = self.clock.naps
        self.clock.advance_ms(duration)
        if self.model.advance(duration):
            while self.clock.naps == naps:
                await checkpoint()

    async def crash(self, key: SessionKey) -> None:
        index = self._index(key)
        handle = self.router.partition(index)
        await crash(handle)
        fallback = Route("while it is down")
        # It may come back at any turn of the event loop, but not between this look and the call.
        if not handle.is_up:
            self.met_down += 1
            assert await self.router.resolve(key, fallback) == self._resolution(
                key, fallback, "provided_fallback", False, "session_unavailable"
            )
            self.model.counts[index]["provided_fallbacks"] += 1
        for operation in (self.router.resolve, self.router.get):
            if not handle.is_up:
                with pytest.raises(PartitionUnavailable):
                    await operation(key)
                self.model.counts[index]["misses"] += operation == self.router.resolve
        assert await handle.call(len) == 0  # waits until it is back
        self.model.crash(index)

    def check(self) -> None:
        """Everything that can be seen without a call."""
        assert self.evicted == self.model.evicted
        for index, stats in enumerate(self.router.stats().partitions):
            held = self.model.partitions[index]
            counts = self.model.counts[index]
            assert stats.entries == len(held)
            assert (stats.capacity, stats.mailbox_depth) == (self.model.capacity, 0)
            for name in (
                "hits",
                "thread_fallbacks",
                "provided_fallbacks",
                "misses",
                "stale",
                "evicted",
                "pruned",
                "sets",
                "deletes",
                "restarts",
            ):
                assert getattr(stats, name) == counts[name], name
            records = self.router.partition(index).peek(_records, {})
            assert records == {key: RouteRecord(*record[:3]) for key, record in held.items()}

    def _index(self, key: SessionKey) -> int:
        return self.router.route_partition(key)

    def _resolution(self, key, route, source, stale, reason) -> Resolution:
        return Resolution(
            route.external_room_id,
            route,
            self._index(key),
            key,
            source,
            source != "state_hit",
            stale,
            reason,
        )


def _records(partition: Partition) -> dict[SessionKey, RouteRecord]:
    table = partition._table
    peeked = {key: table.peek(key) for key in table}
    return {k: RouteRecord(r.route, r.updated_at_ms, r.expires_at_ms) for k, r in peeked.items()}


def _first_valid(fallbacks: list[Any]) -> Route | None:
    return next((f for f in fallbacks if isinstance(f, Route) and f.external_room_id), None)


def _rooms(count: int) -> list[SessionKey]:
    return [SessionKey("telegram", "bot", str(number)) for number in range(count)]


def _with_threads(rooms: list[SessionKey]) -> list[SessionKey]:
    return [room._replace(thread_id=thread) for room in rooms for thread in (None, "", "t")]


FALLBACKS = [[], [Route("f")], [Route(None)], [None, Route(None), Route("f"), Route("g")]]

KEYS = st.sampled_from(_with_threads(_rooms(4)))
ROUTES = st.builds(Route, st.integers(1, 9))
TTLS = st.none() | st.sampled_from([1, 50, TTL_MS, 1_000])


class RouterMachine(RuleBasedStateMachine):
    """Drives a router in an event loop of its own."""

    backend: str
    backend_options: dict[str, bool]

    @initialize(capacity=st.integers(1, 5), retention=st.sampled_from([0, 30]))
    def enter(self, capacity, retention):
        self.portal_context = anyio.from_thread.start_blocking_portal(
            self.backend, self.backend_options
        )
        self.portal = self.portal_context.__enter__()
        self.comparison = Comparison(capacity, retention)
        self.router_context: AbstractContextManager[SessionRouter]
        self.router_context = self.portal.wrap_async_context_manager(self.comparison.router)
        self.router_context.__enter__()

    def teardown(self):
        if hasattr(self, "router_context"):
            self.router_context.__exit__(None, None, None)
        if hasattr(self, "portal_context"):
            self.portal_context.__exit__(None, None, None)

    @rule(key=KEYS, route=ROUTES, ttl=TTLS)
    def set(self, key, route, ttl):
        self.portal.call(self.comparison.set, key, route, ttl)

    @rule(routes=st.dictionaries(KEYS, ROUTES, max_size=6), ttl=TTLS)
    def set_many(self, routes, ttl):
        self.portal.call(self.comparison.set_many, routes, ttl)

    @rule(key=KEYS)
    def get(self, key):
        self.portal.call(self.comparison.get, key)

    @rule(key=KEYS, fallbacks=st.sampled_from(FALLBACKS))
    def resolve(self, key, fallbacks):
        self.portal.call(self.comparison.resolve, key, fallbacks)

    @rule(keys=st.lists(KEYS, max_size=6), fallbacks=st.sampled_from(FALLBACKS))
    def resolve_many(self, keys, fallbacks):
        self.portal.call(self.comparison.resolve_many, keys, fallbacks)

    @rule(key=KEYS)
    def delete(self, key):
        self.portal.call(self.comparison.delete, key)

    @rule()
    def prune(self):
        self.portal.call(self.comparison.prune)

    @rule(duration=st.sampled_from([0, 1, 49, 50, 100, 300]))
    def advance(self, duration):
        self.portal.call(self.comparison.advance, duration)

    @rule(key=KEYS)
    def crash(self, key):
        self.portal.call(self.comparison.crash, key)

    @invariant()
    def agree(self):
        if hasattr(self, "comparison"):
            self.portal.call(self.comparison.check)


SETTINGS = settings(max_examples=60, stateful_step_count=50, deadline=None)


class AsyncioMachine(RouterMachine):
    backend = "asyncio"
    backend_options = {"use_uvloop": False}  # noqa: RUF012


class TrioMachine(RouterMachine):
    backend = "trio"
    backend_options = {}  # noqa: RUF012


TestOnAsyncio = AsyncioMachine.TestCase
TestOnAsyncio.settings = SETTINGS
TestOnTrio = TrioMachine.TestCase
TestOnTrio.settings = SETTINGS


@pytest.mark.parametrize(("capacity", "retention"), [(3, 0), (6, 30), (12, 0)])
async def test_a_long_life_of_a_router_goes_as_its_model_says(capacity, retention):
    rng = random.Random(capacity)
    comparison = Comparison(capacity, retention)
    keys = _with_threads(_rooms(20))

    def some_keys() -> list[SessionKey]:
        return rng.choices(keys, k=rng.randrange(8))

    def some_route() -> Route:
        return Route(rng.randrange(1, 1_000))

    def some_ttl() -> int | None:
        return rng.choice((None, None, 1, 50, 1_000))

    steps = {
        lambda key: comparison.set(key, some_route(), some_ttl()): 30,
        lambda _: comparison.set_many({k: some_route() for k in some_keys()}, some_ttl()): 5,
        lambda key: comparison.get(key): 10,
        lambda key: comparison.resolve(key, rng.choice(FALLBACKS)): 30,
        lambda _: comparison.resolve_many(some_keys(), rng.choice(FALLBACKS)): 5,
        lambda key: comparison.delete(key): 5,
        lambda _: comparison.prune(): 2,
        lambda _: comparison.advance(rng.choice((1, 10, 50, 300))): 20,
        lambda key: comparison.crash(key): 1,
    }
    chosen = rng.choices(list(steps), list(steps.values()), k=4_000)

    async with comparison.router:
        for step in chosen:
            await step(rng.choice(keys))
            comparison.check()
        total = comparison.router.stats().total
    # It was a life in which everything happened.
    assert min(total.hits, total.thread_fallbacks, total.provided_fallbacks, total.misses) > 50
    assert min(total.stale, total.evicted, total.pruned, total.deletes, total.restarts) > 10
    assert min(total.queued_calls, comparison.met_down) > 10
