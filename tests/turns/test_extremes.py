"""Odd keys, large payloads, clocks that jump, many sessions, cancellation at every suspension."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.cancelling import cancel_at_suspension, forms
from tests.turns.bots import KEY, LIMIT, Bot, payloads, running, until
from trunkline import Inbox, TurnPolicy, Turns
from trunkline.contracts.inbox.samples import open_box, texts
from trunkline.errors import ConfigurationError, InvalidSessionKey
from trunkline.testing import ManualClock
from trunkline.turns import InboxAdapter
from trunkline.turns.memory import MemoryInboxAdapter
from trunkline.turns.sql import SQLInboxAdapter

HOUR_MS = 3_600_000


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'bot.db'}"


PARTS = [
    "42",
    " ",
    ":",
    "a:b",
    "%3A",
    "%",
    "\\",
    "'; DROP TABLE x; --",
    '"',
    "{42}",
    "*?[x]",
    "naïve ☃ 𝄞",
    "n\u0303",
    "ñ",
    "\n\t\r",
    "-1001234567890",
    "x" * 800,
]


async def test_session_keys_may_have_every_odd_character(url):
    bot = Bot()
    keys = [("telegram", "bot", part) for part in PARTS]
    keys += [("telegram", "bot", "42", part) for part in PARTS]
    keys += [("telegram", part, "42") for part in PARTS[1:]]
    async with running(url, bot) as (inbox, turns):
        for number, key in enumerate(keys):
            await inbox.accept(key, number)
            await inbox.accept(key, number, external_id=f"{key[-1]}"[:900])
        await turns.idle()
    handled = {}
    for turn in bot.turns:
        handled.setdefault(tuple(filter(None, turn.session_key)), []).extend(payloads(turn))
    assert handled == {key: [number, number] for number, key in enumerate(keys)}


@pytest.mark.parametrize("part", ["nul \0", "\ud800", "x" * 1_000])
async def test_a_session_key_that_cannot_be_stored_is_refused(part):
    async with Inbox("memory://") as inbox:
        for key in (("telegram", "bot", part), ("telegram", part, "42")):
            with pytest.raises((ConfigurationError, InvalidSessionKey)):
                await inbox.accept(key, "hi")
        with pytest.raises(ConfigurationError):
            await inbox.accept(KEY, "hi", external_id=part + part)
        assert (await inbox.counts()).sessions == 0


async def test_payloads_of_five_megabytes_are_handled(url):
    text, binary = "ü" * 2_500_000, bytes(5_000_000)
    bot = Bot()
    async with running(url, bot, TurnPolicy(while_busy="queue")) as (inbox, turns):
        await inbox.accept(KEY, text)
        await inbox.accept(KEY, {"file": binary})
        await turns.idle()
    assert bot.handled == [[text], [{"file": binary}]]


# -- clocks ------------------------------------------------------------------------------------


class WallClock(ManualClock):
    """A clock that an operator, or NTP, may set back as well."""

    def set_back_ms(self, duration_ms):
        self._now_ms -= duration_ms


@pytest.fixture
def clock():
    return WallClock(10**12)


@pytest.fixture(params=["memory", "sqlite"])
def adapter(request, tmp_path, clock):
    if request.param == "memory":
        return MemoryInboxAdapter(clock)
    return SQLInboxAdapter(f"sqlite:///{tmp_path / 'bot.db'}", clock)


async def recover(box):
    await box.call(None, InboxAdapter.recover)


async def test_a_clock_that_was_set_back_prolongs_no_quiet_wait(adapter, clock):
    async with open_box(adapter, TurnPolicy(quiet_ms=1_000)) as box:
        await box.put_all("one")
        clock.set_back_ms(HOUR_MS)
        await recover(box)
        assert await box.begin_all() == ["one"]


async def test_a_clock_that_was_set_back_a_little_ends_no_quiet_wait(adapter, clock):
    async with open_box(adapter, TurnPolicy(quiet_ms=1_000)) as box:
        await box.put_all("one")
        clock.set_back_ms(500)
        await recover(box)
        assert await box.claim() == []
        clock.advance_ms(1_500)
        assert await box.begin_all() == ["one"]


async def test_a_clock_that_was_set_back_prolongs_no_delay(adapter, clock):
    async with open_box(adapter) as box:
        await box.put("one", delay_ms=1_000)
        clock.set_back_ms(HOUR_MS)
        await recover(box)
        assert await box.begin_all() == ["one"]


async def test_a_clock_that_was_set_back_prolongs_no_wait_for_another_attempt(adapter, clock):
    async with open_box(adapter, TurnPolicy(retry_delay_ms=1_000)) as box:
        await box.put_all("one")
        await box.fail(await box.begin())
        clock.set_back_ms(HOUR_MS)
        await recover(box)
        again = await box.begin()
        assert (texts(again.items), again.attempt) == ("one", 2)


async def test_a_clock_that_was_set_back_keeps_the_order_of_items(adapter, clock):
    async with open_box(adapter) as box:
        await box.put_all("one")
        begun = await box.begin()
        await box.put_all("two")
        clock.set_back_ms(HOUR_MS)
        await box.put_all("three")
        await box.finish(begun)
        assert await box.begin_all() == ["two three"]


async def test_a_clock_that_jumps_ahead_begins_what_is_due_then(adapter, clock):
    async with open_box(adapter, TurnPolicy(quiet_ms=1_000)) as box:
        await box.put_all("one")
        await box.put("later", delay_ms=60_000)
        clock.advance_ms(HOUR_MS)
        assert await box.begin_all() == ["one later"]


async def test_recovery_leaves_what_is_due_later_by_a_clock_that_runs_on(adapter, clock):
    async with open_box(adapter) as box:
        await box.put("later", delay_ms=60_000)
        clock.advance_ms(1_000)
        assert await box.call(None, InboxAdapter.recover) == 0


async def test_turns_go_on_after_the_clock_was_set_back(url):
    clock, bot = WallClock(10**12), Bot()
    options = {"inbox_options": {"clock": clock}, "lease_ms": 60}
    async with running(url, bot, TurnPolicy(quiet_ms=30), **options) as (inbox, turns):
        await inbox.accept(KEY, "1")
        clock.set_back_ms(HOUR_MS)
        await turns.idle()
    assert bot.handled == [["1"]]


# -- cancellation ------------------------------------------------------------------------------


async def test_an_accept_may_be_cancelled_at_every_suspension(url):
    """Its item is handled once, or was never accepted; the session goes on."""
    handled = []

    async def answer(turn):
        handled.extend(payloads(turn))

    sessions = 0
    async with running(url, answer) as (inbox, turns):
        for form in forms():
            number = 0
            reached = True
            while reached:
                number += 1
                key = ("telegram", form, str(number))
                reached = await cancel_at_suspension(
                    number, form, lambda key=key: inbox.accept(key, key)
                )
                await inbox.accept(key, "after")
                sessions += 1
        await turns.idle()
        assert handled.count("after") == sessions
        assert await inbox.list("running") == []
    accepted = [tuple(one) for one in handled if one != "after"]
    assert len(accepted) == len(set(accepted))


async def test_a_step_may_be_cancelled_at_every_suspension(url):
    """The turn goes on, and a step that is used again under its name returns its result."""

    async def answer(turn):
        for form in forms():
            number = 0
            reached = True
            while reached:
                number += 1
                name = f"{form} {number}"
                reached = await cancel_at_suspension(
                    number, form, lambda name=name: turn.step(name, give, name)
                )
                again = await turn.step(name, give, name)
                assert again == name
        assert turn.take() == ()

    async def give(value):
        await checkpoint()
        return value

    policy = TurnPolicy(while_busy="steer", max_attempts=1)
    async with running(url, answer, policy) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await turns.idle()
        assert await inbox.list("failed") == []


# -- many --------------------------------------------------------------------------------------


async def test_reminders_that_were_cancelled_leave_nothing_behind():
    async with Inbox("memory://") as inbox:
        for number in range(1_000):
            key = ("telegram", "bot", str(number % 10))
            await inbox.accept(key, "remind", delay_ms=HOUR_MS)
            await inbox.cancel(key)
        assert (await inbox.counts()).sessions == 0
        adapter: Any = inbox.adapter
        assert len(adapter._heap) <= 100


async def test_no_item_that_comes_as_a_turn_ends_waits_for_another_one():
    """A lease of ten minutes, so that no scan can hide a lost wake-up."""
    sessions, rounds = 50, 40
    handled = []

    async def answer(turn):
        handled.extend(payloads(turn))
        await checkpoint()

    async def send(number):
        for count in range(rounds):
            await inbox.accept(("telegram", "bot", str(number)), (number, count))
            for _ in range(count % 4):
                await checkpoint()

    async with running("memory://", answer, lease_ms=600_000) as (inbox, turns):
        async with anyio.create_task_group() as task_group:
            for number in range(sessions):
                task_group.start_soon(send, number)
        await turns.idle()
    assert len(handled) == sessions * rounds
    for number in range(sessions):
        assert [one for one in handled if one[0] == number] == [
            (number, count) for count in range(rounds)
        ]


@pytest.mark.parametrize(
    ("anyio_backend", "count"),
    [
        ("asyncio", 1_000),
        ("trio", 1_000),
        pytest.param("asyncio", 100_000, marks=pytest.mark.slow),
    ],
)
async def test_sessions_that_were_handled_leave_nothing_behind(count):
    clock = ManualClock(10**12)

    async def answer(turn):
        await turn.step("greet", checkpoint)

    async def handle(first, last):
        for start in range(first, last, 500):
            for number in range(start, min(start + 500, last)):
                await inbox.accept(("telegram", "bot", str(number)), "hi", external_id=1)
            with anyio.fail_after(LIMIT):
                await turns.idle()
        clock.advance_ms(2 * 86_400_000)
        while await inbox._write(None, InboxAdapter.sweep, 1_000):
            await checkpoint()

    async with Inbox("memory://", clock=clock) as inbox, Turns(inbox, answer) as turns:
        await handle(0, 500)
        tasks = count_tasks()
        gc.collect()
        before = len(gc.get_objects())
        await handle(500, 500 + count)
        gc.collect()
        after = len(gc.get_objects())
        adapter: Any = inbox.adapter
        runner: Any = turns._runner
        left = [
            adapter._sessions,
            adapter._rows,
            adapter._failed,
            adapter._marks,
            adapter._short_marks,
            adapter._steps,
            adapter._due,
            runner._running,
            runner._early,
        ]
        assert [len(one) for one in left] == [0] * len(left)
        assert not any(adapter._claims.values())
        assert len(adapter._heap) <= 100
        assert count_tasks() <= tasks
    # Session keys and their texts are cached, up to 16,384 of each.
    assert after - before < 1_000 + 4 * min(count, 16_384)


def count_tasks():
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0  # on trio


async def test_at_most_max_running_turns_run_at_once(url):
    now = most = 0

    async def answer(_):
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == 3:
            full.set()
        await full.wait()
        await anyio.sleep(0.001)  # time for a fourth one
        now -= 1

    full = anyio.Event()
    policy = TurnPolicy(while_busy="concurrent")
    async with running(url, answer, policy, max_running=3) as (inbox, turns):
        for number in range(30):
            await inbox.accept(("telegram", "bot", str(number % 7)), number)
        await turns.idle()
        assert turns.stats().events["finished"] == 30
    assert most == 3


async def test_turns_of_a_session_never_overlap(url):
    running_now = set()

    async def answer(turn):
        assert turn.session_key not in running_now
        running_now.add(turn.session_key)
        await anyio.sleep(0.001)
        running_now.remove(turn.session_key)
        if turn.attempt == 1 and turn.items[0].payload % 5 == 0:
            raise ValueError("once more")

    policy = TurnPolicy(while_busy="queue", retry_delay_ms=1)
    async with running(url, answer, policy) as (inbox, turns):
        for number in range(60):
            await inbox.accept(("telegram", "bot", str(number % 4)), number)
            await checkpoint()
        await until(lambda: turns.stats().events.get("finished", 0) == 60)
        assert turns.stats().events.get("failed", 0) == 0
