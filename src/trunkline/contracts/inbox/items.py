"""Items as an operator sees them: listed, counted, retried, discarded; and marks, swept."""

from __future__ import annotations

import pytest

from trunkline.contracts.inbox.samples import KEY, Advance, open_box, texts
from trunkline.errors import NotFound
from trunkline.turns import InboxAdapter, InboxCounts, TurnPolicy
from trunkline.turns.item import ItemState

__all__ = ("ItemTests",)

_MISSING = "01890000-0000-7000-8000-000000000000"


class ItemTests:
    """A part of `InboxContract`."""

    unit_ms: int

    async def test_an_empty_inbox_has_nothing(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            states: tuple[ItemState, ...] = ("waiting", "running", "failed")
            for state in states:
                assert await box.rows(state) == []
            assert await box.inbox.counts() == InboxCounts(0, 0, 0, 0)
            assert await box.waiting() == 0
            assert await box.claim() == []

    async def test_items_are_counted_by_their_states(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=50_000)) as box:
            await box.put_all("running", "telegram:bot:1")
            await box.put_all("retrying", "telegram:bot:2")
            await box.put_all("failed", "telegram:bot:3")
            begun = {texts(one.items): one for one in await box.claim()}
            await box.fail(begun["retrying"])
            await box.fail(begun["failed"], is_final=True)
            await box.put_all("a b", "telegram:bot:1")
            await box.put("later", "telegram:bot:4", delay_ms=60_000)
            assert await box.inbox.counts() == InboxCounts(
                sessions=3, waiting=4, running=1, failed=1
            )
            assert [await box.waiting(f"telegram:bot:{n}") for n in (1, 2, 3, 4)] == [2, 1, 0, 1]
            assert {row.session for row in await box.rows("waiting")} == {
                "telegram:bot:1",
                "telegram:bot:2",
                "telegram:bot:4",
            }
            assert texts(await box.rows("running")) == "running"
            assert texts(await box.rows("failed")) == "failed"

    async def test_a_listed_item_has_its_attempts(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        policy = TurnPolicy(retry_delay_ms=self.unit_ms, max_attempts=2)
        async with open_box(adapter, policy) as box:
            await box.put_all("one")
            begun = await box.begin()
            await box.put_all("two")
            assert [row.attempts for row in await box.rows("running")] == [1]
            await box.fail(begun)
            assert [row.attempts for row in await box.rows("waiting")] == [1, 0]
            await advance(self.unit_ms + 1)
            begun = await box.begin()
            assert [row.attempts for row in await box.rows("running")] == [2]
            await box.fail(begun, error="ValueError('naïve ☃ \0')")
            (row,) = await box.rows("failed")
            assert (row.attempts, row.payload, row.session) == (2, b"one", KEY)
            assert row.error is not None
            assert row.error.startswith("ValueError('naïve ☃ ")

    async def test_the_oldest_item_that_waits_is_known(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        unit = self.unit_ms
        async with open_box(adapter) as box:

            async def oldest() -> int:
                return await box.inbox._read(InboxAdapter.oldest_waiting_ms)

            assert await oldest() == 0
            await box.put("later", delay_ms=10 * unit)
            await box.put_all("one", "telegram:bot:1")
            await box.begin()
            await advance(unit)
            assert await oldest() == 0
            await box.put_all("two", "telegram:bot:2")
            await advance(2 * unit)
            assert 2 * unit <= await oldest() < 3 * unit
            await box.cancel("telegram:bot:2")
            await advance(9 * unit)
            assert 2 * unit <= await oldest() < 3 * unit

    async def test_a_list_has_pages(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            ids = []
            for number in range(30):
                ids += await box.put_all("a b", f"telegram:bot:{number}")
            running = [row.id for begun in await box.claim(limit=15) for row in begun.items]
            waiting = [item_id for item_id in ids if item_id not in running]
            for state, expected in (("waiting", sorted(waiting)), ("running", sorted(running))):
                found: list[str] = []
                page = await box.rows(state, 7)  # type: ignore[arg-type]
                while page:
                    assert len(page) <= 7
                    found += [row.id for row in page]
                    page = await box.rows(state, 7, found[-1])  # type: ignore[arg-type]
                assert found == expected

    async def test_failed_items_have_pages(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(max_attempts=1)) as box:
            ids = await box.put_all("1 2 3 4 5")
            await box.fail(await box.begin())
            assert [row.id for row in await box.rows("failed", 3)] == ids[:3]
            assert [row.id for row in await box.rows("failed", 3, ids[2])] == ids[3:]

    # -- retry and discard -------------------------------------------------------------------------

    async def test_a_retried_item_waits_behind_the_others_as_if_it_had_just_come(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="queue", max_attempts=1)) as box:
            first = await box.put("one", external_id="1", alone=True)
            await box.fail(await box.begin())
            await box.put_all("two")
            await box.retry(first.item_id)
            assert await box.rows("failed") == []
            assert await box.inbox.counts() == InboxCounts(1, 2, 0, 0)
            two = await box.begin()
            assert texts(two.items) == "two"
            await box.finish(two)
            again = await box.begin()
            (row,) = again.items
            assert (row.id, row.external_id, row.alone) == (first.item_id, "1", True)
            assert (again.attempt, dict(again.steps)) == (1, {})
            await box.finish(again)
            assert await box.inbox.counts() == InboxCounts()

    async def test_a_retried_urgent_item_is_urgent(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(max_attempts=1)) as box:
            (item_id,) = await box.put_all("stop!")
            await box.fail(await box.begin())
            await box.put_all("one")
            await box.begin()
            await box.retry(item_id)
            assert (await box.begin()).urgent

    async def test_a_retried_item_that_is_edited_is_a_duplicate_or_replaced(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(max_attempts=1)) as box:
            item_id = (await box.put("one", external_id="1")).item_id
            await box.fail(await box.begin())
            await box.retry(item_id)
            assert (await box.put("one", external_id="1")).outcome == "duplicate"
            assert (await box.put("1", external_id="1", replace=True)).outcome == "accepted"
            assert await box.begin_all() == ["1"]

    async def test_only_a_failed_item_can_be_retried(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            ids = await box.put_all("one")
            begun = await box.begin()
            ids += await box.put_all("two")
            before = await box.look()
            for item_id in (*ids, _MISSING, "", "no id at all"):
                with pytest.raises(NotFound):
                    await box.retry(item_id)
            assert await box.look() == before
            await box.finish(begun)
            with pytest.raises(NotFound):
                await box.retry(ids[0])

    async def test_an_item_that_is_retried_twice_is_retried_once(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(max_attempts=1)) as box:
            (item_id,) = await box.put_all("one")
            await box.fail(await box.begin())
            await box.retry(item_id)
            with pytest.raises(NotFound):
                await box.retry(item_id)
            assert await box.waiting() == 1

    async def test_what_waits_or_has_failed_can_be_discarded(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(max_attempts=1)) as box:
            (failed,) = await box.put_all("failed")
            await box.fail(await box.begin())
            (running,) = await box.put_all("running")
            begun = await box.begin()
            (waiting,) = await box.put_all("waiting")
            delayed = (await box.put("later", delay_ms=60_000)).item_id
            for item_id, removed in (
                (failed, True),
                (running, False),
                (waiting, True),
                (delayed, True),
            ):
                assert await box.discard(item_id) is removed
            assert await box.inbox.counts() == InboxCounts(1, 0, 1, 0)
            await box.finish(begun)
            assert await box.inbox.counts() == InboxCounts()
            for item_id in (failed, running, waiting, delayed, _MISSING, ""):
                with pytest.raises(NotFound):
                    await box.discard(item_id)

    async def test_a_discarded_item_leaves_the_turn_that_waits_for_another_attempt(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=self.unit_ms)) as box:
            one, two = await box.put_all("one two")
            begun = await box.begin()
            await box.step(begun, "greet", b"hi")
            await box.fail(begun)
            await box.put_all("three")
            assert await box.discard(one)
            assert (await box.inbox.counts()).waiting == 2
            await advance(self.unit_ms + 1)
            again = await box.begin()
            assert (texts(again.items), dict(again.steps)) == ("two", {"greet": b"hi"})
            await box.fail(again)
            # Without an item it has nothing to try again.
            assert await box.discard(two)
            following = await box.begin()
            assert (texts(following.items), following.attempt) == ("three", 1)
            assert dict(following.steps) == {}

    async def test_a_discarded_barrier_holds_up_nobody(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="concurrent")) as box:
            await box.put_all("one")
            await box.begin()
            (barrier,) = await box.put_all("two.")
            await box.put_all("three")
            assert await box.claim() == []
            assert await box.discard(barrier)
            assert await box.begin_all() == ["three"]

    # -- marks -------------------------------------------------------------------------------------

    async def test_a_sweep_removes_marks_whose_time_is_over(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        if not self.sweeps:
            pytest.skip("the database removes what has expired by itself")
        async with open_box(adapter, dedupe_ms=2 * self.unit_ms) as box:

            async def sweep(limit: int) -> int:
                count: int = await box.call(None, InboxAdapter.sweep, limit)
                return count

            for number in range(7):
                await box.put("hi", external_id=str(number))
            assert await sweep(3) == 0
            await advance(2 * self.unit_ms + 1)
            await box.put("hi", external_id="new")
            assert [await sweep(3) for _ in range(4)] == [3, 3, 1, 0]
            # The items are not touched.
            assert await box.waiting() == 8
            assert (await box.put("hi", external_id="new")).outcome == "duplicate"

    #: Whether `sweep` removes marks. False where the database expires them by itself.
    sweeps: bool = True
