"""Items are accepted: once, whole, and no more than fit."""

from __future__ import annotations

import pytest

from trunkline.contracts.inbox.samples import KEY, KEYS, ONE, Advance, new_item, open_box, texts
from trunkline.errors import InboxFull
from trunkline.turns import InboxAdapter, TurnPolicy
from trunkline.turns.session import Claimant

__all__ = ("AcceptanceTests",)


class AcceptanceTests:
    """A part of `InboxContract`."""

    unit_ms: int

    async def test_an_item_that_was_accepted_waits_with_all_that_it_has(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            item = new_item("hi", external_id="7", alone=True)
            accepted = await box.call(KEY, InboxAdapter.accept, KEY, item, None)
            urgent = await box.put("stop", urgent=True)
            assert (accepted.outcome, accepted.item_id) == ("accepted", item.id)
            assert (accepted.waiting, urgent.waiting) == (1, 2)
            assert (accepted.begun, accepted.ended, accepted.joins) == (None, (), ())
            (row, second) = await box.rows("waiting")
            assert (row.id, row.session, row.external_id) == (item.id, KEY, "7")
            assert (row.payload, row.alone, row.urgent) == (b"hi", True, False)
            assert (row.attempts, row.error) == (0, None)
            assert (second.external_id, second.alone, second.urgent) == (None, False, True)
            assert row.accepted_at_ms > 0
            assert await box.waiting() == 2

    async def test_a_payload_may_have_any_bytes_and_five_megabytes(
        self, adapter: InboxAdapter
    ) -> None:
        payloads = [b"", b"\0", bytes(range(256)), b"'\"%s\\", b"x" * 5_000_000]
        async with open_box(adapter, TurnPolicy(while_busy="queue")) as box:
            for number, payload in enumerate(payloads):
                item = new_item(str(number))
                whole = type(item)(item.id, payload, None, item.mark)
                await box.call(KEY, InboxAdapter.accept, KEY, whole, None)
            assert [row.payload for row in await box.rows("waiting")] == payloads
            for payload in payloads:
                begun = await box.begin()
                assert [row.payload for row in begun.items] == [payload]
                await box.finish(begun)

    async def test_sessions_with_odd_keys_are_kept_apart(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            for number, key in enumerate(KEYS):
                await box.put(str(number), key)
            assert [await box.waiting(key) for key in KEYS] == [1] * len(KEYS)
            begun = {one.session: one for one in await box.claim()}
            assert {key: texts(begun[key].items) for key in KEYS} == {
                key: str(number) for number, key in enumerate(KEYS)
            }
            await box.finish(begun[KEYS[0]])
            assert (await box.inbox.counts()).sessions == len(KEYS) - 1

    async def test_an_item_that_comes_again_while_it_waits_is_a_duplicate(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            first = await box.put("hi", external_id="7")
            again = await box.put("hello", external_id="7")
            assert (again.outcome, again.item_id) == ("duplicate", first.item_id)
            assert again.waiting == 1
            assert await box.texts("waiting") == "hi"

    async def test_an_item_that_comes_again_after_it_was_handled_is_a_duplicate(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            first = await box.put("hi", external_id="7")
            await box.finish(await box.begin())
            again = await box.put("hi", external_id="7")
            assert (again.outcome, again.item_id) == ("duplicate", first.item_id)
            assert await box.claim() == []
            assert await box.rows("waiting") == []

    async def test_an_item_is_known_for_dedupe_ms(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        async with open_box(adapter, dedupe_ms=2 * self.unit_ms) as box:
            await box.put("hi", external_id="7")
            await box.finish(await box.begin())
            await advance(2 * self.unit_ms + 1)
            again = await box.put("hi", external_id="7")
            assert again.outcome == "accepted"
            assert (await box.put("hi", external_id="7")).outcome == "duplicate"
            await box.finish(await box.begin())

    async def test_items_without_an_external_id_are_all_different(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            outcomes = [(await box.put("hi")).outcome for _ in range(3)]
            assert outcomes == ["accepted"] * 3
            assert await box.waiting() == 3

    async def test_an_accept_whose_reply_was_lost_can_be_repeated(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            item = new_item("hi")
            for _ in range(3):
                accepted = await box.call(KEY, InboxAdapter.accept, KEY, item, None)
                assert (accepted.outcome, accepted.item_id) == ("accepted", item.id)
                assert (accepted.waiting, accepted.due_in_ms) == (1, 0)
            await box.finish(await box.begin())
            handled = await box.call(KEY, InboxAdapter.accept, KEY, item, None)
            assert (handled.item_id, handled.waiting) == (item.id, 0)
            assert await box.claim() == []

    async def test_an_edited_item_that_waits_has_its_new_payload(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.put("one")
            first = await box.put("two", external_id="7")
            delayed = await box.put("three", external_id="8", delay_ms=60_000)
            edited = await box.put("2", external_id="7", replace=True)
            moved = await box.put("3", external_id="8", replace=True)
            assert (edited.outcome, edited.item_id) == ("accepted", first.item_id)
            assert (moved.outcome, moved.item_id) == ("accepted", delayed.item_id)
            assert (edited.waiting, moved.waiting) == (3, 3)
            assert await box.texts("waiting") == "one 2 3"
            assert texts((await box.begin()).items) == "one 2"

    async def test_an_edited_item_that_is_new_is_accepted(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            assert (await box.put("hi", external_id="7", replace=True)).outcome == "accepted"
            assert await box.texts("waiting") == "hi"

    async def test_an_edited_item_that_does_not_wait_is_a_duplicate(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        policy = TurnPolicy(max_attempts=2, retry_delay_ms=self.unit_ms)
        async with open_box(adapter, policy) as box:

            async def edit() -> str:
                return (await box.put("new", external_id="7", replace=True)).outcome

            await box.put("old", external_id="7")
            begun = await box.begin()
            assert await edit() == "duplicate"
            await box.fail(begun)
            assert await edit() == "duplicate"
            await advance(self.unit_ms + 1)
            again = await box.begin()
            assert texts(again.items) == "old"
            await box.fail(again)
            assert await edit() == "duplicate"
            assert await box.texts("failed") == "old"

    async def test_more_items_than_may_wait_are_refused(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(max_waiting=2)) as box:
            await box.put_all("one two")
            before = await box.look()
            with pytest.raises(InboxFull):
                await box.put("three", external_id="3")
            assert await box.look() == before
            running = await box.begin()
            # What runs does not wait; and what was refused leaves no mark.
            assert (await box.put("three", external_id="3")).outcome == "accepted"
            await box.put("four")
            with pytest.raises(InboxFull):
                await box.put("five")
            await box.finish(running)
            assert texts((await box.begin()).items) == "three four"

    async def test_the_oldest_items_make_room_for_new_ones(self, adapter: InboxAdapter) -> None:
        policy = TurnPolicy(max_waiting=2, when_full="drop_oldest")
        async with open_box(adapter, policy) as box:
            first = await box.put("one", external_id="1")
            await box.put("two")
            third = await box.put("three")
            assert [(one.name, one.item_ids) for one in third.happened] == [
                ("dropped", (first.item_id,))
            ]
            assert (third.outcome, third.waiting) == ("accepted", 2)
            assert await box.texts("waiting") == "two three"
            # It is not handled, and the platform need not send it again.
            assert (await box.put("one", external_id="1")).outcome == "duplicate"
            assert texts((await box.begin()).items) == "two three"

    async def test_urgent_and_delayed_items_need_no_room(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(max_waiting=1)) as box:
            await box.put("one")
            assert (await box.put("stop", urgent=True)).outcome == "accepted"
            assert (await box.put("later", delay_ms=60_000)).outcome == "accepted"
            with pytest.raises(InboxFull):
                await box.put("two")
            assert sorted(await box.begin_all()) == ["one", "stop"]

    async def test_expired_items_take_no_room(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        policy = TurnPolicy(max_waiting=1, expire_after_ms=self.unit_ms)
        async with open_box(adapter, policy) as box:
            first = await box.put("one")
            await advance(self.unit_ms + 1)
            second = await box.put("two")
            assert [(one.name, one.item_ids) for one in second.happened] == [
                ("expired", (first.item_id,))
            ]
            assert await box.texts("waiting") == "two"

    async def test_an_accept_begins_a_turn_for_a_process_that_has_room(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            accepted = await box.put("one", claimant=Claimant(ONE))
            assert accepted.begun is not None
            assert (accepted.waiting, accepted.due_in_ms) == (0, None)
            begun = accepted.begun
            assert texts(begun.items) == "one"
            assert (begun.session, begun.attempt, begun.deaths) == (KEY, 1, 0)
            assert (begun.skipped, begun.taken, begun.resumed) == ((), (), frozenset())
            assert (begun.urgent, begun.error, dict(begun.steps)) == (False, "", {})
            assert begun.began_at_ms >= begun.items[0].accepted_at_ms
            second = await box.put("two", claimant=Claimant(ONE))
            assert (second.begun, second.waiting) == (None, 1)
            assert list((await box.beat()).claims) == [begun.id]
            await box.finish(begun)

    async def test_an_accept_begins_no_turn_without_room(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            full = Claimant(ONE, is_free=False)
            accepted = await box.put("one", claimant=full)
            assert (accepted.begun, accepted.waiting, accepted.due_in_ms) == (None, 1, 0)
            urgent = await box.put("stop", claimant=full, urgent=True)
            assert urgent.begun is not None
            assert texts(urgent.begun.items) == "stop"
