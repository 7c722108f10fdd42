"""`resolve` and `set` by one caller: against the bare tables, and against other libraries."""

from __future__ import annotations

import pytest

from benchmarks import peers
from benchmarks.conftest import EVENT_LOOPS
from benchmarks.race import Contender
from benchmarks.rows import Row
from benchmarks.traffic import fill_bare, make_sessions

SESSIONS = 1_000


@pytest.mark.parametrize("event_loop_name", EVENT_LOOPS)
def test_resolve(race, portal, scale, open_filled, event_loop_name):
    sessions = make_sessions(SESSIONS)
    router, bare = open_filled(sessions), fill_bare(sessions)
    keys = sessions.shuffled_keys(seed=1)
    best = race.run(
        portal,
        ours=Contender(router.resolve, keys, scale.operations),
        bare=Contender(bare.resolve, keys, scale.operations),
        look_up=Contender(bare.look_up, keys, scale.operations),
    )
    on_asyncio = event_loop_name == "asyncio"
    row = Row(
        section="one caller",
        work=f"resolve hit, {event_loop_name}",
        figure=best["ours"],
        unit="ns",
        against="bare tables",
        peer=best["bare"],
        budget=1.6 if on_asyncio else None,
    )
    race.add(row)
    if on_asyncio:
        race.add(
            Row(
                section="one caller",
                work=row.work,
                figure=best["ours"],
                unit="ns",
                against="bare tables, no Resolution made",
                peer=best["look_up"],
            )
        )


def test_set(race, portal, scale, open_filled):
    sessions = make_sessions(SESSIONS)
    router, bare = open_filled(sessions), fill_bare(sessions)
    pairs = sessions.shuffled_pairs(seed=1)
    best = race.run(
        portal,
        ours=Contender(router.set, pairs, scale.operations),
        bare=Contender(bare.set, pairs, scale.operations),
    )
    race.add(
        Row(
            section="one caller",
            work="set, asyncio",
            figure=best["ours"],
            unit="ns",
            against="bare tables",
            peer=best["bare"],
            budget=1.6,
        )
    )


@pytest.mark.parametrize(
    ("peer", "name", "budget"),
    [
        (peers.aiocache_get, "aiocache memory get", 10),
        (peers.pykka_ask, "pykka ask", 10),
        (peers.anyio_stream, "anyio stream round trip", 10),
        (peers.cashews_get, "cashews memory get", None),
    ],
    ids=["aiocache", "pykka", "anyio", "cashews"],
)
def test_resolve_against(race, portal, scale, open_filled, peer, name, budget):
    sessions = make_sessions(SESSIONS)
    router = open_filled(sessions)
    with portal.wrap_async_context_manager(peer(sessions)) as (ask_all, keys):
        best = race.run(
            portal,
            ours=Contender(router.resolve, sessions.keys, scale.operations),
            theirs=Contender(ask_all, keys, scale.slow_operations),
        )
    race.add(
        Row(
            section="other libraries",
            work="resolve hit",
            figure=best["ours"],
            unit="ns",
            against=name,
            peer=best["theirs"],
            speedup=True,
            budget=budget,
        )
    )
