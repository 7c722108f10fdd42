from __future__ import annotations

import inspect
import random
import sys
from collections import Counter

import pytest

from trunkline import Route, SessionKey
from trunkline.routing.table import RouteTable


def key(room: int) -> SessionKey:
    return SessionKey("telegram", "bot", str(room))


def set_in(table: RouteTable, number: int, expires_at_ms: int = 100) -> None:
    table.store(key(number), Route(number), 0, expires_at_ms)


@pytest.fixture
def full_table():
    """Three records in a table for three; the first is the least recently used."""
    table = RouteTable(3)
    for room in range(3):
        set_in(table, room)
    return table


def evicted_rooms(table):
    return [key.room_id for key, _ in table.evicted]


def test_a_full_table_evicts_the_least_recently_used(full_table):
    set_in(full_table, 3)
    assert evicted_rooms(full_table) == ["0"]
    assert set(full_table) == {key(1), key(2), key(3)}


def test_what_was_evicted_is_kept_with_its_record(full_table):
    oldest = full_table.peek(key(0))
    set_in(full_table, 3)
    assert full_table.evicted == [(key(0), oldest)]


def test_a_record_that_is_set_again_evicts_nothing(full_table):
    for _ in range(10):
        set_in(full_table, 1)
    assert full_table.evicted == []
    assert len(full_table) == 3


def test_setting_again_counts_as_use(full_table):
    set_in(full_table, 0)
    set_in(full_table, 3)
    assert evicted_rooms(full_table) == ["1"]


def test_a_record_that_is_used_is_not_evicted(full_table):
    assert full_table.use(key(0)).route == Route(0)
    set_in(full_table, 3)
    assert evicted_rooms(full_table) == ["1"]


def test_peeking_does_not_count_as_use(full_table):
    assert full_table.peek(key(0)).route == Route(0)
    set_in(full_table, 3)
    assert evicted_rooms(full_table) == ["0"]


def test_a_missing_record_is_none(full_table):
    assert full_table.use(key(9)) is None
    assert full_table.peek(key(9)) is None
    assert not full_table.remove(key(9))
    assert len(full_table) == 3


def test_a_removed_record_makes_room(full_table):
    full_table.remove(key(1))
    set_in(full_table, 3)
    assert full_table.evicted == []


def test_an_expired_record_holds_its_place_until_it_is_evicted(full_table):
    set_in(full_table, 0, 1)
    for room in (3, 4):
        set_in(full_table, room)
    assert full_table.peek(key(0)) is not None
    set_in(full_table, 5)
    assert evicted_rooms(full_table) == ["1", "2", "0"]


def test_a_table_for_one_holds_the_last_record():
    table = RouteTable(1)
    set_in(table, 0)
    set_in(table, 1)
    assert list(table) == [key(1)]
    assert evicted_rooms(table) == ["0"]


# -- expiry --------------------------------------------------------------------------------------


def index_of(table: RouteTable) -> Counter[SessionKey]:
    """The keys in the expiry index, after a check that it is consistent."""
    for start_ms, bucket in table._buckets.items():
        assert bucket
        assert bucket.start_ms == start_ms
        for k in bucket:
            assert table.peek(k).bucket is bucket
            assert table.peek(k).expires_at_ms >= start_ms
    return Counter(k for bucket in table._buckets.values() for k in bucket)


def test_exactly_the_expired_records_are_removed_whatever_happened_before():
    rng = random.Random(9)
    table = RouteTable(60)
    now = 0
    model: dict[SessionKey, int] = {}
    for _ in range(20_000):
        k = key(rng.randrange(100))
        match rng.randrange(10):
            case 0:
                now += rng.choice((0, 1, 50, 5_000, 2_000_000))
            case 1:
                assert table.remove(k) == (k in model)
                model.pop(k, None)
            case 2:
                table.use(k)
            case 3:
                expired = {k for k, expires_at_ms in model.items() if expires_at_ms <= now}
                removed, more = table.remove_expired(now, limit=1_000)
                assert not more
                assert set(removed) == expired
                assert len(removed) == len(expired)
                model = {k: e for k, e in model.items() if k not in expired}
            case _:
                ttl_ms = rng.choice((1, 100, 1_800_000, 1_800_000, 10**11))
                table.store(k, Route(1), now, now + ttl_ms)
                model[k] = now + ttl_ms
                for evicted, _ in table.evicted:
                    del model[evicted]
                table.evicted.clear()
        assert set(table) == model.keys()
        assert index_of(table) == Counter(model.keys())


def looked_at(table: RouteTable, now_ms: int) -> int:
    """Records that are looked at to remove what expires at `now_ms` or before."""
    count = 0
    while table.remove_expired(now_ms, limit=1)[1]:
        count += 1
    return count


def test_fresh_records_are_not_looked_at():
    table = RouteTable(10_000)
    for number in range(10_000):
        table.store(key(number), Route(1), number, number + 1_800_000)
    assert looked_at(table, 1_700_000) == 0


def test_what_has_expired_is_looked_at_and_little_more():
    table = RouteTable(10_000)
    for number in range(10_000):
        table.store(key(number), Route(1), 100 * number, 100 * number + 1_800_000)
    assert 5_000 <= looked_at(table, 1_800_000 + 500_000) <= 5_000 + 10_000 // 32
    assert len(table) == 4_999


def test_a_route_that_is_set_again_is_looked_at_twice_in_its_time_to_live():
    table = RouteTable(10)
    count = 0
    for now_ms in range(0, 18_000_000, 10_000):
        table.store(key(1), Route(1), now_ms, now_ms + 1_800_000)
        count += looked_at(table, now_ms)
    assert count <= 2 * 10


@pytest.mark.parametrize("ttls", [[1_800_000], [1_800_000, 5], [10**11, 1_800_000, 1]])
def test_the_expiry_index_holds_one_entry_for_a_route_however_often_it_is_set(ttls):
    table = RouteTable(10)
    for now_ms in range(10_000):
        for ttl_ms in ttls:
            table.store(key(1), Route(1), now_ms, now_ms + ttl_ms)
    assert index_of(table) == {key(1): 1}


def test_the_expiry_index_holds_nothing_for_what_was_deleted_or_evicted():
    table = RouteTable(3)
    for number in range(1_000):
        table.store(key(number), Route(1), number, number + 1_800_000)
        if number % 2:
            table.remove(key(number))
    assert index_of(table) == Counter(list(table))


def test_a_removal_of_expired_records_goes_on_where_the_last_one_stopped():
    table = RouteTable(10)
    for number in range(5):
        set_in(table, number)
    removed = [table.remove_expired(100, limit=2) for _ in range(4)]
    assert [(len(keys), more) for keys, more in removed] == [
        (2, True),
        (2, True),
        (1, False),
        (0, False),
    ]
    assert {k for keys, _ in removed for k in keys} == {key(number) for number in range(5)}


def test_a_table_is_never_half_changed_when_the_stack_is_exhausted():
    def set_at(depth: int, number: int, expires_at_ms: int) -> None:
        if depth:
            set_at(depth - 1, number, expires_at_ms)
        else:
            table.store(key(number), Route(1), 0, expires_at_ms)

    table = RouteTable(20)
    failed = 0
    for spare in range(60):
        depth = sys.getrecursionlimit() - len(inspect.stack()) - spare
        try:
            set_at(depth, spare % 30, 1_800_000 - 10_000 * (spare % 7))
        except RecursionError:
            failed += 1
        assert index_of(table) == Counter(list(table))
    assert 0 < failed < 60
