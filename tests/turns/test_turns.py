"""Turns as a bot sees them, over an inbox on every database."""

from __future__ import annotations

import anyio

from trunkline import Inbox, TurnPolicy, Turns

KEY = ("telegram", "bot", "42")


async def test_items_that_come_while_a_turn_runs_are_the_next_turn_together(url):
    handled = []
    begun, go_on = anyio.Event(), anyio.Event()

    async def answer(turn):
        handled.append([item.payload for item in turn.items])
        begun.set()
        await go_on.wait()

    async with Inbox(url) as inbox, Turns(inbox, answer) as turns:
        await inbox.accept(KEY, "one")
        await begun.wait()
        await inbox.accept(KEY, "two")
        await inbox.accept(KEY, "three")
        go_on.set()
        await turns.idle()
    assert handled == [["one"], ["two", "three"]]


async def test_a_handler_that_raises_is_tried_again_and_then_its_items_have_failed(url):
    attempts = []

    async def answer(turn):
        attempts.append(turn.attempt)
        raise ValueError("no answer")

    policy = TurnPolicy(max_attempts=3, retry_delay_ms=1)
    async with Inbox(url) as inbox, Turns(inbox, answer, policy) as turns:
        await inbox.accept(KEY, "hi")
        await turns.idle()
        failed = await inbox.list("failed")
    assert attempts == [1, 2, 3]
    assert [(item.payload, item.attempt) for item in failed] == [("hi", 3)]


async def test_an_item_that_comes_twice_is_handled_once(url):
    handled = []

    async def answer(turn):
        handled.extend(item.payload for item in turn.items)

    async with Inbox(url) as inbox, Turns(inbox, answer) as turns:
        first = await inbox.accept(KEY, "hi", external_id=1)
        await turns.idle()
        again = await inbox.accept(KEY, "hi", external_id="1")
        await turns.idle()
    assert (first.outcome, again.outcome) == ("accepted", "duplicate")
    assert again.item_id == first.item_id
    assert handled == ["hi"]
