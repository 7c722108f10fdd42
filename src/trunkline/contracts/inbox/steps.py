"""Results of steps, which another attempt of a turn gets."""

from __future__ import annotations

from trunkline.contracts.inbox.samples import ONE, TWO, open_box, texts
from trunkline.turns import InboxAdapter, TurnPolicy
from trunkline.turns.session import Claimant

__all__ = ("StepTests",)

_STEPS = {
    "greet": b"hi",
    "greet#2": b"",
    "naïve ☃ 𝄞": bytes(range(256)),
    "'; DROP TABLE x; --": b"\0",
    "": b"no name",
    "large": b"x" * 1_000_000,
}


class StepTests:
    """A part of `InboxContract`."""

    async def test_another_attempt_has_the_steps_of_the_ones_before(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=0, max_attempts=9)) as box:
            await box.put_all("one")
            for name, value in _STEPS.items():
                begun = await box.begin()
                await box.step(begun, name, value)
                await box.fail(begun)
            begun = await box.begin()
            assert dict(begun.steps) == _STEPS
            await box.stop(begun)
            begun = await box.begin()
            assert dict(begun.steps) == _STEPS
            await box.bury(ONE)
            assert dict((await box.begin(TWO)).steps) == _STEPS

    async def test_a_step_that_is_stored_again_has_its_last_value(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(retry_delay_ms=0)) as box:
            await box.put_all("one")
            begun = await box.begin()
            await box.step(begun, "greet", b"hi")
            await box.step(begun, "greet", b"hello")
            await box.fail(begun)
            assert dict((await box.begin()).steps) == {"greet": b"hello"}

    async def test_turns_have_no_steps_of_others(self, adapter: InboxAdapter) -> None:
        policy = TurnPolicy(while_busy="concurrent", retry_delay_ms=0, max_attempts=2)
        async with open_box(adapter, policy) as box:
            await box.put_all("one two")
            one, two = await box.claim()
            await box.step(one, "greet", b"1")
            await box.step(two, "greet", b"2")
            await box.fail(one)
            await box.fail(two)
            begun = await box.claim()
            assert {texts(each.items): dict(each.steps) for each in begun} == {
                "one": {"greet": b"1"},
                "two": {"greet": b"2"},
            }

    async def test_steps_end_with_their_turn(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(max_attempts=1)) as box:
            (item_id,) = await box.put_all("one")
            begun = await box.begin()
            await box.step(begun, "greet", b"hi")
            await box.fail(begun)
            await box.retry(item_id)
            again = await box.begin()
            assert dict(again.steps) == {}
            await box.step(again, "greet", b"hi")
            await box.put_all("two")
            claimed = await box.finish(again, claimant=Claimant(ONE))
            assert [dict(one.steps) for one in claimed.begun] == [{}]

    async def test_what_a_turn_took_is_stored_with_its_step(self, adapter: InboxAdapter) -> None:
        policy = TurnPolicy(while_busy="steer", retry_delay_ms=0)
        async with open_box(adapter, policy) as box:
            await box.put_all("one")
            begun = await box.begin()
            (second,) = await box.put_all("two")
            await box.step(begun, "greet", b"hi", taken=[second])
            assert await box.texts("running") == "one two"
            await box.bury(ONE)
            again = await box.begin(TWO)
            assert (texts(again.taken), dict(again.steps)) == ("two", {"greet": b"hi"})
