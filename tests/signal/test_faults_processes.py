"""Several processes on one database."""

from __future__ import annotations

import multiprocessing
import threading
from contextlib import contextmanager

import anyio
import pytest
from anyio import to_thread

from tests.servers.writer import processes, read_journal
from tests.signal.programs import (
    claim,
    hold,
    increment,
    sleep_in_transaction,
    stop_before_commit,
    swap,
)
from trunkline.signal import SignalStore
from trunkline.signal.adapter import KeyName
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
        counter.join(300)
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
@pytest.mark.parametrize("times", [60])
def test_what_is_not_there_is_taken_by_one_process_alone(url, tmp_path, times):
    start = processes.Event()
    journals = [tmp_path / f"{number}.journal" for number in range(3)]
    with running(
        (claim, url, journal, start, ("asyncio", "trio")[number % 2], number, times)
        for number, journal in enumerate(journals)
    ):
        start.set()
    taken = [one for journal in journals for (one,) in read_journal(journal)]
    assert sorted(taken, key=int) == [str(number) for number in range(times)]


@pytest.mark.slow
def test_of_two_that_store_one_entry_and_delete_the_other_each_is_wholly_done(url):
    async def check():
        async with SignalStore(url) as store:
            await store.set({"session": {"left": 0}})
            start.set()
            while multiprocessing.active_children():
                found = await store.get("session", ["left", "right"])
                assert len(found) == 1, found
                await anyio.sleep(0.001)

    start = processes.Event()
    with running((swap, url, start, "asyncio", number, 150) for number in range(2)):
        anyio.run(check)


@contextmanager
def running(programs):
    """Programs in processes of their own, which end by themselves."""
    started = [processes.Process(target=one, args=args) for one, *args in programs]
    for process in started:
        process.start()
    try:
        yield
        for process in started:
            process.join(300)
            assert process.exitcode == 0
    finally:
        for process in started:
            process.kill()
            process.join()


ANN, BOB = KeyName("session", "ann"), KeyName("session", "bob")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{ANN: b"\0\x01"}, {ANN: None}], ids=["stored", "deleted"])
@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda store: store.set({"session": {"ann": b"mine"}}), {"ann": b"mine", "bob": b"mine"}),
        (lambda store: store.clear(), {}),
    ],
    ids=["its key", "all keys"],
)
async def test_a_commit_waits_only_for_those_that_touch_the_same_keys(
    postgres_server, postgres_url, changes, change, left
):
    ready, go = processes.Event(), processes.Event()
    finished = []
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"

    async def write(change):
        await change
        finished.append(True)

    async with SignalStore(postgres_url, call_timeout_ms=30_000) as store:
        with running([(stop_before_commit, postgres_url, changes, ready, go)]):
            assert await to_thread.run_sync(ready.wait, 120), "it never came up"
            with anyio.fail_after(60):
                await store.set({"session": {"bob": b"mine", "eve": None}})
                async with store.transaction("bob") as tx:
                    await tx.get("session", ["bob", "new"])
                    await tx.set({"session": {"new": b"mine"}})
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(write, change(store))
                with anyio.fail_after(60):
                    while not postgres_server.execute(waiting):  # noqa: ASYNC110
                        await anyio.sleep(0.01)
                assert finished == []
                with anyio.fail_after(60):
                    # Not those behind it in the mailbox either.
                    await store.set({"session": {"eve": b"mine"}})
                go.set()
        assert await store.get("session", ["ann", "bob"]) == left


@pytest.mark.slow
async def test_a_lock_of_another_process_is_free_when_that_was_killed(server_url):
    ready = processes.Event()
    owner = processes.Process(target=hold, args=(server_url, ready, "asyncio", LEASE_MS))
    owner.start()
    assert await to_thread.run_sync(ready.wait, 120), "it never came up"
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
            assert await to_thread.run_sync(adapter.attempts.acquire, True, 120)
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
    assert await to_thread.run_sync(ready.wait, 120), "it never came up"
    async with SignalStore(valkey_url) as store:
        # It writes elsewhere, so that only the lock notifies the sleeper.
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
