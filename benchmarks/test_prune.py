"""How long a prune blocks the event loop, and what it costs when nothing has expired."""

from __future__ import annotations

from statistics import median
from time import perf_counter_ns

import anyio
from anyio.lowlevel import checkpoint

from benchmarks.race import Contender
from benchmarks.rows import Row
from benchmarks.traffic import PARTITIONS, TTL_MS, RouterLoops, make_sessions
from trunkline import SessionRouter
from trunkline.testing import ManualClock

#: Longer than the clock ever runs here: only the prunes that are asked for.
NEVER_MS = 10**12


def test_prune(race, portal, scale, open_router):
    sessions = make_sessions(PARTITIONS * scale.expired_routes)
    clock = ManualClock()
    router = open_router(len(sessions.keys), clock=clock, ttl_ms=TTL_MS, prune_interval_ms=NEVER_MS)
    loops = RouterLoops(router)

    def fill_and_expire() -> None:
        portal.call(loops.set, zip(*sessions, strict=True))
        portal.call(clock.advance_ms, TTL_MS)

    prunes = race.repeat(
        lambda: portal.call(watch_prune, router), times=scale.repeats, setup=fill_and_expire
    )
    assert router.stats().total.pruned == scale.repeats * len(sessions.keys)
    stalls, durations = zip(*prunes, strict=True)
    routes = f"{PARTITIONS} x {scale.expired_routes:,} expired"
    race.add(
        Row(
            section="prune",
            work=f"{routes}: longest stall",
            figure=min(stalls),
            unit="ms",
            budget=10,
        )
    )
    race.add(Row(section="prune", work=f"{routes}: all of it", figure=min(durations), unit="ms"))


def test_prune_that_finds_nothing(race, portal, scale, open_filled):
    """Fresh routes in one partition: many against a thousand."""
    few, many = 1_000, max(scale.session_count)
    clock = ManualClock()

    def filled(count: int) -> SessionRouter:
        settings = {"clock": clock, "ttl_ms": TTL_MS, "prune_interval_ms": NEVER_MS}
        loops = open_filled(make_sessions(count), partitions=1, **settings)
        return loops.router

    async def prune_each(routers: list[SessionRouter]) -> None:
        for router in routers:
            await router.prune()

    best = race.run(
        portal,
        ours=Contender(prune_each, [filled(many)], scale.slow_operations),
        few=Contender(prune_each, [filled(few)], scale.slow_operations),
    )
    race.add(
        Row(
            section="prune",
            work=f"1 x {many:,} fresh",
            figure=best["ours"],
            unit="ns",
            against=f"1 x {few:,} fresh",
            peer=best["few"],
            budget=2,
        )
    )


async def watch_prune(router: SessionRouter) -> tuple[float, float]:
    """Prune; how long another task had to wait for its turn at most, and how long it all took.

    The first is beyond what that task waits for its turn when nothing else runs. Both in ms.
    """
    waits: list[int] = []

    async def tick() -> None:
        last = perf_counter_ns()
        while True:
            await checkpoint()
            now = perf_counter_ns()
            waits.append(now - last)
            last = now

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(tick)
        while len(waits) < 1_000:
            await checkpoint()
        undisturbed = median(waits)
        waits.clear()
        started = perf_counter_ns()
        await router.prune()
        duration = perf_counter_ns() - started
        await checkpoint()
        task_group.cancel_scope.cancel()
    return (max(waits) - undisturbed) / 1e6, duration / 1e6
