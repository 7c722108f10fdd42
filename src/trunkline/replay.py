"""Replay: what a router would have done with the traffic of a chat log.

`ChatLog` reads messages from files, `replay` plays them to a `SessionRouter` on the log's own
clock, and the `ReplayReport` says how the routing went and which TTL and capacity the log needs.

Example:
    >>> import anyio
    >>> from trunkline import SessionKey
    >>> room = SessionKey("telegram", "support_bot", "42")
    >>> minute_ms = 60_000
    >>> messages = [ChatMessage(at_ms, room) for at_ms in (0, minute_ms, 50 * minute_ms)]
    >>> report = anyio.run(replay, messages, RouterConfig(ttl_ms=30 * minute_ms))
    >>> report.late_answers.hits, report.late_answers.expired
    (1, 1)
"""

from __future__ import annotations

import errno
import gzip
import math
import os
import stat
import sys
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from time import perf_counter, perf_counter_ns
from typing import Annotated, BinaryIO

import anyio
import msgspec

from trunkline.errors import NoRoute
from trunkline.routing import Resolution, Route, RouterConfig, SessionKey, SessionRouter

__all__ = (
    "ChatLog",
    "ChatMessage",
    "LateAnswers",
    "Latency",
    "NeededTtl",
    "Outcomes",
    "PartitionReport",
    "ReplayReport",
    "replay",
)

# -- what comes out ----------------------------------------------------------------------------


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """What resolves found; the three add up to the resolves."""

    #: The conversation's own route.
    hits: int = 0
    #: No route of the thread, but that of its room.
    thread_fallbacks: int = 0
    #: Nothing.
    misses: int = 0


class LateAnswers(Outcomes, frozen=True, kw_only=True):
    """What an answer found that left just before the next message of its conversation came.

    This is the hardest moment for a router: the answer to the previous message, as late as it can
    be, or a message that the bot sends of its own accord. `hits`, `new`, `expired` and `evicted`
    add up to the messages of the log.
    """

    #: No own route because there never was one: it was the conversation's first message.
    new: int = 0
    #: No own route because its time was over. A longer TTL would have kept it.
    expired: int = 0
    #: No own route because it made room for others. A larger capacity would have kept it.
    evicted: int = 0

    @property
    def kept(self) -> float:
        """The part of conversations that came back and whose route was still there: 0.0 to 1.0."""
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
    #: Entries that made room for others.
    evicted: int


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the routing of a log went.

    Every message is one set of its room's route, one more of its thread's where it has one, and
    two resolves: a late answer just before it, and the reply just after it.
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
    #: Resolves that found the conversation's own route.
    hits: int
    #: Resolves that found only the room's route for a thread.
    thread_fallbacks: int
    #: Resolves that found nothing.
    misses: int
    #: Expired entries that a resolve met.
    stale: int
    #: Routes set.
    sets: int
    #: Entries that made room for others.
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


# -- what goes in ------------------------------------------------------------------------------


class ChatMessage(msgspec.Struct, frozen=True, gc=False):
    """A message, as far as routing is concerned."""

    #: When it was written, as Unix time in milliseconds.
    at_ms: int
    #: Where it was written.
    session_key: SessionKey


class ChatLog:
    """Chat messages out of files of JSON lines, plain or gzipped, read one at a time.

    A line is an object with `ts`, `channel`, `bridge_id`, `room_id` and, in a thread, `thread_id`;
    what it has beyond these is not looked at. `ts` is ISO 8601 (UTC if it has no offset) or a
    number of seconds since 1970. Empty lines are passed over.

    Files are read in the order given, which should be that of time. A log can be read again; its
    counts are those of the latest reading.

    Args:
        sources: paths; `-` is standard input.
        on_problem: told of each broken line and each file that cannot be read (to its end), in
            one line of plain text. Both are passed over.
    """

    #: Lines that are no message.
    broken_lines: int
    #: Files that could not be read, or not to their end.
    unreadable_files: int
    #: Bytes of all files as they are on disk; `None` if one is a pipe.
    size: int | None

    def __init__(
        self,
        *sources: str | os.PathLike[str],
        on_problem: Callable[[str], object] = lambda problem: None,
    ) -> None:
        self.broken_lines = 0
        self.unreadable_files = 0
        self.size = _total_size(sources)
        self._sources = sources
        self._on_problem = on_problem
        self._file: BinaryIO | None = None
        self._closed_bytes = 0

    @property
    def bytes_read(self) -> int:
        """How much of `size` has been read. Meaningless if that is `None`."""
        return self._closed_bytes + (self._file.tell() if self._file is not None else 0)

    def __iter__(self) -> Iterator[ChatMessage]:
        self.broken_lines = self.unreadable_files = self._closed_bytes = 0
        for source in self._sources:
            name = "standard input" if source == "-" else os.fspath(source)
            try:
                if source == "-":
                    yield from self._messages(name, _decompressed(name, _standard_input()))
                else:
                    yield from self._file_messages(name)
            except OSError as error:
                self._note_unreadable(name, error.strerror or str(error))
            except (EOFError, zlib.error) as error:
                self._note_unreadable(name, f"damaged gzip: {error}")

    def _file_messages(self, path: str) -> Iterator[ChatMessage]:
        with open(path, "rb") as file:
            self._file = None if self.size is None else file
            try:
                yield from self._messages(path, _decompressed(path, file))
                self._closed_bytes = self.bytes_read
            finally:
                self._file = None

    def _messages(self, name: str, stream: BinaryIO) -> Iterator[ChatMessage]:
        number = 0
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.isspace():
                continue
            try:
                if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    _skip_line(stream)
                    raise ValueError(f"the line is longer than {_LONGEST_LINE >> 20} MiB")
                message = _message(line)
            # RecursionError: ten thousand opening brackets.
            except (ValueError, RecursionError) as error:
                self.broken_lines += 1
                self._on_problem(f"{name}:{number}: {error}")
            else:
                yield message

    def _note_unreadable(self, name: str, reason: str) -> None:
        self.unreadable_files += 1
        self._on_problem(f"{name}: {reason}")


#: Bytes of a line at most, so that a file without line ends does not fill the memory.
_LONGEST_LINE = 1 << 24


def _total_size(sources: Iterable[str | os.PathLike[str]]) -> int | None:
    total = 0
    for source in sources:
        if source == "-":
            return None
        try:
            status = os.stat(source)
        except OSError:
            continue
        if not stat.S_ISREG(status.st_mode):
            return None
        total += status.st_size
    return total


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return sys.stdin.buffer


def _decompressed(name: str, file: BinaryIO) -> BinaryIO:
    """`file`, unzipped if it is gzipped, whatever its name; a pipe has none."""
    start = file.peek(2)[:2]  # type: ignore[attr-defined]
    if start == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if start and name.endswith(".gz"):
        raise gzip.BadGzipFile("not a gzip file")
    return file


def _skip_line(stream: BinaryIO) -> None:
    """Read up to the end of a line."""
    while (rest := stream.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
        pass


_NotEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class _Line(msgspec.Struct, gc=False):
    ts: str | float | int
    channel: _NotEmpty
    bridge_id: _NotEmpty
    room_id: _NotEmpty
    thread_id: str | None = None


_decode_line = msgspec.json.Decoder(_Line).decode


def _message(line: bytes) -> ChatMessage:
    if not line.isascii():
        _require_utf8(line)
    fields = _decode_line(line)
    return ChatMessage(
        _instant_ms(fields.ts),
        SessionKey(fields.channel, fields.bridge_id, fields.room_id, fields.thread_id),
    )


def _require_utf8(line: bytes) -> None:
    """Look also where the JSON decoder does not: into the fields that it skips."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None


#: The first and the last second that ISO 8601 can write.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799


def _instant_ms(ts: str | float | int) -> int:
    if isinstance(ts, str):
        try:
            instant = datetime.fromisoformat(ts)
        except ValueError:
            raise ValueError(f"ts {ts!r} is neither ISO 8601 nor a number of seconds") from None
        if instant.tzinfo is None:
            instant = instant.replace(tzinfo=UTC)
        return round(instant.timestamp() * 1000)
    if not _FIRST_SECOND <= ts <= _LAST_SECOND:
        raise ValueError(f"ts {ts!r} is not within the years 1 to 9999; seconds are meant")
    return round(ts * 1000)


# -- the replay --------------------------------------------------------------------------------


async def replay(
    messages: Iterable[ChatMessage],
    config: RouterConfig = RouterConfig(),  # noqa: B008 - it is frozen
    *,
    on_progress: Callable[[int], object] = lambda messages: None,
) -> ReplayReport:
    """Play `messages` to a router of these settings, and measure.

    Each message does what a bot does with it: it sets the route of its room, and of its thread
    where it has one, and the reply to it is resolved. Since that reply can only hit, a late answer
    is resolved just before: see `LateAnswers`. It hardly disturbs what is measured, because the
    message sets the same routes again; only in a full partition may its use of a route save that
    route, for this moment, from making room.

    Time is the log's: it stands still between two messages, and prunes come when they would have
    come in production. Those between two messages are done as one, with the same result, and left
    out if there is nothing to prune. No call times out.

    Memory is bounded by the conversations of the log: which one was there before is remembered,
    to tell an expired route from one that never was.

    Args:
        messages: a `ChatLog`, or any other, in the order of time.
        config: the router's settings.
        on_progress: told every thousand messages how many were replayed.

    Raises:
        InvalidSessionKey: a message has none. (`ChatLog` gives no such message.)
    """
    started = perf_counter()
    clock = _LogClock()
    settings = msgspec.structs.asdict(config) | {"call_timeout_ms": _NEVER_MS}
    async with SessionRouter(**settings, clock=clock, name="replay") as router:
        run = _Run(router, clock)
        await run.play(messages, on_progress)
        return run.report(config, perf_counter() - started)


#: A timeout that is longer than any replay.
_NEVER_MS = 365 * 86_400_000


class _LogClock:
    """The time of the latest message. Who sleeps on it never wakes: the replay prunes by itself."""

    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> int:
        return self.now_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        await anyio.sleep_forever()


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


class _Run:
    """One replay under way."""

    def __init__(self, router: SessionRouter, clock: _LogClock) -> None:
        self._router = router
        self._clock = clock
        partitions = [router.partition(index) for index in range(router.partition_count)]
        self._partitions = [ref for ref in partitions if ref is not None]
        self._conversations: dict[SessionKey, _Conversation] = {}
        self._remembered = _Remembered(router.config)
        self._next_prune_ms = 0
        self._messages = 0
        self._first_ms = 0
        self._out_of_order = 0
        self._replies = _Tally()
        self._late_answers = _Tally()
        self._new = 0
        self._expired = 0
        self._evicted = 0
        self._away_ms = _Histogram()
        self._resolve_ns = _Histogram()
        self._entries = 0
        self._peak_entries = 0
        self._partition_entries = [0] * router.partition_count
        self._partition_peaks = [0] * router.partition_count

    async def play(
        self, messages: Iterable[ChatMessage], on_progress: Callable[[int], object]
    ) -> None:
        for message in messages:
            if message.at_ms != self._clock.now_ms:
                await self._move_to(message.at_ms)
            conversation = self._conversations.get(message.session_key)
            if conversation is None:
                conversation = self._meet(message.session_key)
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
        """Let the time of the log go by, and do the prune that comes last in it."""
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
            if self._remembered.forget_expired(clock.now_ms):
                await self._router.prune()
                for index in range(len(self._partitions)):
                    self._count_entries(index)
        clock.now_ms = at_ms

    def _meet(self, key: SessionKey) -> _Conversation:
        room = None
        if key.thread_id is not None:
            room = self._conversations.get(key.room_scope) or self._meet(key.room_scope)
        conversation = _Conversation(key, self._router.route_partition(key), room)
        self._conversations[key] = conversation
        return conversation

    async def _answer_late(self, conversation: _Conversation) -> None:
        now_ms, set_at_ms = self._clock.now_ms, conversation.set_at_ms
        found = await self._resolve(conversation, self._late_answers)
        if set_at_ms is None:
            self._new += 1
            return
        self._away_ms.add(now_ms - set_at_ms)
        if found is None or found.fallback:
            if now_ms - set_at_ms >= self._router.config.ttl_ms:
                self._expired += 1
            else:
                self._evicted += 1

    async def _resolve(self, conversation: _Conversation, tally: _Tally) -> Resolution | None:
        started = perf_counter_ns()
        try:
            resolution = await self._router.resolve(conversation.key)
        except NoRoute:
            self._resolve_ns.add(perf_counter_ns() - started)
            tally.misses += 1
            return None
        self._resolve_ns.add(perf_counter_ns() - started)
        if resolution.fallback:
            tally.thread_fallbacks += 1
        else:
            tally.hits += 1
        return resolution

    async def _set(self, conversation: _Conversation) -> None:
        await self._router.set(conversation.key, conversation.route)
        self._remembered.set(conversation, self._clock.now_ms)

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
        away_ms, resolve_ns = self._away_ms, self._resolve_ns
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
            replies=Outcomes(**vars(self._replies)),
            late_answers=LateAnswers(
                **vars(self._late_answers),
                new=self._new,
                expired=self._expired,
                evicted=self._evicted,
            ),
            needed_ttl=NeededTtl(
                p50_ms=_ttl_beyond(away_ms.quantile(0.50)),
                p90_ms=_ttl_beyond(away_ms.quantile(0.90)),
                p95_ms=_ttl_beyond(away_ms.quantile(0.95)),
                p99_ms=_ttl_beyond(away_ms.quantile(0.99)),
                max_ms=_ttl_beyond(away_ms.quantile(1.0)),
            ),
            resolve=Latency(
                p50_ns=resolve_ns.quantile(0.50) or 0,
                p99_ns=resolve_ns.quantile(0.99) or 0,
                max_ns=resolve_ns.quantile(1.0) or 0,
            ),
            partitions=tuple(
                PartitionReport(
                    entries=partition.entries,
                    peak_entries=self._partition_peaks[index],
                    needed_entries=self._remembered.peaks[index],
                    evicted=partition.evicted,
                )
                for index, partition in enumerate(stats.partitions)
            ),
        )


def _ttl_beyond(away_ms: int | None) -> int:
    """The TTL that outlasts an absence; 0 if there was none."""
    return 0 if away_ms is None else away_ms + 1


class _Tally:
    def __init__(self) -> None:
        self.hits = 0
        self.thread_fallbacks = 0
        self.misses = 0


class _Remembered:
    """What partitions without a capacity would hold: the conversations, last set last."""

    def __init__(self, config: RouterConfig) -> None:
        #: Most that each partition would have held.
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

    def forget_expired(self, now_ms: int) -> bool:
        """Prune; whether there was anything to prune."""
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
        self._buckets = [0] * (58 << 7)
        self._count = 0
        self._largest = 0

    def add(self, number: int) -> None:
        # A bucket is a number's seven bits after its first; up to 255 each has its own.
        shift = max(number.bit_length() - 8, 0)
        self._buckets[(shift << 7) + (number >> shift)] += 1
        self._count += 1
        if number > self._largest:
            self._largest = number

    def quantile(self, part: float) -> int | None:
        """A number that `part` of all are not above; `None` if there are none."""
        remaining = math.ceil(part * self._count)
        for index, count in enumerate(self._buckets):
            remaining -= count
            if count and remaining <= 0:
                shift = max((index >> 7) - 1, 0)
                upper_end = ((index - (shift << 7)) + 1 << shift) - 1
                return min(upper_end, self._largest)
        return None
