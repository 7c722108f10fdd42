"""Plays messages to a router by their own clock, and measures."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns

import anyio
import msgspec

from trunkline.errors import NoRoute
from trunkline.replay.log import ChatMessage
from trunkline.replay.report import (
    LateAnswers,
    Latency,
    NeededTtl,
    Outcomes,
    PartitionReport,
    ReplayReport,
)
from trunkline.routing import Resolution, Route, RouterConfig, SessionKey, SessionRouter
from trunkline.routing.table import RouteTable

__all__ = ("replay",)


async def replay(
    messages: Iterable[ChatMessage],
    config: RouterConfig = RouterConfig(),  # noqa: B008 - it is frozen
    *,
    on_progress: Callable[[int], object] = lambda messages: None,
    on_message: Callable[[ChatMessage], Awaitable[object]] | None = None,
) -> ReplayReport:
    """Play `messages` to a router of these settings, and measure.

    Each message does what a bot does with it: it sets the route of its room, and of its thread
    where it has one, and the reply to it is resolved. Since that reply can only hit, a late answer
    is resolved just before: see `LateAnswers`. It hardly changes what is measured, because the
    message sets the same routes again; only in a full partition may its use of a route delay the
    eviction of that route.

    The clock is that of the log: it stands still between two messages, and prunes run when they
    would have run in production. Those between two messages are run as one, with the same result,
    and skipped if nothing has expired. No call times out.

    Memory grows with the conversations of the log: those that came before are kept, to tell an
    expired route from one that was never set.

    Args:
        messages: a `ChatLog`, or any other, in the order of time.
        config: the router's settings.
        on_progress: called every thousand messages with how many were replayed.
        on_message: awaited with each message before it is replayed, such as `History.save`. How
            long that takes is not measured.

    Raises:
        InvalidSessionKey: a message has none. (`ChatLog` has no such message.)
    """
    clock = _LogClock()
    settings = msgspec.structs.asdict(config) | {"call_timeout_ms": _NEVER_MS}
    async with SessionRouter(**settings, clock=clock, name="replay") as router:
        run = _Run(router, clock)
        started = perf_counter()
        await run.play(messages, on_progress, on_message)
        return run.report(config, perf_counter() - started - run.away_seconds)


#: A timeout that is longer than any replay.
_NEVER_MS = 365 * 86_400_000


class _LogClock:
    """The time of the latest message. A sleep never ends: the replay itself calls `prune`."""

    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> int:
        return self.now_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        await anyio.sleep_forever()


class _Run:
    """One replay under way."""

    def __init__(self, router: SessionRouter, clock: _LogClock) -> None:
        self._router = router
        self._clock = clock
        #: Time spent in `on_message`.
        self.away_seconds = 0.0
        partitions = [router.partition(index) for index in range(router.partition_count)]
        self._partitions = [ref for ref in partitions if ref is not None]
        self._conversations: dict[SessionKey, _Conversation] = {}
        #: What the partitions would hold without a limit.
        self._unlimited = [RouteTable(sys.maxsize) for _ in partitions]
        self._unlimited_peaks = [0] * router.partition_count
        self._next_prune_ms = 0
        self._messages = 0
        self._first_ms = 0
        self._out_of_order = 0
        self._replies: Counter[str] = Counter()
        self._late_answers: Counter[str] = Counter()
        #: The shortest TTL with which each conversation that came back had found its route.
        self._needed_ttl_ms = _Histogram()
        self._resolve_ns = _Histogram()
        self._entries = 0
        self._peak_entries = 0
        self._partition_entries = [0] * router.partition_count
        self._partition_peaks = [0] * router.partition_count

    async def play(
        self,
        messages: Iterable[ChatMessage],
        on_progress: Callable[[int], object],
        on_message: Callable[[ChatMessage], Awaitable[object]] | None,
    ) -> None:
        for message in messages:
            if on_message is not None:
                away_since = perf_counter()
                await on_message(message)
                self.away_seconds += perf_counter() - away_since
            if message.at_ms != self._clock.now_ms:
                await self._move_to(message.at_ms)
            key = message.session_key
            conversation = self._conversations.get(key) or self._add(key)
            await self._answer_late(conversation)
            if conversation.room is not None:
                await self._set(conversation.room)
            await self._set(conversation)
            await self._resolve(conversation, self._replies)
            self._count_entries(conversation.partition)
            self._messages += 1
            if not self._messages % 1_000:
                on_progress(self._messages)

    async def _move_to(self, at_ms: int) -> None:
        """Advance the clock, and run the last prune that was due meanwhile."""
        clock, interval_ms = self._clock, self._router.config.prune_interval_ms
        if not self._messages:
            self._first_ms = clock.now_ms = at_ms
            self._next_prune_ms = at_ms + interval_ms
        elif at_ms < clock.now_ms:
            self._out_of_order += 1
            return
        if at_ms >= self._next_prune_ms:
            clock.now_ms = at_ms - (at_ms - self._next_prune_ms) % interval_ms
            self._next_prune_ms = clock.now_ms + interval_ms
            if self._prune_unlimited():
                await self._router.prune()
                for index in range(len(self._partitions)):
                    self._count_entries(index)
        clock.now_ms = at_ms

    def _add(self, key: SessionKey) -> _Conversation:
        room = None
        if key.thread_id is not None:
            room = self._conversations.get(key.room_scope) or self._add(key.room_scope)
        route = Route(
            key.room_id,
            channel_type=key.channel,
            bridge_id=key.bridge_id,
            room_id=key.room_id,
            thread_id=key.thread_id,
        )
        conversation = _Conversation(key, self._router.route_partition(key), route, room)
        self._conversations[key] = conversation
        return conversation

    async def _answer_late(self, conversation: _Conversation) -> None:
        now_ms, set_at_ms = self._clock.now_ms, conversation.set_at_ms
        found = await self._resolve(conversation, self._late_answers)
        if set_at_ms is None:
            self._late_answers["new"] += 1
            return
        self._needed_ttl_ms.add(now_ms - set_at_ms + 1)
        if found is None or found.fallback:
            has_expired = now_ms - set_at_ms >= self._router.config.ttl_ms
            self._late_answers["expired" if has_expired else "evicted"] += 1

    async def _resolve(
        self, conversation: _Conversation, outcomes: Counter[str]
    ) -> Resolution | None:
        started = perf_counter_ns()
        try:
            resolution = await self._router.resolve(conversation.key)
        except NoRoute:
            self._resolve_ns.add(perf_counter_ns() - started)
            outcomes["misses"] += 1
            return None
        self._resolve_ns.add(perf_counter_ns() - started)
        outcomes["thread_fallbacks" if resolution.fallback else "hits"] += 1
        return resolution

    async def _set(self, conversation: _Conversation) -> None:
        key, route, index = conversation.key, conversation.route, conversation.partition
        await self._router.set(key, route)
        conversation.set_at_ms = now_ms = self._clock.now_ms
        table = self._unlimited[index]
        table.store(key, route, now_ms, now_ms + self._router.config.ttl_ms)
        self._unlimited_peaks[index] = max(self._unlimited_peaks[index], len(table))

    def _prune_unlimited(self) -> bool:
        """Prune what would be held without a limit, and return whether anything has expired."""
        expired_by = self._clock.now_ms - self._router.config.stale_retention_ms
        removed = [table.remove_expired(expired_by, sys.maxsize)[0] for table in self._unlimited]
        return any(removed)

    def _count_entries(self, index: int) -> None:
        entries = self._partitions[index].peek(len, 0)
        self._entries += entries - self._partition_entries[index]
        self._partition_entries[index] = entries
        if entries > self._partition_peaks[index]:
            self._partition_peaks[index] = entries
        if self._entries > self._peak_entries:
            self._peak_entries = self._entries

    def report(self, config: RouterConfig, elapsed_seconds: float) -> ReplayReport:
        stats = self._router.stats()
        total = stats.total
        threads = sum(key.thread_id is not None for key in self._conversations)
        ttl_ms, resolve_ns = self._needed_ttl_ms.quantile, self._resolve_ns.quantile
        return ReplayReport(
            config=config,
            messages=self._messages,
            rooms=len(self._conversations) - threads,
            threads=threads,
            first_ms=self._first_ms,
            last_ms=self._clock.now_ms,
            out_of_order=self._out_of_order,
            elapsed_ms=round(elapsed_seconds * 1000),
            messages_per_second=round(self._messages / elapsed_seconds),
            resolves=total.hits + total.thread_fallbacks + total.misses,
            hits=total.hits,
            thread_fallbacks=total.thread_fallbacks,
            misses=total.misses,
            stale=total.stale,
            sets=total.sets,
            evicted=total.evicted,
            pruned=total.pruned,
            peak_entries=self._peak_entries,
            replies=Outcomes(**self._replies),
            late_answers=LateAnswers(**self._late_answers),
            needed_ttl=NeededTtl(
                p50_ms=ttl_ms(0.50),
                p90_ms=ttl_ms(0.90),
                p95_ms=ttl_ms(0.95),
                p99_ms=ttl_ms(0.99),
                max_ms=ttl_ms(1.0),
            ),
            resolve=Latency(
                p50_ns=resolve_ns(0.50), p99_ns=resolve_ns(0.99), max_ns=resolve_ns(1.0)
            ),
            partitions=tuple(
                PartitionReport(
                    entries=partition.entries,
                    peak_entries=self._partition_peaks[index],
                    needed_entries=self._unlimited_peaks[index],
                    evicted=partition.evicted,
                )
                for index, partition in enumerate(stats.partitions)
            ),
        )


@dataclass(slots=True, eq=False)
class _Conversation:
    """A room or thread of the log."""

    key: SessionKey
    partition: int
    route: Route
    #: That of a thread.
    room: _Conversation | None
    #: When its route was last set; `None` if it never was.
    set_at_ms: int | None = None


class _Histogram:
    """Counts of whole numbers, in buckets less than 1 % wide: a few kilobytes for any log."""

    def __init__(self) -> None:
        # By the largest number of each bucket.
        self._counts: Counter[int] = Counter()
        self._largest = 0

    def add(self, number: int) -> None:
        # A bucket is chosen by the eight highest bits; numbers up to 255 have one each.
        shift = max(number.bit_length() - 8, 0)
        self._counts[((number >> shift) + 1 << shift) - 1] += 1
        if number > self._largest:
            self._largest = number

    def quantile(self, part: float) -> int:
        """The number that `part` of all numbers do not exceed; 0 without numbers."""
        remaining = math.ceil(part * self._counts.total())
        for number, count in sorted(self._counts.items()):
            remaining -= count
            if remaining <= 0:
                return min(number, self._largest)
        return 0
