"""Bugs of the runner, bodies that are cancelled, and a start with very much to do."""

from __future__ import annotations

import resource
from collections import Counter
from inspect import iscoroutinefunction
from time import monotonic

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.cancelling import cancel_at_suspension, forms
from tests.turns.worker import session
from trunkline import Inbox, TurnPolicy, Turns
from trunkline.turns import InboxCounts
from trunkline.turns.runner import Runner

SESSIONS, ITEMS = 6, 5

METHODS = [
    "_look_after",
    "_claim",
    "_take_over",
    "_bury",
    "_on_beat",
    "_on_notice",
    "_check_running",
    "_note_due",
    "_launch",
    "_run_turn",
    "_conclude",
    "_finish",
    "_fail",
    "_end_overdue",
    "_next_deadline",
]


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'bot.db'}"


class Planted(Exception):
    """A bug."""


def plant(monkeypatch, owner, name, call):
    """Let a method raise, once: when it is called for that time."""
    original = getattr(owner, name)
    calls = Counter()

    def check():
        calls[name] += 1
        if calls[name] == call:
            raise Planted(name)

    if iscoroutinefunction(original):

        async def broken(*args):
            check()
            return await original(*args)
    else:

        def broken(*args):
            check()
            return original(*args)

    broken.__name__ = name
    monkeypatch.setattr(owner, name, broken)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("name", METHODS)
async def test_a_bug_of_the_runner_loses_nothing(url, name, call, monkeypatch):
    handled = Counter()

    async def answer(turn):
        if turn.attempt == 1 and turn.items[0].payload == 2:
            raise ValueError("not yet")
        await anyio.sleep(0.001)
        handled.update((turn.session_key.room_id, item.payload) for item in turn.items)

    policy = TurnPolicy(while_busy="queue", retry_delay_ms=1, max_attempts=5)
    async with Inbox(url) as inbox:
        await inbox.accept(session(0), 0)
        plant(monkeypatch, Runner, name, call)
        async with Turns(inbox, answer, policy, lease_ms=300):
            for number in range(ITEMS):
                for index in range(SESSIONS):
                    if (index, number) != (0, 0):
                        await inbox.accept(session(index), number)
            with anyio.fail_after(30):
                while await inbox.counts() != InboxCounts():  # noqa: ASYNC110 (its own turns)
                    await anyio.sleep(0.01)
    assert set(handled) == {(str(i), n) for i in range(SESSIONS) for n in range(ITEMS)}


@pytest.mark.parametrize("step", ["accept", "step", "body"])
async def test_what_is_cancelled_anywhere_leaves_nothing_undone(step, tmp_path):
    """Whatever was accepted is handled, and nothing hangs."""
    for form in forms():
        for number in range(1, 200):
            if not await cancelled_at(number, form, step, tmp_path):
                break
        assert number > 1


async def cancelled_at(number, form, step, folder):
    handled, accepted = Counter(), []

    async def answer(turn):
        if step == "step" and turn.items[0].payload == "step" and turn.attempt == 1:

            async def body():
                assert await turn.step("one", echo, 1) == 1

            reached.append(await cancel_at_suspension(number, form, body))
        assert await turn.step("two", echo, 2) == 2
        handled.update(item.payload for item in turn.items)

    async def echo(value):
        await checkpoint()
        return value

    reached = []
    policy = TurnPolicy(retry_delay_ms=1)
    async with Inbox(f"sqlite:///{folder / 'bot.db'}") as inbox:

        async def accept(payload):
            receipt = await inbox.accept(session("room"), payload)
            accepted.append(payload)
            return receipt

        async def body():
            async with Turns(inbox, answer, policy, stop_timeout_ms=20, lease_ms=60_000) as turns:
                await accept("body")
                await turns.idle()

        if step == "body":
            with anyio.fail_after(20):
                reached.append(await cancel_at_suspension(number, form, body))
        async with Turns(inbox, answer, policy, lease_ms=60_000) as turns:
            if step == "accept":
                reached.append(
                    await cancel_at_suspension(number, form, lambda: accept("cancelled"))
                )
            await accept("step")
            with anyio.fail_after(20):
                await turns.idle()
        assert await inbox.counts() == InboxCounts()
    assert set(accepted) <= set(handled)
    assert set(handled.values()) <= {1, 2}
    return reached[0] if reached else False


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_start_with_very_many_sessions_that_wait_takes_little_time_and_memory(tmp_path):
    url, count = f"sqlite:///{tmp_path / 'bot.db'}", 20_000
    most, handled = 0, 0
    first_at = 0.0
    enough = anyio.Event()

    async def answer(turn):
        nonlocal most, handled, first_at
        first_at = first_at or monotonic()
        most = max(most, turns.stats().running)
        await checkpoint()
        handled += 1
        if handled == 2_000:
            enough.set()

    async with Inbox(url, mailbox_size=8_192) as inbox:
        for start in range(0, count, 4_000):
            async with anyio.create_task_group() as tasks:
                for number in range(start, start + 4_000):
                    tasks.start_soon(inbox.accept, session(number), number)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = monotonic()
        async with Turns(inbox, answer) as turns:
            with anyio.fail_after(60):
                await enough.wait()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"first turn after {(first_at - began) * 1e3:.0f} ms, {grown} KB more")
    assert most <= 64
    assert first_at - began < 5
    assert grown < 50_000
