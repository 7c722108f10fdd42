"""The state of dialogues: in memory, on a disk, and on a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from benchmarks import fsm_peers as peers
from benchmarks.race import Contender, Crowd, by, whole_turns
from benchmarks.rows import Row
from benchmarks.servers import run_valkey

#: What is measured of each. Our `get_state` gives the data as well.
ACTS = ("set_state", "update_data", "get_state")


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with run_valkey() as address:
        yield address


@pytest.mark.parametrize("act", ACTS)
def test_memory(race, portal, scale, act):
    with ExitStack() as stack:

        def contender(one):
            return Contender(one.do_all, one.arguments, scale.operations)

        ours = stack.enter_context(portal.wrap_async_context_manager(peers.our_fsm("memory://")))
        theirs = stack.enter_context(portal.wrap_async_context_manager(peers.aiogram_memory()))
        also = {"data": contender(theirs.get_data)} if act == "get_state" else {}
        best = race.run(
            portal,
            ours=contender(getattr(ours, act)),
            aiogram=contender(getattr(theirs, act)),
            **also,
        )
    race.add(
        Row(
            section="fsm, memory",
            work=act,
            figure=best["ours"],
            unit="ns",
            against="aiogram MemoryStorage",
            peer=best["aiogram"],
            budget=8,
        )
    )
    if also:
        race.add(
            Row(
                section="fsm, memory",
                work=act,
                figure=best["ours"],
                unit="ns",
                against="its get_state and get_data",
                peer=best["aiogram"] + best["data"],
            )
        )


@pytest.mark.parametrize("crowd", [1, 64, 512])
@pytest.mark.parametrize("act", ACTS)
def test_valkey(race, portal, scale, valkey, act, crowd):
    shared = scale.batched_operations if crowd > 1 else scale.durable_operations
    with ExitStack() as stack:

        def contender(manager, operations):
            one = getattr(stack.enter_context(portal.wrap_async_context_manager(manager)), act)
            return Contender(Crowd(one.do, crowd), one.arguments, whole_turns(operations, crowd))

        best = race.run(
            portal,
            rounds=scale.store_rounds,
            ours=contender(peers.our_fsm(f"valkey://{valkey}"), shared),
            aiogram=contender(peers.aiogram_redis(f"redis://{valkey}"), scale.durable_operations),
        )
    race.add(
        Row(
            section="fsm, Valkey",
            work=f"{act}, {by(crowd)}",
            figure=best["ours"],
            unit="ns",
            per_second=True,
            against="aiogram RedisStorage",
            peer=best["aiogram"],
            speedup=True,
            budget=3 if crowd == 64 else None,
            x=crowd,
        )
    )


@pytest.mark.parametrize("crowd", [1, 64])
@pytest.mark.parametrize("act", ACTS)
def test_sqlite(race, portal, scale, disk_folder, act, crowd):
    shared = scale.batched_operations if crowd > 1 else scale.durable_operations
    with ExitStack() as stack:

        def contender(manager, operations):
            one = getattr(stack.enter_context(portal.wrap_async_context_manager(manager)), act)
            return Contender(Crowd(one.do, crowd), one.arguments, operations)

        best = race.run(
            portal,
            rounds=scale.store_rounds,
            ours=contender(peers.our_fsm(f"sqlite:///{disk_folder}/ours.db"), shared),
            aiosqlite=contender(
                peers.aiosqlite_fsm(disk_folder / "theirs.db"), scale.durable_operations
            ),
        )
    writes = act != "get_state"
    race.add(
        Row(
            section="fsm, SQLite",
            work=f"{act}, {by(crowd)}",
            figure=best["ours"],
            unit="ns",
            per_second=True,
            against="aiosqlite, a commit a call" if writes else "aiosqlite",
            peer=best["aiosqlite"],
            speedup=True,
            budget=8 if writes and crowd == 64 else None,
            x=crowd,
        )
    )
