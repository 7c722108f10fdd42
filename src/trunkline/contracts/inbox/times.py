"""What waits for a time: quiet, delays, expiry, another attempt."""

from __future__ import annotations

from trunkline.contracts.inbox.samples import ONE, Advance, open_box, texts
from trunkline.turns import InboxAdapter, TurnPolicy
from trunkline.turns.session import Claimant

__all__ = ("TimeTests",)


class TimeTests:
    """A part of `InboxContract`."""

    unit_ms: int

    async def test_a_turn_begins_when_its_session_has_been_quiet(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        async with open_box(adapter, TurnPolicy(quiet_ms=4 * unit, max_quiet_ms=60 * unit)) as box:
            for word in ("one", "two", "three"):
                accepted = await box.put(word, claimant=Claimant(ONE))
                assert accepted.begun is None
                assert accepted.due_in_ms is not None
                assert 3 * unit < accepted.due_in_ms <= 4 * unit
                await advance(unit)
                assert await box.claim() == []
            await advance(3 * unit + 1)
            assert await box.begin_all() == ["one two three"]

    async def test_a_turn_begins_after_max_quiet_ms_at_the_latest(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        async with open_box(adapter, TurnPolicy(quiet_ms=6 * unit, max_quiet_ms=8 * unit)) as box:
            await box.put_all("one")
            await advance(5 * unit)
            accepted = await box.put("two", claimant=Claimant(ONE))
            assert accepted.begun is None
            assert accepted.due_in_ms is not None
            assert accepted.due_in_ms <= 3 * unit
            await advance(3 * unit + 1)
            assert await box.begin_all() == ["one two"]

    async def test_a_session_has_to_be_quiet_also_after_a_turn(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        policy = TurnPolicy(quiet_ms=4 * unit, max_quiet_ms=60 * unit)
        async with open_box(adapter, policy) as box:
            await box.put_all("one")
            await advance(4 * unit + 1)
            begun = await box.begin()
            await box.put_all("two")
            claimed = await box.finish(begun, claimant=Claimant(ONE))
            assert claimed.begun == ()
            assert claimed.due_in_ms is not None
            assert 0 < claimed.due_in_ms <= 4 * unit
            await advance(4 * unit + 1)
            assert await box.begin_all() == ["two"]

    async def test_an_item_that_is_alone_ends_the_quiet_wait(self, adapter: InboxAdapter) -> None:
        policy = TurnPolicy(quiet_ms=50_000, max_quiet_ms=50_000)
        async with open_box(adapter, policy) as box:
            await box.put_all("one two")
            assert await box.claim() == []
            await box.put_all("three. four")
            begun = await box.begin()
            assert texts(begun.items) == "one two"
            await box.finish(begun)
            alone = await box.begin()
            assert texts(alone.items) == "three."
            await box.finish(alone)
            # Behind the barrier it is as before.
            assert await box.claim() == []
            assert await box.texts("waiting") == "four"

    async def test_another_attempt_and_a_retried_item_wait_for_no_quiet(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        policy = TurnPolicy(
            quiet_ms=4 * unit, max_quiet_ms=60 * unit, retry_delay_ms=unit, max_attempts=2
        )
        async with open_box(adapter, policy) as box:
            (item_id,) = await box.put_all("one")
            await advance(4 * unit + 1)
            await box.fail(await box.begin())
            await advance(unit + 1)
            await box.fail(await box.begin())
            await box.retry(item_id)
            assert await box.begin_all() == ["one"]

    async def test_a_retried_item_does_not_end_the_quiet_wait_of_others(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(max_attempts=1)) as box:
            (item_id,) = await box.put_all("one")
            await box.fail(await box.begin())
            adapter.policy = TurnPolicy(quiet_ms=50_000, max_quiet_ms=50_000)
            await box.put_all("two")
            await box.retry(item_id)
            assert await box.claim() == []

    # -- delays ------------------------------------------------------------------------------------

    async def test_a_delayed_item_waits_and_holds_up_nobody(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        async with open_box(adapter) as box:
            later = await box.put("later", delay_ms=4 * unit, claimant=Claimant(ONE))
            assert (later.begun, later.waiting) == (None, 1)
            assert later.due_in_ms is not None
            assert 3 * unit < later.due_in_ms <= 4 * unit
            now = await box.put("now", claimant=Claimant(ONE))
            assert now.begun is not None
            assert texts(now.begun.items) == "now"
            claimed = await box.finish(now.begun, claimant=Claimant(ONE))
            assert claimed.begun == ()
            assert claimed.due_in_ms is not None
            assert await box.texts("waiting") == "later"
            await advance(4 * unit + 1)
            assert await box.begin_all() == ["later"]

    async def test_a_delayed_item_that_is_due_waits_for_the_end_of_a_turn(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        async with open_box(adapter) as box:
            await box.put("later", delay_ms=unit)
            await box.put_all("now")
            begun = await box.begin()
            await advance(unit + 1)
            assert await box.claim() == []
            claimed = await box.finish(begun, claimant=Claimant(ONE))
            assert [texts(one.items) for one in claimed.begun] == ["later"]

    async def test_delayed_items_come_in_the_order_of_their_times(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        async with open_box(adapter) as box:
            await box.put("third", delay_ms=9 * unit)
            await box.put("first", delay_ms=3 * unit)
            await box.put("second", delay_ms=6 * unit)
            await advance(9 * unit + 1)
            assert await box.begin_all() == ["first second third"]

    async def test_a_delayed_item_that_is_urgent_runs_beside_a_running_turn(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        async with open_box(adapter) as box:
            await box.put_all("one")
            await box.begin()
            await box.put("stop", delay_ms=self.unit_ms, urgent=True)
            assert await box.claim() == []
            await advance(self.unit_ms + 1)
            begun = await box.begin()
            assert (texts(begun.items), begun.urgent) == ("stop", True)

    # -- expiry ------------------------------------------------------------------------------------

    async def test_an_item_that_waits_too_long_for_its_first_turn_expires(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        async with open_box(adapter, TurnPolicy(expire_after_ms=4 * unit)) as box:
            (old,) = await box.put_all("old")
            await advance(3 * unit)
            await box.put_all("new")
            await advance(unit + 1)
            claimed = await box.claimed(Claimant(ONE))
            assert [(one.name, one.item_ids) for one in claimed.happened] == [("expired", (old,))]
            assert claimed.happened[0].waited_ms >= 4 * unit
            assert [texts(one.items) for one in claimed.begun] == ["new"]
            assert await box.rows("waiting") == []

    async def test_a_session_whose_items_have_all_expired_is_removed(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        async with open_box(adapter, TurnPolicy(expire_after_ms=self.unit_ms)) as box:
            await box.put("one", external_id="1")
            await advance(self.unit_ms + 1)
            assert await box.claim() == []
            assert (await box.inbox.counts()).sessions == 0
            assert (await box.put("one", external_id="1")).outcome == "duplicate"

    async def test_an_item_never_expires_after_its_first_turn_began(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        policy = TurnPolicy(
            while_busy="interrupt", expire_after_ms=unit, retry_delay_ms=2 * unit, max_attempts=2
        )
        async with open_box(adapter, policy) as box:
            (item_id,) = await box.put_all("one")
            await box.fail(await box.begin())
            await advance(2 * unit + 1)
            again = await box.begin()
            await box.put("two")  # interrupts
            await advance(unit + 1)
            await box.end(again)
            begun = await box.begin()
            assert texts(begun.items) == "one"
            await box.fail(begun, is_final=True)
            await box.retry(item_id)
            await advance(unit + 1)
            assert await box.begin_all() == ["one"]

    async def test_a_delayed_item_begins_to_expire_when_it_is_due(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        async with open_box(adapter, TurnPolicy(expire_after_ms=3 * unit)) as box:
            await box.put("later", delay_ms=6 * unit)
            await advance(7 * unit)
            assert await box.begin_all() == ["later"]

    # -- other attempts ----------------------------------------------------------------------------

    async def test_the_delay_between_attempts_doubles(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        policy = TurnPolicy(max_attempts=10, retry_delay_ms=2 * unit)
        async with open_box(adapter, policy) as box:
            await box.put_all("one")
            for delay_ms in (2 * unit, 4 * unit, 8 * unit):
                claimed = await box.fail(await box.begin())
                assert not claimed.has_failed
                assert claimed.due_in_ms is not None
                assert delay_ms - unit < claimed.due_in_ms <= delay_ms
                assert await box.claim() == []
                await advance(delay_ms + 1)

    async def test_the_delay_is_a_minute_at_most(self, adapter: InboxAdapter) -> None:
        policy = TurnPolicy(max_attempts=100, retry_delay_ms=0)
        async with open_box(adapter, policy) as box:
            await box.put_all("one")
            for _ in range(7):
                await box.fail(await box.begin())
            adapter.policy = TurnPolicy(max_attempts=100, retry_delay_ms=1_000)
            claimed = await box.fail(await box.begin())
            assert claimed.due_in_ms is not None
            assert 55_000 < claimed.due_in_ms <= 60_000

    async def test_the_delay_has_the_jitter_that_was_given(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=20_000)) as box:
            await box.put_all("one")
            claimed = await box.fail(await box.begin(), jitter=1.25)
            assert claimed.due_in_ms is not None
            assert 20_000 < claimed.due_in_ms <= 25_000
