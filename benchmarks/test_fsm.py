"""The state of dialogues: in memory, on a disk, and on a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from benchmarks import fsm_peers as peers
from benchmarks.race import Contender, Crowd
from benchmarks.rows import Row
from benchmarks.servers import run_valkey
from benchmarks.test_persistence import by


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with run_valkey() as address:
        yield address


@pytest.mark.parametrize("act", peers.FSM._fields)
def test_memory(race, portal, scale, act):
    with ExitStack() as stack:

        def contender(peer):
            fsm = stack.enter_context(portal.wrap_async_context_manager(peer("memory://")))
            one = getattr(fsm, act)
            return Contender(one.do_all, one.arguments, scale.operations)

        best = race.run(
            portal, ours=contender(peers.our_fsm), aiogram=contender(peers.aiogram_memory)
        )
    race.add(
        Row(
            section="fsm, memory",
            work=act,
            figure=best["ours"],
            unit="ns",
            against="aiogram MemoryStorage",
            peer=best["aiogram"],
            budget=2,
        )
    )


@pytest.mark.parametrize("crowd", [1, 64, 512])
@pytest.mark.parametrize("act", peers.FSM._fields)
def test_valkey(race, portal, scale, valkey, act, crowd):
    operations = -(-scale.batched_operations // crowd) * crowd if crowd > 1 else None
    with ExitStack() as stack:

        def contender(peer, scheme):
            fsm = stack.enter_context(
                portal.wrap_async_context_manager(peer(f"{scheme}://{valkey}"))
            )
            one = getattr(fsm, act)
            work = Crowd(one.do, crowd)
            return Contender(work, one.arguments, operations or scale.durable_operations)

        best = race.run(
            portal,
            rounds=scale.store_rounds,
            ours=contender(peers.our_fsm, "valkey"),
            aiogram=contender(peers.aiogram_redis, "redis"),
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
@pytest.mark.parametrize("act", peers.FSM._fields)
def test_sqlite(race, portal, scale, disk_folder, act, crowd):
    with ExitStack() as stack:

        def contender(manager, operations):
            one = getattr(stack.enter_context(portal.wrap_async_context_manager(manager)), act)
            return Contender(Crowd(one.do, crowd), one.arguments, operations)

        shared = scale.batched_operations if crowd > 1 else scale.durable_operations
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
