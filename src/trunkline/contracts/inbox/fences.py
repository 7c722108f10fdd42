"""The id of a turn is its fencing token: what a lost turn does changes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from trunkline.contracts.inbox.samples import KEY, ONE, TWO, Advance, Box, open_box, texts
from trunkline.errors import TurnLost
from trunkline.turns import InboxAdapter, TurnPolicy
from trunkline.turns.adapter import Begun
from trunkline.turns.session import Claimant

__all__ = ("FenceTests",)


async def _finished(box: Box, begun: Begun) -> None:
    await box.finish(begun)


async def _failed(box: Box, begun: Begun) -> None:
    await box.fail(begun)


async def _failed_for_good(box: Box, begun: Begun) -> None:
    await box.fail(begun, is_final=True)


async def _stopped(box: Box, begun: Begun) -> None:
    await box.stop(begun)


async def _forgotten(box: Box, begun: Begun) -> None:
    await box.forget(begun)


async def _buried(box: Box, _: Begun) -> None:
    await box.bury(ONE)


async def _taken_over(box: Box, _: Begun) -> None:
    await box.bury(ONE)
    await box.claim(TWO)


async def _cancelled(box: Box, _: Begun) -> None:
    await box.cancel()


async def _interrupted(box: Box, begun: Begun) -> None:
    box.inbox.adapter.policy = TurnPolicy(while_busy="interrupt")
    assert (await box.put("newer")).ended == (begun.id,)


async def _ended(box: Box, begun: Begun) -> None:
    await box.cancel()
    await box.end(begun)


_LOSSES = [
    _finished,
    _failed,
    _failed_for_good,
    _stopped,
    _forgotten,
    _buried,
    _taken_over,
    _cancelled,
    _interrupted,
    _ended,
]


class FenceTests:
    """A part of `InboxContract`."""

    unit_ms: int

    @pytest.mark.parametrize("lose", _LOSSES, ids=lambda lose: lose.__name__.strip("_"))
    async def test_nothing_that_a_lost_turn_does_stands(
        self, adapter: InboxAdapter, lose: Callable[[Box, Begun], Awaitable[None]]
    ) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=50_000)) as box:
            await box.put("another", "telegram:bot:43")
            await box.put_all("one")
            begun = next(one for one in await box.claim() if one.session == KEY)
            (waiting,) = await box.put_all("two")
            await lose(box, begun)
            before = await box.look()
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: box.finish(begun),
                lambda: box.finish(begun, taken=[waiting], claimant=Claimant(ONE)),
                lambda: box.fail(begun),
                lambda: box.fail(begun, is_final=True, claimant=Claimant(ONE)),
                lambda: box.stop(begun),
                lambda: box.stop(begun, taken=[waiting]),
                lambda: box.take(begun, waiting),
                lambda: box.join(begun),
                lambda: box.step(begun, "greet", b"hi"),
                lambda: box.step(begun, "greet", b"hi", taken=[waiting]),
            ]
            for call in calls:
                with pytest.raises(TurnLost):
                    await call()
                assert await box.look() == before

    async def test_a_turn_of_another_session_is_unknown(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            await box.put("one", "telegram:bot:1")
            await box.put("two", "telegram:bot:2")
            one, two = await box.claim()
            before = await box.look()
            with pytest.raises(TurnLost):
                await box.call(
                    one.session, InboxAdapter.step, one.session, two.id, (), "greet", b"hi"
                )
            assert await box.look() == before

    async def test_what_ends_or_forgets_a_lost_turn_changes_nothing(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.put_all("one")
            lost = await box.begin()
            await box.bury(ONE)
            current = await box.begin(TWO)
            before = await box.look()
            await box.end(lost)
            await box.forget(lost)
            # Nor does a running turn end by its handler's end alone.
            await box.end(current)
            assert await box.look() == before
            await box.finish(current)

    async def test_a_finish_whose_reply_was_lost_can_be_repeated(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.put_all("one")
            begun = await box.begin()
            await box.put_all("two")
            await box.finish(begun)
            claimed = await box.finish(begun, again=True, claimant=Claimant(ONE))
            assert [texts(one.items) for one in claimed.begun] == ["two"]
            await box.finish(claimed.begun[0])
            await box.finish(claimed.begun[0], again=True)
            assert (await box.inbox.counts()).sessions == 0

    async def test_a_failure_whose_reply_was_lost_can_be_repeated(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=0, max_attempts=2)) as box:
            await box.put_all("one")
            begun = await box.begin()
            first = await box.fail(begun)
            repeated = await box.fail(begun, again=True)
            assert (first.has_failed, repeated.has_failed) == (False, False)
            begun = await box.begin()
            assert begun.attempt == 2
            first = await box.fail(begun)
            repeated = await box.fail(begun, again=True)
            assert (first.has_failed, repeated.has_failed) == (True, True)
            assert await box.texts("failed") == "one"

    @pytest.mark.parametrize("lose", [_taken_over, _cancelled, _interrupted])
    async def test_a_repeated_failure_of_a_lost_turn_is_refused(
        self, adapter: InboxAdapter, lose: Callable[[Box, Begun], Awaitable[None]]
    ) -> None:
        async with open_box(adapter) as box:
            await box.put_all("one")
            begun = await box.begin()
            await lose(box, begun)
            before = await box.look()
            with pytest.raises(TurnLost):
                await box.fail(begun, again=True)
            assert await box.look() == before

    async def test_a_repeated_finish_that_was_not_done_before_is_done_now(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.put_all("one")
            await box.finish(await box.begin(), again=True)
            assert (await box.inbox.counts()).sessions == 0

    @pytest.mark.parametrize(
        "lose", [_failed, _stopped, _buried, _taken_over, _cancelled, _interrupted]
    )
    async def test_a_repeated_finish_of_a_lost_turn_is_refused(
        self, adapter: InboxAdapter, lose: Callable[[Box, Begun], Awaitable[None]]
    ) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=50_000)) as box:
            await box.put_all("one")
            begun = await box.begin()
            await lose(box, begun)
            before = await box.look()
            with pytest.raises(TurnLost):
                await box.finish(begun, again=True)
            assert await box.look() == before

    async def test_each_attempt_has_an_id_of_its_own(
        self, adapter: InboxAdapter, advance: Advance
    ) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=0, max_attempts=9)) as box:
            await box.put_all("one")
            begun = [await box.begin()]
            for give_back in (box.fail, box.stop, box.forget):
                await give_back(begun[-1])
                begun.append(await box.begin())
            await box.bury(ONE)
            begun.append(await box.begin(TWO))
            assert len({one.id for one in begun}) == 5
            assert len({one.group for one in begun}) == 1
            # A stop and a lost reply do not count.
            assert [one.attempt for one in begun] == [1, 2, 2, 2, 3]
            await box.finish(begun[-1])

    async def test_a_finish_begins_the_next_turn_in_the_same_call(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.put_all("one")
            begun = await box.begin()
            await box.put_all("two")
            claimed = await box.finish(begun, claimant=Claimant(ONE))
            (following,) = claimed.begun
            assert texts(following.items) == "two"
            assert (await box.beat()).claims == {following.id: (KEY, True)}
            await box.put_all("three")
            # Without room it is left to others.
            claimed = await box.finish(following, claimant=Claimant(ONE, is_free=False))
            assert (claimed.begun, claimed.due_in_ms) == ((), 0)
            assert await box.begin_all(TWO) == ["three"]

    async def test_a_failure_begins_the_next_turn_in_the_same_call(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(max_attempts=1)) as box:
            await box.put_all("one")
            begun = await box.begin()
            await box.put_all("two")
            claimed = await box.fail(begun, claimant=Claimant(ONE))
            assert claimed.has_failed
            assert [texts(one.items) for one in claimed.begun] == ["two"]

    async def test_of_two_processes_one_gets_a_turn(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            for number in range(20):
                await box.put("hi", f"telegram:bot:{number}")
            calls = [(InboxAdapter.claim, Claimant(owner), 7) for owner in (ONE, TWO, ONE, TWO)]
            sessions: list[str] = []
            for claimed in await box.together(*calls):
                sessions += [begun.session for begun in claimed.begun]
            assert len(sessions) == len(set(sessions)) == 20
