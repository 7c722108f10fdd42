"""Processes that run turns: known, alive, dead, and what they leave behind."""

from __future__ import annotations

from trunkline.contracts.inbox.samples import KEY, ONE, TWO, open_box, texts
from trunkline.turns import InboxAdapter, TurnPolicy
from trunkline.turns.adapter import Owner
from trunkline.turns.session import Claimant

__all__ = ("OwnerTests",)


class OwnerTests:
    """A part of `InboxContract`."""

    async def test_a_process_that_registered_is_known_to_all(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            await box.register("three", 1_234, "boot:1/2/3")
            beat = await box.beat("three")
            assert beat.is_alive
            assert dict(beat.claims) == {}
            assert {owner.id for owner in beat.owners} == {ONE, TWO, "three"}
            known = {owner.id: owner for owner in (await box.beat(ONE)).owners}["three"]
            assert known == Owner("three", known.beat, 1_234, "boot:1/2/3")

    async def test_each_heartbeat_makes_the_counter_grow(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:

            async def counters() -> dict[str, int]:
                return {owner.id: owner.beat for owner in (await box.beat(TWO)).owners}

            before = await counters()
            await box.beat(ONE)
            await box.beat(ONE)
            after = await counters()
            assert after[ONE] > before[ONE]
            assert after[TWO] > before[TWO]

    async def test_an_unknown_process_is_not_alive(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            beat = await box.beat("nobody")
            assert not beat.is_alive
            assert {owner.id for owner in beat.owners} == {ONE, TWO}

    async def test_a_process_that_ended_is_forgotten(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            await box.call(None, InboxAdapter.unregister, ONE)
            assert {owner.id for owner in (await box.beat(TWO)).owners} == {TWO}
            assert not (await box.beat(ONE)).is_alive
            await box.call(None, InboxAdapter.unregister, ONE)

    async def test_a_heartbeat_brings_the_turns_of_its_process(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            await box.put("one", "telegram:bot:1")
            await box.put("two", "telegram:bot:2")
            one, two = await box.claim(ONE)
            await box.put("three", "telegram:bot:3")
            three = await box.begin(TWO)
            await box.cancel(two.session)
            assert dict((await box.beat(ONE)).claims) == {
                one.id: (one.session, True),
                two.id: (two.session, False),
            }
            assert dict((await box.beat(TWO)).claims) == {three.id: (three.session, True)}
            await box.end(two)
            await box.finish(one)
            assert dict((await box.beat(ONE)).claims) == {}

    async def test_the_turns_of_a_dead_process_are_given_back(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            (item_id,) = await box.put_all("one")
            begun = await box.begin(ONE)
            await box.step(begun, "greet", b"hi")
            await box.put_all("two")
            happened = await box.bury(ONE)
            assert [(one.name, one.item_ids, one.attempt) for one in happened] == [
                ("taken_over", (item_id,), 1)
            ]
            assert not (await box.beat(ONE)).is_alive
            assert dict((await box.beat(ONE)).claims) == {}
            again = await box.begin(TWO)
            assert (texts(again.items), again.attempt, again.deaths) == ("one", 2, 1)
            assert dict(again.steps) == {"greet": b"hi"}
            assert again.error
            await box.finish(again)
            assert await box.begin_all(TWO) == ["two"]

    async def test_a_dead_process_is_still_known_as_such(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            await box.bury(ONE)
            known = {owner.id: owner.is_buried for owner in (await box.beat(TWO)).owners}
            assert known == {ONE: True, TWO: False}
            before = {owner.id: owner.beat for owner in (await box.beat(TWO)).owners}[ONE]
            await box.beat(ONE)
            after = {owner.id: owner.beat for owner in (await box.beat(TWO)).owners}[ONE]
            assert after == before

    async def test_burying_again_changes_nothing(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            await box.put_all("one")
            await box.begin(ONE)
            await box.bury(ONE)
            begun = await box.begin(TWO)
            before = await box.look()
            assert await box.bury(ONE) == ()
            assert await box.bury("nobody") == ()
            assert await box.look() == before
            await box.finish(begun)

    async def test_a_turn_that_a_dead_process_began_late_is_given_back_as_well(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.bury(ONE)
            await box.put_all("one")
            await box.begin(ONE)
            assert [one.name for one in await box.bury(ONE)] == ["taken_over"]
            assert await box.begin_all(TWO) == ["one"]

    async def test_turns_of_many_sessions_are_given_back_in_lots(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="concurrent")) as box:
            for number in range(7):
                await box.put_all("a b", f"telegram:bot:{number}")
            assert len(await box.claim(ONE)) == 14
            counts = []
            for _ in range(4):
                count, happened = await box.call(None, InboxAdapter.bury, ONE, 3)
                counts.append((count, len(happened)))
            assert counts == [(3, 6), (3, 6), (1, 2), (0, 0)]
            sessions = await box.call(None, InboxAdapter.sessions_of, ONE, 10)
            assert sessions == []
            assert len(await box.claim(TWO)) == 14

    async def test_the_sessions_of_a_process_are_found(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(while_busy="concurrent")) as box:
            await box.put_all("a b", "telegram:bot:1")
            await box.put("c", "telegram:bot:2")
            await box.claim(ONE)
            await box.put("d", "telegram:bot:3")
            await box.claim(TWO)

            async def sessions(owner: str, limit: int = 10) -> set[str]:
                return {*await box.call(None, InboxAdapter.sessions_of, owner, limit)}

            assert await sessions(ONE) == {"telegram:bot:1", "telegram:bot:2"}
            assert await sessions(TWO) == {"telegram:bot:3"}
            assert len(await sessions(ONE, 1)) == 1

    async def test_the_handler_of_an_ending_turn_need_not_end_if_its_process_died(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter) as box:
            await box.put_all("one")
            await box.begin(ONE)
            await box.cancel()
            await box.put_all("two")
            assert await box.claim(TWO) == []
            assert await box.bury(ONE) == ()
            assert await box.begin_all(TWO) == ["two"]

    async def test_a_turn_that_killed_two_processes_is_a_suspect(
        self, adapter: InboxAdapter
    ) -> None:
        async with open_box(adapter, TurnPolicy(max_attempts=9)) as box:
            await box.put_all("poison")
            for deaths in (0, 1):
                begun = (await box.claim(ONE, takes_suspects=False))[0]
                assert begun.deaths == deaths
                await box.bury(ONE)
            assert await box.claim(TWO, takes_suspects=False) == []
            suspect = await box.begin(TWO)
            assert (suspect.deaths, suspect.attempt) == (2, 3)
            # Stopped, it is one still; finished, its session is as any other.
            await box.stop(suspect)
            assert await box.claim(TWO, takes_suspects=False) == []
            await box.finish(await box.begin(TWO))
            await box.put_all("harmless")
            assert len(await box.claim(TWO, takes_suspects=False)) == 1

    async def test_the_turn_that_follows_a_suspect_is_none(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter, TurnPolicy(max_attempts=9)) as box:
            await box.put_all("poison")
            for _ in range(2):
                await box.begin(ONE)
                await box.bury(ONE)
            suspect = await box.begin(TWO)
            await box.put_all("harmless")
            claimed = await box.finish(suspect, claimant=Claimant(TWO, takes_suspects=False))
            assert [(texts(one.items), one.deaths) for one in claimed.begun] == [("harmless", 0)]
            assert (await box.beat(TWO)).claims == {claimed.begun[0].id: (KEY, True)}
