"""Turns that are cancelled or interrupted from outside."""

from __future__ import annotations

import pytest

from trunkline.contracts.inbox.samples import KEY, ONE, TWO, Advance, open_box, texts
from trunkline.errors import TurnLost
from trunkline.turns import InboxAdapter, TurnPolicy
from trunkline.turns.session import Claimant

__all__ = ("CancelTests",)


class CancelTests:
    """A part of `InboxContract`."""

    unit_ms: int

    async def test_cancel_ends_what_runs_and_discards_what_waits(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            ids = await box.put_all("one")
            begun = await box.begin()
            ids += await box.put_all("two three.")
            ids.append((await box.put("later", delay_ms=60_000)).item_id)
            cancelled = await box.cancel()
            assert (cancelled.count, cancelled.ended) == (4, (begun.id,))
            (happened,) = cancelled.happened
            assert (happened.name, {*happened.item_ids}) == ("cancelled", {*ids})
            assert await box.rows("waiting") == await box.rows("running") == []
            # The fence has moved; the next turn begins when the handler has ended.
            await box.put_all("four")
            assert await box.claim(TWO) == []
            claimed = await box.end(begun, claimant=Claimant(ONE))
            assert [texts(one.items) for one in claimed.begun] == ["four"]

    async def test_cancel_may_leave_what_waits(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            await box.put_all("one")
            begun = await box.begin()
            await box.put_all("two")
            await box.put("later", delay_ms=60_000)
            cancelled = await box.cancel(waiting=False)
            assert (cancelled.count, cancelled.ended) == (1, (begun.id,))
            assert await box.texts("waiting") == "two later"
            await box.end(begun)
            assert await box.begin_all() == ["two"]

    async def test_cancel_ends_the_wait_for_another_attempt(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=50_000)) as box:
            await box.put_all("one")
            begun = await box.begin()
            await box.step(begun, "greet", b"hi")
            await box.fail(begun)
            await box.put_all("two")
            cancelled = await box.cancel(waiting=False)
            assert (cancelled.count, cancelled.ended) == (1, ())
            following = await box.begin()
            assert (texts(following.items), dict(following.steps)) == ("two", {})

    async def test_cancel_touches_no_urgent_item(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            await box.put_all("one first!")
            begun = {texts(one.items): one for one in await box.claim()}
            await box.put_all("second! two")
            await box.put("later", urgent=True, delay_ms=60_000)
            cancelled = await box.cancel()
            assert (cancelled.count, cancelled.ended) == (2, (begun["one"].id,))
            assert await box.texts("running") == "first!"
            assert await box.texts("waiting") == "second! later"
            await box.finish(begun["first!"])
            assert await box.begin_all() == ["second!"]

    async def test_cancel_of_an_idle_session_does_nothing(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            cancelled = await box.cancel()
            assert (cancelled.count, cancelled.ended, cancelled.happened) == (0, (), ())
            await box.put_all("one")
            begun = await box.begin()
            await box.cancel()
            again = await box.cancel()
            assert (again.count, again.ended, again.happened) == (0, (), ())
            await box.end(begun)
            assert (await box.inbox.counts()).sessions == 0

    async def test_cancel_ends_every_concurrent_turn(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="concurrent")) as box:
            await box.put_all("one two")
            one, two = await box.claim()
            await box.put_all("three.")
            cancelled = await box.cancel()
            assert (cancelled.count, {*cancelled.ended}) == (3, {one.id, two.id})
            await box.end(one)
            await box.end(two)
            assert (await box.inbox.counts()).sessions == 0

    async def test_a_cancelled_item_is_a_duplicate_when_it_comes_again(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.put("one", external_id="1")
            await box.cancel()
            assert (await box.put("one", external_id="1")).outcome == "duplicate"

    async def test_items_that_joined_are_cancelled_with_their_turn(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="steer")) as box:
            await box.put_all("one")
            begun = await box.begin()
            (second,) = await box.put_all("two")
            await box.take(begun, second)
            assert (await box.cancel()).count == 2
            assert await box.rows("running") == []

    # -- interruptions -----------------------------------------------------------------------------

    async def test_after_five_interruptions_in_a_row_items_wait_as_in_collect(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="interrupt")) as box:
            await box.put_all("0")
            for number in range(1, 6):
                begun = await box.begin()
                assert (await box.put(str(number))).ended == (begun.id,)
                await box.end(begun)
            begun = await box.begin()
            assert texts(begun.items) == "0 1 2 3 4 5"
            for number in (6, 7):
                assert (await box.put(str(number))).ended == ()
            await box.finish(begun)
            # Then a turn may be interrupted again.
            begun = await box.begin()
            assert (texts(begun.items), begun.resumed) == ("6 7", frozenset())
            assert (await box.put("8")).ended == (begun.id,)

    async def test_an_interrupted_turn_that_failed_before_begins_at_attempt_1_without_steps(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        policy = TurnPolicy(while_busy="interrupt", retry_delay_ms=self.unit_ms)
        async with open_box(adapter, policy) as box:
            await box.put_all("one")
            begun = await box.begin()
            await box.step(begun, "greet", b"hi")
            await box.fail(begun)
            await advance(self.unit_ms + 1)
            again = await box.begin()
            assert (again.attempt, dict(again.steps)) == (2, {"greet": b"hi"})
            assert [one.attempt for one in (await box.put("two")).happened] == [2]
            await box.end(again)
            anew = await box.begin()
            assert (texts(anew.items), anew.attempt, dict(anew.steps)) == ("one two", 1, {})

    async def test_an_interruption_is_decided_by_the_order_of_commits(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="interrupt")) as box:
            await box.put_all("one")
            begun = await box.begin()
            await box.finish(begun)
            assert (await box.put("two")).ended == ()
            begun = await box.begin()
            assert texts(begun.items) == "two"
            await box.put("three")
            with pytest.raises(TurnLost):
                await box.finish(begun)
            await box.end(begun)
            assert await box.begin_all() == ["two three"]

    async def test_a_turn_whose_handler_ends_again_and_again_is_interrupted_once(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="interrupt")) as box:
            await box.put_all("one")
            begun = await box.begin()
            assert (await box.put("two")).ended == (begun.id,)
            assert (await box.put("three")).ended == ()
            await box.end(begun)
            await box.end(begun)
            assert await box.begin_all() == ["one two three"]
            assert (await box.beat()).claims.keys().isdisjoint({begun.id})
            assert await box.waiting(KEY) == 0
