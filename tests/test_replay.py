from __future__ import annotations

import gzip
import json
import math
import random
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from trunkline import Route, SessionKey, SessionRouter
from trunkline.errors import InvalidSessionKey, NoRoute, StoreUnavailable
from trunkline.persistence import PersistenceStore, Thread
from trunkline.persistence.sql import SQLPersistenceAdapter
from trunkline.replay import ChatLog, ChatMessage, LateAnswers, Outcomes, replay
from trunkline.replay.history import History
from trunkline.routing import RouterConfig
from trunkline.testing import ManualClock

MINUTE_MS = 60_000
ROOM = SessionKey("irc", "libera", "#python")
THREAD = ROOM._replace(thread_id="t1")
REAL_LOG = Path(__file__).parents[2] / "shared" / "data" / "ubuntu-irc.train.jsonl.gz"


def messages(*minutes_and_keys):
    """Minutes in `ROOM`, or pairs of a minute and a key."""
    pairs = [pair if isinstance(pair, tuple) else (pair, ROOM) for pair in minutes_and_keys]
    return [ChatMessage(round(minute * MINUTE_MS), key) for minute, key in pairs]


def random_messages(seed, count=600):
    chance = random.Random(seed)
    at_ms, result = 0, []
    for _ in range(count):
        at_ms += chance.choice((0, 0, 1_000, 7_000, 20_000, 60_000, 40 * MINUTE_MS))
        room = SessionKey("irc", "libera", f"#{int(chance.expovariate(0.15))}")
        thread_id = chance.choice((None, None, None, "t1", "t2", "t3"))
        result.append(ChatMessage(at_ms, room._replace(thread_id=thread_id)))
    return result


def line(**fields):
    message = {
        "ts": "2024-05-01T12:00:00Z",
        "channel": "irc",
        "bridge_id": "libera",
        "room_id": "#python",
        "thread_id": None,
        "user_id": "ada",
        "text": "hello",
    }
    return json.dumps(message | fields)


# -- what a late answer finds ------------------------------------------------------------------


async def test_every_message_is_a_reply_that_hits_and_a_late_answer():
    report = await replay(messages(0, 1, 2, (3, THREAD)))
    assert report.messages == 4
    assert report.resolves == 8
    assert report.replies == Outcomes(hits=4)


async def test_the_first_message_of_a_conversation_has_no_late_answer_to_find():
    report = await replay(messages(0))
    assert report.late_answers == LateAnswers(misses=1, new=1)


async def test_a_route_is_found_until_its_ttl_is_over():
    config = RouterConfig(ttl_ms=30 * MINUTE_MS, prune_interval_ms=1_000 * MINUTE_MS)
    report = await replay(messages(0, 29.999, 59.999), config)
    assert report.late_answers == LateAnswers(hits=1, misses=2, new=1, expired=1)
    assert report.stale == 1


async def test_a_pruned_route_is_expired_and_not_stale():
    config = RouterConfig(ttl_ms=30 * MINUTE_MS, prune_interval_ms=1_000)
    report = await replay(messages(0, 31), config)
    assert report.late_answers == LateAnswers(misses=2, new=1, expired=1)
    assert (report.pruned, report.stale) == (1, 0)


async def test_a_route_that_made_room_for_others_is_evicted_and_not_expired():
    config = RouterConfig(partition_count=1, max_entries_per_partition=2)
    others = [(1 + n, ROOM._replace(room_id=f"#{n}")) for n in range(2)]
    report = await replay(messages(0, *others, 3), config)
    assert report.late_answers == LateAnswers(misses=4, new=3, evicted=1)
    assert report.evicted == 2


async def test_a_new_thread_falls_back_to_its_room():
    report = await replay(messages(0, (1, THREAD)))
    assert report.late_answers == LateAnswers(thread_fallbacks=1, misses=1, new=2)
    assert report.thread_fallbacks == 1


async def test_a_message_in_a_thread_sets_the_route_of_its_room():
    report = await replay(messages((0, THREAD), 1))
    assert report.late_answers == LateAnswers(hits=1, misses=1, new=1)
    assert report.sets == 3


async def test_an_expired_thread_falls_back_to_its_busy_room():
    config = RouterConfig(ttl_ms=30 * MINUTE_MS)
    report = await replay(messages((0, THREAD), 20, (40, THREAD)), config)
    assert report.late_answers == LateAnswers(
        hits=1, thread_fallbacks=1, misses=1, new=1, expired=1
    )


async def test_kept_is_the_part_of_returning_conversations_that_found_their_route():
    config = RouterConfig(ttl_ms=30 * MINUTE_MS)
    report = await replay(messages(0, 10, 20, 30, 90), config)
    assert report.late_answers.kept == 3 / 4


async def test_kept_is_whole_where_nobody_came_back():
    assert (await replay(messages(0))).late_answers.kept == 1.0


# -- the same as in production -----------------------------------------------------------------


class WatchedClock(ManualClock):
    """Tells when the router's prune has gone back to sleep."""

    def __init__(self, start_ms):
        super().__init__(start_ms)
        self.asleep = anyio.Event()

    async def sleep_ms(self, duration_ms):
        self.asleep.set()
        await super().sleep_ms(duration_ms)


async def drive(log, config, *, late_answers):
    """The messages as a bot in production handles them, with the router's own prune timer."""
    clock = WatchedClock(log[0].at_ms)
    peak = 0
    async with SessionRouter(
        partition_count=config.partition_count,
        ttl_ms=config.ttl_ms,
        max_entries_per_partition=config.max_entries_per_partition,
        prune_interval_ms=config.prune_interval_ms,
        stale_retention_ms=config.stale_retention_ms,
        clock=clock,
    ) as router:
        await clock.asleep.wait()
        next_prune_ms = log[0].at_ms + config.prune_interval_ms
        counts = {"hits": 0, "thread_fallbacks": 0, "misses": 0}
        for message in log:
            while next_prune_ms <= message.at_ms:
                clock.asleep = anyio.Event()
                clock.advance_ms(next_prune_ms - clock())
                await clock.asleep.wait()
                next_prune_ms += config.prune_interval_ms
            clock.advance_ms(message.at_ms - clock())
            key = message.session_key
            if late_answers:
                try:
                    found = await router.resolve(key)
                    counts["thread_fallbacks" if found.fallback else "hits"] += 1
                except NoRoute:
                    counts["misses"] += 1
            await router.set(key.room_scope, Route(1))
            if key.thread_id is not None:
                await router.set(key, Route(1))
            await router.resolve(key)
            peak = max(peak, router.stats().total.entries)
        return router.stats(), Outcomes(**counts), peak


CONFIGS = [
    RouterConfig(partition_count=3, ttl_ms=5 * MINUTE_MS, prune_interval_ms=30_000),
    RouterConfig(partition_count=3, ttl_ms=5 * MINUTE_MS, max_entries_per_partition=4),
    RouterConfig(partition_count=2, ttl_ms=10_000, prune_interval_ms=7 * MINUTE_MS),
    RouterConfig(partition_count=3, ttl_ms=20_000, prune_interval_ms=15_000),
    RouterConfig(partition_count=2, ttl_ms=60_000, stale_retention_ms=45_000),
]


@pytest.mark.parametrize("config", CONFIGS)
async def test_a_replay_counts_what_production_would_have_counted(config):
    log = random_messages(1)
    report = await replay(log, config)
    stats, late, peak = await drive(log, config, late_answers=True)
    total = stats.total
    for name in ("hits", "thread_fallbacks", "misses", "stale", "sets", "evicted", "pruned"):
        assert getattr(report, name) == getattr(total, name), name
    found = report.late_answers
    assert (found.hits, found.thread_fallbacks, found.misses) == (
        late.hits,
        late.thread_fallbacks,
        late.misses,
    )
    assert report.peak_entries == peak
    assert [one.entries for one in report.partitions] == [one.entries for one in stats.partitions]
    assert report.pruned or report.evicted


@pytest.mark.parametrize("config", [one for one in CONFIGS if one.max_entries_per_partition > 4])
async def test_late_answers_do_not_change_what_partitions_with_room_hold(config):
    log = random_messages(2)
    report = await replay(log, config)
    stats, _, peak = await drive(log, config, late_answers=False)
    assert (report.sets, report.peak_entries) == (stats.total.sets, peak)
    assert [one.entries for one in report.partitions] == [one.entries for one in stats.partitions]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("config", CONFIGS)
async def test_the_counts_add_up(config, seed):
    report = await replay(random_messages(seed), config)
    late = report.late_answers
    assert report.resolves == 2 * report.messages
    assert report.hits + report.thread_fallbacks + report.misses == report.resolves
    assert late.hits + late.thread_fallbacks + late.misses == report.messages
    assert late.hits + late.new + late.expired + late.evicted == report.messages
    assert report.hits == late.hits + report.replies.hits
    assert late.new <= report.rooms + report.threads
    assert bool(late.evicted) <= bool(report.evicted)
    assert sum(one.evicted for one in report.partitions) == report.evicted
    assert all(
        one.entries <= one.peak_entries <= config.max_entries_per_partition
        for one in report.partitions
    )
    assert max(one.peak_entries for one in report.partitions) <= report.peak_entries


async def test_a_prune_removes_what_expires_at_its_very_instant():
    config = RouterConfig(ttl_ms=30 * MINUTE_MS, prune_interval_ms=10 * MINUTE_MS)
    elsewhere = ROOM._replace(room_id="#rust")
    assert (await replay(messages(0, (30, elsewhere)), config)).pruned == 1
    assert (await replay(messages(0, (29, elsewhere)), config)).pruned == 0


async def test_a_gap_of_years_costs_one_prune(monkeypatch):
    prunes = []
    prune = SessionRouter.prune

    async def counted_prune(router):
        prunes.append(await prune(router))
        return prunes[-1]

    monkeypatch.setattr(SessionRouter, "prune", counted_prune)
    years = 5 * 365 * 24 * 60
    report = await replay(messages(0, years, 2 * years))
    assert [one.pruned for one in prunes] == [1, 1]
    assert report.pruned == 2


async def test_a_prune_that_would_find_nothing_is_left_out(monkeypatch):
    async def no_prune(router):
        raise AssertionError("there is nothing to prune")

    monkeypatch.setattr(SessionRouter, "prune", no_prune)
    config = RouterConfig(ttl_ms=10 * MINUTE_MS, prune_interval_ms=1_000)
    report = await replay(messages(*range(0, 90, 9)), config)
    assert report.late_answers.hits == 9


# -- time --------------------------------------------------------------------------------------


async def test_time_stands_still_for_messages_that_go_back_in_time():
    config = RouterConfig(ttl_ms=30 * MINUTE_MS)
    report = await replay(messages(0, 20, 5, -1_000, 49, 21), config)
    assert report.out_of_order == 3
    assert report.late_answers == LateAnswers(hits=5, misses=1, new=1)
    assert (report.first_ms, report.last_ms) == (0, 49 * MINUTE_MS)


async def test_a_log_may_lie_before_1970():
    config = RouterConfig(ttl_ms=30 * MINUTE_MS)
    report = await replay(messages(-1_000, -990, -900), config)
    assert report.late_answers == LateAnswers(hits=1, misses=2, new=1, expired=1)
    assert (report.first_ms, report.last_ms) == (-1_000 * MINUTE_MS, -900 * MINUTE_MS)


# -- the advice --------------------------------------------------------------------------------


async def test_the_needed_ttl_is_the_time_until_a_conversation_came_back():
    gaps = list(range(1, 1_001))
    random.Random(3).shuffle(gaps)
    minutes = [0]
    for gap in gaps:
        minutes.append(minutes[-1] + gap)
    needed = (await replay(messages(*minutes))).needed_ttl
    for needed_ms, gap in (
        (needed.p50_ms, 500),
        (needed.p90_ms, 900),
        (needed.p95_ms, 950),
        (needed.p99_ms, 990),
    ):
        assert gap * MINUTE_MS < needed_ms <= math.ceil(gap * MINUTE_MS * 1.01)
    assert needed.max_ms == 1_000 * MINUTE_MS + 1


@pytest.mark.parametrize("seed", range(4))
async def test_the_needed_ttl_keeps_what_it_promises(seed):
    log = random_messages(seed)
    needed = (await replay(log, RouterConfig(ttl_ms=1))).needed_ttl
    for ttl_ms, part in ((needed.p50_ms, 0.5), (needed.p90_ms, 0.9), (needed.max_ms, 1.0)):
        assert (await replay(log, RouterConfig(ttl_ms=ttl_ms))).late_answers.kept >= part


@pytest.mark.parametrize("seed", range(4))
async def test_the_needed_capacity_is_just_enough_to_evict_nothing(seed):
    log = random_messages(seed)

    def config(capacity):
        return RouterConfig(partition_count=2, max_entries_per_partition=capacity)

    needed = (await replay(log, config(3))).needed_entries
    assert (await replay(log, config(needed))).evicted == 0
    assert (await replay(log, config(needed - 1))).evicted > 0


async def test_a_log_in_which_nobody_came_back_needs_no_ttl():
    assert (await replay(messages(0))).needed_ttl.max_ms == 0


async def test_the_latency_of_every_resolve_is_measured():
    latency = (await replay(random_messages(1))).resolve
    assert 0 < latency.p50_ns <= latency.p99_ns <= latency.max_ns


# -- around it ---------------------------------------------------------------------------------


async def test_no_messages_give_an_empty_report():
    report = await replay([])
    assert (report.messages, report.resolves, report.peak_entries) == (0, 0, 0)
    assert report.resolve.max_ns == 0
    assert len(report.partitions) == report.config.partition_count


async def test_progress_is_reported_every_thousand_messages():
    told = []
    await replay(random_messages(1, count=2_500), on_progress=told.append)
    assert told == [1_000, 2_000]


async def test_a_message_without_a_valid_key_is_refused():
    with pytest.raises(InvalidSessionKey, match="room_id"):
        await replay([ChatMessage(0, SessionKey("irc", "libera", ""))])


# -- reading a log -----------------------------------------------------------------------------


def read(tmp_path, *lines, name="log.jsonl"):
    """The messages of a file of these lines, the log, and what it told of problems."""
    file = tmp_path / name
    file.write_bytes(b"".join(_as_bytes(line) + b"\n" for line in lines))
    problems: list[str] = []
    log = ChatLog(file, on_problem=problems.append)
    return list(log), log, problems


def _as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


def test_a_line_is_a_message(tmp_path):
    found, log, problems = read(tmp_path, line(thread_id="t1"))
    assert found == [ChatMessage(1_714_564_800_000, THREAD)]
    assert (problems, log.broken_lines) == ([], 0)


@pytest.mark.parametrize(
    ("ts", "at_ms"),
    [
        ("2024-05-01T12:00:00Z", 1_714_564_800_000),
        ("2024-05-01T14:00:00+02:00", 1_714_564_800_000),
        ("2024-05-01T06:30:00-0530", 1_714_564_800_000),
        ("2024-05-01T12:00:00", 1_714_564_800_000),
        ("2024-05-01 12:00:00.250Z", 1_714_564_800_250),
        ("2024-05-01T12:00Z", 1_714_564_800_000),
        (1_714_564_800, 1_714_564_800_000),
        (1_714_564_800.25, 1_714_564_800_250),
        (0, 0),
        (-1.5, -1_500),
    ],
)
def test_ts_is_iso_8601_or_seconds(tmp_path, ts, at_ms):
    found, _, problems = read(tmp_path, line(ts=ts))
    assert problems == []
    assert [message.at_ms for message in found] == [at_ms]


def test_thread_user_and_text_may_be_left_out(tmp_path):
    text = '{"ts": 0, "channel": "irc", "bridge_id": "libera", "room_id": "#python"}'
    found, _, problems = read(tmp_path, text)
    assert (found, problems) == ([ChatMessage(0, ROOM)], [])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("hello", "malformed"),
        ('{"ts": 0', "truncated"),
        ("[]", "Expected `object`"),
        (line() + line(), "trailing characters"),
        ('{"ts": 0, "channel": "irc", "bridge_id": "libera"}', "`room_id`"),
        (line(ts="yesterday"), "'yesterday' is neither ISO 8601 nor a number of seconds"),
        (line(ts=True), "$.ts"),
        (line(ts=None), "$.ts"),
        (line(ts=1_714_564_800_000), "seconds are meant"),
        (line(ts=10**40), "seconds are meant"),
        (line(room_id=""), "$.room_id"),
        (line(channel=7), "$.channel"),
        (line(bridge_id=None), "$.bridge_id"),
        (line(thread_id=7), "$.thread_id"),
        (line(room_id="\ud800"), "malformed"),
        (line(text="x").encode().replace(b'"x"', b'"\xff"'), "not UTF-8"),
        (line(room_id="x").encode().replace(b'"x"', b'"\xff"'), "not UTF-8"),
        ('{"text": ' + "[" * 100_000, "recursion"),
    ],
)
def test_a_broken_line_is_reported_with_its_number_and_skipped(tmp_path, broken, reason):
    found, log, problems = read(tmp_path, line(), broken, line())
    assert len(found) == 2
    assert log.broken_lines == 1
    [problem] = problems
    assert problem.startswith(f"{tmp_path}/log.jsonl:2: ")
    assert reason in problem
    assert "\n" not in problem


def test_empty_lines_windows_line_ends_and_a_byte_order_mark_are_no_problem(tmp_path):
    found, _, problems = read(
        tmp_path, b"\xef\xbb\xbf" + line().encode() + b"\r", "", "  ", line(), ""
    )
    assert (len(found), problems) == (2, [])


def test_the_last_line_needs_no_line_end(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text(line() + "\n" + line())
    assert len(list(ChatLog(file))) == 2


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("trunkline.replay.log._LONGEST_LINE", 1 << 20)
    exactly_as_long = line(text="x" * ((1 << 20) - len(line(text="")) - 1))
    assert len(exactly_as_long) == (1 << 20) - 1
    too_long = line(text="x" * (5 << 20))
    found, _, problems = read(tmp_path, line(), too_long, exactly_as_long, line())
    assert len(found) == 3
    assert problems == [f"{tmp_path}/log.jsonl:2: the line is longer than 1 MiB"]


@pytest.mark.parametrize("name", ["log.jsonl.gz", "log.jsonl", "log"])
def test_a_gzipped_file_is_known_by_what_is_in_it(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(line().encode()))
    assert list(ChatLog(tmp_path / name)) == [ChatMessage(1_714_564_800_000, ROOM)]


def test_files_are_read_one_after_another(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text(line(ts=number))
    log = ChatLog(*sorted(tmp_path.iterdir()))
    assert [message.at_ms for message in log] == [0, 1_000, 2_000]


def test_a_file_that_cannot_be_read_is_reported_and_skipped(tmp_path):
    good = tmp_path / "good.jsonl"
    good.write_text(line())
    problems = []
    log = ChatLog(tmp_path / "missing.jsonl", tmp_path, good, on_problem=problems.append)
    assert len(list(log)) == 1
    assert log.unreadable_files == 2
    assert problems == [
        f"{tmp_path}/missing.jsonl: No such file or directory",
        f"{tmp_path}: Is a directory",
    ]


def test_what_stands_before_a_damage_is_read(tmp_path):
    lines = "\n".join(line(ts=n, text=random.Random(n).randbytes(40).hex()) for n in range(10_000))
    whole = gzip.compress(lines.encode())
    (tmp_path / "log.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    problems = []
    log = ChatLog(tmp_path / "log.jsonl.gz", on_problem=problems.append)
    found = list(log)
    assert 4_000 < len(found) < 6_000
    assert [message.at_ms for message in found] == [n * 1_000 for n in range(len(found))]
    assert log.unreadable_files == 1
    assert problems[-1].startswith(f"{tmp_path}/log.jsonl.gz: damaged gzip: ")


def test_bytes_read_grow_to_the_size(tmp_path):
    plain, zipped = tmp_path / "plain.jsonl", tmp_path / "zipped.jsonl.gz"
    lines = "".join(line(ts=n) + "\n" for n in range(5_000))
    plain.write_text(lines)
    zipped.write_bytes(gzip.compress(lines.encode()))
    log = ChatLog(plain, zipped)
    assert log.size == plain.stat().st_size + zipped.stat().st_size
    seen = [log.bytes_read for _ in log]
    assert seen == sorted(seen)
    assert seen[0] < plain.stat().st_size < seen[-1] <= log.size
    assert log.bytes_read == log.size


def test_a_pipe_has_no_size():
    assert ChatLog("-").size is None


def test_a_log_can_be_read_again(tmp_path):
    first, log, _ = read(tmp_path, line(), "broken")
    assert list(log) == first
    assert (log.broken_lines, log.bytes_read) == (1, log.size)


def test_contents_are_read_if_they_are_asked_for(tmp_path):
    file = tmp_path / "log.jsonl"
    lines = [line(thread_id="t1"), line(user_id=7, text=None), line(text=["no text"]), line()]
    file.write_text("\n".join(lines))
    problems: list[str] = []
    log = ChatLog(file, contents=True, on_problem=problems.append)
    assert [(one.user_id, one.text) for one in log] == [
        ("ada", "hello"),
        (7, None),
        ("ada", "hello"),
    ]
    assert log.broken_lines == 1
    assert "$.text" in problems[0]


# -- saving a log ------------------------------------------------------------------------------


def said(text, at_ms=0, key=ROOM, user_id="ada"):
    return ChatMessage(at_ms, key, user_id, text)


CHAT = [
    said("Grüße \0"),
    said("hello", 5, THREAD, "bob"),
    said("hello", 5, THREAD, "bob"),
    said("again", 5, THREAD),
    said(None, 6, ROOM._replace(room_id="#rust"), None),
    said("late", 2, user_id=7),
]


async def save(store, messages):
    problems: list[str] = []
    async with History(store, on_problem=problems.append) as history:
        for message in messages:
            await history.save(message)
    assert problems == []
    return history.stored()


async def everything(store):
    """All that a store holds, by kind and id."""
    return {
        kind: dict(await store.scan(kind))
        for kind in ("rooms", "participants", "threads", "messages", "room_bindings")
    }


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def store(request, tmp_path):
    """A store on each database."""
    urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/log.db"}
    url = urls.get(request.param) or request.getfixturevalue("postgres_url")
    async with PersistenceStore(url) as store:
        yield store


async def test_a_log_is_saved_with_its_rooms_participants_and_threads(store):
    stored = await save(store, CHAT)
    assert (stored.rooms, stored.participants, stored.threads, stored.messages) == (2, 3, 1, 6)
    assert (stored.new_rooms, stored.new_participants, stored.new_threads) == (2, 3, 1)
    assert (stored.new_messages, stored.refused) == (6, 0)
    room = await store.get_room_by_external_binding("irc", "libera", "#python")
    thread = await store.get_thread_by_external_id(room.id, "t1")
    [bob] = await store.directory_search("participant", {"channel": "irc", "external_id": "bob"})
    assert (room.name, room.type, bob.identity) == ("#python", "group", {"name": "bob"})
    [first, *_] = await store.get_messages(room.id, thread_id=thread.id)
    assert (first.content, first.sender_id, first.status) == ("hello", bob.id, "delivered")
    assert first.external_thread_id == "t1"
    assert first.metadata == {"channel": "irc", "bridge_id": "libera"}
    assert first.inserted_at == first.updated_at == datetime(1970, 1, 1, 0, 0, 0, 5_000, tzinfo=UTC)
    rust = await store.get_room_by_external_binding("irc", "libera", "#rust")
    [silent] = await store.get_messages(rust.id)
    assert (silent.content, silent.sender_id, silent.thread_id) == ([], None, None)


async def test_saving_a_log_again_doubles_nothing(store):
    await save(store, CHAT)
    before = await everything(store)
    stored = await save(store, CHAT)
    assert await everything(store) == before
    assert (stored.messages, stored.new_messages) == (6, 0)
    assert (stored.new_rooms, stored.new_participants, stored.new_threads) == (0, 0, 0)


async def test_a_longer_log_adds_what_is_new(store):
    elsewhere = ROOM._replace(room_id="#elsewhere")
    await save(store, CHAT[:3])
    stored = await save(store, [said("first of all", 5, elsewhere), *CHAT])
    assert (stored.messages, stored.new_messages) == (7, 4)
    assert (stored.new_rooms, stored.new_threads, stored.new_participants) == (2, 0, 1)


async def test_strangers_without_a_user_id_are_not_one_participant(store):
    stored = await save(store, [said("one", 1, user_id=""), said("two", 2, user_id="")])
    assert (stored.messages, stored.participants, stored.new_participants) == (2, 0, 0)


async def test_messages_of_one_instant_stay_in_the_order_of_the_log(store):
    texts = [f"{number}" for number in random.Random(4).sample(range(900), 300)]
    await save(store, [said(text, 1_000) for text in texts])
    room = await store.get_room_by_external_binding("irc", "libera", "#python")
    assert [one.content for one in await store.get_messages(room.id, limit=1_000)] == texts


async def test_a_log_from_before_1970_is_saved_too(store):
    await save(store, [said("b", -1), said("a", -(10**12))])
    room = await store.get_room_by_external_binding("irc", "libera", "#python")
    assert [one.content for one in await store.get_messages(room.id)] == ["a", "b"]


async def test_newest_messages_have_the_highest_ids(store):
    await save(store, random_messages(1, count=200))
    newest = await store.scan("messages", limit=50, newest_first=True)
    times = [message.inserted_at for _, message in newest]
    milliseconds = [one.replace(microsecond=one.microsecond // 1000 * 1000) for one in times]
    assert milliseconds == sorted(milliseconds, reverse=True)


async def test_what_is_in_the_store_already_is_found_and_left_as_it_is(store):
    room = await store.get_or_create_room_by_external_binding(
        "irc", "libera", "#python", {"name": "Snakes"}
    )
    ada = await store.get_or_create_participant_by_external_id(
        "irc", "ada", {"identity": {"name": "Ada Lovelace"}}
    )
    thread = await store.save_thread(Thread.new(room_id=room.id, external_thread_id="t1"))
    stored = await save(store, [said("hello", 5, THREAD)])
    assert (stored.new_rooms, stored.new_participants, stored.new_threads) == (0, 0, 0)
    [message] = await store.get_messages(room.id)
    assert (message.sender_id, message.thread_id) == (ada.id, thread.id)
    assert (await store.get_room(room.id), await store.get_participant(ada.id)) == (room, ada)


async def test_what_no_database_can_hold_is_reported_and_counted_and_the_rest_saved(store):
    problems = []
    bad_room = ROOM._replace(room_id="#\0")
    async with History(store, on_problem=problems.append) as history:
        for message in (
            said("1", key=bad_room),
            said("2", key=bad_room),
            said("3", user_id="\0"),
            said("4", key=ROOM._replace(thread_id="\0")),
            said("5"),
        ):
            await history.save(message)
    stored = history.stored()
    assert (stored.messages, stored.refused) == (1, 4)
    assert (stored.rooms, stored.participants, stored.threads) == (1, 1, 0)
    assert len(problems) == 4
    assert all("cannot be stored" in problem and "\n" not in problem for problem in problems)


class CountedAdapter(SQLPersistenceAdapter):
    """Counts its transactions that write."""

    commits = 0

    def transaction(self, *, read_only=False):
        self.commits += not read_only
        return super().transaction(read_only=read_only)


async def test_messages_share_commits(tmp_path):
    adapter = CountedAdapter(f"sqlite:///{tmp_path}/log.db")
    async with PersistenceStore(adapter=adapter) as store:
        await save(store, random_messages(1, count=2_000))
        assert (await store.counts())["messages"] == 2_000
    assert adapter.commits < 100


async def test_a_store_that_fails_ends_the_saving(tmp_path):
    class FailingAdapter(SQLPersistenceAdapter):
        def save_inbound(self, inbound):
            raise StoreUnavailable("the disk is gone")

        def save_inbounds(self, inbounds):
            raise StoreUnavailable("the disk is gone")

    adapter = FailingAdapter(f"sqlite:///{tmp_path}/log.db")
    async with PersistenceStore(adapter=adapter) as store:
        with pytest.raises(StoreUnavailable, match="the disk is gone"):
            await save(store, CHAT)


async def test_a_replay_hands_over_each_message_and_does_not_count_the_time(monkeypatch):
    seconds = 0.0
    heard = []

    def tick():
        nonlocal seconds
        seconds += 0.001
        return seconds

    async def hear(message):
        nonlocal seconds
        heard.append(message)
        seconds += 1_000.0

    monkeypatch.setattr("trunkline.replay.player.perf_counter", tick)
    log = random_messages(1, count=20)
    report = await replay(log, on_message=hear)
    assert heard == log
    assert 0 < report.elapsed_ms < 1_000
    assert report.resolves == 40


# -- the real thing ----------------------------------------------------------------------------


@pytest.mark.skipif(not REAL_LOG.exists(), reason=f"there is no {REAL_LOG}")
def test_a_real_log_of_196_146_messages_is_replayed_whole():
    config = RouterConfig(max_entries_per_partition=20)
    log = ChatLog(REAL_LOG)
    report = anyio.run(replay, log, config)
    late = report.late_answers
    assert (log.broken_lines, log.unreadable_files) == (0, 0)
    assert report.messages == 196_146
    assert (report.rooms, report.threads, report.out_of_order) == (1, 9_164, 0)
    assert report.sets == 196_146 + 59_827
    assert report.hits + report.thread_fallbacks + report.misses == 2 * 196_146
    assert late.hits + late.new + late.expired + late.evicted == 196_146
    assert report.replies == Outcomes(hits=196_146)
    assert report.peak_entries == 20
    assert late.evicted > 0
