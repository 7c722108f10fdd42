"""Locks: one task at a time for each key."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from trunkline.contracts.fsm.samples import BOT, KEY
from trunkline.fsm import FSMAdapter, FSMStore

__all__ = ("LockTests",)


class LockTests:
    """A part of `FSMContract`."""

    async def test_those_who_want_one_key_come_in_the_order_of_arrival(
        self, adapter: FSMAdapter
    ) -> None:
        order: list[int] = []
        inside = 0

        async def visit(number: int) -> None:
            nonlocal inside
            async with store.lock(BOT, KEY):
                inside += 1
                assert inside == 1
                order.append(number)
                await checkpoint()
                inside -= 1

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            async with anyio.create_task_group() as task_group, store.lock(BOT, KEY):
                for number in range(10):
                    task_group.start_soon(visit, number)
                    await anyio.wait_all_tasks_blocked()
                assert order == []
            assert order == list(range(10))

    async def test_other_keys_and_other_bots_are_free(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            await store.init("other")
            with anyio.fail_after(60):
                async with (
                    store.lock(BOT, (1, 2)),
                    store.lock(BOT, ("1", "2")),
                    store.lock(BOT, (1, 2, 3)),
                    store.lock("other", (1, 2)),
                ):
                    await store.set_state(BOT, (1, 2), "a")

    async def test_an_owner_that_fails_lets_go(self, adapter: FSMAdapter) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            with pytest.raises(ZeroDivisionError):
                async with store.lock(BOT, KEY):
                    raise ZeroDivisionError
            with anyio.fail_after(10):
                async with store.lock(BOT, KEY):
                    pass

    async def test_an_owner_that_is_cancelled_lets_go(self, adapter: FSMAdapter) -> None:
        async def own() -> None:
            async with store.lock(BOT, KEY):
                owned.set()
                await anyio.sleep_forever()

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            owned = anyio.Event()
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(own)
                await owned.wait()
                task_group.cancel_scope.cancel()
            with anyio.fail_after(10):
                async with store.lock(BOT, KEY):
                    pass

    async def test_one_who_gives_up_waiting_does_not_hold_up_the_line(
        self, adapter: FSMAdapter
    ) -> None:
        order: list[str] = []
        impatient = anyio.CancelScope()

        async def visit(name: str) -> None:
            async with store.lock(BOT, KEY):
                order.append(name)

        async def give_up() -> None:
            with impatient:
                await visit("impatient")

        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            async with anyio.create_task_group() as task_group, store.lock(BOT, KEY):
                task_group.start_soon(visit, "first")
                await anyio.wait_all_tasks_blocked()
                task_group.start_soon(give_up)
                await anyio.wait_all_tasks_blocked()
                task_group.start_soon(visit, "last")
                await anyio.wait_all_tasks_blocked()
                impatient.cancel()
                await anyio.wait_all_tasks_blocked()
            assert order == ["first", "last"]

    async def test_a_task_that_would_wait_for_itself_gets_an_error(
        self, adapter: FSMAdapter
    ) -> None:
        async with FSMStore(adapter=adapter) as store:
            await store.init(BOT)
            with anyio.fail_after(60):
                async with store.lock(BOT, KEY):
                    with pytest.raises(RuntimeError, match=r"holds the lock .* already"):
                        async with store.lock(BOT, KEY):
                            pass
                async with store.lock(BOT, KEY):
                    pass

    async def test_a_lock_holds_among_processes_too(self, adapter: FSMAdapter) -> None:
        if not adapter.lease_ms:
            pytest.skip("the database has no locks among processes")
        inside = 0
        visits = 0

        async def visit(store: FSMStore) -> None:
            nonlocal inside, visits
            for _ in range(5):
                async with store.lock(BOT, KEY):
                    inside += 1
                    assert inside == 1
                    await store.update_data(BOT, KEY, {"visits": visits})
                    visits += 1
                    inside -= 1

        # A store with connections of its own is what another process would have.
        async with FSMStore(adapter=adapter) as one, FSMStore(adapter=adapter.sibling()) as other:
            with anyio.fail_after(30):
                async with anyio.create_task_group() as task_group:
                    for store in (one, other):
                        await store.init(BOT)
                        for _ in range(3):
                            task_group.start_soon(visit, store)
        assert visits == 30
