"""Conversations that expire when they are idle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from trunkline.contracts.fsm.samples import BOT, KEY, MORTAL, Expire
from trunkline.errors import ConfigurationError
from trunkline.fsm import ConversationExpired, FSMAdapter, FSMState, FSMStore
from trunkline.observe import Event

__all__ = ("ExpiryTests",)


class ExpiryTests:
    """A part of `FSMContract`."""

    #: How long a conversation lives after its last change. A suite whose `expire` does not wait
    #: sets it higher, so that a busy machine makes no difference.
    ttl_ms: int = 200

    async def test_a_conversation_lives_for_ever_by_default(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.init(MORTAL, ttl_ms=self.ttl_ms)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            await expire(self.ttl_ms + 1)
            assert await store.get_state(BOT, KEY) == FSMState("a", "one", {"x": 1})

    async def test_an_idle_conversation_ends(self, adapter: FSMAdapter, expire: Expire) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=self.ttl_ms)
            await store.set_state(MORTAL, KEY, FSMState("a", "one", {"x": 1}))
            assert await store.get_state(MORTAL, KEY) == FSMState("a", "one", {"x": 1})
            await expire(self.ttl_ms + 1)
            assert await store.get_state(MORTAL, KEY) is None
            assert await store.get_data(MORTAL, KEY) is None

    async def test_every_change_lets_it_live_on(self, adapter: FSMAdapter, expire: Expire) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=10 * self.ttl_ms)
            await store.set_state(MORTAL, KEY, FSMState("a", "one", {"x": 1}))
            await store.init(MORTAL, ttl_ms=self.ttl_ms)
            changes: list[Callable[[], Awaitable[Any]]] = [
                lambda: store.set_state(MORTAL, KEY, "b"),
                lambda: store.set_data(MORTAL, KEY, {"y": 2}),
                lambda: store.update_data(MORTAL, KEY, {}),
                lambda: store.compare_and_set(
                    MORTAL, KEY, FSMState("b", "one"), FSMState("c", "one")
                ),
                lambda: store.set_state(MORTAL, KEY, FSMState("d")),
            ]
            for change in changes:
                await change()
                await expire(self.ttl_ms // 3)
                assert await store.get_state(MORTAL, KEY) is not None
            await expire(self.ttl_ms)
            assert await store.get_state(MORTAL, KEY) is None

    async def test_reading_does_not_let_it_live_on(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=self.ttl_ms)
            await store.set_state(MORTAL, KEY, "a")
            for _ in range(3):
                await expire(self.ttl_ms // 3 + 1)
                await store.get_state(MORTAL, KEY)
            assert await store.get_state(MORTAL, KEY) is None

    async def test_what_begins_after_the_end_knows_nothing_of_before(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=self.ttl_ms)
            for number in range(5):
                await store.set_state(MORTAL, number, FSMState("a", "one", {"x": 1}))
            await expire(self.ttl_ms + 1)
            await store.set_state(MORTAL, 0, "b")
            assert await store.get_state(MORTAL, 0) == FSMState("b")
            await store.set_data(MORTAL, 1, {"y": 2})
            assert await store.get_state(MORTAL, 1) == FSMState(None, None, {"y": 2})
            assert await store.update_data(MORTAL, 2, {"y": 2}) == {"y": 2}
            assert await store.get_state(MORTAL, 2) == FSMState(None, None, {"y": 2})
            standing = await store.compare_and_set(
                MORTAL, 3, FSMState("a", "one"), FSMState("b", "one")
            )
            assert standing == FSMState()
            await store.clear(MORTAL, 4)
            assert await store.get_state(MORTAL, 4) is None

    async def test_a_bot_may_let_its_conversations_live_for_ever_again(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=self.ttl_ms)
            await store.set_state(MORTAL, KEY, FSMState("a", "one", {"x": 1}))
            await store.init(MORTAL, ttl_ms=None)
            await store.set_state(MORTAL, KEY, "b")
            await expire(self.ttl_ms + 1)
            assert await store.get_state(MORTAL, KEY) == FSMState("b", "one", {"x": 1})

    async def test_init_without_a_time_to_live_leaves_it_as_it_is(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=self.ttl_ms)
            await store.init(MORTAL)
            await store.set_state(MORTAL, KEY, "a")
            await expire(self.ttl_ms + 1)
            assert await store.get_state(MORTAL, KEY) is None

    async def test_a_sweep_removes_no_more_than_its_limit(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        if type(adapter).sweep is FSMAdapter.sweep:
            pytest.skip("the database removes what has expired by itself")
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=self.ttl_ms)
            for number in range(7):
                await store.set_state(MORTAL, number, "a")
            await expire(self.ttl_ms + 1)
            swept = [await store._write(None, FSMAdapter.sweep, 3) for _ in range(4)]
            assert [len(one) for one in swept] == [3, 3, 1, 0]

    async def test_an_expired_conversation_is_reported_once(
        self, adapter: FSMAdapter, expire: Expire
    ) -> None:
        if type(adapter).sweep is FSMAdapter.sweep:
            pytest.skip("the database removes what has expired by itself")
        told: list[Event] = []
        all_told, last_told = anyio.Event(), anyio.Event()

        def hear(event: Event) -> None:
            assert isinstance(event, ConversationExpired)
            if event.key == "last":
                last_told.set()
                return
            told.append(event)
            if len(told) == 3:
                all_told.set()

        async with FSMStore(adapter=adapter, sweep_interval_ms=5, name="store") as store:
            store.events.subscribe(hear)
            await store.init(BOT)
            await store.init(MORTAL, ttl_ms=self.ttl_ms)
            await store.set_state(BOT, "lives", FSMState("a", "one", {"x": 1}))
            ended = {key: FSMState("a", "one", {"key": key}) for key in (1, ("2", (3,)), "x")}
            for key in ended:
                await store.set_state(MORTAL, key, ended[key])
            await store.set_state(MORTAL, "cleared", "a")
            await store.clear(MORTAL, "cleared")
            await expire(self.ttl_ms + 1)
            with anyio.fail_after(60):
                await all_told.wait()
            # Whatever would be told by mistake or twice, is told before this one.
            await store.set_state(MORTAL, "last", "a")
            await expire(self.ttl_ms + 1)
            with anyio.fail_after(60):
                await last_told.wait()
            expected = [
                ConversationExpired(instance="store", bot_name=MORTAL, key=key, state=ended[key])
                for key in ended
            ]
            assert sorted(told, key=repr) == sorted(expected, key=repr)
            assert await store.get_state(BOT, "lives") is not None

    async def test_a_time_to_live_that_makes_no_sense_is_refused(self, adapter: FSMAdapter) -> None:
        wrong: list[Any] = [0, -1, 1.5, True, "1", 10**14 + 1]
        async with FSMStore(adapter=adapter) as store:
            for ttl_ms in wrong:
                with pytest.raises(ConfigurationError, match="ttl_ms"):
                    await store.init(MORTAL, ttl_ms=ttl_ms)

    async def test_the_longest_time_to_live_is_stored(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(MORTAL, ttl_ms=10**14)
            await store.set_state(MORTAL, KEY, "a")
            assert await store.get_state(MORTAL, KEY) == FSMState("a")
