"""Turns that fail, hang, are cancelled or stopped, and what becomes of their items."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint, current_token

from tests.turns.bots import KEY, LIMIT, Bot, payloads, running, until
from trunkline import Inbox, TurnPolicy, Turns
from trunkline.backends import ConnectionLost
from trunkline.errors import ConfigurationError, NotFound, TurnLost
from trunkline.turns import runner as runner_module

KEY_1 = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
OTHER = ("telegram", "bot", "43")
SOON = TurnPolicy(retry_delay_ms=1)


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'bot.db'}"


def listen(turns, *names):
    """What happens from now on, as long as its name is one of these."""
    events = []
    turns.events.subscribe(
        lambda event: events.append(event) if not names or event.name in names else None
    )
    return events


# -- attempts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "async", "raising", "async, raising"])
async def test_on_failed_is_called_after_the_last_attempt_before_items_have_failed(url, kind):
    calls = []

    def note(turn, error):
        calls.append((turn.attempt, payloads(turn), str(error)))
        if "raising" in kind:
            raise RuntimeError("a bug of on_failed")

    async def note_later(turn, error):
        assert (await inbox.counts()).failed == 0
        note(turn, error)

    async def answer(turn):
        raise ValueError(f"no {turn.attempt}")

    on_failed = note_later if "async" in kind else note
    policy = TurnPolicy(max_attempts=2, retry_delay_ms=1)
    async with running(url, answer, policy, on_failed=on_failed) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await turns.idle()
        assert calls == [(2, ["1"], "no 2")]
        (item,) = await inbox.list("failed")
        assert (item.payload, item.attempt) == ("1", 2)


async def test_on_failed_that_hangs_is_given_up_after_the_time_of_a_handler(url):
    async def hang(_turn, _error):
        await anyio.sleep_forever()

    async def answer(_):
        raise ValueError("no answer")

    policy = TurnPolicy(max_attempts=1, turn_timeout_ms=20)
    async with running(url, answer, policy, on_failed=hang) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await turns.idle()
        assert (await inbox.counts()).failed == 1


async def test_on_failed_that_hangs_while_the_turns_stop_is_called_again(url):
    calls, begun = [], anyio.Event()

    async def report(turn, error):
        calls.append((turn.attempt, str(error)))
        if len(calls) == 1:
            begun.set()
            await anyio.sleep_forever()

    async def answer(_):
        raise ValueError("no answer")

    policy = TurnPolicy(max_attempts=1)
    with anyio.fail_after(LIMIT):
        async with Inbox(url) as inbox:
            async with Turns(inbox, answer, policy, stop_timeout_ms=1, on_failed=report):
                await inbox.accept(KEY, "1")
                await begun.wait()
            assert (await inbox.counts()).waiting == 1
            async with Turns(inbox, answer, policy, on_failed=report) as turns:
                await turns.idle()
            assert (await inbox.counts()).failed == 1
    assert calls == [(1, "no answer")] * 2


async def test_after_a_failure_the_session_goes_on(url):
    class Failing(Bot):
        async def act(self, turn):
            await super().act(turn)
            if "1" in payloads(turn):
                raise ValueError("no answer")

    bot = Failing(held=["1"])
    async with running(url, bot, TurnPolicy(max_attempts=1)) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await bot.begun()
        await inbox.accept(KEY, "2")
        bot.let_go("1")
        await turns.idle()
    assert bot.handled == [["1"], ["2"]]


async def test_the_delay_between_attempts_doubles_with_jitter(url):
    delays = []

    async def answer(turn):
        raise ValueError("no answer")

    async with running(url, answer, TurnPolicy(retry_delay_ms=10_000)) as (inbox, _):
        adapter = inbox.adapter
        original = adapter.fail

        def fail(*args):
            claimed = original(*args)
            delays.append(claimed.due_in_ms)
            return claimed

        adapter.fail = fail
        await inbox.accept(KEY, "1")
        await until(lambda: delays)
        assert 7_000 <= delays[0] <= 12_500
        await inbox.cancel(KEY)


async def test_a_failed_item_may_be_retried_or_discarded(url):
    class Failing(Bot):
        async def act(self, turn):
            if len(self.handled) == 1:
                raise ValueError("no answer")

    bot = Failing()
    async with running(url, bot, TurnPolicy(max_attempts=1)) as (inbox, turns):
        first = await inbox.accept(KEY, "1")
        await turns.idle()
        await inbox.retry(first.item_id)
        await turns.idle()
        assert bot.handled == [["1"], ["1"]]
        assert bot.turns[1].attempt == 1
        with pytest.raises(NotFound):
            await inbox.retry(first.item_id)
        with pytest.raises(NotFound):
            await inbox.discard(first.item_id)


async def test_a_discarded_item_is_an_event_and_lets_others_begin(url):
    bot = Bot(held=["1"])
    async with running(url, bot, TurnPolicy(while_busy="concurrent")) as (inbox, turns):
        events = listen(turns, "cancelled")
        await inbox.accept(KEY, "1")
        await bot.begun()
        barrier = await inbox.accept(KEY, "2", alone=True)
        await inbox.accept(KEY, "3")
        assert await inbox.discard(barrier.item_id)
        assert payloads(await bot.begun()) == ["3"]
        assert [event.items for event in events] == [(barrier.item_id,)]
        running_id = bot.turns[0].items[0].id
        assert not await inbox.discard(running_id)
        bot.let_go("1")


async def test_a_handler_that_takes_too_long_is_cancelled_and_has_failed(url):
    attempts = []

    async def answer(turn):
        attempts.append(turn.attempt)
        await anyio.sleep_forever()

    policy = TurnPolicy(turn_timeout_ms=20, max_attempts=2, retry_delay_ms=1)
    errors = []
    options = {"on_failed": lambda _, error: errors.append(error)}
    async with running(url, answer, policy, **options) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await turns.idle()
        assert (await inbox.counts()).failed == 1
    assert attempts == [1, 2]
    assert [type(error) for error in errors] == [TimeoutError]


async def test_a_handler_that_returns_after_its_time_has_failed_all_the_same(url):
    async def answer(_):
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.05)

    policy = TurnPolicy(turn_timeout_ms=10, max_attempts=1)
    async with running(url, answer, policy) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await turns.idle()
        assert (await inbox.counts()).failed == 1


async def test_an_error_of_turn_lost_that_a_handler_raises_by_itself_is_a_failure(url):
    attempts = []

    async def answer(turn):
        attempts.append(turn.attempt)
        raise TurnLost("of another turn")

    policy = TurnPolicy(max_attempts=2, retry_delay_ms=1)
    async with running(url, answer, policy) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await turns.idle()
        assert (await inbox.counts()).failed == 1
    assert attempts == [1, 2]


async def test_a_payload_that_cannot_be_read_fails_and_holds_up_nobody(url):
    bot = Bot()
    async with Inbox(url, encryption_key=KEY_1) as inbox:
        await inbox.accept(KEY, "1")
    policy = TurnPolicy(max_attempts=1)
    if url == "memory://":
        pytest.skip("another inbox sees nothing of this one")
    async with running(url, bot, policy) as (inbox, turns):
        await inbox.accept(OTHER, "2")
        await turns.idle()
        assert (await inbox.counts()).failed == 1
    assert bot.handled == [["2"]]


@pytest.mark.parametrize("method", ["finish", "fail"])
async def test_the_end_of_a_turn_whose_reply_was_lost_is_reported_as_what_it_was(url, method):
    """The connection breaks after the commit: the runner asks again, and it is as it was."""
    lost = []

    async def answer(_):
        if method == "fail":
            raise ValueError("no answer")

    async with running(url, answer, TurnPolicy(max_attempts=1)) as (inbox, turns):
        events = listen(turns, "finished", "failed", "lost")
        original = inbox.ask_once

        async def ask_once(key, called, *args):
            answered = await original(key, called, *args)
            if called.__name__ == method and not lost:
                lost.append(called)
                raise ConnectionLost("the connection broke after the commit")
            return answered

        inbox.ask_once = ask_once
        await inbox.accept(KEY, "1")
        await until(lambda: events)
        await turns.idle()
        assert [event.name for event in events] == ["finished" if method == "finish" else "failed"]
        assert len(lost) == 1


# -- native cancellation -----------------------------------------------------------------------


async def cancel_own_task():
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def await_a_cancelled_task():
    task = asyncio.create_task(asyncio.sleep(3_600))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


async def time_out():
    async with asyncio.timeout(0):
        await asyncio.sleep(3_600)


async def wait_too_long():
    await asyncio.wait_for(asyncio.sleep(3_600), 0.001)


@pytest.mark.parametrize("act", [cancel_own_task, await_a_cancelled_task, time_out, wait_too_long])
async def test_a_handler_that_asyncio_cancels_has_failed(url, act):
    if not on_asyncio():
        pytest.skip("trio has no such cancellation")
    attempts = []

    async def answer(turn):
        attempts.append(turn.attempt)
        if len(attempts) == 1:
            await act()
        await checkpoint()

    async with running(url, answer, SOON) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await turns.idle()
        # The task that ran it runs others as before.
        await inbox.accept(OTHER, "2")
        await turns.idle()
    assert attempts == [1, 2, 1]


def on_asyncio():
    return isinstance(current_token().native_token, asyncio.AbstractEventLoop)


async def test_steps_and_timeouts_of_asyncio_go_together(url):
    if not on_asyncio():
        pytest.skip("trio has no such timeouts")

    async def answer(turn):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await turn.step("hang", anyio.sleep_forever)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(turn.step("hang", anyio.sleep_forever), 0.01)
        task = asyncio.create_task(turn.step("hang", anyio.sleep_forever))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await turn.step("hang", checkpoint) is None

    async with running(url, answer, TurnPolicy(max_attempts=1)) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await turns.idle()
        assert (await inbox.counts()).failed == 0


async def test_an_accept_that_is_cancelled_leaves_no_turn_behind(url):
    """Whenever it is cancelled, the item is handled once or was not accepted."""
    handled = []

    async def answer(turn):
        handled.extend(payloads(turn))

    async with running(url, answer) as (inbox, turns):
        for number in range(30):
            with anyio.move_on_after(number * 0.0002):
                await inbox.accept(("telegram", "bot", str(number)), number)
        await turns.idle()
        assert await inbox.list("running") == []
        assert len(handled) == len(set(handled))


# -- cancel ------------------------------------------------------------------------------------


async def test_cancel_ends_the_handler_and_discards_what_waits(url):
    bot = Bot(held=["1"])
    async with running(url, bot) as (inbox, turns):
        events = listen(turns, "cancelled", "lost")
        await inbox.accept(KEY, "1")
        begun = await bot.begun()
        await inbox.accept(KEY, "2")
        assert await turns.cancel(KEY) == 2
        await turns.idle()
        assert [event.name for event in events] == ["cancelled", "lost"]
        with pytest.raises(TurnLost):
            await begun.step("late", checkpoint)
        await inbox.accept(KEY, "3")
        await turns.idle()
    assert bot.handled == [["1"], ["3"]]


async def test_cancel_may_leave_what_waits(url):
    bot = Bot(held=["1"])
    async with running(url, bot) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await bot.begun()
        await inbox.accept(KEY, "2")
        assert await turns.cancel(KEY, waiting=False) == 1
        await turns.idle()
    assert bot.handled == [["1"], ["2"]]


async def test_cancel_touches_no_urgent_turn(url):
    bot = Bot(held=["1", "stop"])
    async with running(url, bot) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await bot.begun()
        await inbox.accept(KEY, "stop", urgent=True)
        urgent = await bot.begun()
        # As the handler of /stop does it.
        assert await turns.cancel(KEY) == 1
        assert await urgent.step("still held", checkpoint) is None
        bot.let_go("stop")
        await turns.idle()
        assert turns.stats().events["finished"] == 1


async def test_a_handler_that_swallows_its_cancellation_blocks_its_session_alone(url, monkeypatch):
    monkeypatch.setattr(runner_module, "_STUCK_SECONDS", 0.02)
    go_on = anyio.Event()
    handled = []

    async def answer(turn):
        handled.append(payloads(turn))
        if payloads(turn) == ["1"]:
            with anyio.CancelScope(shield=True):
                await go_on.wait()
            with pytest.raises(TurnLost):
                await turn.step("late", checkpoint)

    async with running(url, answer) as (inbox, turns):
        events = listen(turns, "stuck")
        await inbox.accept(KEY, "1")
        await until(lambda: handled)
        await turns.cancel(KEY)
        await inbox.accept(KEY, "2")
        await inbox.accept(OTHER, "3")
        await until(lambda: ["3"] in handled and events)
        assert ["2"] not in handled
        assert events[0].attempt == 1
        go_on.set()
        await turns.idle()
    assert handled == [["1"], ["3"], ["2"]]


async def test_a_turn_that_was_cancelled_before_its_handler_began_never_begins_work(url):
    bot = Bot(held=["1"])
    async with running(url, bot, TurnPolicy(while_busy="queue")) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await bot.begun()
        for word in ("2", "3", "4"):
            await inbox.accept(KEY, word)
        bot.let_go("1")
        await turns.cancel(KEY)
        await inbox.accept(KEY, "5")
        await turns.idle()
    assert bot.handled[-1] == ["5"]


# -- stopping ----------------------------------------------------------------------------------


async def test_stopping_waits_for_turns_that_run(url):
    bot = Bot(held=["1"])
    async with Inbox(url) as inbox:
        async with Turns(inbox, bot):
            await inbox.accept(KEY, "1")
            await bot.begun()
            bot.let_go("1")
        assert (await inbox.counts()).sessions == 0


async def test_a_turn_that_takes_too_long_to_stop_waits_again_and_the_attempt_does_not_count(url):
    bot = Bot(held=["1"])
    async with Inbox(url) as inbox:
        async with Turns(inbox, bot, stop_timeout_ms=10):
            await inbox.accept(KEY, "1")
            await (await bot.begun()).step("greet", checkpoint)
        counts = await inbox.counts()
        assert (counts.waiting, counts.running) == (1, 0)
        bot.let_go("1")
        async with Turns(inbox, bot) as turns:
            await turns.idle()
    assert bot.handled == [["1"], ["1"]]
    assert [turn.attempt for turn in bot.turns] == [1, 1]


async def test_a_handler_that_raises_because_it_is_stopped_has_not_failed(url):
    attempts = []

    async def answer(turn):
        attempts.append(turn.attempt)
        if len(attempts) == 1:
            begun.set()
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError("cannot clean up")

    begun = anyio.Event()
    policy = TurnPolicy(max_attempts=1)
    async with Inbox(url) as inbox:
        async with Turns(inbox, answer, policy, stop_timeout_ms=1):
            await inbox.accept(KEY, "1")
            await begun.wait()
        async with Turns(inbox, answer, policy) as turns:
            await turns.idle()
        assert (await inbox.counts()).failed == 0
    assert attempts == [1, 1]


async def test_a_handler_that_returns_although_it_was_stopped_is_done(url):
    begun = anyio.Event()

    async def answer(_):
        begun.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass  # it has said good-bye

    async with Inbox(url) as inbox:
        async with Turns(inbox, answer, stop_timeout_ms=1):
            await inbox.accept(KEY, "1")
            await begun.wait()
        assert (await inbox.counts()).sessions == 0


async def test_turns_that_are_cancelled_from_outside_give_their_items_back(url):
    bot = Bot(held=["1", "2"])
    async with Inbox(url) as inbox:
        with anyio.CancelScope() as scope:
            async with Turns(inbox, bot, stop_timeout_ms=1):
                await inbox.accept(KEY, "1")
                await inbox.accept(OTHER, "2")
                await bot.begun()
                await bot.begun()
                scope.cancel()
                await anyio.sleep_forever()
        assert (await inbox.counts()).running == 0
        bot.let_go("1")
        bot.let_go("2")
        async with Turns(inbox, bot) as turns:
            await turns.idle()
    assert sorted(bot.handled) == [["1"], ["1"], ["2"], ["2"]]
    assert {turn.attempt for turn in bot.turns} == {1}


async def test_an_error_of_the_program_leaves_no_turn_behind(url):
    bot = Bot(held=["1"])
    async with Inbox(url) as inbox:
        with suppress(ZeroDivisionError):
            async with Turns(inbox, bot, stop_timeout_ms=1):
                await inbox.accept(KEY, "1")
                await bot.begun()
                raise ZeroDivisionError
        assert (await inbox.counts()).waiting == 1


# -- a bug of the runner -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["_claim", "_conclude", "_end_overdue", "_look_after", "_take_up", "_note_due"]
)
async def test_a_bug_in_the_runner_restarts_it_and_loses_nothing(url, monkeypatch, method):
    class Gone(Exception):
        pass

    bot = Bot()
    original = getattr(runner_module.Runner, method)
    left = [1]

    def raise_once(self, *args, **kwargs):
        if left and bot.handled:
            left.pop()
            raise Gone
        return original(self, *args, **kwargs)

    monkeypatch.setattr(runner_module.Runner, method, raise_once)
    policy = TurnPolicy(retry_delay_ms=1, while_busy="queue", max_attempts=9)
    async with running(url, bot, policy, lease_ms=500) as (inbox, turns):
        owners = {turns._runner._owner.id}
        for number in range(5):
            for _ in range(3):
                await try_to_accept(inbox, ("telegram", "bot", str(number)), number, Gone)
        with anyio.fail_after(LIMIT):
            while left:
                turns._runner.wake() if turns._runner else None
                await anyio.sleep(0.01)
            await turns.idle()
        if method not in ("_take_up", "_note_due"):
            # These also run in the task of a caller, who then gets what they raise.
            await until(lambda: turns._runner and turns._runner._owner.id not in owners)
        assert await inbox.list("failed") == []
    assert {number for (number,) in bot.handled} == set(range(5))
    assert len(bot.handled) >= 15


async def try_to_accept(inbox, key, payload, error):
    """A bug of the runner may also raise in `accept`, whose item is stored then."""
    try:
        await inbox.accept(key, payload)
    except error:
        pass


# -- arguments ---------------------------------------------------------------------------------


async def test_what_cannot_work_is_refused():
    async with Inbox("memory://") as inbox:
        for options in ({"max_running": 0}, {"lease_ms": 0}, {"stop_timeout_ms": -1}):
            with pytest.raises(ConfigurationError):
                Turns(inbox, Bot(), **options)
        with pytest.raises(ConfigurationError):
            Turns(inbox, None)
        for options in ({"delay_ms": -1}, {"external_id": 1.5}, {"external_id": ""}):
            with pytest.raises(ConfigurationError):
                await inbox.accept(KEY, "hi", **options)
        with pytest.raises(ConfigurationError):
            await inbox.accept(KEY, object())
        with pytest.raises(ConfigurationError):
            await inbox.list("handled")
