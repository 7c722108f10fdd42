"""Compare and set: a step that is taken only from the expected state."""

from __future__ import annotations

from itertools import product

import anyio

from trunkline.contracts.fsm.samples import BOT, KEY
from trunkline.fsm import FSMAdapter, FSMState, FSMStore

__all__ = ("StepTests",)


class StepTests:
    """A part of `FSMContract`."""

    async def test_a_step_is_taken_from_where_it_was_expected(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            changed = await store.compare_and_set(
                BOT, KEY, FSMState("a", "one", {"not": "looked at"}), FSMState("b", "one", {"y": 2})
            )
            assert changed is None
            assert await store.get_state(BOT, KEY) == FSMState("b", "one", {"x": 1})

    async def test_a_step_may_replace_the_data(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            step = FSMState("b", "two", {"y": 2})
            assert (
                await store.compare_and_set(BOT, KEY, FSMState("a", "one"), step, keep_data=False)
                is None
            )
            assert await store.get_state(BOT, KEY) == step

    async def test_a_step_from_elsewhere_changes_nothing_and_tells_what_stands(
        self, adapter: FSMAdapter
    ) -> None:
        elsewhere = [
            FSMState(),
            FSMState("a"),
            FSMState(None, "one"),
            FSMState("b", "one"),
            FSMState("", ""),
        ]
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.set_state(BOT, KEY, FSMState("a", "one", {"x": 1}))
            for expected, keep_data in product(elsewhere, (True, False)):
                standing = await store.compare_and_set(
                    BOT, KEY, expected, FSMState("c", "two", {}), keep_data=keep_data
                )
                assert standing == FSMState("a", "one")
            assert await store.get_state(BOT, KEY) == FSMState("a", "one", {"x": 1})

    async def test_what_is_not_stored_has_neither_flow_nor_state(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            standing = await store.compare_and_set(BOT, KEY, FSMState("a"), FSMState("b"))
            assert standing == FSMState()
            assert await store.get_state(BOT, KEY) is None
            assert await store.compare_and_set(BOT, KEY, FSMState(), FSMState("b", "one")) is None
            assert await store.get_state(BOT, KEY) == FSMState("b", "one")

    async def test_of_many_that_take_the_same_step_at_once_only_one_does(
        self, adapter: FSMAdapter
    ) -> None:
        answers: list[FSMState | None] = []

        async def step(number: int) -> None:
            state = FSMState(str(number), "one", {"winner": number})
            answers.append(
                await store.compare_and_set(BOT, KEY, FSMState("a", "one"), state, keep_data=False)
            )

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            for _ in range(5):
                answers.clear()
                await store.set_state(BOT, KEY, FSMState("a", "one"))
                async with anyio.create_task_group() as task_group:
                    for number in range(32):
                        task_group.start_soon(step, number)
                standing = await store.get_state(BOT, KEY)
                assert standing is not None
                assert standing.data == {"winner": int(standing.state or "")}
                assert answers.count(None) == 1
                assert answers.count(FSMState(standing.state, "one")) == 31
