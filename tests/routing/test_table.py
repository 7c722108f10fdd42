from __future__ import annotations

import pytest

from trunkline import Route, RouteRecord, SessionKey
from trunkline.routing.table import RouteTable


def key(room: int) -> SessionKey:
    return SessionKey("telegram", "bot", str(room))


def record(expires_at_ms: int = 100) -> RouteRecord:
    return RouteRecord(Route(1), 0, expires_at_ms)


@pytest.fixture
def full_table():
    """Three records in a table for three; the first is the least recently used."""
    table = RouteTable(3)
    for room in range(3):
        table[key(room)] = record()
    return table


def evicted_rooms(table):
    return [key.room_id for key, _ in table.evicted]


def test_a_full_table_evicts_the_least_recently_used(full_table):
    full_table[key(3)] = record()
    assert evicted_rooms(full_table) == ["0"]
    assert set(full_table) == {key(1), key(2), key(3)}


def test_what_was_evicted_is_kept_with_its_record(full_table):
    oldest = full_table.peek(key(0))
    full_table[key(3)] = record()
    assert full_table.evicted == [(key(0), oldest)]


def test_a_record_that_is_set_again_evicts_nothing(full_table):
    for _ in range(10):
        full_table[key(1)] = record()
    assert full_table.evicted == []
    assert len(full_table) == 3


def test_setting_again_counts_as_use(full_table):
    full_table[key(0)] = record()
    full_table[key(3)] = record()
    assert evicted_rooms(full_table) == ["1"]


def test_reading_counts_as_use(full_table):
    full_table.read(key(0), now_ms=0)
    full_table[key(3)] = record()
    assert evicted_rooms(full_table) == ["1"]


def test_peeking_does_not_count_as_use(full_table):
    assert full_table.peek(key(0)) == record()
    full_table[key(3)] = record()
    assert evicted_rooms(full_table) == ["0"]


def test_an_absent_record_is_none(full_table):
    assert full_table.read(key(9), now_ms=0) is None
    assert full_table.peek(key(9)) is None


def test_a_record_is_fresh_until_the_instant_of_its_expiry(full_table):
    assert full_table.read(key(0), now_ms=99) == record()
    assert key(0) in full_table


def test_an_expired_record_is_read_once(full_table):
    assert full_table.read(key(0), now_ms=100) == record()
    assert full_table.read(key(0), now_ms=100) is None
    assert len(full_table) == 2


def test_a_removed_record_makes_room(full_table):
    del full_table[key(1)]
    full_table[key(3)] = record()
    assert full_table.evicted == []


def test_an_expired_record_holds_its_place_until_it_is_evicted(full_table):
    full_table[key(0)] = record(expires_at_ms=1)
    for room in (3, 4):
        full_table[key(room)] = record()
    assert key(0) in full_table
    full_table[key(5)] = record()
    assert evicted_rooms(full_table) == ["1", "2", "0"]


def test_a_table_for_one_holds_the_last_record():
    table = RouteTable(1)
    table[key(0)] = record()
    table[key(1)] = record()
    assert list(table) == [key(1)]
    assert evicted_rooms(table) == ["0"]
