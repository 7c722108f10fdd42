"""Several processes on one database."""

from __future__ import annotations

import threading

import anyio
import pytest
from anyio import to_thread

from tests.servers.writer import processes, read_journal
from tests.signal.programs import hold, increment, sleep_in_transaction
from trunkline.signal import SignalStore
from trunkline.signal.redis import RedisSignalAdapter
from trunkline.signal.sql import SQLSignalAdapter

LEASE_MS = 600


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path}/signal.db"


@pytest.fixture(params=["sqlite", "postgres", "valkey"])
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=["postgres", "valkey"])
def server_url(request):
    return request.getfixturevalue(f"{request.param}_url")


@pytest.mark.slow
@pytest.mark.parametrize(("how_many", "times"), [(2, 60), (4, 30)])
def test_processes_that_count_under_different_keys_lose_nothing(url, tmp_path, how_many, times):
    start = processes.Event()
    journals = [tmp_path / f"{number}.journal" for number in range(how_many)]
    counters = [
        processes.Process(
            target=increment,
            args=(url, journal, start, ("asyncio", "trio")[number % 2], number, times),
        )
        for number, journal in enumerate(journals)
    ]
    for counter in counters:
        counter.start()
    start.set()
    for counter in counters:
        counter.join(60)
        assert counter.exitcode == 0
    assert [entry for journal in journals for entry in read_journal(journal)] == []

    async def check():
        async with SignalStore(url) as store:
            found = await store.get("lid-mapping", ["count"])
            assert found == {"count": how_many * times}
            # Each number was counted once, by one of the processes.
            ids = [f"{who}-{number}" for who in range(how_many) for number in range(found["count"])]
            assert len(await store.get("session", ids)) == found["count"]

    anyio.run(check)


@pytest.mark.slow
async def test_a_lock_of_another_process_is_free_when_that_was_killed(server_url):
    ready = processes.Event()
    owner = processes.Process(target=hold, args=(server_url, ready, "asyncio", LEASE_MS))
    owner.start()
    assert await to_thread.run_sync(ready.wait, 30), "it never came up"
    entered = anyio.Event()

    async def enter():
        async with store.transaction("ann") as tx:
            assert await tx.get("session", ["ann"]) == {}
            await tx.set({"session": {"ann": "mine"}})
        entered.set()

    adapter_class = AskingRedisAdapter if server_url.startswith("valkey") else AskingSQLAdapter
    adapter = adapter_class(server_url)
    async with SignalStore(adapter=adapter) as store, anyio.create_task_group() as task_group:
        while adapter.attempts.acquire(blocking=False):
            pass
        task_group.start_soon(enter)
        for _ in range(5):
            assert await to_thread.run_sync(adapter.attempts.acquire, True, 10)
        assert not entered.is_set()
        owner.kill()
        with anyio.fail_after(30):
            await entered.wait()
        assert await store.get("session", ["ann"]) == {"ann": "mine"}
    owner.join()


class CountAttempts:
    """Tells of each attempt at a lock."""

    attempts = threading.Semaphore(0)

    def try_lock(self, key, token):
        taken = super().try_lock(key, token)
        self.attempts.release()
        return taken


class AskingRedisAdapter(CountAttempts, RedisSignalAdapter):
    pass


class AskingSQLAdapter(CountAttempts, SQLSignalAdapter):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_process_that_sleeps_longer_than_its_lease_hears_of_it_and_stores_nothing(
    valkey_url, tmp_path, backend
):
    ready, wake_up, journal = processes.Event(), processes.Event(), tmp_path / "journal"
    sleeper = processes.Process(
        target=sleep_in_transaction, args=(valkey_url, journal, ready, wake_up, backend, LEASE_MS)
    )
    sleeper.start()
    assert await to_thread.run_sync(ready.wait, 30), "it never came up"
    async with SignalStore(valkey_url) as store:
        # It writes elsewhere, so that only the lock tells the sleeper.
        async with store.transaction("ann") as tx:
            await tx.set({"session": {"ann": "mine"}})
        wake_up.set()
        await to_thread.run_sync(sleeper.join, 30)
        found = await store.get("session", ["ann", "bob", "eve"])
    assert sleeper.exitcode == 0
    (conflict, message), (again,) = read_journal(journal)
    assert (conflict, again) == ("conflict", "committed again")
    assert "lock" in message
    assert found == {"ann": "mine", "eve": "theirs"}
