from __future__ import annotations

import anyio
import pytest

from trunkline import Route, SessionKey, SessionRouter
from trunkline.errors import NoRoute, PartitionUnavailable, RouteExpired, RouteNotFound
from trunkline.routing import PartitionStats, RouterStats
from trunkline.routing.partition import Partition
from trunkline.testing import crash

ROOM = SessionKey("telegram", "bot", "42")
THREAD = ROOM._replace(thread_id="7")
FALLBACK = Route("fallback")

FIELDS = (
    "entries",
    "capacity",
    "hits",
    "thread_fallbacks",
    "provided_fallbacks",
    "misses",
    "stale",
    "evicted",
    "pruned",
    "sets",
    "deletes",
    "mailbox_depth",
    "restarts",
    "local_calls",
    "queued_calls",
)


def room(number: int) -> SessionKey:
    return SessionKey("telegram", "bot", str(number))


def counted(router: SessionRouter) -> dict[str, int]:
    """What is not 0 in the total, without what the kernel counts."""
    total = router.stats().total
    kernel = {"capacity", "local_calls", "queued_calls", "mailbox_depth", "restarts"}
    return {
        name: getattr(total, name) for name in FIELDS if name not in kernel and getattr(total, name)
    }


def test_the_fields_are_the_documented_ones():
    assert PartitionStats.__struct_fields__ == FIELDS
    assert RouterStats.__struct_fields__ == ("total", "partitions")


async def test_a_new_router_has_counted_nothing():
    async with SessionRouter(partition_count=3, max_entries_per_partition=7) as router:
        assert router.stats() == RouterStats(
            PartitionStats(capacity=21), (PartitionStats(capacity=7),) * 3
        )


async def test_every_call_is_counted_as_what_came_of_it(clock):
    async with SessionRouter(ttl_ms=100, clock=clock) as router:
        await router.set(ROOM, Route(1))
        assert counted(router) == {"entries": 1, "sets": 1}
        await router.resolve(ROOM)
        assert counted(router) == {"entries": 1, "sets": 1, "hits": 1}
        await router.resolve(THREAD)
        expected = {"entries": 2, "sets": 1, "hits": 1, "thread_fallbacks": 1}
        assert counted(router) == expected
        await router.resolve(room(1), FALLBACK)
        expected |= {"entries": 3, "provided_fallbacks": 1}
        assert counted(router) == expected
        with pytest.raises(NoRoute):
            await router.resolve(room(2))
        expected |= {"misses": 1}
        assert counted(router) == expected
        await router.delete(THREAD)
        await router.delete(THREAD)
        expected |= {"entries": 2, "deletes": 1}
        assert counted(router) == expected
        clock.advance_ms(100)
        with pytest.raises(RouteExpired):
            await router.get(ROOM)
        expected |= {"entries": 1, "stale": 1}
        assert counted(router) == expected
        await router.prune()
        del expected["entries"]
        assert counted(router) == expected | {"pruned": 1}


async def test_a_get_counts_neither_as_hit_nor_as_miss():
    async with SessionRouter() as router:
        await router.set(ROOM, Route(1))
        await router.get(ROOM)
        with pytest.raises(RouteNotFound):
            await router.get(THREAD)
        assert counted(router) == {"entries": 1, "sets": 1}


async def test_both_records_that_expired_on_the_way_are_counted(clock):
    async with SessionRouter(ttl_ms=10, clock=clock) as router:
        await router.set(ROOM, Route(1))
        await router.set(THREAD, Route(1))
        clock.advance_ms(10)
        with pytest.raises(NoRoute):
            await router.resolve(THREAD)
        assert counted(router) == {"sets": 2, "stale": 2, "misses": 1}


async def test_what_a_fallback_stores_is_no_set():
    async with SessionRouter() as router:
        await router.resolve(ROOM, FALLBACK)
        assert counted(router) == {"entries": 1, "provided_fallbacks": 1}


async def test_evictions_are_counted_whoever_caused_them():
    async with SessionRouter(partition_count=1, max_entries_per_partition=2) as router:
        for number in range(5):
            await router.set(room(number), Route(1))
        await router.resolve(room(5), FALLBACK)
        assert router.stats().total.evicted == 4
        assert router.stats().total.entries == 2


async def test_calls_for_many_count_every_key():
    async with SessionRouter() as router:
        await router.set_many({room(number): Route(1) for number in range(10)})
        await router.resolve_many([room(number) for number in range(15)])
        assert counted(router) == {"entries": 10, "sets": 10, "hits": 10, "misses": 5}


async def test_a_fallback_instead_of_a_partition_is_counted(for_long):
    async with SessionRouter(restart_policy=for_long) as router:
        await crash(router.partition(ROOM))
        await router.resolve(ROOM, FALLBACK)
        await router.resolve_many([ROOM, THREAD], FALLBACK)
        with pytest.raises(PartitionUnavailable):
            await router.resolve(ROOM)
        assert counted(router) == {"provided_fallbacks": 3, "misses": 1}
        assert router.stats().partitions[router.route_partition(ROOM)].provided_fallbacks == 3


async def test_each_partition_counts_for_itself_and_the_total_adds_up():
    async with SessionRouter(partition_count=4) as router:
        for number in range(40):
            await router.set(room(number), Route(1))
            if number % 3 == 0:
                await router.resolve(room(number))
        stats = router.stats()
        for index, partition in enumerate(stats.partitions):
            numbers = [n for n in range(40) if router.route_partition(room(n)) == index]
            assert partition.sets == partition.entries == len(numbers)
            assert partition.hits == len([n for n in numbers if n % 3 == 0])
        for name in FIELDS:
            added = sum(getattr(partition, name) for partition in stats.partitions)
            assert getattr(stats.total, name) == added


async def test_counts_outlive_a_crash_and_restarts_are_counted(at_once):
    async with SessionRouter(restart_policy=at_once) as router:
        await router.set(ROOM, Route(1))
        await router.resolve(ROOM)
        index = router.route_partition(ROOM)
        handle = router.partition(index)
        for _ in range(3):
            await crash(handle)
            assert router.stats().partitions[index].entries == 0
            await handle.call(Partition.keys)
        partition = router.stats().partitions[index]
        assert (partition.sets, partition.hits, partition.entries) == (1, 1, 0)
        assert partition.restarts == router.stats().total.restarts == 3


async def test_calls_that_wait_are_counted(at_once):
    async with SessionRouter(restart_policy=at_once) as router:
        index = router.route_partition(ROOM)
        await crash(router.partition(index))
        seen = []
        router.events.subscribe(
            lambda event: event.name == "restarted" and seen.append(router.stats())
        )
        async with anyio.create_task_group() as task_group:
            for _ in range(5):
                task_group.start_soon(router.set, ROOM, Route(1))
        (stats,) = seen
        assert stats.partitions[index].mailbox_depth == stats.total.mailbox_depth == 5
        assert router.stats().total.mailbox_depth == 0


async def test_local_and_queued_calls_are_counted_apart(at_once):
    async with SessionRouter(partition_count=1, restart_policy=at_once) as router:
        for _ in range(128):
            await router.set(ROOM, Route(1))
        assert (router.stats().total.local_calls, router.stats().total.queued_calls) == (128, 0)
        await router.set(ROOM, Route(1))
        assert (router.stats().total.local_calls, router.stats().total.queued_calls) == (128, 1)


async def test_stats_stay_after_the_end_and_start_anew_with_the_router():
    router = SessionRouter(partition_count=1)
    assert router.stats() == RouterStats(
        PartitionStats(capacity=10_000), (PartitionStats(capacity=10_000),)
    )
    async with router:
        await router.set(ROOM, Route(1))
    total = router.stats().total
    assert (total.sets, total.local_calls, total.entries) == (1, 1, 0)
    async with router:
        assert router.stats().total == PartitionStats(capacity=10_000)
