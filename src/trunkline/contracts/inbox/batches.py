"""Calls that are made at once share a commit, and each has its own result."""

from __future__ import annotations

from trunkline.contracts.inbox.samples import KEY, ONE, new_item, open_box, texts
from trunkline.errors import InboxFull, TurnLost
from trunkline.turns import InboxAdapter, InboxCounts, TurnPolicy
from trunkline.turns.session import Claimant

__all__ = ("BatchTests",)

accept, finish, cancel = InboxAdapter.accept, InboxAdapter.finish, InboxAdapter.cancel


class BatchTests:
    """A part of `InboxContract`."""

    async def test_items_of_many_sessions_are_accepted_at_once(self, adapter: InboxAdapter) -> None:
        keys = [f"telegram:bot:{number}" for number in range(100)]
        async with open_box(adapter) as box:
            calls = [(accept, key, new_item(key), Claimant(ONE)) for key in keys for _ in range(3)]
            results = await box.together(*calls)
            assert [one.outcome for one in results] == ["accepted"] * 300
            begun = [one.begun for one in results if one.begun is not None]
            assert [texts(one.items) for one in begun] == keys
            assert await box.inbox.counts() == InboxCounts(100, 200, 100, 0)
            finished = await box.together(
                *[
                    (finish, one.session, one.id, (), [one.items[0].id], False, Claimant(ONE))
                    for one in begun
                ]
            )
            assert [texts(one.begun[0].items) for one in finished] == [f"{k} {k}" for k in keys]

    async def test_an_error_of_one_call_leaves_the_others(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(max_waiting=2)) as box:
            await box.put("lost", "telegram:bot:1")
            lost = await box.begin()
            await box.cancel(lost.session)
            results = await box.together(
                (accept, KEY, new_item("one"), None),
                (finish, lost.session, lost.id, (), (), False, None),
                (accept, KEY, new_item("two"), None),
                (accept, KEY, new_item("three"), None),
                (InboxAdapter.step, lost.session, lost.id, (), "greet", b"hi"),
                (accept, "telegram:bot:2", new_item("four"), None),
                (accept, KEY, new_item("five", urgent=True), None),
                (InboxAdapter.end, lost.session, lost.id, None),
            )
            kinds = [type(one).__name__ for one in results]
            assert kinds == [
                "Accepted",
                TurnLost.__name__,
                "Accepted",
                InboxFull.__name__,
                TurnLost.__name__,
                "Accepted",
                "Accepted",
                "Claimed",
            ]
            assert sorted(await box.begin_all()) == ["five", "four", "one two"]

    async def test_the_same_item_twice_at_once_is_stored_once(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            items = [new_item("hi", external_id="7") for _ in range(20)]
            results = await box.together(*[(accept, KEY, item, None) for item in items])
            assert [one.outcome for one in results] == ["accepted"] + ["duplicate"] * 19
            assert {one.item_id for one in results} == {items[0].id}
            assert await box.waiting() == 1

    async def test_an_item_may_be_accepted_edited_and_cancelled_at_once(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            results = await box.together(
                (accept, KEY, new_item("1", external_id="7"), None),
                (accept, KEY, new_item("2", external_id="7", replace=True), None),
                (accept, KEY, new_item("3"), None),
                (cancel, KEY, True),
                (accept, KEY, new_item("4", external_id="7"), None),
                (accept, KEY, new_item("5"), None),
            )
            assert [getattr(one, "outcome", "cancel") for one in results] == [
                "accepted",
                "accepted",
                "accepted",
                "cancel",
                "duplicate",
                "accepted",
            ]
            assert await box.texts("waiting") == "5"
            assert await box.inbox.counts() == InboxCounts(1, 1, 0, 0)

    async def test_a_replaced_payload_is_in_the_turn_that_begins_at_once(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.put("0")
            running = await box.begin()
            results = await box.together(
                (accept, KEY, new_item("1", external_id="7"), None),
                (accept, KEY, new_item("2", external_id="7", replace=True), None),
                (finish, KEY, running.id, (), [running.items[0].id], False, Claimant(ONE)),
            )
            assert [texts(one.items) for one in results[2].begun] == ["2"]

    async def test_a_turn_that_began_and_was_cancelled_at_once_never_runs(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.put("0")
            running = await box.begin()
            await box.put("1")
            results = await box.together(
                (accept, "telegram:bot:1", new_item("x"), None),
                (finish, KEY, running.id, (), [running.items[0].id], False, Claimant(ONE)),
                (cancel, KEY, True),
                (accept, KEY, new_item("2"), None),
            )
            assert results[2].count == 1
            # Whoever got the turn ends it; if nobody did, it has ended.
            for begun in results[1].begun:
                await box.end(begun)
            begun = await box.claim()
            assert [texts(one.items) for one in begun if one.session == KEY] == ["2"]

    async def test_a_turn_that_began_and_was_interrupted_at_once_begins_again(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="interrupt")) as box:
            results = await box.together(
                (accept, "telegram:bot:1", new_item("x"), None),
                (accept, KEY, new_item("1"), Claimant(ONE)),
                (accept, KEY, new_item("2"), Claimant(ONE)),
                (accept, KEY, new_item("3"), Claimant(ONE)),
            )
            begun = [one.begun for one in results if one.begun is not None]
            for one in begun:
                await box.end(one)
            begun += await box.claim()
            assert "1 2 3" in [texts(one.items) for one in begun if one.session == KEY]

    async def test_turns_begin_and_end_at_once(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="queue")) as box:
            await box.put_all("1 2 3")
            first = await box.begin()
            args = (first.id, (), [first.items[0].id])
            results = await box.together(
                (finish, KEY, *args, False, None),
                (finish, KEY, *args, False, None),
                (finish, KEY, *args, True, Claimant(ONE)),
                (accept, KEY, new_item("4"), Claimant(ONE)),
            )
            assert isinstance(results[1], TurnLost)
            assert [texts(one.items) for one in results[2].begun] == ["2"]
            assert (results[3].begun, results[3].waiting) == (None, 2)
