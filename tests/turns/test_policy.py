"""Each line of the policy, as the handler of a bot sees it."""

from __future__ import annotations

import anyio
import pytest

from tests.turns.bots import KEY, Bot, payloads, running, until
from trunkline import Inbox, TurnPolicy, Turns
from trunkline.errors import ConfigurationError, InboxFull


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'bot.db'}"


async def accept_all(inbox, words, key=KEY):
    for word in words.split():
        await inbox.accept(key, word, alone=word.endswith("."), urgent=word.endswith("!"))


@pytest.mark.parametrize(
    ("mode", "handled"),
    [
        ("collect", [["1"], ["2", "3"], ["4."], ["5"]]),
        ("queue", [["1"], ["2"], ["3"], ["4."], ["5"]]),
        ("latest", [["1"], ["3"], ["4."], ["5"]]),
        ("steer", [["1"], ["2", "3"], ["4."], ["5"]]),
        ("drop", [["1"]]),
    ],
)
async def test_what_comes_while_a_turn_runs_waits_joins_or_is_dropped(url, mode, handled):
    bot = Bot(held=["1"])
    async with running(url, bot, TurnPolicy(while_busy=mode)) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await bot.begun()
        await accept_all(inbox, "2 3 4. 5")
        assert bot.handled == [["1"]]
        bot.let_go("1")
        await turns.idle()
    assert bot.handled == handled
    skipped = [[item.payload for item in turn.skipped] for turn in bot.turns]
    assert [one for one in skipped if one] == ([["2"]] if mode == "latest" else [])


async def test_an_item_that_is_dropped_says_so(url):
    bot = Bot(held=["1"])
    async with running(url, bot, TurnPolicy(while_busy="drop")) as (inbox, _):
        assert (await inbox.accept(KEY, "1", external_id=1)).outcome == "accepted"
        await bot.begun()
        assert (await inbox.accept(KEY, "2", external_id=2)).outcome == "dropped"
        bot.let_go("1")


async def test_interrupt_cancels_the_running_turn_and_begins_again_with_both(url):
    bot = Bot(held=["1"])
    async with running(url, bot, TurnPolicy(while_busy="interrupt")) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await bot.begun()
        bot.let_go("nothing")
        receipt = await inbox.accept(KEY, "2")
        assert receipt.outcome == "accepted"
        second = await bot.begun()
        assert payloads(second) == ["1", "2"]
        assert [item.payload for item in second.resumed] == ["1"]
        assert second.attempt == 1
        bot.let_go("1")
        await turns.idle()
    assert bot.handled == [["1"], ["1", "2"]]


async def test_after_five_interruptions_in_a_row_an_item_waits(url):
    bot = Bot(held=["0"])
    async with running(url, bot, TurnPolicy(while_busy="interrupt")) as (inbox, turns):
        await inbox.accept(KEY, "0")
        for number in range(1, 6):
            await bot.begun()
            await inbox.accept(KEY, str(number))
        await bot.begun()
        await accept_all(inbox, "6 7")
        bot.let_go("0")
        await turns.idle()
        assert turns.stats().events["interrupted"] == 5
    assert bot.handled[-2:] == [["0", "1", "2", "3", "4", "5"], ["6", "7"]]
    assert len(bot.handled) == 7


async def test_concurrent_turns_run_at_once(url):
    bot = Bot(held=["1", "2"])
    async with running(url, bot, TurnPolicy(while_busy="concurrent")) as (inbox, _):
        await accept_all(inbox, "1 2 3")
        for _ in range(3):
            await bot.begun()
        bot.let_go("2")
        bot.let_go("1")
    assert sorted(bot.handled) == [["1"], ["2"], ["3"]]


async def test_a_burst_is_one_turn_when_the_session_has_been_quiet(url):
    bot = Bot()
    async with running(url, bot, TurnPolicy(quiet_ms=200)) as (inbox, turns):
        await accept_all(inbox, "1 2 3")
        await turns.idle()
    assert bot.handled == [["1", "2", "3"]]


async def test_a_burst_without_end_is_a_turn_after_max_quiet_ms(url):
    bot = Bot()
    policy = TurnPolicy(quiet_ms=30_000, max_quiet_ms=200)
    async with running(url, bot, policy) as (inbox, turns):
        await accept_all(inbox, "1 2")
        await turns.idle()
    assert bot.handled == [["1", "2"]]


async def test_an_item_that_is_alone_ends_the_quiet_wait(url):
    bot = Bot()
    policy = TurnPolicy(quiet_ms=30_000, max_quiet_ms=30_000)
    async with running(url, bot, policy) as (inbox, turns):
        await accept_all(inbox, "1 2 3.")
        await turns.idle()
    assert bot.handled == [["1", "2"], ["3."]]


async def test_an_urgent_item_runs_past_all_limits(url):
    bot = Bot(held=["1", "stop!"])
    policy = TurnPolicy(max_waiting=1, quiet_ms=0)
    async with running(url, bot, policy, max_running=1) as (inbox, _):
        await inbox.accept(KEY, "1")
        await bot.begun()
        await inbox.accept(KEY, "2")
        with pytest.raises(InboxFull):
            await inbox.accept(KEY, "3")
        await inbox.accept(KEY, "stop!", urgent=True)
        assert payloads(await bot.begun()) == ["stop!"]
        await inbox.accept(("telegram", "bot", "43"), "4")
        bot.let_go("stop!")
        bot.let_go("1")
    assert bot.handled[:2] == [["1"], ["stop!"]]
    assert sorted(bot.handled[2:]) == [["2"], ["4"]]


async def test_a_delayed_item_comes_later_and_holds_up_nobody(url):
    bot = Bot()
    async with running(url, bot) as (inbox, turns):
        await inbox.accept(KEY, "remind", delay_ms=80)
        await inbox.accept(KEY, "now")
        assert payloads(await bot.begun()) == ["now"]
        assert await inbox.waiting(KEY) == 1
        await turns.idle()
    assert bot.handled == [["now"], ["remind"]]


async def test_an_edited_message_that_waits_replaces_what_it_was(url):
    bot = Bot(held=["1"])
    async with running(url, bot) as (inbox, _):
        await inbox.accept(KEY, "1")
        await bot.begun()
        first = await inbox.accept(KEY, "two", external_id=2)
        edited = await inbox.accept(KEY, "2", external_id=2, replace=True)
        assert (edited.outcome, edited.item_id) == ("accepted", first.item_id)
        bot.let_go("1")
    assert bot.handled == [["1"], ["2"]]


async def test_a_full_inbox_drops_the_oldest(url):
    bot = Bot(held=["1"])
    policy = TurnPolicy(max_waiting=2, when_full="drop_oldest")
    async with running(url, bot, policy) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await bot.begun()
        await accept_all(inbox, "2 3 4")
        bot.let_go("1")
        await turns.idle()
        assert turns.stats().events["dropped"] == 1
    assert bot.handled == [["1"], ["3", "4"]]


async def test_an_item_that_waited_too_long_for_its_first_turn_expires(url):
    bot = Bot(held=["1"])
    async with running(url, bot, TurnPolicy(expire_after_ms=40)) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await bot.begun()
        await inbox.accept(KEY, "2")
        await anyio.sleep(0.05)
        bot.let_go("1")
        await turns.idle()
        assert turns.stats().events["expired"] == 1
    assert bot.handled == [["1"]]


# -- steer -------------------------------------------------------------------------------------


async def test_take_gives_what_came_since(url):
    taken = []

    async def answer(turn):
        if payloads(turn) == ["1"]:
            taken.append(turn.take())
            begun.set()
            await go_on.wait()
            taken.append(turn.take())
            taken.append(turn.take())

    begun, go_on = anyio.Event(), anyio.Event()
    async with running(url, answer, TurnPolicy(while_busy="steer")) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await begun.wait()
        await accept_all(inbox, "2 3")
        go_on.set()
        await turns.idle()
        assert turns.stats().events["finished"] == 1
    assert [[item.payload for item in items] for items in taken] == [[], ["2", "3"], []]


async def test_receive_waits_for_what_comes(url):
    received = []

    async def answer(turn):
        begun.set()
        received.append(await turn.receive())
        received.append(await turn.receive(timeout_ms=1))

    begun = anyio.Event()
    async with running(url, answer, TurnPolicy(while_busy="steer")) as (inbox, _):
        await inbox.accept(KEY, "1")
        await begun.wait()
        await inbox.accept(KEY, "2")
    assert [[item.payload for item in items] for items in received] == [["2"], []]


async def test_what_was_taken_is_given_again_to_another_attempt(url):
    taken = []

    async def answer(turn):
        if turn.attempt == 1:
            begun.set()
            taken.append(await turn.receive())
            raise ValueError("no answer")
        taken.append(turn.take())

    begun = anyio.Event()
    policy = TurnPolicy(while_busy="steer", retry_delay_ms=1)
    async with running(url, answer, policy) as (inbox, _):
        await inbox.accept(KEY, "1")
        await begun.wait()
        await inbox.accept(KEY, "2")
    assert [[item.payload for item in items] for items in taken] == [["2"], ["2"]]


async def test_what_another_attempt_does_not_take_is_the_next_turn(url):
    handled = []

    async def answer(turn):
        handled.append((turn.attempt, payloads(turn)))
        if len(handled) == 1:
            begun.set()
            await turn.receive()
            raise ValueError("no answer")

    begun = anyio.Event()
    policy = TurnPolicy(while_busy="steer", retry_delay_ms=1)
    async with running(url, answer, policy) as (inbox, _):
        await inbox.accept(KEY, "1")
        await begun.wait()
        await inbox.accept(KEY, "2")
    assert handled == [(1, ["1"]), (2, ["1"]), (1, ["2"])]


@pytest.mark.parametrize("mode", ["collect", "queue", "latest", "interrupt", "drop", "concurrent"])
async def test_take_and_receive_need_steer(mode):
    async def answer(turn):
        with pytest.raises(ConfigurationError, match="steer"):
            turn.take()
        with pytest.raises(ConfigurationError, match="steer"):
            await turn.receive(timeout_ms=0)

    async with running("memory://", answer, TurnPolicy(while_busy=mode)) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await turns.idle()
        assert turns.stats().events["finished"] == 1


# -- policies and inboxes ----------------------------------------------------------------------


async def test_a_second_turns_on_one_inbox_is_refused(url):
    async with running(url, Bot()) as (inbox, _):
        with pytest.raises(ConfigurationError, match="one Turns an Inbox object"):
            async with Turns(inbox, Bot()):
                pass
    async with running(url, Bot()):
        pass


async def test_an_inbox_may_have_turns_again(url):
    bot = Bot()
    async with Inbox(url) as inbox:
        for number in range(2):
            async with Turns(inbox, bot) as turns:
                await inbox.accept(KEY, number)
                await turns.idle()
    assert bot.handled == [[0], [1]]


async def test_an_inbox_without_a_policy_follows_the_stored_one(tmp_path):
    url = f"sqlite:///{tmp_path / 'bot.db'}"
    policy = TurnPolicy(max_waiting=1)
    async with Inbox(url, sweep_interval_ms=10) as early:
        assert early.policy == TurnPolicy()
        async with Inbox(url) as inbox, Turns(inbox, Bot(), policy):
            pass
        await until(lambda: early.policy == policy)
        async with Inbox(url) as late:
            assert late.policy == policy
            await late.accept(KEY, "1")
            with pytest.raises(InboxFull):
                await late.accept(KEY, "2")


async def test_turns_without_a_policy_have_that_of_their_inbox(url):
    policy = TurnPolicy(while_busy="queue")
    async with Inbox(url, policy=policy) as inbox, Turns(inbox, Bot()) as turns:
        assert (turns.policy, inbox.policy) == (policy, policy)


async def test_sessions_that_have_waited_longest_come_first():
    bot = Bot(held=["0"])
    keys = [("telegram", "bot", str(number)) for number in range(20)]
    async with running("memory://", bot, max_running=1) as (inbox, _):
        await inbox.accept(KEY, "0")
        await bot.begun()
        for number, key in enumerate(keys):
            await inbox.accept(key, str(number))
            await anyio.sleep(0.002)  # so that no two came at the same millisecond
            await inbox.accept(KEY, "more")
        bot.let_go("0")
    more = bot.handled.index(["more"] * 20)
    assert [one for index, one in enumerate(bot.handled[1:], 1) if index != more] == [
        [str(number)] for number in range(20)
    ]
    # A session that never stops does not come again before the others.
    assert more >= 1
