"""What becomes of an item that comes while a turn of its session runs."""

from __future__ import annotations

from typing import get_args

import pytest

from trunkline.contracts.inbox.samples import KEY, ONE, TWO, Advance, open_box, texts
from trunkline.turns import InboxAdapter, TurnPolicy
from trunkline.turns.policy import WhileBusy
from trunkline.turns.session import Claimant

__all__ = ("ModeTests",)

MODES = get_args(WhileBusy)
every_mode = pytest.mark.parametrize("mode", MODES)


class ModeTests:
    """A part of `InboxContract`."""

    unit_ms: int

    @every_mode
    async def test_an_item_of_an_idle_session_is_a_turn(
        self, adapter: InboxAdapter, mode: WhileBusy
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy=mode)) as box:
            await box.put_all("one")
            begun = await box.begin()
            assert (texts(begun.items), begun.attempt) == ("one", 1)
            await box.finish(begun)
            assert await box.rows("running") == []

    async def test_collect_makes_one_turn_of_all_that_wait(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="collect")) as box:
            await box.put_all("one")
            first = await box.begin()
            await box.put_all("two three")
            assert await box.claim() == []
            claimed = await box.finish(first, claimant=Claimant(ONE))
            assert [texts(one.items) for one in claimed.begun] == ["two three"]
            await box.finish(claimed.begun[0])
            assert await box.claim() == []

    async def test_queue_makes_a_turn_of_each(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="queue")) as box:
            await box.put_all("one two three")
            for word in ("one", "two", "three"):
                begun = await box.begin()
                assert texts(begun.items) == word
                assert await box.claim() == []
                await box.finish(begun)
            assert await box.claim() == []

    async def test_latest_makes_a_turn_of_the_newest_and_is_done_with_the_others(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="latest")) as box:
            await box.put_all("one")
            first = await box.begin()
            await box.put_all("two three four")
            await box.finish(first)
            begun = await box.begin()
            assert (texts(begun.items), texts(begun.skipped)) == ("four", "two three")
            assert await box.texts("running") == "two three four"
            await box.finish(begun)
            assert (await box.inbox.counts()).sessions == 0
            assert await box.rows("waiting") == []

    async def test_latest_keeps_what_it_skipped_for_another_attempt_and_fails_it_as_well(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        policy = TurnPolicy(while_busy="latest", max_attempts=2, retry_delay_ms=self.unit_ms)
        async with open_box(adapter, policy) as box:
            await box.put_all("one two")
            await box.fail(await box.begin())
            await box.put_all("three")
            assert (await box.inbox.counts()).waiting == await box.waiting() == 3
            assert await box.texts("waiting") == "one two three"
            await advance(self.unit_ms + 1)
            again = await box.begin()
            assert (texts(again.items), texts(again.skipped)) == ("two", "one")
            assert (await box.inbox.counts()).running == 2
            await box.fail(again)
            assert await box.texts("failed") == "one two"
            assert texts((await box.begin()).items) == "three"

    async def test_interrupt_begins_again_with_the_new_items(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="interrupt")) as box:
            (first,) = await box.put_all("one")
            begun = await box.begin()
            accepted = await box.put("two")
            assert accepted.ended == (begun.id,)
            assert [(one.name, one.item_ids, one.attempt) for one in accepted.happened] == [
                ("interrupted", (first,), 1)
            ]
            assert (accepted.waiting, await box.texts("waiting")) == (2, "one two")
            # Not before the handler of the first has ended.
            assert await box.claim() == []
            assert (await box.beat()).claims == {begun.id: (KEY, False)}
            await box.end(begun)
            again = await box.begin()
            assert (texts(again.items), again.attempt) == ("one two", 1)
            assert again.resumed == {first}
            await box.finish(again)
            assert (await box.inbox.counts()).sessions == 0

    async def test_steer_lets_items_join_the_running_turn(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="steer")) as box:
            await box.put_all("one")
            begun = await box.begin()
            accepted = await box.put("two")
            assert accepted.joins == (begun.id,)
            (third,) = await box.put_all("three")
            assert await box.join(begun) == "two three"
            assert await box.claim() == []
            await box.take(begun, accepted.item_id)
            assert await box.join(begun) == "three"
            assert await box.texts("running") == "one two"
            # Taken twice is taken once.
            await box.take(begun, accepted.item_id)
            await box.finish(begun, taken=[accepted.item_id])
            assert await box.texts("waiting") == "three"
            following = await box.begin()
            assert [row.id for row in following.items] == [third]

    async def test_items_that_joined_are_given_to_another_attempt(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        policy = TurnPolicy(while_busy="steer", retry_delay_ms=self.unit_ms)
        async with open_box(adapter, policy) as box:
            await box.put_all("one")
            begun = await box.begin()
            two, three, four = await box.put_all("two three four")
            await box.take(begun, three, two)
            await box.fail(begun, taken=[four])
            await advance(self.unit_ms + 1)
            again = await box.begin()
            # In the order in which the handler took them.
            assert (texts(again.items), texts(again.taken)) == ("one", "two three four")
            # What this attempt did not take is the next turn.
            await box.finish(again, given_again=[two])
            following = await box.begin()
            assert texts(following.items) == "three four"
            await box.finish(following)
            assert (await box.inbox.counts()).sessions == 0

    async def test_items_that_joined_fail_with_their_turn(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="steer", max_attempts=1)) as box:
            await box.put_all("one")
            begun = await box.begin()
            two, _ = await box.put_all("two three")
            claimed = await box.fail(begun, taken=[two], claimant=Claimant(ONE))
            assert claimed.has_failed
            assert await box.texts("failed") == "one two"
            assert [texts(one.items) for one in claimed.begun] == ["three"]

    async def test_nothing_joins_an_urgent_turn_or_one_that_is_alone(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="steer")) as box:
            await box.put_all("one. two!")
            alone, urgent = sorted(await box.claim(), key=lambda begun: begun.urgent)
            accepted = await box.put("three")
            assert accepted.joins == ()
            assert (await box.join(alone), await box.join(urgent)) == ("", "")

    async def test_drop_stores_nothing_while_the_session_is_busy(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        policy = TurnPolicy(while_busy="drop", retry_delay_ms=self.unit_ms)
        async with open_box(adapter, policy) as box:
            await box.put_all("one")
            begun = await box.begin()
            before = await box.look()
            dropped = await box.put("two", external_id="2")
            assert (dropped.outcome, dropped.waiting) == ("dropped", 0)
            assert (await box.put("three", alone=True)).outcome == "dropped"
            assert await box.look() == before
            # Busy is also a session that waits for another attempt.
            await box.fail(begun)
            assert (await box.put("two", external_id="2")).outcome == "dropped"
            await advance(self.unit_ms + 1)
            await box.finish(await box.begin())
            # It left no mark.
            assert (await box.put("two", external_id="2")).outcome == "accepted"

    async def test_concurrent_begins_each_at_once(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="concurrent")) as box:
            first = await box.put("one", claimant=Claimant(ONE))
            second = await box.put("two", claimant=Claimant(ONE))
            await box.put_all("three four")
            others = await box.claim(TWO)
            assert first.begun is not None
            assert second.begun is not None
            begun = [first.begun, second.begun, *others]
            assert [texts(one.items) for one in begun] == ["one", "two", "three", "four"]
            for one in reversed(begun):
                await box.finish(one)
            assert (await box.inbox.counts()).sessions == 0

    # -- retry wait --------------------------------------------------------------------------------

    @pytest.mark.parametrize("mode", ["collect", "queue", "latest", "steer"])
    async def test_everything_waits_while_a_turn_waits_for_another_attempt(
        self, adapter: InboxAdapter, advance: Advance, mode: WhileBusy
    ) -> None:
        policy = TurnPolicy(while_busy=mode, retry_delay_ms=self.unit_ms)
        async with open_box(adapter, policy) as box:
            await box.put_all("one")
            await box.fail(await box.begin())
            await box.put_all("two three.")
            assert await box.claim() == []
            await advance(self.unit_ms + 1)
            again = await box.begin()
            assert (texts(again.items), again.attempt) == ("one", 2)
            await box.finish(again)
            assert await box.begin_all() == ["two"]

    async def test_interrupt_ends_the_wait_for_another_attempt(self, adapter: InboxAdapter) -> None:
        policy = TurnPolicy(while_busy="interrupt", retry_delay_ms=50_000)
        async with open_box(adapter, policy) as box:
            (first,) = await box.put_all("one")
            begun = await box.begin()
            await box.step(begun, "greet", b"hi")
            await box.fail(begun)
            accepted = await box.put("two", claimant=Claimant(TWO))
            assert accepted.ended == ()
            assert accepted.begun is not None
            assert texts(accepted.begun.items) == "one two"
            assert (accepted.begun.attempt, {*accepted.begun.resumed}) == (1, {first})
            assert dict(accepted.begun.steps) == {}

    async def test_concurrent_turns_run_while_one_waits_for_another_attempt(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        policy = TurnPolicy(while_busy="concurrent", retry_delay_ms=self.unit_ms)
        async with open_box(adapter, policy) as box:
            await box.put_all("one")
            await box.fail(await box.begin())
            await box.put_all("two")
            assert await box.begin_all() == ["two"]
            await advance(self.unit_ms + 1)
            (again,) = await box.claim()
            assert (texts(again.items), again.attempt) == ("one", 2)

    # -- alone -------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("mode", "turns"),
        [
            ("collect", ["1 2", "3.", "4 5"]),
            ("queue", ["1", "2", "3.", "4", "5"]),
            ("latest", ["2", "3.", "5"]),
            ("interrupt", ["1 2", "3.", "4 5"]),
            ("steer", ["1 2", "3.", "4 5"]),
            ("drop", ["1 2", "3.", "4 5"]),
        ],
    )
    async def test_an_item_that_is_alone_is_a_barrier(
        self, adapter: InboxAdapter, mode: WhileBusy, turns: list[str]
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy=mode)) as box:
            await box.put_all("1 2 3. 4 5")
            handled = []
            for begun in await box.claim():
                claimed = [begun]
                while claimed:
                    handled.append(texts(claimed[0].items))
                    finished = await box.finish(claimed[0], claimant=Claimant(ONE))
                    claimed = [*finished.begun]
            assert handled == turns
            assert (await box.inbox.counts()).sessions == 0

    async def test_an_item_that_is_alone_waits_for_concurrent_turns_and_they_for_it(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="concurrent")) as box:
            await box.put_all("1 2 3. 4")
            one, two = await box.claim()
            await box.finish(two)
            assert await box.claim() == []
            await box.finish(one)
            alone = await box.begin()
            assert texts(alone.items) == "3."
            assert await box.claim() == []
            await box.finish(alone)
            assert await box.begin_all() == ["4"]

    @every_mode
    async def test_an_item_that_is_alone_neither_ends_nor_joins_what_runs(
        self, adapter: InboxAdapter, mode: WhileBusy
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy=mode)) as box:
            await box.put_all("one")
            begun = await box.begin()
            accepted = await box.put("two", alone=True)
            assert (accepted.ended, accepted.joins) == ((), ())
            assert await box.join(begun) == ""
            assert await box.claim() == []

    async def test_what_comes_behind_a_barrier_neither_joins_nor_interrupts(
        self, adapter: InboxAdapter
    ) -> None:
        for mode in ("steer", "interrupt"):
            key = f"telegram:bot:{mode}"
            adapter.policy = TurnPolicy()
            async with open_box(adapter, TurnPolicy(while_busy=mode)) as box:
                await box.put_all("one", key)
                (begun,) = await box.claim()
                await box.put_all("two.", key)
                behind = await box.put("three", key)
                assert (behind.ended, behind.joins) == ((), ())
                assert await box.join(begun) == ""
                await box.finish(begun)
                alone = await box.begin()
                assert texts(alone.items) == "two."
                # Nor is a turn interrupted that is alone itself.
                assert (await box.put("four", key)).ended == ()
                await box.finish(alone)
                await box.finish(await box.begin())

    # -- urgent ------------------------------------------------------------------------------------

    @every_mode
    async def test_an_urgent_item_runs_at_once_beside_a_running_turn(
        self, adapter: InboxAdapter, mode: WhileBusy
    ) -> None:
        policy = TurnPolicy(while_busy=mode, quiet_ms=50_000, max_quiet_ms=50_000)
        async with open_box(adapter, TurnPolicy(while_busy=mode)) as box:
            await box.put_all("one.")
            ordinary = await box.begin()
            adapter.policy = policy
            full = Claimant(TWO, is_free=False)
            accepted = await box.put("stop", urgent=True, claimant=full)
            assert (accepted.outcome, accepted.ended, accepted.joins) == ("accepted", (), ())
            assert accepted.begun is not None
            assert accepted.begun.urgent
            (second,) = await box.put_all("again!")
            claimed = await box.claimed(full)
            assert [row.id for begun in claimed.begun for row in begun.items] == [second]
            # They make no session busy.
            await box.finish(ordinary)
            adapter.policy = TurnPolicy(while_busy=mode)
            assert (await box.put("two")).outcome == "accepted"
            assert await box.begin_all() == ["two"]

    async def test_an_urgent_item_does_not_end_the_quiet_wait(self, adapter: InboxAdapter) -> None:
        policy = TurnPolicy(quiet_ms=50_000, max_quiet_ms=50_000)
        async with open_box(adapter, policy) as box:
            await box.put_all("one stop!")
            assert await box.begin_all() == ["stop!"]
            assert await box.texts("waiting") == "one"

    async def test_an_urgent_turn_that_fails_is_tried_again_beside_others(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=self.unit_ms)) as box:
            await box.put_all("stop!")
            await box.fail(await box.begin())
            await box.put_all("one")
            ordinary = await box.begin()
            assert texts(ordinary.items) == "one"
            await advance(self.unit_ms + 1)
            again = await box.begin()
            assert (texts(again.items), again.attempt, again.urgent) == ("stop!", 2, True)
