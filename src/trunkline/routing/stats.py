"""Counters of a router, by partition and in total."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

__all__ = ("Counters", "PartitionStats", "RouterStats")


@dataclass(slots=True, eq=False)
class Counters:
    """The counts of a partition. They outlive its incarnations."""

    hits: int = 0
    thread_fallbacks: int = 0
    provided_fallbacks: int = 0
    misses: int = 0
    stale: int = 0
    evicted: int = 0
    pruned: int = 0
    sets: int = 0
    deletes: int = 0


class PartitionStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the router was last entered. A crash does not reset them."""

    #: Records held now, expired ones included.
    entries: int = 0
    #: Records that can be held.
    capacity: int = 0
    #: Resolves answered by the key's own record.
    hits: int = 0
    #: Resolves answered by the record of the thread's room.
    thread_fallbacks: int = 0
    #: Resolves answered by a fallback that the caller passed in, also while the partition is down.
    provided_fallbacks: int = 0
    #: Resolves that ended without a route: `NoRoute`, or `PartitionUnavailable`.
    misses: int = 0
    #: Expired records that a read removed.
    stale: int = 0
    #: Records that were evicted because the partition was full.
    evicted: int = 0
    #: Expired records that a prune removed.
    pruned: int = 0
    #: Routes set by the program.
    sets: int = 0
    #: Records deleted by the program.
    deletes: int = 0
    #: Calls that are waiting now.
    mailbox_depth: int = 0
    #: Restarts after a crash.
    restarts: int = 0
    #: Calls that ran at once in the tasks of their callers.
    local_calls: int = 0
    #: Calls that went through the mailbox.
    queued_calls: int = 0

    @classmethod
    def sum(cls, stats: Iterable[PartitionStats]) -> PartitionStats:
        """Each count added up."""
        columns = zip(*(msgspec.structs.astuple(one) for one in stats), strict=True)
        return cls(**dict(zip(cls.__struct_fields__, map(sum, columns), strict=True)))


class RouterStats(msgspec.Struct, frozen=True):
    """The counts of a router: in total, and of each partition in the order of its index."""

    total: PartitionStats
    partitions: tuple[PartitionStats, ...]
