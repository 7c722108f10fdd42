"""Owners of a lock that are cancelled, beside another process that wants it."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import ClassVar

import anyio
import pytest
from anyio import to_thread

from tests.cancelling import cancel_at_suspension, cancel_when, forms
from tests.servers.writer import processes
from tests.signal.programs import take_locks
from trunkline.errors import TransactionConflict
from trunkline.signal import SignalStore
from trunkline.signal.redis import RedisSignalAdapter
from trunkline.signal.sql import SQLSignalAdapter

pytestmark = pytest.mark.slow


class Rival:
    """Another process that takes locks on the same server."""

    def __init__(self, pipe):
        self._pipe = pipe

    async def take(self, key):
        """Whether it got the lock much sooner than a lease ends."""
        return await to_thread.run_sync(self._exchange, key)

    async def release(self):
        await to_thread.run_sync(self._exchange, "release")

    async def can_take(self, key):
        if not await self.take(key):
            return False
        await self.release()
        return True

    def _exchange(self, message):
        self._pipe.send(message)
        return self._pipe.recv() if self._pipe.poll(120) else None


@contextmanager
def rival_on(url):
    mine, theirs = processes.Pipe()
    process = processes.Process(target=take_locks, args=(url, theirs, "asyncio"))
    process.start()
    try:
        yield Rival(mine)
        mine.send(None)
        process.join(300)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


class CountsAttempts:
    """Part of an adapter that counts how often it was asked for a lock."""

    #: Made on all connections.
    attempts: ClassVar = 0

    def try_lock(self, key, token):
        CountsAttempts.attempts += 1
        return super().try_lock(key, token)


class CountingRedisAdapter(CountsAttempts, RedisSignalAdapter):
    pass


class CountingSQLAdapter(CountsAttempts, SQLSignalAdapter):
    pass


async def until_asked(times):
    enough = CountsAttempts.attempts + times
    while CountsAttempts.attempts < enough:  # noqa: ASYNC110
        await anyio.sleep(0.001)


class Valkey:
    adapter = CountingRedisAdapter

    def __init__(self, request):
        self.url = request.getfixturevalue("valkey_url")
        self._server = request.getfixturevalue("valkey_server")

    def locks(self):
        return self._server.execute("KEYS", "*lock*")


class PostgreSQL:
    adapter = CountingSQLAdapter

    def __init__(self, request):
        self.url = request.getfixturevalue("postgres_url")
        self._server = request.getfixturevalue("postgres_server")

    def locks(self):
        return self._server.execute("SELECT * FROM pg_locks WHERE locktype = 'advisory'")


@pytest.fixture(params=[PostgreSQL, Valkey])
def server(request):
    return request.param(request)


async def until_free(server):
    with anyio.fail_after(8):  # less than a lease lasts
        while server.locks():  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def own(store):
    async with store.transaction("ann") as tx:
        await tx.get("session", ["ann"])
        await tx.set({"session": {"ann": b"mine"}})


async def test_a_transaction_that_is_cancelled_at_any_await_leaves_its_key_to_others(server):
    with rival_on(server.url) as rival:
        async with SignalStore(server.url) as store:
            for form in forms():
                for number in count(1):
                    reached = await cancel_at_suspension(number, form, partial(own, store))
                    assert await rival.can_take("ann"), f"{form} at suspension {number}"
                    if not reached:
                        break
            await until_free(server)


async def test_one_that_is_cancelled_while_it_waits_for_another_process_leaves_no_lock(server):
    with rival_on(server.url) as rival:
        async with SignalStore(adapter=server.adapter(server.url)) as store:
            for form in forms():
                for number in range(1, 8):
                    assert await rival.take("ann")
                    await cancel_when(partial(until_asked, number), form, partial(own, store))
                    await rival.release()
                    assert await rival.can_take("ann"), f"{form} at attempt {number}"
            await until_free(server)


@pytest.mark.parametrize("end", ["left", "cancelled"])
async def test_a_store_that_ends_gives_back_the_locks_that_are_held(server, end):
    async def hold(key):
        async with store.transaction(key) as tx:
            await tx.set({"session": {key: b"mine"}})
            held.release()
            await store_ended.wait()

    async def hold_and_lose(key):
        with pytest.raises(TransactionConflict, match="the lock of this transaction has ended"):
            await hold(key)

    store_ended, held = anyio.Event(), anyio.Semaphore(0)
    with rival_on(server.url) as rival:
        async with anyio.create_task_group() as owners:
            with anyio.CancelScope() as scope:
                async with SignalStore(server.url) as store:
                    for key in ("ann", "bob", "eve"):
                        owners.start_soon(hold_and_lose, key)
                        await held.acquire()
                    if end == "cancelled":
                        scope.cancel()
            for key in ("ann", "bob", "eve"):
                assert await rival.can_take(key)
            await until_free(server)
            store_ended.set()
        async with SignalStore(server.url) as store:
            assert await store.get("session", ["ann", "bob", "eve"]) == {}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_store_that_is_stopped_gives_back_the_locks_that_are_held(server):
    async def hold():
        async with store.transaction("ann"):
            held.set()
            await anyio.sleep_forever()

    held = asyncio.Event()
    with rival_on(server.url) as rival:
        store = await SignalStore(server.url).start()
        owner = asyncio.create_task(hold())
        await held.wait()
        await store.stop()
        assert await rival.can_take("ann")
        await until_free(server)
        owner.cancel()
