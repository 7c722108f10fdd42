"""The results of a replay."""

from __future__ import annotations

import msgspec

from trunkline.routing import RouterConfig

__all__ = (
    "LateAnswers",
    "Latency",
    "NeededTtl",
    "Outcomes",
    "PartitionReport",
    "ReplayReport",
)


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """What resolves found; the three add up to the resolves."""

    #: The conversation's own route.
    hits: int = 0
    #: No route of the thread, but that of its room.
    thread_fallbacks: int = 0
    #: No route.
    misses: int = 0


class LateAnswers(Outcomes, frozen=True, kw_only=True):
    """What an answer found that was sent just before the next message of its conversation.

    This is the hardest moment for a router: the answer to the previous message, as late as it can
    be, or a message that the bot sends by itself. `hits`, `new`, `expired` and `evicted`
    add up to the messages of the log.
    """

    #: No own route because there never was one: it was the conversation's first message.
    new: int = 0
    #: No own route because it had expired. A longer TTL would have kept it.
    expired: int = 0
    #: No own route because it was evicted. A larger capacity would have kept it.
    evicted: int = 0

    @property
    def kept(self) -> float:
        """Of the conversations that came back, the part whose route was still there: 0.0 to 1.0."""
        came_back = self.hits + self.expired + self.evicted
        return self.hits / came_back if came_back else 1.0


class NeededTtl(msgspec.Struct, frozen=True, kw_only=True):
    """The TTL that would have kept a part of the routes until their conversations came back.

    It is the same whatever TTL and capacity the log was replayed with. Less than 1 % too long,
    never too short.
    """

    #: Keeps a half.
    p50_ms: int = 0
    #: Keeps 90 %.
    p90_ms: int = 0
    #: Keeps 95 %.
    p95_ms: int = 0
    #: Keeps 99 %.
    p99_ms: int = 0
    #: Keeps all.
    max_ms: int = 0


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """How long `resolve` took, in nanoseconds: a millisecond is too coarse for it."""

    #: A half took no longer, to within 1 %.
    p50_ns: int = 0
    #: 99 % took no longer, to within 1 %.
    p99_ns: int = 0
    #: The longest.
    max_ns: int = 0


class PartitionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One partition."""

    #: Entries at the end of the log.
    entries: int
    #: Most entries at any time.
    peak_entries: int
    #: The capacity with which it would have evicted nothing, at this TTL.
    needed_entries: int
    #: Entries that were evicted.
    evicted: int


class ReplayReport(Outcomes, frozen=True, kw_only=True):
    """How the routing of a log went.

    Every message is one set of its room's route, one more of its thread's where it has one, and
    two resolves: a late answer just before it, and the reply just after it. The outcomes are those
    of both.
    """

    #: The settings that the log was replayed with.
    config: RouterConfig
    #: Messages that were replayed.
    messages: int
    #: Rooms among their conversations.
    rooms: int
    #: Threads among their conversations.
    threads: int
    #: When the first message was written, as Unix time in milliseconds.
    first_ms: int
    #: When the last message was written.
    last_ms: int
    #: Messages dated before one that stands above them. The clock stood still for them.
    out_of_order: int
    #: How long the replay took, reading included.
    elapsed_ms: int
    #: Messages replayed in a second, reading included.
    messages_per_second: int
    #: Resolves, late answers and replies together.
    resolves: int
    #: Expired entries that a resolve found.
    stale: int
    #: Routes set.
    sets: int
    #: Entries that were evicted.
    evicted: int
    #: Expired entries that a prune removed.
    pruned: int
    #: Most entries at any time, over all partitions.
    peak_entries: int
    #: What an answer just after its message found.
    replies: Outcomes
    #: What an answer just before the next message found.
    late_answers: LateAnswers
    #: Which TTL the log needs.
    needed_ttl: NeededTtl
    #: How long `resolve` took.
    resolve: Latency
    #: Each partition, in the order of its index.
    partitions: tuple[PartitionReport, ...]

    @property
    def needed_entries(self) -> int:
        """The `max_entries_per_partition` with which nothing is evicted, at this TTL."""
        return max(partition.needed_entries for partition in self.partitions)
