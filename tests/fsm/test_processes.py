"""Several processes on one fsm, and processes that are killed."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from tests.fsm.worker import (
    BOT,
    KEY,
    STEPS,
    add_names,
    check_conversation,
    count_visits,
    open_store,
    own_for_ever,
    processes,
    read_count,
    run_processes,
    take_steps,
    talk_for_ever,
)
from tests.servers.writer import read_journal
from trunkline.fsm import FSMContext, FSMState, FSMStore

ALL_NAMES = {f"{process}-{task}" for process in range(4) for task in range(16)}


# -- updates -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_64_tasks_in_4_processes_that_add_a_name_each_none_is_lost(shared_url):
    run_processes(add_names, shared_url)

    assert anyio.run(read_data, shared_url).keys() == ALL_NAMES


async def read_data(url):
    async with FSMStore(url) as store:
        await store.init(BOT)
        return await store.get_data(BOT, KEY)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_in_the_same_race_the_storage_of_aiogram_loses_updates(valkey_url):
    pytest.importorskip("aiogram", reason="it is shown what aiogram's RedisStorage does")
    from aiogram.fsm.storage.base import StorageKey
    from aiogram.fsm.storage.redis import RedisStorage

    key = StorageKey(bot_id=1, chat_id=42, user_id=7)
    # Each with connections of its own, as four processes have them.
    storages = [RedisStorage.from_url(valkey_url.replace("valkey", "redis")) for _ in range(4)]
    async with anyio.create_task_group() as task_group:
        for process, storage in enumerate(storages):
            for task in range(16):
                task_group.start_soon(storage.update_data, key, {f"{process}-{task}": task})
    found = await storages[0].get_data(key)
    for storage in storages:
        await storage.close()
    assert found.keys() < ALL_NAMES


async def test_a_merge_of_what_was_read_loses_updates_as_the_ancestor_s_default_does():
    # ExGram's `update_data` on ETS: get, merge, set. Two at once, and one is lost.
    async with FSMStore("memory://") as store:
        await store.init(BOT)

        async def update(name):
            data = await store.get_data(BOT, KEY) or {}
            await anyio.lowlevel.checkpoint()
            await store.set_data(BOT, KEY, {**data, name: 1})

        async with anyio.create_task_group() as task_group:
            for name in range(64):
                task_group.start_soon(update, name)
        assert len(await store.get_data(BOT, KEY)) < 64


@pytest.mark.slow
def test_a_step_is_taken_by_one_of_many_processes(shared_url, tmp_path):
    size = 30
    anyio.run(start_flows, shared_url, size)
    run_processes(take_steps, shared_url, tmp_path, size)

    taken = [key for number in range(4) for (key,) in read_journal(tmp_path / str(number))]
    assert sorted(taken) == list(range(size))


async def start_flows(url, size):
    async with FSMStore(url) as store:
        await store.init(BOT)
        for key in range(size):
            assert await FSMContext(store, BOT, key, [STEPS]).start_flow("steps")


# -- locks -------------------------------------------------------------------------------------


@pytest.fixture(params=["postgres", "valkey"])
def locking_url(request):
    """The URL of a database with locks among processes."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.mark.slow
def test_a_lock_is_held_by_one_task_of_one_process_at_a_time(locking_url, tmp_path):
    path = tmp_path / "visits"
    path.write_text("0")
    run_processes(count_visits, locking_url, path, 25)

    assert path.read_text() == "100"


@pytest.mark.slow
def test_without_a_lock_visits_are_lost(tmp_path):
    # Else the test above would show nothing.
    path = tmp_path / "visits"
    path.write_text("0")
    run_processes(count_visits, "memory://", path, 1_000)

    assert read_count(path) < 4_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "valkey"])
async def test_a_lock_of_a_process_that_was_killed_is_free(request, kind):
    url = request.getfixturevalue(f"{kind}_url")
    # PostgreSQL frees it at once; on Valkey its lease has to end.
    with owner(url, lease_ms=1_500 if kind == "valkey" else None) as process:
        async with open_store(url) as store:
            await store.init(BOT)
            with anyio.move_on_after(0.1) as scope:
                async with store.lock(BOT, KEY):
                    pytest.fail("it is held by another process")
            assert scope.cancelled_caught

            process.kill()
            with anyio.fail_after(10):
                async with store.lock(BOT, KEY):
                    assert await store.get_data(BOT, KEY) == {"owned": True}


@pytest.mark.slow
async def test_an_owner_that_sleeps_for_longer_than_its_lease_does_not_disturb_the_next(
    valkey_url, valkey_server
):
    with owner(valkey_url, lease_ms=300) as process:
        os.kill(process.pid, signal.SIGSTOP)
        async with open_store(valkey_url) as store:
            await store.init(BOT)
            with anyio.fail_after(60):
                async with store.lock(BOT, KEY):
                    (name,) = valkey_server.execute("KEYS", "*lock*")
                    mine = valkey_server.execute("GET", name)
                    os.kill(process.pid, signal.SIGCONT)
                    process.terminate()
                    await anyio.to_thread.run_sync(process.join)
                    assert valkey_server.execute("GET", name) == mine


class owner:  # noqa: N801
    """A process that holds the lock, inside `with`."""

    def __init__(self, url, lease_ms):
        self._ready = processes.Event()
        self._process = processes.Process(target=own_for_ever, args=(url, self._ready, lease_ms))

    def __enter__(self):
        self._process.start()
        assert self._ready.wait(120), "it never got the lock"
        return self._process

    def __exit__(self, *_error):
        self._process.kill()
        self._process.join()


# -- kill -9 -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_acknowledged_and_leaves_no_half_of_a_call(
    shared_url, tmp_path
):
    acknowledged = {}
    for number in range(6):
        journal = tmp_path / f"{number}.journal"
        talk_until_killed(shared_url, journal, ("asyncio", "trio")[number % 2], number)
        acknowledged |= dict(read_journal(journal))
    assert len(acknowledged) == 6 * 8, "not every conversation got a word in"

    states = anyio.run(read_states, shared_url, list(acknowledged))
    for key, state in states.items():
        check_conversation(state, acknowledged[key])


def talk_until_killed(url, journal, backend, seed):
    ready = processes.Event()
    process = processes.Process(target=talk_for_ever, args=(url, journal, ready, backend, seed))
    process.start()
    assert ready.wait(120), "it never came up"
    # Until every conversation has got somewhere, wherever that is.
    while len({key for key, number in read_journal(journal) if number > 2 + seed}) < 8:
        assert process.is_alive()
    process.kill()
    process.join()


async def read_states(url, keys) -> dict[str, FSMState | None]:
    async with FSMStore(url) as store:
        await store.init(BOT)
        return {key: await store.get_state(BOT, key) for key in keys}
