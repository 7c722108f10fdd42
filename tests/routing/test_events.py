"""What a router publishes to its subscribers."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from trunkline import Route, SessionKey, SessionRouter
from trunkline.errors import NoRoute, PartitionUnavailable, RouteExpired
from trunkline.observe import Event, log_event
from trunkline.routing.events import (
    PartitionCrashed,
    PartitionRestarted,
    RouteDeleted,
    RouteEvicted,
    RouteFallback,
    RouteResolved,
    RouteSet,
    RoutesPruned,
    RouteStale,
)
from trunkline.routing.partition import Partition
from trunkline.testing import InjectedCrash, crash

ROOM = SessionKey("telegram", "bot", "42")
THREAD = ROOM._replace(thread_id="7")
FALLBACK = Route("fallback")


def room(number: int) -> SessionKey:
    return SessionKey("telegram", "bot", str(number))


def subscribed(router: SessionRouter) -> list[Event]:
    """A list of what is published from now on."""
    events: list[Event] = []
    router.events.subscribe(events.append)
    return events


@pytest.fixture
def make_router(clock, at_once):
    def make(**settings) -> SessionRouter:
        return SessionRouter(
            **{
                "name": "mine",
                "partition_count": 1,
                "ttl_ms": 10,
                "clock": clock,
                "restart_policy": at_once,
                **settings,
            }
        )

    return make


async def test_a_set_is_reported_with_what_it_evicted_and_what_is_held(make_router):
    async with make_router(max_entries_per_partition=2) as router:
        events = subscribed(router)
        for number in range(2):
            await router.set(room(number), Route(number))
        assert events == [
            RouteSet(instance="mine", partition=0, session_key=room(0), evicted=0, entries=1),
            RouteSet(instance="mine", partition=0, session_key=room(1), evicted=0, entries=2),
        ]
        await router.set(room(2), Route(2))
        assert events[2:] == [
            RouteEvicted(
                instance="mine",
                partition=0,
                session_key=room(0),
                route=Route(0),
                reason="capacity",
                entries=2,
            ),
            RouteSet(instance="mine", partition=0, session_key=room(2), evicted=1, entries=2),
        ]


async def test_a_hit_is_reported(make_router):
    async with make_router() as router:
        await router.set(ROOM, Route(1))
        events = subscribed(router)
        await router.resolve(ROOM)
        assert events == [
            RouteResolved(
                instance="mine",
                partition=0,
                session_key=ROOM,
                outcome="hit",
                source="state_hit",
                reason=None,
                stale=False,
            )
        ]


async def test_a_fallback_to_the_room_is_reported_before_its_resolution(make_router):
    async with make_router() as router:
        await router.set(ROOM, Route(1))
        events = subscribed(router)
        await router.resolve(THREAD)
        assert events == fallback_events("partition_fallback", "thread_scope_miss", stale=False)


async def test_a_fallback_of_the_caller_is_reported(make_router):
    async with make_router() as router:
        events = subscribed(router)
        await router.resolve(THREAD, FALLBACK)
        assert events == fallback_events("provided_fallback", "miss", stale=False)


async def test_each_expired_record_on_the_way_is_reported(make_router, clock):
    async with make_router() as router:
        await router.set(ROOM, Route(1))
        await router.set(THREAD, Route(1))
        clock.advance_ms(10)
        events = subscribed(router)
        await router.resolve(THREAD, FALLBACK)
        assert events == [
            RouteStale(instance="mine", partition=0, session_key=THREAD, reason="read"),
            RouteStale(instance="mine", partition=0, session_key=ROOM, reason="read"),
            *fallback_events("provided_fallback", "stale", stale=True),
        ]


async def test_a_fallback_instead_of_a_partition_is_reported(make_router, for_long):
    async with make_router(restart_policy=for_long) as router:
        await crash(router.partition(0))
        events = subscribed(router)
        await router.resolve(THREAD, FALLBACK)
        told = [event for event in events if not isinstance(event, PartitionCrashed)]
        assert told == fallback_events("provided_fallback", "session_unavailable", stale=False)


def fallback_events(source, reason, *, stale):
    fields = {
        "instance": "mine",
        "partition": 0,
        "session_key": THREAD,
        "source": source,
        "reason": reason,
        "stale": stale,
    }
    return [RouteFallback(**fields), RouteResolved(outcome="fallback", fallback=True, **fields)]


@pytest.mark.parametrize("stale", [False, True])
async def test_a_miss_is_reported(make_router, clock, stale):
    async with make_router() as router:
        if stale:
            await router.set(ROOM, Route(1))
            clock.advance_ms(10)
        events = subscribed(router)
        with pytest.raises(NoRoute):
            await router.resolve(ROOM)
        assert events[-1] == RouteResolved(
            instance="mine",
            partition=0,
            session_key=ROOM,
            outcome="miss",
            source=None,
            reason=None,
            stale=stale,
        )
        assert [event.name for event in events] == ["stale", "resolved"][not stale :]


async def test_a_get_of_an_expired_record_is_reported(make_router, clock):
    async with make_router() as router:
        await router.set(ROOM, Route(1))
        clock.advance_ms(10)
        events = subscribed(router)
        with pytest.raises(RouteExpired):
            await router.get(ROOM)
        assert events == [RouteStale(instance="mine", partition=0, session_key=ROOM, reason="read")]


async def test_a_prune_is_reported_by_each_partition_that_had_something_to_prune(
    make_router, clock
):
    async with make_router(partition_count=4) as router:
        spread = [0] * 4
        for number in range(2):
            await router.set(room(number), Route(1))
            spread[router.route_partition(room(number))] += 1
        assert 0 in spread
        await router.set(room(100), Route(1), ttl_ms=100)
        clock.advance_ms(10)
        events = subscribed(router)
        await router.prune()
        assert [event for event in events if not isinstance(event, RouteStale)] == [
            RoutesPruned(
                instance="mine",
                partition=index,
                count=count,
                entries=int(index == router.route_partition(room(100))),
            )
            for index, count in enumerate(spread)
            if count
        ]
        before = list(events)
        await router.prune()
        assert events == before


async def test_what_a_prune_removes_is_reported_by_key(make_router, clock):
    async with make_router() as router:
        for number in range(3):
            await router.set(room(number), Route(1), ttl_ms=10 + number)
        clock.advance_ms(11)
        events = subscribed(router)
        await router.prune()
        fields = {"instance": "mine", "partition": 0}
        assert [events[-1]] == [RoutesPruned(**fields, count=2, entries=1)]
        assert sorted(events[:-1], key=lambda event: event.session_key) == [  # type: ignore[attr-defined]
            RouteStale(**fields, session_key=room(number), reason="prune") for number in range(2)
        ]


async def test_a_delete_is_reported_if_there_was_a_record(make_router, clock):
    async with make_router() as router:
        await router.set(ROOM, Route(1))
        await router.set(THREAD, Route(1), ttl_ms=1)
        clock.advance_ms(1)
        events = subscribed(router)
        for key in (ROOM, ROOM, THREAD):
            await router.delete(key)
        assert events == [
            RouteDeleted(instance="mine", partition=0, session_key=ROOM, entries=1),
            RouteDeleted(instance="mine", partition=0, session_key=THREAD, entries=0),
        ]


async def test_a_resolve_that_ends_in_partition_unavailable_is_counted_and_reported(
    make_router, for_long
):
    async with make_router(restart_policy=for_long) as router:
        await crash(router.partition(0))
        events = subscribed(router)
        with pytest.raises(PartitionUnavailable):
            await router.resolve(THREAD)
        assert await router.resolve_many([THREAD]) == {}
        resolved = RouteResolved(
            instance="mine",
            partition=0,
            session_key=THREAD,
            outcome="miss",
            source=None,
            reason="session_unavailable",
            fallback=False,
            stale=False,
        )
        assert [event for event in events if event.name != "crashed"] == [resolved] * 2
        assert router.stats().total.misses == 2


async def test_a_crash_and_the_restart_are_reported(make_router):
    async with make_router(partition_count=3) as router:
        events = subscribed(router)
        handle = router.partition(2)
        for restarts in (1, 2):
            await crash(handle)
            await handle.call(Partition.keys)
            crashed, restarted = events
            assert isinstance(crashed, PartitionCrashed)
            assert (crashed.instance, crashed.partition) == ("mine", 2)
            assert isinstance(crashed.error, InjectedCrash)
            assert restarted == PartitionRestarted(instance="mine", partition=2, restarts=restarts)
            events.clear()


async def test_a_partition_is_up_when_its_restart_is_reported(make_router):
    async with make_router() as router:
        up = []
        router.events.subscribe(
            lambda event: (
                event.name in {"crashed", "restarted"}
                and up.append((event.name, router.partition(0) is not None))
            )
        )
        handle = router.partition(0)
        await crash(handle)
        await handle.call(Partition.keys)
        assert up == [("crashed", False), ("restarted", True)]


async def test_bad_input_is_not_reported(make_router):
    async with make_router() as router:
        events = subscribed(router)
        with pytest.raises(ValueError, match="room_id"):
            await router.set(("a", "b", ""), Route(1))
        with pytest.raises(ValueError, match="external_room_id"):
            await router.set(ROOM, {})
        assert events == []


async def test_many_keys_are_reported_one_by_one(make_router):
    async with make_router() as router:
        events = subscribed(router)
        await router.set_many({room(1): Route(1), room(2): Route(2)})
        await router.resolve_many([room(1), room(3)])
        assert [(event.name, event.session_key) for event in events] == [  # type: ignore[attr-defined]
            ("set", room(1)),
            ("set", room(2)),
            ("resolved", room(1)),
            ("resolved", room(3)),
        ]


async def test_counts_and_events_agree(make_router, clock):
    async with make_router(partition_count=2, max_entries_per_partition=5) as router:
        events = subscribed(router)
        for number in range(100):
            await router.set(room(number % 17), Route(1), ttl_ms=number % 5 + 1)
            await router.resolve_many([room(number % 13), room(number % 7)._replace(thread_id="t")])
            if number % 3 == 0:
                await router.resolve(room(number % 11), FALLBACK)
            if number % 10 == 0:
                clock.advance_ms(3)
            if number % 40 == 0:
                await router.prune()
        total = router.stats().total
        assert len([e for e in events if isinstance(e, RouteSet)]) == total.sets == 100
        assert len([e for e in events if isinstance(e, RouteEvicted)]) == total.evicted > 0
        stale = [e.reason for e in events if isinstance(e, RouteStale)]
        assert stale.count("read") == total.stale > 0
        assert stale.count("prune") == total.pruned > 0
        assert sum(e.count for e in events if isinstance(e, RoutesPruned)) == total.pruned > 0
        sources = [e.source for e in events if isinstance(e, RouteResolved)]
        assert sources.count("state_hit") == total.hits > 0
        assert sources.count("partition_fallback") == total.thread_fallbacks > 0
        assert sources.count("provided_fallback") == total.provided_fallbacks > 0
        assert sources.count(None) == total.misses > 0


# -- subscribers ---------------------------------------------------------------------------------


async def test_a_subscriber_that_raises_crashes_nothing(make_router, clock, log):
    def broken(event: Event) -> None:
        raise ZeroDivisionError(event.name)

    async with make_router(max_entries_per_partition=2) as router:
        router.events.subscribe(broken)
        events = subscribed(router)
        handle = router.partition(0)
        for number in range(3):
            await router.set(room(number), Route(number))
        await router.resolve(room(2))
        await router.resolve(room(2)._replace(thread_id="t"))
        clock.advance_ms(10)
        with pytest.raises(RouteExpired):
            await router.get(room(2))
        await router.prune()
        await crash(handle)
        await handle.call(Partition.keys)
        assert {event.name for event in events} == {
            "set",
            "resolved",
            "fallback",
            "stale",
            "evicted",
            "pruned",
            "crashed",
            "restarted",
        }
        assert router.events.failures == len(events)
        assert router.stats().total.restarts == 1
    failures = [entry for entry in log if entry["event"] == "subscriber_failed"]
    assert [entry["event_name"] for entry in failures] == [event.name for event in events]
    assert all(entry["instance"] == "mine" for entry in failures)


async def test_a_router_publishes_nothing_after_the_last_has_unsubscribed(make_router, for_long):
    async with make_router(restart_policy=for_long) as router:
        events: list[Event] = []
        unsubscribe = router.events.subscribe(events.append)
        await router.set(ROOM, Route(1))
        unsubscribe()
        await router.set(ROOM, Route(1))
        await crash(router.partition(0))
        with pytest.raises(PartitionUnavailable):
            await router.resolve(ROOM)
        assert [event.name for event in events] == ["set"]


async def test_a_subscriber_sees_the_router_as_it_is_then(make_router):
    async with make_router() as router:
        sets = []
        router.events.subscribe(
            lambda event: sets.append((event.entries, router.stats().total.sets))
        )
        await router.set(room(1), Route(1))
        await router.set(room(2), Route(1))
        assert sets == [(1, 1), (2, 2)]


# -- log -----------------------------------------------------------------------------------------


async def test_crashes_and_restarts_are_logged_as_warnings(make_router, log):
    async with make_router() as router:
        handle = router.partition(0)
        await crash(handle)
        await handle.call(Partition.keys)
    warnings = [entry for entry in log if entry["log_level"] == "warning"]
    assert [(entry["event"], entry["actor"]) for entry in warnings] == [
        ("actor_crashed", "mine/partition-0"),
        ("actor_restarted", "mine/partition-0"),
    ]


async def test_nothing_but_crashes_is_logged_unless_somebody_asks(make_router, clock, log):
    async with make_router(max_entries_per_partition=1) as router:
        await router.set(ROOM, Route(1))
        await router.resolve(THREAD)
        clock.advance_ms(10)
        await router.prune()
    assert log == []


async def test_log_event_logs_at_debug(make_router, clock, log):
    async with make_router(max_entries_per_partition=1) as router:
        router.events.subscribe(log_event)
        await router.set(ROOM, Route("secret"))
        await router.resolve(THREAD)
        clock.advance_ms(10)
        await router.prune()
        handle = router.partition(0)
        await crash(handle)
        await handle.call(Partition.keys)
    told = [entry for entry in log if entry["event"] not in {"actor_crashed", "actor_restarted"}]
    assert [entry["event"] for entry in told] == [
        "set",
        "evicted",
        "fallback",
        "resolved",
        "stale",
        "pruned",
        "crashed",
        "restarted",
    ]
    assert {entry["log_level"] for entry in told} == {"debug"}
    assert told[0] == {
        "event": "set",
        "log_level": "debug",
        "instance": "mine",
        "partition": 0,
        "session_key": ROOM,
        "evicted": 0,
        "entries": 1,
    }
    above = [entry for entry in log if entry["log_level"] != "debug"]
    assert "secret" not in repr(above)


SECRETIVE = """
    import sys
    import anyio
    from trunkline import Route, SessionKey, SessionRouter
    from trunkline.actors import RestartPolicy
    from trunkline.errors import ActorCrashed
    from trunkline.routing.partition import Partition

    KEY = SessionKey("telegram", "bot", "42")

    def buggy_handler(partition, key, route):
        partition.set(key, route)
        raise ZeroDivisionError("a bug")

    def buggy_subscriber(event):
        raise LookupError("a bug")

    async def main():
        policy = RestartPolicy(min_backoff_ms=1, max_backoff_ms=1)
        async with SessionRouter(partition_count=1, restart_policy=policy) as router:
            if "subscriber" in sys.argv:
                router.events.subscribe(buggy_subscriber)
                await router.set(KEY, Route("s3cret"))
            else:
                handle = router.partition(0)
                try:
                    await handle.call(buggy_handler, KEY, Route("s3cret"))
                except ActorCrashed:
                    await handle.call(Partition.keys)

    anyio.run(main)
"""


def logged_by_default(*args: str) -> str:
    """What SECRETIVE logs in a program that does not configure logging."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SECRETIVE), *args],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout == ""  # a library prints nothing
    return done.stderr


def test_a_crash_is_logged_with_its_traceback_and_without_the_route():
    logged = logged_by_default()
    assert "actor_crashed" in logged
    assert "actor_restarted" in logged
    assert "Traceback (most recent call last)" in logged
    assert "in buggy_handler" in logged
    assert "ZeroDivisionError: a bug" in logged
    assert "s3cret" not in logged


def test_a_failing_subscriber_is_logged_with_its_traceback_and_without_the_route():
    logged = logged_by_default("subscriber")
    assert "subscriber_failed" in logged
    assert "Traceback (most recent call last)" in logged
    assert "in buggy_subscriber" in logged
    assert "LookupError: a bug" in logged
    assert "s3cret" not in logged
