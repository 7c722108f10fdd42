"""Several processes over one inbox: what one does to the turns of another."""

from __future__ import annotations

import signal
from time import monotonic

import anyio
import pytest

from tests.turns.faults import SLACK, accept, begun, counts, finished, noted, wait_until
from tests.turns.worker import Bot, Histories, session
from trunkline import Inbox, TurnPolicy, Turns
from trunkline.actors.clock import wall_clock_ms
from trunkline.turns import InboxCounts

pytestmark = pytest.mark.slow

#: So long that no scan and no heartbeat can help.
LEASE_MS = 600_000


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def cancel(url):
    async with Inbox(url) as inbox:
        return await inbox.cancel(session("room"))


def ended(bot):
    return noted(bot, "end")


def test_cancel_ends_a_turn_in_another_process_at_once(shared_url, tmp_path):
    with Bot(shared_url, tmp_path / "bot", "until cancelled", lease_ms=LEASE_MS) as bot:
        anyio.run(accept, shared_url, "long")
        wait_until(lambda: begun(bot))
        anyio.run(accept, shared_url, "waits")
        began = monotonic()
        assert anyio.run(cancel, shared_url) == 2
        wait_until(lambda: ended(bot))
        assert ended(bot)[0][5] - began < SLACK
        anyio.run(accept, shared_url, "next")
        wait_until(lambda: finished(bot))
    assert [entry[3] for entry in begun(bot)] == [["long"], ["next"]]
    assert anyio.run(counts, shared_url) == InboxCounts()


def test_an_item_interrupts_a_turn_in_another_process_at_once(shared_url, tmp_path):
    options = {"lease_ms": LEASE_MS, "policy": {"while_busy": "interrupt"}}
    with Bot(shared_url, tmp_path / "bot", "until cancelled", **options) as bot:
        anyio.run(accept, shared_url, "long")
        wait_until(lambda: begun(bot))
        began = monotonic()
        anyio.run(accept, shared_url, "more")
        wait_until(lambda: finished(bot))
        assert finished(bot)[0][4] - began < SLACK
    assert [entry[3:5] for entry in begun(bot)] == [[["long"], 1], [["long", "more"], 1]]
    assert Histories([bot]).overlaps() == []
    assert anyio.run(counts, shared_url) == InboxCounts()


def test_items_join_a_turn_in_another_process(shared_url, tmp_path):
    options = {"lease_ms": LEASE_MS, "policy": {"while_busy": "steer"}}
    with Bot(shared_url, tmp_path / "bot", "steered", **options) as bot:
        anyio.run(accept, shared_url, "first")
        wait_until(lambda: begun(bot))
        for payload in ("one", "two", "stop"):
            anyio.run(accept, shared_url, payload)
        wait_until(lambda: finished(bot))
    assert [entry[2] for entry in noted(bot, "joined")] == ["one", "two", "stop"]
    assert len(begun(bot)) == 1
    assert anyio.run(counts, shared_url) == InboxCounts()


def test_what_joined_a_turn_joins_it_again_after_a_kill(shared_url, tmp_path):
    options = {"lease_ms": 1_000, "policy": {"while_busy": "steer"}}
    first = Bot(shared_url, tmp_path / "first", "steered", **options)
    second = Bot(shared_url, tmp_path / "second", "steered", **options)
    with first:
        anyio.run(accept, shared_url, "first")
        wait_until(lambda: begun(first))
        anyio.run(accept, shared_url, "one")
        wait_until(lambda: noted(first, "joined"))
    with second:
        wait_until(lambda: noted(second, "joined"))
        anyio.run(accept, shared_url, "stop")
        wait_until(lambda: finished(second))
    assert [entry[2] for entry in noted(second, "joined")] == ["one", "stop"]
    assert anyio.run(counts, shared_url) == InboxCounts()


def test_a_process_that_is_stopped_gives_its_turn_to_another_at_once(shared_url, tmp_path):
    options = {"lease_ms": LEASE_MS, "stop_timeout_ms": 100}
    first = Bot(shared_url, tmp_path / "first", "endless at first", **options)
    second = Bot(shared_url, tmp_path / "second", "brief", **options)
    with first:
        anyio.run(accept, shared_url, 0)
        wait_until(lambda: begun(first))
        anyio.run(accept, shared_url, 1)
        with second:
            first.signal(signal.SIGTERM)
            assert first.join() == 0
            stopped_at = monotonic()
            wait_until(lambda: len(finished(second)) == 2)
            assert begun(second)[0][5] - stopped_at < SLACK
    # The attempt did not count.
    assert [entry[3:5] for entry in begun(second)] == [[[0], 1], [[1], 1]]
    assert anyio.run(counts, shared_url) == InboxCounts()


async def test_a_process_that_only_accepts_follows_the_policy_that_was_started_last(shared_url):
    async def answer(turn):
        await anyio.sleep_forever()

    async with Inbox(shared_url, sweep_interval_ms=50) as front, Inbox(shared_url) as inbox:
        for policy in (TurnPolicy(), TurnPolicy(while_busy="drop"), TurnPolicy()):
            async with Turns(inbox, answer, policy, stop_timeout_ms=0) as turns:
                with anyio.fail_after(30):
                    while front.policy != policy:  # noqa: ASYNC110 (another process, as it were)
                        await anyio.sleep(0.01)
                await front.accept(session("room"), "one")
                with anyio.fail_after(30):
                    while not turns.stats().running:  # noqa: ASYNC110 (another process, as it were)
                        await anyio.sleep(0.01)
                receipt = await front.accept(session("room"), "two")
                expected = "dropped" if policy.while_busy == "drop" else "accepted"
                assert receipt.outcome == expected
            await inbox.cancel(session("room"))


def test_each_process_runs_as_many_turns_at_once_as_it_may(shared_url, tmp_path):
    most = {"one": 1, "three": 3}
    bots = [
        Bot(shared_url, tmp_path / name, "slow", lease_ms=LEASE_MS, max_running=number)
        for name, number in most.items()
    ]

    async def accept_all():
        async with Inbox(shared_url) as inbox:
            for number in range(16):
                await inbox.accept(session(number), number)

    with bots[0], bots[1]:
        anyio.run(accept_all)
        wait_until(lambda: sum(len(finished(bot)) for bot in bots) == 16)
    for bot, number in zip(bots, most.values(), strict=True):
        marks = [(entry[5], 1) for entry in begun(bot)] + [(entry[5], -1) for entry in ended(bot)]
        running = highest = 0
        for _, change in sorted(marks):
            running += change
            highest = max(highest, running)
        assert highest == number
    assert sorted(entry[3][0] for bot in bots for entry in begun(bot)) == list(range(16))


def test_two_bots_on_one_database_never_see_each_other(shared_url, tmp_path):
    bots = [
        Bot(shared_url, tmp_path / name, lease_ms=LEASE_MS, namespace=name)
        for name in ("one", "two")
    ]
    with bots[0], bots[1]:
        for name in ("one", "two"):
            for number in range(5):
                anyio.run(
                    lambda name=name, number=number: accept(
                        shared_url, f"{name} {number}", name=number, namespace=name
                    )
                )
        for bot in bots:
            wait_until(lambda bot=bot: len(finished(bot)) == 5)
    for name, bot in zip(("one", "two"), bots, strict=True):
        assert sorted(entry[3][0] for entry in begun(bot)) == [f"{name} {n}" for n in range(5)]


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_process_whose_clock_is_wrong_by_an_hour_holds_up_nothing(tmp_path, hours):
    url = f"sqlite:///{tmp_path / 'bot.db'}"
    handled = []

    async def answer(turn):
        handled.extend(item.payload for item in turn.items)
        if turn.attempt == 1 and turn.items[0].payload == "fails":
            raise ValueError("not yet")

    def wrong():
        return wall_clock_ms() + hours * 3_600_000

    policy = TurnPolicy(retry_delay_ms=100, quiet_ms=100)
    async with Inbox(url, clock=wrong) as odd, Inbox(url) as inbox:
        await odd.accept(session(0), "before")
        async with Turns(inbox, answer, policy, lease_ms=1_000) as turns:
            await odd.accept(session(1), "during")
            await odd.accept(session(2), "later", delay_ms=200)
            await odd.accept(session(3), "fails")
            with anyio.fail_after(20):
                await turns.idle()
    assert sorted(set(handled)) == ["before", "during", "fails", "later"]


async def test_a_clock_that_is_set_back_holds_up_nothing(tmp_path):
    url = f"sqlite:///{tmp_path / 'bot.db'}"
    ahead_ms, handled = 0, []

    async def answer(turn):
        handled.extend(item.payload for item in turn.items)
        if turn.attempt == 1 and turn.items[0].payload == "fails":
            raise ValueError("not yet")

    policy = TurnPolicy(retry_delay_ms=500, quiet_ms=500)
    async with (
        Inbox(url, clock=lambda: wall_clock_ms() + ahead_ms) as inbox,
        Turns(inbox, answer, policy, lease_ms=1_000) as turns,
    ):
        await inbox.accept(session(1), "quiet")
        await inbox.accept(session(2), "later", delay_ms=800)
        await inbox.accept(session(3), "fails", alone=True)
        with anyio.fail_after(20):
            while "fails" not in handled:  # noqa: ASYNC110 (any thread)
                await anyio.sleep(0.01)
        ahead_ms = -3_600_000
        with anyio.fail_after(20):
            await turns.idle()
    assert handled.count("fails") == 2
    assert sorted(set(handled)) == ["fails", "later", "quiet"]
