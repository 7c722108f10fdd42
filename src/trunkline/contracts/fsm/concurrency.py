"""Calls of many tasks at once."""

from __future__ import annotations

from typing import Any

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from trunkline.contracts.fsm.samples import BOT, KEY
from trunkline.fsm import FSMAdapter, FSMState, FSMStore

__all__ = ("ConcurrencyTests",)


class ConcurrencyTests:
    """A part of `FSMContract`."""

    async def test_of_64_updates_at_once_none_is_lost(self, adapter: FSMAdapter) -> None:
        results: list[dict[Any, Any]] = []

        async def add(number: int) -> None:
            results.append(await store.update_data(BOT, KEY, {number: number}))

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            async with anyio.create_task_group() as task_group:
                for number in range(64):
                    task_group.start_soon(add, number)
            assert await store.get_data(BOT, KEY) == {number: number for number in range(64)}
        # Each saw what was there after its own, and no two saw the same.
        assert sorted(map(len, results)) == list(range(1, 65))

    async def test_calls_on_one_key_come_in_the_order_in_which_they_were_made(
        self, adapter: FSMAdapter
    ) -> None:
        async def change(number: int, *, task_status: TaskStatus[None]) -> None:
            task_status.started()
            if number % 3 == 0:
                await store.clear(BOT, KEY)
            elif number % 3 == 1:
                await store.set_state(BOT, KEY, str(number))
            else:
                await store.update_data(BOT, KEY, {"number": number})

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            async with anyio.create_task_group() as task_group:
                for number in range(60):
                    # It goes on until its call is made, and then waits for the answer.
                    await task_group.start(change, number)
            assert await store.get_state(BOT, KEY) == FSMState("58", None, {"number": 59})

    async def test_whoever_reads_while_others_write_sees_no_half_of_a_call(
        self, adapter: FSMAdapter
    ) -> None:
        async def write() -> None:
            for number in range(20):
                whole = FSMState(str(number), str(number), dict.fromkeys("abc", number))
                await store.set_state(BOT, KEY, whole)
            written.set()

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            written = anyio.Event()
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(write)
                while not written.is_set():
                    found = await store.get_state(BOT, KEY)
                    if found is not None:
                        assert found.flow == found.state
                        assert {*map(str, found.data.values())} == {found.state}
                    await checkpoint()
