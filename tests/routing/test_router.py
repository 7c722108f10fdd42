from __future__ import annotations

import gc
import inspect
import math
import random
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from trunkline import (
    PruneResult,
    Resolution,
    Route,
    RouteRecord,
    SessionKey,
    SessionRouter,
)
from trunkline.actors import RestartPolicy
from trunkline.errors import (
    ActorCrashed,
    ConfigurationError,
    InvalidRoute,
    InvalidSessionKey,
    NoRoute,
    PartitionUnavailable,
    RestartIntensityExceeded,
    RouteExpired,
    RouteNotFound,
    TrunklineError,
)
from trunkline.routing import RouterConfig
from trunkline.routing.partition import Partition
from trunkline.routing.router import _KEYS_PER_TURN, _MANY_SLICE
from trunkline.testing import ManualClock, crash

ROOM = SessionKey("telegram", "bot", "42")
THREAD = ROOM._replace(thread_id="7")
FALLBACK = Route("fallback")

#: Turns of another task that may pass between two of a task that is always ready: trio shuffles the
#: tasks of a turn, so that one may come first in a turn and last in the next.
TURNS_BETWEEN = 2


def room(number: int) -> SessionKey:
    return SessionKey("telegram", "bot", str(number))


def rooms_of(router: SessionRouter, partition: int, count: int) -> list[SessionKey]:
    """`count` rooms of one partition."""
    keys: list[SessionKey] = []
    number = 0
    while len(keys) < count:
        if router.route_partition(room(number)) == partition:
            keys.append(room(number))
        number += 1
    return keys


def records(router: SessionRouter) -> list[dict[SessionKey, RouteRecord]]:
    """Every record of every partition, without marking it as used."""

    def of(partition: Partition) -> dict[SessionKey, RouteRecord]:
        entries = {key: partition._table.peek(key) for key in partition._table}
        return {
            key: RouteRecord(entry.route, entry.updated_at_ms, entry.expires_at_ms)
            for key, entry in entries.items()
        }

    return [router.partition(index).peek(of, {}) for index in range(router.partition_count)]


# -- set, get, delete ----------------------------------------------------------------------------


async def test_a_route_that_was_set_is_got(clock):
    async with SessionRouter(ttl_ms=1_000, clock=clock) as router:
        await router.set(ROOM, Route(42, "telegram"))
        record = await router.get(ROOM)
    assert record == RouteRecord(Route(42, "telegram"), clock(), clock() + 1_000)


async def test_set_takes_a_mapping_and_plain_tuples():
    async with SessionRouter() as router:
        await router.set(("telegram", "bot", "42"), {"external_room_id": 42, "locale": "de"})
        await router.set(("telegram", "bot", "42", "7"), {"external_room_id": 43})
        assert (await router.get(ROOM)).route == Route(42, extra={"locale": "de"})
        assert (await router.get(THREAD)).route == Route(43)
        assert (await router.get(tuple(ROOM))).route.external_room_id == 42
        assert await router.delete(("telegram", "bot", "42", None))


async def test_the_last_route_set_is_the_one_that_counts(clock):
    async with SessionRouter(ttl_ms=1_000, clock=clock) as router:
        await router.set(ROOM, Route(1))
        clock.advance_ms(900)
        await router.set(ROOM, Route(2))
        clock.advance_ms(900)
        assert (await router.get(ROOM)).route == Route(2)


async def test_get_does_not_fall_back():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        with pytest.raises(RouteNotFound, match="telegram:bot:42:7"):
            await router.get(THREAD)


async def test_delete_returns_whether_there_was_a_record(clock):
    async with SessionRouter(clock=clock) as router:
        await router.set(ROOM, Route(1))
        await router.set(THREAD, Route(2), ttl_ms=1)
        clock.advance_ms(1)
        assert await router.delete(ROOM) is True
        assert await router.delete(ROOM) is False
        assert await router.delete(THREAD) is True
        with pytest.raises(RouteNotFound):
            await router.get(ROOM)


async def test_deleting_a_room_leaves_its_threads():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        await router.set(THREAD, Route(2))
        await router.delete(ROOM)
        assert (await router.resolve(THREAD)).route == Route(2)


# -- time ----------------------------------------------------------------------------------------


async def test_a_route_expires_after_the_routers_ttl(clock):
    async with SessionRouter(ttl_ms=1_000, clock=clock) as router:
        await router.set(ROOM, Route(1))
        clock.advance_ms(999)
        await router.get(ROOM)
        clock.advance_ms(1)
        with pytest.raises(RouteExpired):
            await router.get(ROOM)


async def test_a_ttl_of_its_own_counts_for_one_call(clock):
    async with SessionRouter(ttl_ms=1_000, clock=clock) as router:
        await router.set(ROOM, Route(1), ttl_ms=10)
        await router.set(THREAD, Route(2), 5_000)
        clock.advance_ms(10)
        with pytest.raises(RouteExpired):
            await router.get(ROOM)
        await router.set(ROOM, Route(1))
        clock.advance_ms(999)
        await router.get(ROOM)
        await router.get(THREAD)


async def test_an_expired_route_is_reported_once():
    clock = ManualClock()
    async with SessionRouter(ttl_ms=10, clock=clock) as router:
        await router.set(ROOM, Route(1))
        clock.advance_ms(10)
        with pytest.raises(RouteExpired):
            await router.get(ROOM)
        for _ in range(2):
            with pytest.raises(RouteNotFound):
                await router.get(ROOM)


async def test_an_expired_route_lives_again_when_it_is_set(clock):
    async with SessionRouter(ttl_ms=10, clock=clock) as router:
        await router.set(ROOM, Route(1))
        clock.advance_ms(10)
        await router.set(ROOM, Route(2))
        assert (await router.resolve(ROOM)).route == Route(2)


async def test_reading_does_not_prolong_a_route(clock):
    async with SessionRouter(ttl_ms=10, clock=clock) as router:
        await router.set(ROOM, Route(1))
        clock.advance_ms(6)
        await router.get(ROOM)
        await router.resolve(ROOM)
        clock.advance_ms(6)
        with pytest.raises(RouteExpired):
            await router.get(ROOM)


@pytest.mark.parametrize("jump_s", [-10 * 365 * 86_400, 10 * 365 * 86_400])
async def test_a_jump_of_the_wall_clock_neither_kills_nor_revives_a_route(monkeypatch, jump_s):
    wall, wall_ns = time.time, time.time_ns
    clock = ManualClock()
    async with SessionRouter() as on_system_time, SessionRouter(clock=clock) as on_manual_time:
        await on_system_time.set(ROOM, Route(1))
        await on_manual_time.set(ROOM, Route(1), ttl_ms=1)
        clock.advance_ms(1)
        monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
        monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + jump_s * 10**9)
        await on_system_time.prune()
        assert (await on_system_time.get(ROOM)).route == Route(1)
        with pytest.raises(RouteExpired):
            await on_manual_time.get(ROOM)


async def test_instants_are_milliseconds_of_the_monotonic_clock():
    before = time.monotonic_ns() // 1_000_000
    async with SessionRouter(ttl_ms=1_000) as router:
        await router.set(ROOM, Route(1))
        record = await router.get(ROOM)
    assert type(record.updated_at_ms) is type(record.expires_at_ms) is int
    assert before <= record.updated_at_ms <= time.monotonic_ns() // 1_000_000
    assert record.expires_at_ms == record.updated_at_ms + 1_000


# -- resolve -------------------------------------------------------------------------------------

#: For a thread: its own record, its room's, whether a fallback is given; and what must come out.
THREAD_CASES = [
    ("fresh", "absent", False, ("own", "state_hit", False, None)),
    ("fresh", "absent", True, ("own", "state_hit", False, None)),
    ("fresh", "fresh", False, ("own", "state_hit", False, None)),
    ("fresh", "fresh", True, ("own", "state_hit", False, None)),
    ("fresh", "expired", False, ("own", "state_hit", False, None)),
    ("fresh", "expired", True, ("own", "state_hit", False, None)),
    ("absent", "fresh", False, ("room", "partition_fallback", False, "thread_scope_miss")),
    ("absent", "fresh", True, ("room", "partition_fallback", False, "thread_scope_miss")),
    ("expired", "fresh", False, ("room", "partition_fallback", True, "stale")),
    ("expired", "fresh", True, ("room", "partition_fallback", True, "stale")),
    ("absent", "absent", True, ("fallback", "provided_fallback", False, "miss")),
    ("absent", "expired", True, ("fallback", "provided_fallback", True, "stale")),
    ("expired", "absent", True, ("fallback", "provided_fallback", True, "stale")),
    ("expired", "expired", True, ("fallback", "provided_fallback", True, "stale")),
    ("absent", "absent", False, None),
    ("absent", "expired", False, None),
    ("expired", "absent", False, None),
    ("expired", "expired", False, None),
]

#: The same for a room.
ROOM_CASES = [
    ("fresh", False, ("own", "state_hit", False, None)),
    ("fresh", True, ("own", "state_hit", False, None)),
    ("absent", True, ("fallback", "provided_fallback", False, "miss")),
    ("expired", True, ("fallback", "provided_fallback", True, "stale")),
    ("absent", False, None),
    ("expired", False, None),
]


async def bring_about(router, clock, states: dict[SessionKey, tuple[str, str]]) -> None:
    for key, (state, name) in states.items():
        if state != "absent":
            await router.set(key, Route(name), ttl_ms=1 if state == "expired" else 100)
    clock.advance_ms(1)


async def check_resolve(router, clock, key, fallbacks, expected) -> None:
    if expected is None:
        for _ in range(2):
            with pytest.raises(NoRoute, match=str(key)):
                await router.resolve(key, fallbacks)
        return
    name, source, stale, reason = expected
    assert await router.resolve(key, fallbacks) == Resolution(
        external_room_id=name,
        route=Route(name),
        partition=router.route_partition(key),
        session_key=key,
        source=source,
        fallback=source != "state_hit",
        stale=stale,
        fallback_reason=reason,
    )
    # What a fallback gave is stored under the key.
    again = await router.resolve(key)
    assert (again.source, again.route, again.stale) == ("state_hit", Route(name), False)
    if source != "state_hit":
        # The room's record was set a millisecond ago, for 100.
        ttl_ms = 99 if source == "partition_fallback" else 1_000
        assert await router.get(key) == RouteRecord(Route(name), clock(), clock() + ttl_ms)


@pytest.mark.parametrize(("own", "of_room", "fallback", "expected"), THREAD_CASES)
async def test_a_thread_resolves_to_itself_then_its_room_then_a_fallback(
    clock, own, of_room, fallback, expected
):
    async with SessionRouter(ttl_ms=1_000, clock=clock) as router:
        await bring_about(router, clock, {THREAD: (own, "own"), ROOM: (of_room, "room")})
        await check_resolve(router, clock, THREAD, [FALLBACK] if fallback else [], expected)


@pytest.mark.parametrize(("own", "fallback", "expected"), ROOM_CASES)
async def test_a_room_resolves_to_itself_then_a_fallback(clock, own, fallback, expected):
    async with SessionRouter(ttl_ms=1_000, clock=clock) as router:
        await bring_about(router, clock, {ROOM: (own, "own"), THREAD: ("fresh", "thread")})
        await check_resolve(router, clock, ROOM, [FALLBACK] if fallback else [], expected)


async def test_an_empty_thread_falls_back_to_its_room():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        assert (await router.resolve(ROOM._replace(thread_id=""))).source == "partition_fallback"


async def test_every_thread_finds_its_room_with_any_number_of_partitions():
    for partition_count in (1, 3, 8):
        async with SessionRouter(partition_count=partition_count) as router:
            for number in range(200):
                await router.set(room(number), Route(number))
                thread = room(number)._replace(thread_id=f"t{number}")
                assert (await router.resolve(thread)).external_room_id == number


async def sources(router: SessionRouter, *keys: SessionKey) -> list[tuple[str, int]]:
    resolutions = [await router.resolve(key) for key in keys]
    return [(resolution.source, resolution.external_room_id) for resolution in resolutions]


async def test_a_thread_follows_its_room_when_that_is_set_anew():
    async with SessionRouter() as router:
        for number in range(3):
            await router.set(ROOM, Route(number))
            assert await sources(router, THREAD, THREAD, ROOM) == [
                ("partition_fallback", number),
                ("state_hit", number),
                ("state_hit", number),
            ]


async def test_a_thread_asks_its_room_anew_also_when_that_was_set_to_the_same_route(clock):
    route = Route(1)
    async with SessionRouter(clock=clock) as router:
        await router.set(ROOM, route)
        await router.resolve(THREAD)
        await router.set(ROOM, route)
        assert await sources(router, THREAD, THREAD) == [
            ("partition_fallback", 1),
            ("state_hit", 1),
        ]


@pytest.mark.parametrize("read", ["resolve", "get"])
async def test_the_route_that_a_thread_copied_ends_when_its_room_is_deleted(read):
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        await router.resolve(THREAD)
        await router.delete(ROOM)
        with pytest.raises(NoRoute if read == "resolve" else RouteNotFound):
            await getattr(router, read)(THREAD)
        assert router.stats().total.stale == 0
        resolution = await router.resolve(THREAD, FALLBACK)
        assert (resolution.source, resolution.fallback_reason) == ("provided_fallback", "miss")


@pytest.mark.parametrize("ttl_ms", [10, 100_000])
async def test_the_route_that_a_thread_copied_lives_exactly_as_long_as_its_rooms(clock, ttl_ms):
    async with SessionRouter(ttl_ms=1_000, clock=clock) as router:
        await router.set(ROOM, Route(1), ttl_ms=ttl_ms)
        clock.advance_ms(5)
        await router.resolve(THREAD)
        clock.advance_ms(ttl_ms - 6)
        assert await sources(router, THREAD) == [("state_hit", 1)]
        clock.advance_ms(1)
        resolution = await router.resolve(THREAD, FALLBACK)
        assert (resolution.source, resolution.fallback_reason) == ("provided_fallback", "stale")


async def test_a_route_of_a_threads_own_does_not_follow_the_room():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        await router.resolve(THREAD)
        await router.set(THREAD, Route(2))
        await router.set(ROOM, Route(3))
        assert await sources(router, THREAD) == [("state_hit", 2)]
        await router.delete(ROOM)
        assert await sources(router, THREAD) == [("state_hit", 2)]


async def test_a_thread_that_is_used_keeps_its_room_from_being_evicted():
    async with SessionRouter(partition_count=1, max_entries_per_partition=4) as router:
        await router.set(ROOM, Route("room"))
        await router.resolve(THREAD)
        for number in range(10):
            await router.set(room(number), Route(number))
            assert (await router.resolve(THREAD)).source == "state_hit"


async def test_what_get_returns_for_a_copied_route_is_a_plain_record():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        await router.resolve(THREAD)
        assert type(await router.get(THREAD)) is RouteRecord


class Watched(dict):
    """A fallback that counts how often somebody looks into it."""

    looks = 0

    def __getitem__(self, name):
        Watched.looks += 1
        return super().__getitem__(name)

    def items(self):
        Watched.looks += 1
        return super().items()


async def test_a_fallback_is_only_read_when_it_is_needed():
    fallback = Watched(external_room_id="fallback", locale="de")
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        Watched.looks = 0
        for key in (ROOM, THREAD, THREAD):
            for fallbacks in (fallback, [fallback]):
                await router.resolve(key, fallbacks)
        assert Watched.looks == 0
        resolution = await router.resolve(room(7), [{}, fallback])
        assert resolution.route == Route("fallback", extra={"locale": "de"})
        assert Watched.looks > 0


async def test_a_fallback_that_raises_costs_nobody_but_its_caller():
    def broken():
        yield Route(None)
        raise ZeroDivisionError("a bug of the caller")

    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        assert (await router.resolve(ROOM, broken())).source == "state_hit"
        with pytest.raises(ZeroDivisionError):
            await router.resolve(room(7), broken())
        assert router.stats().total.restarts == 0


async def test_a_fallback_is_read_before_the_call_is_queued():
    async with SessionRouter(partition_count=1) as router:
        fallback = {"external_room_id": "as it was"}
        found = []

        async def resolve() -> None:
            found.append(await router.resolve(ROOM, fallback))

        async with anyio.create_task_group() as task_group:
            for _ in range(3):
                task_group.start_soon(router.partition(0).call, _sleep)
            await checkpoint()
            task_group.start_soon(resolve)
            for _ in range(3):
                await checkpoint()
            assert not found
            fallback["external_room_id"] = "changed"
        assert found[0].external_room_id == "as it was"


async def _sleep(_partition: Partition) -> None:
    for _ in range(10):
        await checkpoint()


async def test_fallbacks_come_in_order_and_invalid_ones_are_passed_over():
    invalid = [None, {}, {"external_room_id": None}, Route(None), "42", 42]
    async with SessionRouter() as router:
        resolution = await router.resolve(ROOM, [*invalid, {"external_room_id": 1}, Route(2)])
        assert resolution.route == Route(1)
        with pytest.raises(NoRoute):
            await router.resolve(THREAD._replace(room_id="43"), invalid)


@pytest.mark.parametrize("fallbacks", [FALLBACK, {"external_room_id": "fallback"}, [FALLBACK]])
async def test_one_fallback_or_many_will_do(fallbacks):
    async with SessionRouter() as router:
        assert (await router.resolve(ROOM, fallbacks)).route == FALLBACK


@pytest.mark.parametrize("fallbacks", [None, (), {}, 42, "42"])
async def test_no_fallback_is_no_route(fallbacks):
    async with SessionRouter() as router:
        with pytest.raises(NoRoute):
            await router.resolve(ROOM, fallbacks)


async def test_a_resolution_has_a_session_key_also_for_a_plain_tuple():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        resolution = await router.resolve(("telegram", "bot", "42"))
        assert type(resolution.session_key) is SessionKey
        assert resolution.session_key == ROOM


async def test_a_provided_fallback_is_stored_for_the_default_time(clock):
    async with SessionRouter(ttl_ms=1_000, clock=clock) as router:
        await router.resolve(ROOM, FALLBACK)
        clock.advance_ms(999)
        assert (await router.resolve(ROOM)).source == "state_hit"
        clock.advance_ms(1)
        with pytest.raises(NoRoute):
            await router.resolve(ROOM)


async def test_staleness_is_distinguished_from_absence_until_the_record_is_pruned(clock):
    async with SessionRouter(ttl_ms=10, clock=clock) as router:
        await router.set(room(1), Route(1))
        await router.set(room(2), Route(2))
        clock.advance_ms(10)
        assert (await router.resolve(room(1), FALLBACK)).fallback_reason == "stale"
        await router.prune()
        assert (await router.resolve(room(2), FALLBACK)).fallback_reason == "miss"


async def test_an_expired_record_is_kept_from_the_prune_for_its_retention(clock):
    async with SessionRouter(ttl_ms=10, stale_retention_ms=100, clock=clock) as router:
        await router.set(room(1), Route(1))
        await router.set(room(2), Route(2))
        clock.advance_ms(109)
        assert (await router.prune()).pruned == 0
        assert (await router.resolve(room(1), FALLBACK)).fallback_reason == "stale"
        clock.advance_ms(1)
        assert (await router.prune()).pruned == 1
        assert (await router.resolve(room(2), FALLBACK)).fallback_reason == "miss"


# -- capacity ------------------------------------------------------------------------------------


async def test_the_least_recently_used_goes_first():
    async with SessionRouter(partition_count=1, max_entries_per_partition=3) as router:
        for number in range(4):
            await router.set(room(number), Route(number))
        with pytest.raises(RouteNotFound):
            await router.get(room(0))
        assert (await router.get(room(1))).route == Route(1)


@pytest.mark.parametrize("method", ["get", "resolve"])
async def test_a_read_keeps_a_route_from_being_evicted(method):
    async with SessionRouter(partition_count=1, max_entries_per_partition=3) as router:
        for number in range(3):
            await router.set(room(number), Route(number))
        await getattr(router, method)(room(0))
        await router.set(room(3), Route(3))
        assert (await router.get(room(0))).route == Route(0)
        with pytest.raises(RouteNotFound):
            await router.get(room(1))


async def test_a_thread_that_falls_back_keeps_its_room_from_being_evicted():
    async with SessionRouter(partition_count=1, max_entries_per_partition=3) as router:
        await router.set(ROOM, Route("room"))
        await router.set(room(1), Route(1))
        await router.set(room(2), Route(2))
        await router.resolve(THREAD)
        assert (await router.get(ROOM)).route == Route("room")
        with pytest.raises(RouteNotFound):
            await router.get(room(1))


async def test_each_partition_has_a_capacity_of_its_own():
    async with SessionRouter(partition_count=2, max_entries_per_partition=3) as router:
        for key in rooms_of(router, 0, 50):
            await router.set(key, Route(1))
        for key in rooms_of(router, 1, 2):
            await router.set(key, Route(1))
        assert [partition.entries for partition in router.stats().partitions] == [3, 2]


async def test_capacity_holds_with_times_to_live_from_a_millisecond_to_a_year(clock):
    rng = random.Random(4)
    year_ms = 365 * 86_400_000
    async with SessionRouter(
        partition_count=2, max_entries_per_partition=50, prune_interval_ms=2 * year_ms, clock=clock
    ) as router:
        for _ in range(10_000):
            ttl_ms = round(math.exp(rng.uniform(0, math.log(year_ms))))
            await router.set(room(rng.randrange(500)), Route(1), ttl_ms=ttl_ms)
            clock.advance_ms(rng.choice((0, 1, 100, 10_000)))
            assert all(partition.entries <= 50 for partition in router.stats().partitions)
        total = router.stats().total
        assert total.entries == 100
        clock.advance_ms(year_ms)
        assert (await router.prune()).pruned == 100
        assert router.stats().total.entries == 0


def used_memory() -> tuple[int, int]:
    """Blocks of Python's allocator, and bytes of the process where the system reports them."""
    gc.collect()
    statm = Path("/proc/self/statm")
    resident = int(statm.read_text().split()[1]) * 4_096 if statm.exists() else 0
    return sys.getallocatedblocks(), resident


async def test_one_key_set_a_million_times_does_not_grow_the_process():
    async with SessionRouter() as router:
        for _ in range(1_000):
            await router.set(ROOM, Route(1))
        blocks, resident = used_memory()
        for _ in range(1_000_000):
            await router.set(ROOM, Route(1))
        blocks_now, resident_now = used_memory()
        assert router.stats().total.sets == 1_001_000
        assert router.stats().total.entries == 1
    # A leak of one object a call would be a million blocks; of eight bytes, eight million bytes.
    assert blocks_now - blocks < 2_000
    assert resident_now - resident < 4_000_000


# -- prune ---------------------------------------------------------------------------------------


async def test_a_prune_by_hand_returns_what_it_did(clock):
    async with SessionRouter(partition_count=4, ttl_ms=10, clock=clock) as router:
        for number in range(30):
            await router.set(room(number), Route(1))
        for number in range(30, 50):
            await router.set(room(number), Route(1), ttl_ms=11)
        assert await router.prune() == PruneResult(pruned=0, partitions=4)
        clock.advance_ms(10)
        assert await router.prune() == PruneResult(pruned=30, partitions=4)
        assert await router.prune() == PruneResult(pruned=0, partitions=4)
        assert router.stats().total.entries == 20


async def test_expired_routes_are_pruned_by_time(clock):
    async with SessionRouter(ttl_ms=10, prune_interval_ms=1_000, clock=clock) as router:
        pruned = anyio.Event()
        router.events.subscribe(lambda event: event.name == "pruned" and pruned.set())
        await router.set(ROOM, Route(1))
        clock.advance_ms(999)
        for _ in range(10):
            await checkpoint()
        assert router.stats().total.entries == 1
        clock.advance_ms(1)
        await pruned.wait()
        assert router.stats().total.entries == 0
        assert router.stats().total.pruned == 1


async def test_pruning_goes_on_interval_after_interval(clock):
    async with SessionRouter(ttl_ms=10, prune_interval_ms=1_000, clock=clock) as router:
        for _ in range(3):
            pruned = anyio.Event()
            await router.set(ROOM, Route(1))
            unsubscribe = router.events.subscribe(lambda _event, pruned=pruned: pruned.set())
            clock.advance_ms(1_000)
            await pruned.wait()
            unsubscribe()
        assert router.stats().total.pruned == 3


async def test_the_clock_may_move_before_the_event_loop_has_run(clock):
    async with SessionRouter(ttl_ms=10, prune_interval_ms=10, clock=clock) as router:
        pruned = anyio.Event()
        await router.set(ROOM, Route(1))  # a local call: no task has run since the router is up
        router.events.subscribe(lambda _event: pruned.set())
        clock.advance_ms(10)
        await pruned.wait()
        assert router.stats().total.pruned == 1


async def test_the_event_loop_runs_while_80000_expired_routes_are_pruned(clock):
    async with SessionRouter(ttl_ms=10, clock=clock) as router:
        await router.set_many({room(number): Route(1) for number in range(100_000)})
        assert [p.entries for p in router.stats().partitions] == [10_000] * 8
        clock.advance_ms(10)
        entries = [router.stats().total.entries]

        async def watch() -> None:
            while True:
                entries.append(router.stats().total.entries)
                await checkpoint()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(watch)
            assert (await router.prune()).pruned == 80_000
            task_group.cancel_scope.cancel()
    between_turns = [before - after for before, after in pairwise(entries)]
    assert max(between_turns) <= TURNS_BETWEEN * _KEYS_PER_TURN
    assert len(entries) >= 80_000 / _KEYS_PER_TURN


async def test_the_router_answers_while_it_prunes(clock):
    async with SessionRouter(ttl_ms=10, clock=clock) as router:
        await router.set_many({room(number): Route(1) for number in range(20_000)})
        clock.advance_ms(10)
        served = 0

        async def serve() -> None:
            nonlocal served
            while True:
                await router.set(ROOM, Route(served), ttl_ms=1_000)
                assert (await router.resolve(ROOM)).external_room_id == served
                served += 1
                await checkpoint()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(serve)
            await router.prune()
            task_group.cancel_scope.cancel()
        assert served >= 20
        assert (await router.resolve(ROOM)).source == "state_hit"


# -- many keys -----------------------------------------------------------------------------------


def calls(router: SessionRouter) -> list[int]:
    return [p.local_calls + p.queued_calls for p in router.stats().partitions]


async def test_set_many_takes_one_call_a_partition(clock):
    async with SessionRouter(ttl_ms=1_000, clock=clock) as router:
        routes = {room(number): Route(number) for number in range(1_000)}
        await router.set_many(routes)
        assert calls(router) == [1] * 8
        assert router.stats().total.sets == 1_000
        for key, route in routes.items():
            assert await router.get(key) == RouteRecord(route, clock(), clock() + 1_000)


async def test_resolve_many_takes_one_call_a_partition():
    async with SessionRouter() as router:
        await router.set_many({room(number): Route(number) for number in range(1_000)})
        before = calls(router)
        found = await router.resolve_many([room(number) for number in range(1_000)])
        assert [now - then for now, then in zip(calls(router), before, strict=True)] == [1] * 8
        assert {key.room_id: r.external_room_id for key, r in found.items()} == {
            str(number): number for number in range(1_000)
        }


async def test_many_of_one_partition_leave_the_others_alone():
    async with SessionRouter() as router:
        keys = rooms_of(router, 5, 20)
        await router.set_many(dict.fromkeys(keys, Route(1)))
        await router.resolve_many(keys)
        assert calls(router) == [0, 0, 0, 0, 0, 2, 0, 0]


async def test_set_many_takes_a_ttl_mappings_and_plain_tuples(clock):
    async with SessionRouter(clock=clock) as router:
        await router.set_many(
            {
                ("telegram", "bot", "42"): {"external_room_id": 1, "locale": "de"},
                ("telegram", "bot", "42", "7"): Route(2),
            },
            ttl_ms=10,
        )
        assert (await router.get(ROOM)) == RouteRecord(
            Route(1, extra={"locale": "de"}), clock(), clock() + 10
        )
        assert (await router.get(THREAD)).route == Route(2)


async def test_resolve_many_answers_under_the_keys_as_they_were_given():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        keys = [("telegram", "bot", "42"), ROOM, ("telegram", "bot", "42", "7")]
        found = await router.resolve_many(keys)
        assert found.keys() == {("telegram", "bot", "42"), ROOM, THREAD}
        assert [type(key) for key in found] == [tuple, SessionKey, tuple]
        assert found["telegram", "bot", "42"].session_key == ROOM
        assert found["telegram", "bot", "42", "7"].source == "partition_fallback"


async def test_resolve_many_leaves_out_what_has_no_route():
    async with SessionRouter() as router:
        await router.set(room(1), Route(1))
        assert (await router.resolve_many([room(1), room(2)])).keys() == {room(1)}
        found = await router.resolve_many([room(1), room(2)], FALLBACK)
        assert [found[room(n)].source for n in (1, 2)] == ["state_hit", "provided_fallback"]


async def test_the_fallbacks_of_resolve_many_are_for_every_key():
    async with SessionRouter() as router:
        fallbacks = (route for route in [Route(None), FALLBACK])
        found = await router.resolve_many([room(number) for number in range(50)], fallbacks)
        assert len(found) == 50
        assert all(resolution.route == FALLBACK for resolution in found.values())


async def test_many_may_be_none():
    async with SessionRouter() as router:
        await router.set_many({})
        assert await router.resolve_many([]) == {}
        assert calls(router) == [0] * 8


async def test_keys_of_resolve_many_may_come_from_a_generator():
    async with SessionRouter() as router:
        await router.set_many({room(number): Route(number) for number in range(10)})
        assert len(await router.resolve_many(room(number) for number in range(20))) == 10


async def test_the_event_loop_runs_while_very_many_routes_are_set_and_resolved():
    async with SessionRouter(max_entries_per_partition=30_000) as router:
        routes = {room(number): Route(number) for number in range(100_000)}
        done = [0]

        def note() -> None:
            total = router.stats().total
            done.append(total.sets + total.hits)

        async def watch() -> None:
            while True:
                note()
                await checkpoint()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(watch)
            await router.set_many(routes)
            assert len(await router.resolve_many(routes)) == 100_000
            note()
            task_group.cancel_scope.cancel()
    between_turns = [after - before for before, after in pairwise(done)]
    assert max(between_turns) <= TURNS_BETWEEN * _MANY_SLICE


class CountedRoute(dict):
    """A route as a mapping, and so converted when it is checked."""

    converted = 0

    def items(self):
        CountedRoute.converted += 1
        return super().items()


async def most_between_turns(count, work) -> int:
    """By how much `count()` grows at most while no other task runs, during `work`."""
    counts = [count()]

    async def watch() -> None:
        while True:
            counts.append(count())
            await checkpoint()

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(watch)
        await work()
        task_group.cancel_scope.cancel()
    counts.append(count())
    return max(after - before for before, after in pairwise(counts))


async def test_the_event_loop_runs_while_the_routes_of_set_many_are_checked():
    routes = {room(number): CountedRoute(external_room_id=number) for number in range(20_000)}
    async with SessionRouter() as router:
        most = await most_between_turns(
            lambda: CountedRoute.converted, lambda: router.set_many(routes)
        )
    assert most <= TURNS_BETWEEN * _KEYS_PER_TURN


async def test_the_event_loop_runs_while_the_keys_of_resolve_many_are_checked():
    taken = 0

    def keys():
        nonlocal taken
        for taken in range(1, 20_001):
            yield room(taken)

    async with SessionRouter() as router:
        most = await most_between_turns(lambda: taken, lambda: router.resolve_many(keys()))
    assert taken == 20_000
    assert most <= TURNS_BETWEEN * _KEYS_PER_TURN


async def test_the_resolutions_of_many_keys_cause_no_garbage_collection():
    async with SessionRouter(max_entries_per_partition=30_000) as router:
        keys = [room(number) for number in range(20_000)]
        await router.set_many(dict.fromkeys(keys, Route(1)))
        found = await router.resolve_many(keys)
        assert not any(map(gc.is_tracked, found.values()))


async def test_set_many_stores_what_the_mapping_contained_at_the_call():
    async with SessionRouter() as router:
        routes = {room(number): Route("old") for number in range(5_000)}
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(router.set_many, routes)
            for _ in range(2):
                await checkpoint()
            routes |= {room(number): Route("new") for number in range(4_000, 6_000)}
        assert router.stats().total.sets == 5_000
        assert (await router.get(room(4_999))).route == Route("old")


async def test_resolve_many_takes_the_keys_that_the_collection_contained_at_the_call():
    found = {}

    async def resolve() -> None:
        found.update(await router.resolve_many(keys, FALLBACK))

    async with SessionRouter() as router:
        keys = {room(number) for number in range(5_000)}
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(resolve)
            for _ in range(2):
                await checkpoint()
            keys |= {room(number) for number in range(4_000, 6_000)}
    assert found.keys() == {room(number) for number in range(5_000)}


# -- bad input -----------------------------------------------------------------------------------


class Unhashable(str):
    """A string with an `__eq__` of its own, and therefore without a hash."""

    def __eq__(self, other):
        return str.__eq__(self, other)


class Broken(str):
    """A string whose comparisons, hash and text are bugs."""

    def broken(self, *_):
        raise ZeroDivisionError("a bug of the program")

    __eq__ = __ne__ = __hash__ = __len__ = __str__ = __format__ = encode = isascii = broken


BAD_KEYS = [
    ("a", "b"),
    (),
    ("a", "b", "c", "d", "e"),
    "a:b:c",
    "abc",
    ["a", "b", "c"],
    None,
    42.0,
    SessionKey("", "b", "c"),
    ("a", "", "c"),
    SessionKey("a", "b", ""),
    (None, "b", "c"),
    SessionKey("a", None, "c"),
    SessionKey("a", "b", 42),
    SessionKey("a", "b", 0),
    SessionKey(b"a", "b", "c"),
    SessionKey("a", ["b"], "c"),
    SessionKey("a", "b", "c", ["t"]),
    SessionKey("a", "b", "c", 7),
    ("a", "b", "c", 0),
    SessionKey("a", "b", "c", "\ud800"),
    SessionKey("\udfff", "b", "c"),
    SessionKey("a", "b", Unhashable("c")),
    ("a", "b", Unhashable("c")),
    SessionKey("a", "b", "c", Unhashable("t")),
]

WITH_A_KEY = {
    "set": lambda router, key: router.set(key, Route(1)),
    "get": lambda router, key: router.get(key),
    "resolve": lambda router, key: router.resolve(key, FALLBACK),
    "delete": lambda router, key: router.delete(key),
    "resolve_many": lambda router, key: router.resolve_many([ROOM, key], FALLBACK),
    "set_many": lambda router, key: router.set_many(_Pairs((ROOM, Route(1)), (key, Route(1)))),
}


class _Pairs(dict):
    """Stands for a mapping whose keys need not be hashable, so that any key can be in it."""

    def __init__(self, *pairs):
        self._pairs = pairs

    def items(self):
        return self._pairs


async def unchanged_by(router: SessionRouter, operation, error: type[Exception]) -> str:
    """The message of the error, after a look that nothing else came of it."""
    stats, held = router.stats(), records(router)
    with pytest.raises(error) as raised:
        await operation()
    assert (router.stats(), records(router)) == (stats, held)
    return str(raised.value)


@pytest.mark.parametrize("method", WITH_A_KEY)
async def test_a_bad_key_is_named_and_changes_nothing(method):
    async with SessionRouter() as router:
        await router.set(room(1), Route(1))
        for key in BAD_KEYS:
            message = await unchanged_by(
                router, lambda key=key: WITH_A_KEY[method](router, key), InvalidSessionKey
            )
            assert repr(key) in message


@pytest.mark.parametrize("part", [0, 1, 2, 3])
async def test_parts_of_a_class_of_the_programs_own_become_plain_text(part):
    plain = SessionKey("a", "b", "c", "t")
    odd = SessionKey(*(Broken(p) if i == part else p for i, p in enumerate(plain)))
    async with SessionRouter() as router:
        for key in (odd, tuple(odd)):
            await router.set(key, Route(1))
            await router.set_many(_Pairs((key, Route(1))))
            assert (await router.resolve(key)).session_key == plain
            (held,) = await router.partition(plain).call(Partition.keys)
            assert [type(p) for p in held] == [str] * 4
            assert await router.delete(key)
        assert router.stats().total.restarts == 0


async def test_a_key_that_cannot_be_printed_is_refused_clearly():
    nested = ()
    for _ in range(100_000):
        nested = (nested,)
    async with SessionRouter() as router:
        for key in (nested, (nested, "b", "c"), SessionKey("a", nested, "c")):
            with pytest.raises(InvalidSessionKey, match=r"whose repr\(\) fails"):
                await router.set(key, Route(1))


async def test_calls_near_the_recursion_limit_crash_no_partition():
    """A caller with a deep stack gets its own error, and what is held stays consistent."""

    async def at_depth(depth: int, work) -> None:
        await (at_depth(depth - 1, work) if depth else work())

    failed = 0
    async with SessionRouter(partition_count=1, max_entries_per_partition=10) as router:
        here = len(inspect.stack())
        for spare in range(40):
            key = room(spare)._replace(thread_id="t" if spare % 3 else None)
            for work in (
                lambda key=key: router.set(key, Route(1)),
                lambda key=key: router.resolve(key, FALLBACK),
                lambda key=key: router.delete(key),
            ):
                try:
                    await at_depth(sys.getrecursionlimit() - here - spare, work)
                except RecursionError:
                    failed += 1
        assert failed
        for number in range(100):
            await router.set(room(number), Route(number))
        assert router.stats().total.entries == 10
        assert router.stats().total.restarts == 0


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_a_bad_key_has_no_partition(key):
    async with SessionRouter() as router:
        with pytest.raises(InvalidSessionKey):
            router.route_partition(key)
        with pytest.raises(InvalidSessionKey):
            router.partition(key)


@pytest.mark.parametrize(
    "route", [{}, {"external_room_id": None}, Route(None), None, "42", 42, [("a", 1)]]
)
async def test_a_bad_route_is_refused_by_its_key_and_changes_nothing(route):
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        for operation in (
            lambda: router.set(ROOM, route),
            lambda: router.set_many({room(1): Route(1), ROOM: route, room(2): Route(2)}),
        ):
            message = await unchanged_by(router, operation, InvalidRoute)
            assert "'telegram:bot:42'" in message


@pytest.mark.parametrize("ttl_ms", [0, -1, True, False, 1.0, 1.5, "10", (), math.inf])
async def test_a_bad_ttl_is_named_and_changes_nothing(ttl_ms):
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        for operation in (
            lambda: router.set(ROOM, Route(2), ttl_ms=ttl_ms),
            lambda: router.set_many({ROOM: Route(2), room(1): Route(1)}, ttl_ms=ttl_ms),
        ):
            message = await unchanged_by(router, operation, ConfigurationError)
            assert message == f"ttl_ms must be an int of 1 or more, not {ttl_ms!r}"


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "8", None])
@pytest.mark.parametrize(
    "setting",
    [
        "partition_count",
        "ttl_ms",
        "max_entries_per_partition",
        "prune_interval_ms",
        "call_timeout_ms",
    ],
)
def test_a_bad_setting_is_named_with_its_value(setting, value):
    with pytest.raises(ConfigurationError) as refused:
        SessionRouter(**{setting: value})
    assert str(refused.value) == f"{setting} must be an int of 1 or more, not {value!r}"


@pytest.mark.parametrize("value", [-1, True, 1.0, "8", None])
def test_a_bad_retention_is_named_with_its_value(value):
    with pytest.raises(ConfigurationError) as refused:
        SessionRouter(stale_retention_ms=value)
    assert str(refused.value) == f"stale_retention_ms must be an int of 0 or more, not {value!r}"


@pytest.mark.parametrize("setting", ["ttl_ms", "stale_retention_ms", "prune_interval_ms"])
def test_a_setting_that_no_timer_can_hold_is_refused(setting):
    with pytest.raises(ConfigurationError, match=setting):
        SessionRouter(**{setting: 10**400})


@pytest.mark.parametrize("clock", [time.monotonic, lambda: "now"])
def test_a_clock_of_anything_but_milliseconds_is_refused(clock):
    with pytest.raises(ConfigurationError, match="clock must return milliseconds as an int"):
        SessionRouter(clock=clock)


# -- partitions ----------------------------------------------------------------------------------


async def test_the_settings_are_shown():
    config = RouterConfig(
        partition_count=3,
        ttl_ms=1,
        max_entries_per_partition=2,
        prune_interval_ms=3,
        stale_retention_ms=4,
        call_timeout_ms=5,
    )
    async with SessionRouter(
        partition_count=3,
        ttl_ms=1,
        max_entries_per_partition=2,
        prune_interval_ms=3,
        stale_retention_ms=4,
        call_timeout_ms=5,
    ) as router:
        assert router.config == config
        assert router.partition_count == 3
        assert len(router.stats().partitions) == 3


def test_the_defaults_are_the_documented_ones():
    router = SessionRouter()
    assert router.config == RouterConfig(
        partition_count=8,
        ttl_ms=1_800_000,
        max_entries_per_partition=10_000,
        prune_interval_ms=30_000,
        call_timeout_ms=5_000,
    )


async def test_a_partition_is_found_by_its_index_or_a_key_of_it():
    async with SessionRouter(partition_count=4) as router:
        index = router.route_partition(ROOM)
        handle = router.partition(index)
        assert handle is router.partition(ROOM)
        assert handle is router.partition(THREAD)
        assert handle is router.partition(("telegram", "bot", "42"))
        await router.set(ROOM, Route(1))
        assert await handle.call(Partition.keys) == [ROOM]
        assert router.partition(-1) is None
        assert router.partition(4) is None


async def test_routes_are_in_the_partition_that_is_named():
    async with SessionRouter(partition_count=5) as router:
        for number in range(50):
            await router.set(room(number), Route(1))
        for index in range(5):
            for key in await router.partition(index).call(Partition.keys):
                assert router.route_partition(key) == index


# -- crashes -------------------------------------------------------------------------------------


async def test_a_crash_costs_one_partition_its_records_and_no_other_anything(at_once):
    async with SessionRouter(partition_count=4, restart_policy=at_once) as router:
        for number in range(100):
            await router.set(room(number), Route(number))
        before = records(router)
        handle = router.partition(2)
        await crash(handle)
        assert await handle.call(Partition.keys) == []  # waits until it is back
        after = records(router)
        assert after == [before[0], before[1], {}, before[3]]
        for number in range(100):
            if router.route_partition(room(number)) == 2:
                with pytest.raises(RouteNotFound):
                    await router.get(room(number))
            else:
                assert (await router.get(room(number))).route == Route(number)


async def test_others_are_served_while_a_partition_is_down(for_long):
    async with SessionRouter(partition_count=2, restart_policy=for_long) as router:
        (gone,), (other,) = rooms_of(router, 0, 1), rooms_of(router, 1, 1)
        await router.set(gone, Route(1))
        await crash(router.partition(gone))
        await router.set(other, Route(2))
        assert (await router.resolve(other)).route == Route(2)
        assert (await router.get(other)).route == Route(2)
        assert await router.delete(other)
        assert router.partition(gone) is None
        assert router.partition(1) is not None


async def test_a_partition_that_is_down_answers_with_the_first_valid_fallback(for_long):
    async with SessionRouter(restart_policy=for_long) as router:
        await router.set(ROOM, Route(1))
        await crash(router.partition(ROOM))
        assert await router.resolve(ROOM, [Route(None), FALLBACK, Route(3)]) == Resolution(
            external_room_id="fallback",
            route=FALLBACK,
            partition=router.route_partition(ROOM),
            session_key=ROOM,
            source="provided_fallback",
            fallback=True,
            stale=False,
            fallback_reason="session_unavailable",
        )
        assert router.partition(ROOM) is None


async def test_what_a_fallback_gives_for_a_partition_that_is_down_is_not_stored(at_once):
    async with SessionRouter(restart_policy=at_once) as router:
        handle = router.partition(ROOM)
        await crash(handle)
        assert (await router.resolve(ROOM, FALLBACK)).fallback_reason == "session_unavailable"
        assert await handle.call(Partition.keys) == []  # waits until it is back


async def test_a_partition_that_is_down_is_unavailable_without_a_fallback(for_long):
    async with SessionRouter(name="mine", restart_policy=for_long) as router:
        await crash(router.partition(ROOM))
        name = f"mine/partition-{router.route_partition(ROOM)}"
        for operation in (
            lambda: router.resolve(ROOM),
            lambda: router.resolve(ROOM, [Route(None)]),
            lambda: router.get(ROOM),
        ):
            with pytest.raises(PartitionUnavailable, match=f"{name} is down"):
                await operation()


async def test_many_are_resolved_around_a_partition_that_is_down(for_long):
    async with SessionRouter(partition_count=2, restart_policy=for_long) as router:
        down, up = rooms_of(router, 0, 3), rooms_of(router, 1, 3)
        await router.set_many(dict.fromkeys(down + up, Route(1)))
        await crash(router.partition(0))
        assert (await router.resolve_many(down + up)).keys() == set(up)
        found = await router.resolve_many(down + up, FALLBACK)
        assert {found[key].fallback_reason for key in down} == {"session_unavailable"}
        assert {found[key].source for key in up} == {"state_hit"}


async def test_a_crashed_partition_is_back_by_itself(at_once):
    async with SessionRouter(restart_policy=at_once) as router:
        back = anyio.Event()
        router.events.subscribe(lambda event: event.name == "restarted" and back.set())
        await crash(router.partition(ROOM))
        await back.wait()
        assert router.partition(ROOM) is not None
        await router.set(ROOM, Route(1))
        assert (await router.resolve(ROOM)).route == Route(1)


@pytest.mark.parametrize("method", ["set", "set_many", "delete"])
async def test_a_write_waits_for_a_partition_that_is_down(at_once, method):
    async with SessionRouter(restart_policy=at_once) as router:
        await crash(router.partition(ROOM))
        if method == "set":
            await router.set(ROOM, Route(1))
        elif method == "set_many":
            await router.set_many({ROOM: Route(1)})
        else:
            assert await router.delete(ROOM) is False
        assert router.partition(ROOM) is not None
        assert len(await router.resolve_many([ROOM])) == (0 if method == "delete" else 1)


@pytest.mark.parametrize(
    "write",
    [
        lambda router: router.set(ROOM, Route(1)),
        lambda router: router.set_many({ROOM: Route(1)}),
        lambda router: router.delete(ROOM),
    ],
)
async def test_a_write_does_not_wait_for_longer_than_the_timeout(write):
    policy = RestartPolicy(min_backoff_ms=100, jitter=0.0)
    async with SessionRouter(call_timeout_ms=1, restart_policy=policy) as router:
        await crash(router.partition(ROOM))
        with pytest.raises(PartitionUnavailable, match="within 1 ms"):
            await write(router)


@pytest.mark.parametrize("with_fallback", [False, True])
async def test_who_tries_again_at_once_does_not_keep_a_partition_down(at_once, with_fallback):
    async with SessionRouter(restart_policy=at_once) as router:
        await crash(router.partition(ROOM))
        tries = 0
        while router.partition(ROOM) is None:
            tries += 1
            try:
                await router.resolve(ROOM, FALLBACK if with_fallback else None)
            except PartitionUnavailable:
                continue
        assert tries >= 1


async def test_who_tries_until_the_router_runs_does_not_keep_it_from_being_entered():
    router = SessionRouter()
    left = anyio.Event()

    async def run() -> None:
        async with router:
            await left.wait()

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(run)
        while True:
            try:
                await router.set(ROOM, Route(1))
            except PartitionUnavailable:
                continue
            break
        assert (await router.resolve(ROOM)).route == Route(1)
        left.set()


async def test_a_write_that_gave_up_waiting_is_never_done():
    back = anyio.Event()
    policy = RestartPolicy(min_backoff_ms=50, jitter=0.0)
    async with SessionRouter(call_timeout_ms=1, restart_policy=policy) as router:
        router.events.subscribe(lambda event: event.name == "restarted" and back.set())
        await crash(router.partition(ROOM))
        with pytest.raises(PartitionUnavailable):
            await router.set(ROOM, Route(1))
        await back.wait()
        with pytest.raises(RouteNotFound):
            await router.get(ROOM)


async def test_a_bug_in_a_handler_is_reported_with_its_cause(at_once):
    class Unready:
        """A route id that breaks the partition where it is compared."""

        def __eq__(self, other):
            raise ZeroDivisionError("a bug")

        __hash__ = None

    def compare(partition: Partition, key: SessionKey) -> bool:
        return partition.get(key).route.external_room_id == 1

    async with SessionRouter(restart_policy=at_once) as router:
        await router.set(ROOM, Route(Unready()))
        handle = router.partition(ROOM)
        with pytest.raises(ActorCrashed) as crashed:
            await handle.call(compare, ROOM)
        assert isinstance(crashed.value.__cause__, ZeroDivisionError)
        assert await handle.call(Partition.keys) == []


async def test_callers_of_a_crashing_partition_all_get_an_answer(at_once):
    async with SessionRouter(partition_count=1, restart_policy=at_once) as router:
        answers: list[object] = []

        async def caller(number: int) -> None:
            try:
                if number % 25 == 0:
                    await crash(router.partition(0) or handle)
                    answers.append("crashed")
                elif number % 2:
                    await router.set(room(number), Route(number))
                    answers.append("set")
                else:
                    answers.append((await router.resolve(room(number), FALLBACK)).source)
            except TrunklineError as error:
                answers.append(error)

        handle = router.partition(0)
        async with anyio.create_task_group() as task_group:
            for number in range(500):
                task_group.start_soon(caller, number)
        assert len(answers) == 500
        assert not [answer for answer in answers if isinstance(answer, TrunklineError)]
        assert router.stats().total.restarts >= 1


async def test_a_prune_passes_over_a_partition_that_is_down(clock, for_long):
    settings = {"ttl_ms": 10, "clock": clock, "restart_policy": for_long}
    async with SessionRouter(partition_count=2, call_timeout_ms=600_000, **settings) as router:
        await router.set_many({room(number): Route(1) for number in range(20)})
        left = router.stats().partitions[1].entries
        clock.advance_ms(10)
        await crash(router.partition(0))
        with anyio.fail_after(60):  # it would wait for ten minutes if it waited
            assert await router.prune() == PruneResult(pruned=left, partitions=2)


async def test_pruning_by_time_survives_a_crash(clock, at_once):
    settings = {"ttl_ms": 10, "prune_interval_ms": 1_000, "clock": clock}
    async with SessionRouter(partition_count=1, restart_policy=at_once, **settings) as router:
        handle = router.partition(0)
        await crash(handle)
        await handle.call(Partition.keys)
        pruned = anyio.Event()
        router.events.subscribe(lambda event: event.name == "pruned" and pruned.set())
        await router.set(ROOM, Route(1))
        clock.advance_ms(1_000)
        await pruned.wait()


async def test_too_many_crashes_end_the_router_with_a_clear_error():
    policy = RestartPolicy(max_restarts=2, min_backoff_ms=1, max_backoff_ms=1)
    router = SessionRouter(partition_count=2, restart_policy=policy)

    async def crash_thrice() -> None:
        async with router:
            handle = router.partition(0)
            for _ in range(3):
                await crash(handle)
            await anyio.sleep_forever()

    events = []
    router.events.subscribe(events.append)
    with pytest.raises(RestartIntensityExceeded, match="more than 2 crashes"):
        await crash_thrice()
    assert [event.name for event in events][-1] == "gave_up"
    assert events[-1].instance == "router"
    await check_that_it_gave_up(router)
    async with router:
        await router.set(ROOM, Route(1))


async def check_that_it_gave_up(router: SessionRouter) -> None:
    for operation in (
        lambda: router.set(ROOM, Route(1)),
        lambda: router.set_many({ROOM: Route(1)}),
        lambda: router.get(ROOM),
        lambda: router.resolve(ROOM, FALLBACK),
        lambda: router.resolve_many([ROOM], FALLBACK),
        lambda: router.delete(ROOM),
        lambda: router.prune(),
    ):
        with pytest.raises(RestartIntensityExceeded, match="more than 2 crashes"):
            await operation()


async def test_a_started_router_whose_partitions_crash_too_often_says_so(anyio_backend_name):
    if anyio_backend_name == "trio":
        pytest.skip("start() needs asyncio")
    policy = RestartPolicy(max_restarts=2, min_backoff_ms=1, max_backoff_ms=1)
    router = await SessionRouter(partition_count=2, restart_policy=policy).start()
    gave_up = anyio.Event()
    router.events.subscribe(lambda event: event.name == "gave_up" and gave_up.set())
    handle = router.partition(0)
    for _ in range(3):
        await crash(handle)
    await gave_up.wait()
    await check_that_it_gave_up(router)
    with pytest.raises(RestartIntensityExceeded):
        await router.stop()
    await router.start()
    await router.set(ROOM, Route(1))
    await router.stop()


# -- lifetime ------------------------------------------------------------------------------------


async def check_that_it_is_down(router: SessionRouter, why: str) -> None:
    for operation in (
        lambda: router.set(ROOM, Route(1)),
        lambda: router.set_many({ROOM: Route(1)}),
        lambda: router.get(ROOM),
        lambda: router.resolve(ROOM),
        lambda: router.delete(ROOM),
    ):
        with pytest.raises(PartitionUnavailable, match=why):
            await operation()
    assert (await router.resolve(ROOM, FALLBACK)).fallback_reason == "session_unavailable"
    assert await router.resolve_many([ROOM]) == {}
    assert (await router.resolve_many([ROOM], FALLBACK))[ROOM].route == FALLBACK
    assert router.partition(ROOM) is None
    assert router.partition(0) is None
    assert await router.prune() == PruneResult(pruned=0, partitions=8)
    assert router.stats().total.entries == 0
    assert 0 <= router.route_partition(ROOM) < 8


async def test_a_router_that_was_not_entered_says_so():
    await check_that_it_is_down(SessionRouter(), "router does not run: enter it with 'async with'")


async def test_a_router_that_was_left_says_so():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
    await check_that_it_is_down(router, "is down|has stopped")


async def test_a_router_can_be_entered_again_and_is_empty():
    router = SessionRouter()
    for number in range(3):
        async with router:
            with pytest.raises(NoRoute):
                await router.resolve(ROOM)
            await router.set(ROOM, Route(number))
            assert (await router.resolve(ROOM)).route == Route(number)
            assert router.stats().total.sets == 1


async def test_a_router_cannot_be_entered_twice_at_once():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        with pytest.raises(RuntimeError, match="already been entered"):
            async with router:
                pass
        assert (await router.resolve(ROOM)).route == Route(1)


async def test_an_exception_of_the_body_comes_out_as_itself():
    with pytest.raises(KeyError, match="mine"):
        async with SessionRouter():
            raise KeyError("mine")


async def test_two_routers_know_nothing_of_each_other():
    async with SessionRouter() as one, SessionRouter() as other:
        await one.set(ROOM, Route(1))
        with pytest.raises(NoRoute):
            await other.resolve(ROOM)
        await crash(one.partition(ROOM))
        assert other.partition(ROOM) is not None


async def test_start_and_stop_may_be_called_in_different_tasks(anyio_backend_name):
    router = SessionRouter()
    if anyio_backend_name == "trio":
        with pytest.raises(RuntimeError, match="use 'async with' on trio"):
            await router.start()
        return
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(router.start)
    await router.set(ROOM, Route(1))
    assert (await router.resolve(ROOM)).route == Route(1)
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(router.stop)
    await check_that_it_is_down(router, "is down|has stopped")
    await router.start()
    await router.set(ROOM, Route(1))
    await router.stop()


async def test_another_thread_reaches_the_router_through_its_event_loop():
    def in_a_thread() -> Resolution:
        anyio.from_thread.run(router.set, ROOM, Route(1))
        return anyio.from_thread.run(router.resolve, THREAD)

    async with SessionRouter() as router:
        resolution = await anyio.to_thread.run_sync(in_a_thread)
        assert resolution.source == "partition_fallback"
        keys = await anyio.to_thread.run_sync(
            router.partition(ROOM).call_from_thread, Partition.keys
        )
        assert set(keys) == {ROOM, THREAD}


async def test_a_tight_loop_of_resolves_lets_other_tasks_run():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await checkpoint()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(count_turns)
            longest = since = seen = 0
            for _ in range(5_000):
                await router.resolve(ROOM)
                since = since + 1 if turns == seen else 0
                seen = turns
                longest = max(longest, since)
            task_group.cancel_scope.cancel()
    assert longest <= TURNS_BETWEEN * (128 + 1)


async def test_a_cancelled_caller_leaves_the_router_in_order(at_once):
    async with SessionRouter(restart_policy=at_once) as router:
        handle = router.partition(ROOM)
        await crash(handle)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(router.set, ROOM, Route("cancelled"))
            task_group.cancel_scope.cancel()
        await router.set(THREAD, Route("kept"))
        assert await handle.call(Partition.keys) == [THREAD]
        assert router.stats().total.mailbox_depth == 0


async def test_tasks_that_set_resolve_crash_and_are_cancelled_at_once_leave_it_in_order(at_once):
    rng = random.Random(11)
    seen = Counter()
    scopes: list[anyio.CancelScope] = []

    async def work(router: SessionRouter, handles: list) -> None:
        for _ in range(100):
            key = room(rng.randrange(40))._replace(thread_id=rng.choice((None, "t")))
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                try:
                    match rng.randrange(20):
                        case 0:
                            await crash(rng.choice(handles))
                        case 1 | 2:
                            await router.delete(key)
                        case 3 | 4 | 5:
                            await router.get(key)
                        case 6 | 7 | 8 | 9 | 10:
                            resolution = await router.resolve(key, Route(key.room_id))
                            assert resolution.external_room_id == key.room_id
                        case _:
                            await router.set(key, Route(key.room_id))
                except (RouteNotFound, PartitionUnavailable):
                    pass
            if rng.random() < 0.3:
                await checkpoint()
            if rng.random() < 0.2:
                scopes.pop(rng.randrange(len(scopes))).cancel()

    async with SessionRouter(partition_count=3, restart_policy=at_once) as router:
        router.events.subscribe(lambda event: seen.update([event.name]))
        handles = [router.partition(index) for index in range(3)]
        async with anyio.create_task_group() as task_group:
            for _ in range(50):
                task_group.start_soon(work, router, handles)
        for handle in handles:
            await handle.call(len)  # waits until it is back
        total = router.stats().total
    assert total.mailbox_depth == 0
    assert total.restarts == seen["crashed"] == seen["restarted"] > 10
    answered = total.hits + total.thread_fallbacks + total.provided_fallbacks
    assert answered == seen["resolved"] > 500
    assert total.sets == seen["set"] > 500
