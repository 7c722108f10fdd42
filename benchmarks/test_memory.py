"""What a route takes beyond the caller's own objects, and what a key that is set again takes."""

from __future__ import annotations

import gc
import tracemalloc
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from statistics import median

import psutil

from benchmarks.rows import Row
from benchmarks.traffic import make_sessions

#: Below this many routes the fixed part of a router counts for more than the routes.
FEWEST_ROUTES = 1_000

#: What a million sets of one key may move: a few calls on their way, and no more.
NO_GROWTH_BYTES = 64 * 1024


@contextmanager
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def test_memory_of_a_route(race, portal, scale, open_router):
    """Looked at after every route: a table costs most just after it was made larger."""
    sessions = make_sessions(scale.watched_routes)
    router = open_router(scale.watched_routes, partitions=1)
    # Made before, so that watching takes no memory itself.
    bytes_per_route = array("d", bytes(8 * scale.watched_routes))

    async def fill():
        empty, _ = tracemalloc.get_traced_memory()
        for count, (key, route) in enumerate(zip(*sessions, strict=True), start=1):
            await router.set(key, route)
            bytes_per_route[count - 1] = (tracemalloc.get_traced_memory()[0] - empty) / count

    with traced():
        race.repeat(lambda: portal.call(fill), times=1)
    assert router.stats().total.entries == scale.watched_routes
    watched = bytes_per_route[FEWEST_ROUTES - 1 :]
    step = max(1, len(watched) // 500)
    race.note(
        "bytes_per_route",
        [(FEWEST_ROUTES + at, watched[at]) for at in range(0, len(watched), step)],
    )
    for work, figure, budget in (
        ("a route, at the worst table size", max(watched), 400),
        ("a route, at the median table size", median(watched), None),
    ):
        race.add(Row(section="memory", work=work, figure=figure, unit="B", budget=budget))


def test_memory_of_one_key(race, portal, scale, open_filled):
    sessions = make_sessions(1)
    loops = open_filled(sessions)
    pair = (sessions.keys[0], sessions.routes[0])

    def set_again(times: int) -> None:
        portal.call(loops.set, repeat(pair, times))

    set_again(1_000)
    gc.collect()
    resident = psutil.Process().memory_info().rss
    set_again(scale.sets_of_one_key)
    resident = psutil.Process().memory_info().rss - resident

    with traced():
        set_again(1_000)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        race.repeat(lambda: set_again(scale.sets_of_one_key), times=1)
        _, peak = tracemalloc.get_traced_memory()
    sets = f"{scale.sets_of_one_key:,} sets of one key"
    race.add(
        Row(
            section="memory",
            work=f"{sets}: most allocated",
            figure=peak - before,
            unit="B",
            budget=NO_GROWTH_BYTES,
        )
    )
    race.add(
        Row(
            section="memory",
            work=f"{sets}: growth of the process",
            figure=max(0, resident),
            unit="B",
        )
    )
