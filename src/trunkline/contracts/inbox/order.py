"""Items of a session are handled in the order in which they came; sessions in that of waiting."""

from __future__ import annotations

from trunkline.contracts.inbox.samples import KEY, ONE, TWO, Advance, new_item, open_box, texts
from trunkline.turns import InboxAdapter, TurnPolicy
from trunkline.turns.session import Claimant

__all__ = ("OrderTests",)


class OrderTests:
    """A part of `InboxContract`."""

    unit_ms: int

    async def test_items_of_a_session_keep_their_order(self, adapter: InboxAdapter) -> None:
        words = [str(number) for number in range(50)]
        async with open_box(adapter, TurnPolicy(while_busy="queue")) as box:
            await box.put_all(" ".join(words))
            handled = []
            claimed = await box.claimed(Claimant(ONE))
            while claimed.begun:
                (begun,) = claimed.begun
                handled.append(texts(begun.items))
                claimed = await box.finish(begun, claimant=Claimant(ONE))
            assert handled == words
            assert (await box.inbox.counts()).sessions == 0

    async def test_the_order_is_that_of_the_calls_and_not_of_the_ids(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            first, second = new_item("first"), new_item("second")
            for item in (second, first):
                await box.call(KEY, InboxAdapter.accept, KEY, item, None)
            assert texts((await box.begin()).items) == "second first"

    async def test_items_accepted_at_once_keep_the_order_of_the_calls(
        self, adapter: InboxAdapter
    ) -> None:
        words = [str(number) for number in range(64)]
        async with open_box(adapter) as box:
            accept = InboxAdapter.accept
            results = await box.together(*[(accept, KEY, new_item(word), None) for word in words])
            assert [one.waiting for one in results] == list(range(1, 65))
            assert texts((await box.begin()).items) == " ".join(words)

    async def test_sessions_that_have_waited_longest_come_first(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        keys = [f"telegram:bot:{number}" for number in (3, 1, 2, 5, 4)]
        async with open_box(adapter) as box:
            for key in keys:
                await box.put("hi", key)
                await advance(2)
            first = await box.claim(limit=2)
            others = await box.claim(TWO, limit=10)
            assert {one.session for one in first} == set(keys[:2])
            assert [one.session for one in others] == keys[2:]

    async def test_a_claim_begins_no_more_turns_than_it_has_room_for(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="concurrent")) as box:
            await box.put_all("1 2 3 4 5", "telegram:bot:1")
            await box.put_all("6 7", "telegram:bot:2")
            claimed = await box.claimed(Claimant(ONE), 3)
            assert len(claimed.begun) == 3
            assert claimed.due_in_ms == 0
            assert len(await box.claim(limit=3)) == 3
            assert len(await box.claim(limit=3)) == 1

    async def test_a_process_without_room_learns_that_a_turn_is_due(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.put("hi")
            claimed = await box.claimed(Claimant(ONE, is_free=False))
            assert (claimed.begun, claimed.due_in_ms) == ((), 0)

    async def test_a_claim_knows_when_the_next_turn_is_due(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(quiet_ms=50_000, max_quiet_ms=50_000)) as box:
            assert (await box.claimed(Claimant(ONE))).due_in_ms is None
            accepted = await box.put("hi", claimant=Claimant(ONE))
            assert accepted.due_in_ms is not None
            assert 0 < accepted.due_in_ms <= 50_000
            claimed = await box.claimed(Claimant(ONE))
            assert claimed.begun == ()
            assert claimed.due_in_ms is not None
            assert 0 < claimed.due_in_ms <= 50_000
            await box.cancel()
            assert (await box.claimed(Claimant(ONE))).due_in_ms is None

    async def test_suspects_in_front_do_not_hold_up_the_others(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        poisoned = [f"telegram:bot:{number}" for number in range(5)]
        async with open_box(adapter) as box:
            for _ in range(2):
                for key in poisoned:
                    if not await box.waiting(key):
                        await box.put("poison", key)
                await box.claim()
                await box.bury(ONE)
            await advance(2)
            await box.put("innocent")
            (begun,) = await box.claim(TWO, limit=1, takes_suspects=False)
            assert texts(begun.items) == "innocent"
