"""StoreHandle: a store that is given, or one of its own that starts when it is needed."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from trunkline import FSMStore
from trunkline.errors import ConfigurationError, StoreUnavailable
from trunkline.integrations.handle import StoreHandle


async def test_a_store_of_its_own_starts_with_the_first_call():
    handle = StoreHandle("memory://")
    store = await handle.ready("bot")
    await store.set_state("bot", 1, "asked")
    assert (await store.get_state("bot", 1)).state == "asked"
    await handle.close()


async def test_a_store_of_its_own_does_not_run_after_close():
    handle = StoreHandle("memory://")
    await handle.ready("bot")
    await handle.close()
    with pytest.raises(StoreUnavailable, match=r"does not run|has stopped"):
        await handle.store.get_state("bot", 1)


async def test_a_call_after_close_starts_it_again(sqlite_url):
    handle = StoreHandle(sqlite_url)
    for step in ("first", "second"):
        async with handle.calling("bot") as store:
            await store.set_state("bot", step, step)
        await handle.close()
    async with handle.calling("bot") as store:
        assert [(await store.get_state("bot", step)).state for step in ("first", "second")] == [
            "first",
            "second",
        ]
    await handle.close()


async def test_a_given_store_is_neither_started_nor_stopped():
    store = FSMStore("memory://")
    handle = StoreHandle(store)
    with pytest.raises(StoreUnavailable, match="async with"):
        await (await handle.ready("bot")).get_state("bot", 1)
    async with store:
        await handle.start()
        await (await handle.ready("bot")).set_state("bot", 1, "asked")
        await handle.close()
        assert (await store.get_state("bot", 1)).state == "asked"


async def test_closing_what_was_never_started_does_nothing():
    handle = StoreHandle("memory://")
    await handle.close()
    await handle.close()


async def test_closing_waits_for_the_calls_that_are_under_way():
    handle = StoreHandle("memory://")
    told = []

    async def call(is_calling: anyio.Event, may_end: anyio.Event) -> None:
        async with handle.calling("bot") as store:
            is_calling.set()
            await may_end.wait()
            await store.set_state("bot", 1, "asked")
            told.append("stored")

    async def close() -> None:
        await handle.close()
        told.append("closed")

    async with anyio.create_task_group() as tasks:
        is_calling, may_end = anyio.Event(), anyio.Event()
        tasks.start_soon(call, is_calling, may_end)
        await is_calling.wait()
        tasks.start_soon(close)
        for _ in range(20):
            await checkpoint()
        assert told == []
        may_end.set()
    assert told == ["stored", "closed"]


async def test_callers_that_waited_for_the_start_go_on_in_the_order_in_which_they_came():
    # Also those that came when it was already running, but others had not gone on yet.
    handle = StoreHandle("memory://")
    order = []

    async def call(number: int) -> None:
        await handle.ready("bot")
        order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(call, number)
            if number >= 5:
                await checkpoint()
    assert order == list(range(200))
    await handle.close()


async def test_a_start_that_fails_fails_its_call_and_is_tried_again(tmp_path):
    handle = StoreHandle(f"sqlite:///{tmp_path}/later/bot.db")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="later"):
            await handle.ready("bot")
    (tmp_path / "later").mkdir()
    async with handle.calling("bot") as store:
        assert await store.get_state("bot", 1) is None
    await handle.close()


def test_a_source_can_be_used_in_one_event_loop_after_another(sqlite_url):
    handle = StoreHandle(sqlite_url)

    async def use() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(handle.ready, "bot")
        await handle.close()

    for _ in range(2):
        anyio.run(use)


@pytest.mark.parametrize("store", [None, 7, "bot.db", "mysql://localhost/x"])
def test_what_is_no_store_and_no_url_is_refused(store):
    with pytest.raises(ConfigurationError):
        StoreHandle(store)


async def test_a_time_to_live_is_the_bots(sqlite_url):
    now = [1_000]
    store = FSMStore(sqlite_url, clock=lambda: now[0])
    async with store:
        handle = StoreHandle(store, ttl_ms=500)
        await (await handle.ready("bot")).set_state("bot", 1, "asked")
        now[0] += 499
        assert (await store.get_state("bot", 1)).state == "asked"
        now[0] += 1
        assert await store.get_state("bot", 1) is None
