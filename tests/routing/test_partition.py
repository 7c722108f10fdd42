"""The handlers of a partition, without the actor around them."""

from __future__ import annotations

import pytest

from trunkline import Route, SessionKey
from trunkline.errors import NoRoute, RouteExpired, RouteNotFound
from trunkline.observe import Events
from trunkline.routing.partition import Partition
from trunkline.routing.stats import Counters

ROOM = SessionKey("telegram", "bot", "42")
THREAD = ROOM._replace(thread_id="7")


def room(number: int) -> SessionKey:
    return SessionKey("telegram", "bot", str(number))


@pytest.fixture
def make_partition(clock):
    def make(**settings) -> Partition:
        return Partition(
            3,
            **{
                "instance": "test",
                "capacity": 100,
                "ttl_ms": 1_000,
                "stale_retention_ms": 0,
                "clock": clock,
                "counters": Counters(),
                "events": Events(),
                **settings,
            },
        )

    return make


def test_a_record_has_its_instants(make_partition, clock):
    partition = make_partition()
    partition.set(ROOM, Route(1))
    partition.set(THREAD, Route(2), 5)
    record = partition.get(ROOM)
    assert (record.updated_at_ms, record.expires_at_ms) == (clock(), clock() + 1_000)
    record = partition.get(THREAD)
    assert (record.updated_at_ms, record.expires_at_ms) == (clock(), clock() + 5)


def test_what_is_absent_is_not_found(make_partition):
    with pytest.raises(RouteNotFound, match="'telegram:bot:42'"):
        make_partition().get(ROOM)


def test_what_is_expired_says_for_how_long(make_partition, clock):
    partition = make_partition()
    partition.set(ROOM, Route(1))
    clock.advance_ms(1_250)
    with pytest.raises(RouteExpired, match="'telegram:bot:42' expired 250 ms ago"):
        partition.get(ROOM)


def test_an_error_about_a_key_stays_on_one_line(make_partition, clock):
    partition = make_partition()
    key = SessionKey("irc", "libera", "#x\n2026-01-01 [info] all is well")
    errors = []
    for read in (partition.get, partition.resolve):
        with pytest.raises(LookupError) as raised:
            read(key)
        errors.append(raised.value)
    partition.set(key, Route(1))
    clock.advance_ms(1_000)
    with pytest.raises(LookupError) as raised:
        partition.get(key)
    errors.append(raised.value)
    assert [type(error) for error in errors] == [RouteNotFound, NoRoute, RouteExpired]
    assert all("\n" not in str(error) for error in errors)


def test_a_prune_removes_what_has_expired_up_to_its_limit(make_partition, clock):
    partition = make_partition()
    for number in range(6):
        partition.set(room(number), Route(number), 10 if number % 2 else 1_000)
    clock.advance_ms(10)
    assert partition.prune(2) == (2, True)
    assert partition.prune(2) == (1, False)
    assert set(partition.keys()) == {room(0), room(2), room(4)}


def test_a_prune_leaves_an_expired_record_for_its_retention(make_partition, clock):
    partition = make_partition(stale_retention_ms=50)
    partition.set(ROOM, Route(1), 10)
    clock.advance_ms(59)
    assert partition.prune(500) == (0, False)
    clock.advance_ms(1)
    assert partition.prune(500) == (1, False)


def test_a_prune_does_not_count_as_use(make_partition, clock):
    partition = make_partition(capacity=3)
    for number in range(3):
        partition.set(room(number), Route(number))
    clock.advance_ms(999)
    assert partition.prune(500) == (0, False)
    partition.set(room(3), Route(3))
    assert set(partition.keys()) == {room(1), room(2), room(3)}


def test_a_fallback_that_is_stored_evicts_as_well(make_partition):
    counters = Counters()
    partition = make_partition(capacity=2, counters=counters)
    partition.set(room(1), Route(1))
    partition.set(room(2), Route(2))
    partition.resolve(room(3), Route(3))
    assert set(partition.keys()) == {room(2), room(3)}
    assert counters.evicted == 1


def test_a_thread_whose_room_makes_room_for_it_still_gets_its_route(make_partition):
    partition = make_partition(capacity=1)
    partition.set(ROOM, Route(1))
    assert partition.resolve(THREAD).route == Route(1)
    assert partition.keys() == [THREAD]
    assert partition.resolve(THREAD).source == "state_hit"


def test_counters_are_those_it_was_given(make_partition):
    counters = Counters()
    make_partition(counters=counters).set(ROOM, Route(1))
    make_partition(counters=counters).set(ROOM, Route(1))
    assert counters.sets == 2


def test_its_length_is_what_it_holds(make_partition, clock):
    partition = make_partition()
    partition.set(ROOM, Route(1))
    partition.set(THREAD, Route(1))
    clock.advance_ms(5_000)
    assert len(partition) == 2
