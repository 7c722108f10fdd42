"""Events with their fields, counters, idle, serve."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter

import anyio
import pytest

from tests.turns.bots import KEY, LIMIT, Bot, running, until
from trunkline import Inbox, TurnPolicy, Turns
from trunkline.routing.key import SessionKey
from trunkline.turns import TurnEvent


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'bot.db'}"


class Heard(list):
    """Events, in the order in which they came."""

    def __init__(self, turns):
        super().__init__()
        turns.events.subscribe(self.append)

    @property
    def names(self):
        return [event.name for event in self]

    def one(self, name):
        (event,) = [event for event in self if event.name == name]
        return event


async def test_a_turn_that_is_handled_is_three_events(url):
    bot = Bot()
    async with running(url, bot) as (inbox, turns):
        heard = Heard(turns)
        receipt = await inbox.accept(KEY, "1", external_id=1)
        await turns.idle()
        await inbox.accept(KEY, "1", external_id=1)
    assert heard.names == ["accepted", "started", "finished", "duplicate"]
    for event in heard:
        assert isinstance(event, TurnEvent)
        assert event.instance == "inbox"
        assert event.session_key == SessionKey("telegram", "bot", "42")
        assert event.items == (receipt.item_id,)
    started, finished = heard.one("started"), heard.one("finished")
    assert (started.attempt, finished.attempt) == (1, 1)
    assert started.waited_ms is not None
    assert 0 <= started.waited_ms < 60_000
    assert finished.run_ms is not None
    assert 0 <= finished.run_ms < 60_000


async def test_a_failure_is_a_retry_and_then_failed(url):
    async def answer(_):
        raise ValueError("no answer")

    policy = TurnPolicy(max_attempts=2, retry_delay_ms=1)
    async with running(url, answer, policy) as (inbox, turns):
        heard = Heard(turns)
        await inbox.accept(KEY, "1")
        await turns.idle()
    assert heard.names == ["accepted", "started", "retried", "failed"]
    assert [event.attempt for event in heard] == [0, 1, 2, 2]
    assert "no answer" in heard.one("failed").error


async def test_an_interruption_is_interrupted_lost_and_resumed(url):
    bot = Bot(held=["1"])
    async with running(url, bot, TurnPolicy(while_busy="interrupt")) as (inbox, turns):
        heard = Heard(turns)
        first = await inbox.accept(KEY, "1")
        await bot.begun()
        second = await inbox.accept(KEY, "2")
        await bot.begun()
        bot.let_go("1")
        await turns.idle()
    assert Counter(heard.names) == {
        "accepted": 2,
        "started": 2,
        "interrupted": 1,
        "lost": 1,
        "resumed": 1,
        "finished": 1,
    }
    assert heard.one("interrupted").items == (first.item_id,)
    assert heard.one("resumed").items == (first.item_id,)
    assert heard.one("finished").items == (first.item_id, second.item_id)


async def test_what_is_cancelled_dropped_or_expires_is_an_event(url):
    bot = Bot(held=["1"])
    policy = TurnPolicy(max_waiting=1, when_full="drop_oldest")
    async with running(url, bot, policy) as (inbox, turns):
        heard = Heard(turns)
        first = await inbox.accept(KEY, "1")
        await bot.begun()
        second = await inbox.accept(KEY, "2")
        third = await inbox.accept(KEY, "3")
        assert heard.one("dropped").items == (second.item_id,)
        assert await turns.cancel(KEY) == 2
        assert heard.one("cancelled").items == (first.item_id, third.item_id)


async def test_stats_count_what_happened(url):
    bot = Bot(held=["1"])
    async with running(url, bot, lease_ms=40) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await bot.begun()
        for word in "234":
            await inbox.accept(KEY, word)
        assert turns.stats().running == 1
        await until(lambda: turns.stats().oldest_waiting_ms and turns.stats().waiting == 3)
        stats = turns.stats()
        assert stats.sessions == 1
        bot.let_go("1")
        await turns.idle()
        stats = turns.stats()
        assert (stats.running, stats.waiting, stats.sessions) == (0, 0, 0)
        assert stats.oldest_waiting_ms == 0
        assert stats.events == {"accepted": 4, "started": 2, "finished": 2}
        assert 0 <= stats.wait.p50 <= stats.wait.p99
        assert 0 <= stats.run.p50 <= stats.run.p99
        assert stats.wait.p99 > 0


async def test_idle_waits_for_what_is_delayed_and_for_another_attempt(url):
    bot = Bot()
    async with running(url, bot) as (inbox, turns):
        with anyio.fail_after(LIMIT):
            await turns.idle()
        await inbox.accept(KEY, "1", delay_ms=50)
        await turns.idle()
        assert bot.handled == [["1"]]


_PROGRAM = """
import anyio, sys
from trunkline import Inbox, Turns

async def answer(turn):
    print("begun", flush=True)
    await anyio.sleep(float(turn.items[0].payload))
    print("done", flush=True)

async def main():
    async with Inbox(sys.argv[1]) as inbox, Turns(inbox, answer, stop_timeout_ms=20_000) as turns:
        await inbox.accept(("telegram", "bot", "42"), "0.2")
        await turns.serve()
    print("stopped", flush=True)

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_serve_stops_gracefully_on_a_signal(tmp_path, number, loop):
    url = f"sqlite:///{tmp_path / 'bot.db'}"
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, url, loop],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=LIMIT)
    assert output == "done\nstopped\n"
    assert process.returncode == 0


async def test_turns_of_another_process_are_noticed_by_their_events(tmp_path):
    """One inbox only accepts; the turns that run elsewhere take what it has accepted."""
    url = f"sqlite:///{tmp_path / 'bot.db'}"
    bot = Bot()
    async with Inbox(url) as web, Inbox(url) as inbox, Turns(inbox, bot):
        receipt = await web.accept(KEY, "1")
        turn = await bot.begun()
        assert [item.id for item in turn.items] == [receipt.item_id]
