"""Plays messages to a router by their own clock, and measures."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable
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
        self._unlimited = _UnlimitedTables(router.config)
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
            conversation = self._conversations.get(message.session_key)
            if conversation is None:
                conversation = self._add(message.session_key)
            await self._answer_late(conversation)
            await self._set(conversation.room)
            if conversation.room is not conversation:
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
            if self._unlimited.prune(clock.now_ms):
                await self._router.prune()
                for index in range(len(self._partitions)):
                    self._count_entries(index)
        clock.now_ms = at_ms

    def _add(self, key: SessionKey) -> _Conversation:
        room = None
        if key.thread_id is not None:
            room = self._conversations.get(key.room_scope) or self._add(key.room_scope)
        conversation = _Conversation(key, self._router.route_partition(key), room)
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
        await self._router.set(conversation.key, conversation.route)
        self._unlimited.set(conversation, self._clock.now_ms)

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
                    needed_entries=self._unlimited.peaks[index],
                    evicted=partition.evicted,
                )
                for index, partition in enumerate(stats.partitions)
            ),
        )


class _Conversation:
    """A room or thread of the log."""

    __slots__ = ("key", "partition", "room", "route", "set_at_ms")

    #: When its route was last set; `None` if it never was.
    set_at_ms: int | None

    def __init__(self, key: SessionKey, partition: int, room: _Conversation | None) -> None:
        self.key = key
        self.partition = partition
        self.room = self if room is None else room
        self.set_at_ms = None
        self.route = Route(
            key.room_id,
            channel_type=key.channel,
            bridge_id=key.bridge_id,
            room_id=key.room_id,
            thread_id=key.thread_id,
        )


class _UnlimitedTables:
    """The routes that partitions of unlimited capacity would hold, in the order of their sets."""

    def __init__(self, config: RouterConfig) -> None:
        #: The highest number of routes in each partition so far.
        self.peaks = [0] * config.partition_count
        self._counts = [0] * config.partition_count
        self._lifetime_ms = config.ttl_ms + config.stale_retention_ms
        self._by_age: OrderedDict[_Conversation, None] = OrderedDict()

    def set(self, conversation: _Conversation, now_ms: int) -> None:
        conversation.set_at_ms = now_ms
        if conversation in self._by_age:
            self._by_age.move_to_end(conversation)
            return
        self._by_age[conversation] = None
        index = conversation.partition
        self._counts[index] += 1
        self.peaks[index] = max(self.peaks[index], self._counts[index])

    def prune(self, now_ms: int) -> bool:
        """Prune, and return whether anything has expired."""
        set_before_ms = now_ms - self._lifetime_ms
        pruned = False
        while self._by_age:
            oldest = next(iter(self._by_age))
            if oldest.set_at_ms > set_before_ms:  # type: ignore[operator]
                break
            del self._by_age[oldest]
            self._counts[oldest.partition] -= 1
            pruned = True
        return pruned


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
