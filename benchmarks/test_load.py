"""More sessions, more partitions, more callers, and somebody who listens to the events."""

from __future__ import annotations

from functools import partial

import anyio

from benchmarks import peers
from benchmarks.race import Contender
from benchmarks.rows import Row
from benchmarks.traffic import fill_bare, make_sessions
from trunkline.observe import Events

SESSIONS = 1_000


def test_sessions(race, portal, scale, open_filled, session_count):
    sessions = make_sessions(session_count)
    router, bare = open_filled(sessions), fill_bare(sessions)
    # Each in an order of its own: what one has just touched must not wait for the other in the
    # CPU's caches.
    best = race.run(
        portal,
        ours=Contender(router.resolve, sessions.shuffled_keys(seed=1), scale.operations),
        bare=Contender(bare.resolve, sessions.shuffled_keys(seed=2), scale.operations),
    )
    race.add(
        Row(
            section="sessions",
            work=f"resolve hit, {session_count:,} sessions",
            figure=best["ours"],
            unit="ns",
            against="bare tables",
            peer=best["bare"],
            budget=1.5 if session_count == scale.session_count[-1] else None,
            x=session_count,
        )
    )


def test_partitions(race, portal, scale, open_filled, partitions):
    sessions = make_sessions(SESSIONS)
    router, one_partition = open_filled(sessions, partitions), open_filled(sessions, 1)
    keys = sessions.shuffled_keys(seed=1)
    best = race.run(
        portal,
        ours=Contender(router.resolve, keys, scale.operations),
        one_partition=Contender(one_partition.resolve, keys, scale.operations),
        rounds=scale.repeats,
    )
    race.add(
        Row(
            section="partitions",
            work=f"resolve hit, {partitions} partition{'s'[: partitions > 1]}",
            figure=best["ours"],
            unit="ns",
            against="1 partition",
            peer=best["one_partition"],
            x=partitions,
        )
    )


def test_callers(race, portal, scale, open_filled, callers):
    sessions = make_sessions(SESSIONS)
    router = open_filled(sessions)
    keys = sessions.shuffled_keys(seed=1)
    with portal.wrap_async_context_manager(peers.anyio_stream(sessions)) as (ask_all, _):
        best = race.run(
            portal,
            ours=Contender(partial(share, router.resolve, callers), keys, scale.shared_operations),
            theirs=Contender(partial(share, ask_all, callers), keys, scale.shared_operations),
            rounds=scale.repeats,
        )
    race.add(
        Row(
            section="callers",
            work=f"resolve hit, {callers} caller{'s'[: callers > 1]}",
            figure=best["ours"],
            unit="ns",
            against="anyio stream round trip",
            peer=best["theirs"],
            speedup=True,
            per_second=True,
            x=callers,
        )
    )


async def share(work: peers.Loop, callers: int, keys: list) -> None:
    """Do `work` on `keys` in so many tasks at once."""
    each = -(-len(keys) // callers)
    async with anyio.create_task_group() as task_group:
        for start in range(0, len(keys), each):
            task_group.start_soon(work, keys[start : start + each])


def test_resolve_with_subscriber(race, portal, scale, open_filled):
    sessions = make_sessions(SESSIONS)
    silent, heard = open_filled(sessions), open_filled(sessions)
    heard.router.events.subscribe(lambda event: None)
    keys = sessions.shuffled_keys(seed=1)
    best = race.run(
        portal,
        ours=Contender(heard.resolve, keys, scale.operations),
        silent=Contender(silent.resolve, keys, scale.operations),
        rounds=scale.repeats,
    )
    race.add(
        Row(
            section="events",
            work="resolve hit, 1 subscriber",
            figure=best["ours"],
            unit="ns",
            against="no subscriber",
            peer=best["silent"],
        )
    )


def test_set_with_subscriber(race, portal, scale, open_filled):
    sessions = make_sessions(SESSIONS)
    silent, heard = open_filled(sessions), open_filled(sessions)
    heard.router.events.subscribe(lambda event: None)
    pairs = sessions.shuffled_pairs(seed=1)
    best = race.run(
        portal,
        ours=Contender(heard.set, pairs, scale.operations),
        silent=Contender(silent.set, pairs, scale.operations),
        rounds=scale.repeats,
    )
    race.add(
        Row(
            section="events",
            work="set, 1 subscriber",
            figure=best["ours"],
            unit="ns",
            against="no subscriber",
            peer=best["silent"],
        )
    )


def test_event_without_subscriber(race, portal, scale, open_filled):
    sessions = make_sessions(SESSIONS)
    router = open_filled(sessions)
    best = race.run(
        portal,
        ours=Contender(Publisher().ask_for_subscribers, sessions.keys, scale.operations),
        resolve=Contender(router.resolve, sessions.keys, scale.operations),
        rounds=scale.repeats,
    )
    race.add(
        Row(
            section="events",
            work="an event nobody hears",
            figure=best["ours"],
            unit="ns",
            against="resolve hit",
            peer=best["resolve"],
        )
    )


class Publisher:
    """Does for each input what a partition does before it makes an event."""

    def __init__(self) -> None:
        self._events = Events()

    # The loop around it counts as well: the figure is an upper bound.
    def ask_for_subscribers(self, inputs: list) -> None:
        for _ in inputs:
            if self._events.subscribers:
                raise AssertionError
