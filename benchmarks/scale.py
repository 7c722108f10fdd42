"""How much is measured: a full run, a quick one, and one that only shows that everything works."""

from __future__ import annotations

import msgspec


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    #: Rounds of each contest; the best of them counts.
    rounds: int
    #: Operations of a round, for work that takes about a microsecond.
    operations: int
    #: The same for work that takes tens of microseconds.
    slow_operations: int
    #: Operations of a round that many callers share.
    shared_operations: int
    callers: tuple[int, ...] = (1, 8, 64, 512)
    partitions: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    session_count: tuple[int, ...]
    #: Routes that one table is filled with while its memory is watched.
    watched_routes: int
    #: How often the one key is set whose memory must not grow.
    sets_of_one_key: int
    #: Expired routes of each partition before a prune.
    expired_routes: int
    #: Rounds of a contest of stores, which takes longer.
    store_rounds: int
    #: Operations of a round for stores that wait for a disk or a server with each of them.
    durable_operations: int
    #: The same for stores that share the wait, if there are callers to share it.
    batched_operations: int
    #: Messages of a large room.
    room_messages: int
    #: Prunes, and interpreters started to import trunkline; the best counts.
    repeats: int


SCALES = {
    "full": Scale(
        rounds=60,
        operations=20_000,
        slow_operations=1_000,
        shared_operations=51_200,
        session_count=(1_000, 10_000, 100_000, 1_000_000),
        watched_routes=200_000,
        sets_of_one_key=1_000_000,
        expired_routes=10_000,
        store_rounds=12,
        durable_operations=384,
        batched_operations=3_840,
        room_messages=100_000,
        repeats=15,
    ),
    "quick": Scale(
        rounds=12,
        operations=10_000,
        slow_operations=500,
        shared_operations=25_600,
        session_count=(1_000, 10_000, 100_000, 1_000_000),
        watched_routes=50_000,
        sets_of_one_key=200_000,
        expired_routes=10_000,
        store_rounds=5,
        durable_operations=128,
        batched_operations=1_280,
        room_messages=100_000,
        repeats=5,
    ),
    "smoke": Scale(
        rounds=2,
        operations=200,
        slow_operations=20,
        shared_operations=512,
        session_count=(1_000, 2_000),
        watched_routes=3_000,
        sets_of_one_key=2_000,
        expired_routes=1_000,
        store_rounds=1,
        durable_operations=16,
        batched_operations=32,
        room_messages=1_000,
        repeats=2,
    ),
}
