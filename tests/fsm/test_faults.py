"""Servers that go away and come back, databases that keep everybody waiting."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from functools import partial

import anyio
import pytest

from tests.fsm.worker import BOT, KEY, check_conversation, talk
from trunkline.errors import StoreUnavailable
from trunkline.fsm import FSMState, FSMStore

TIMEOUT_MS = 600


@pytest.fixture(params=["postgres", "valkey"])
def server(request):
    """A server that the test may kill or freeze, if it brings it back."""
    return request.getfixturevalue(f"mortal_{request.param}")


@pytest.fixture
async def store(server):
    url = server.url() if callable(server.url) else server.url
    async with FSMStore(url, call_timeout_ms=TIMEOUT_MS) as store:
        await store.init(BOT)
        await store.clear(BOT, KEY)
        yield store


def calls(store):
    """One call of each method."""
    return [
        partial(store.get_state, BOT, KEY),
        partial(store.set_state, BOT, KEY, "b"),
        partial(store.get_data, BOT, KEY),
        partial(store.set_data, BOT, KEY, {"b": 2}),
        partial(store.update_data, BOT, KEY, {"c": 3}),
        partial(store.compare_and_set, BOT, KEY, FSMState("a", "one"), FSMState("b", "one")),
        partial(store.clear, BOT, KEY),
        partial(hold, store),
    ]


async def hold(store):
    async with store.lock(BOT, KEY):
        pytest.fail("a server that is away has granted a lock")


async def refused(call, refusals):
    with pytest.raises(StoreUnavailable) as refusal:
        await call()
    refusals.append(str(refusal.value))


async def refuse_all(store):
    """Make all calls at once; what they were told."""
    refusals: list[str] = []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as task_group:
            for call in calls(store):
                task_group.start_soon(refused, call, refusals)
    return refusals


async def works_again(store):
    """Wait until the server serves again: it needs a moment to read its log."""
    with anyio.fail_after(60):
        while True:
            try:
                return await store.get_state(BOT, KEY)
            except StoreUnavailable:
                await anyio.sleep(0.01)


@pytest.mark.slow
async def test_calls_on_a_server_that_is_away_fail_and_the_store_works_when_it_is_back(
    store, server
):
    standing = FSMState("a", "one", {"x": 1})
    await store.set_state(BOT, KEY, standing)
    server.kill()
    try:
        for _ in range(3):
            refusals = await refuse_all(store)
            assert len(refusals) == len(calls(store))
            assert all("connect" in refusal.lower() for refusal in refusals)
    finally:
        server.start()
    assert await works_again(store) == standing
    for call in calls(store)[:-1]:
        await call()
    assert await store.get_state(BOT, KEY) is None


@pytest.mark.slow
async def test_calls_on_a_server_that_stands_still_fail_in_time_and_the_store_works_afterwards(
    store, server
):
    standing = FSMState("a", "one", {"x": 1})
    await store.set_state(BOT, KEY, standing)
    with server.frozen():
        # One that changes nothing goes first, and is what the server will run when it goes on.
        refusals: list[str] = []
        with anyio.fail_after(60):
            await refused(calls(store)[0], refusals)
            await refused(calls(store)[0], refusals)
            assert all(f"{TIMEOUT_MS} ms" in refusal for refusal in refusals)
    assert await works_again(store) == standing
    assert await store.update_data(BOT, KEY, {"y": 2}) == {"x": 1, "y": 2}


@pytest.mark.slow
async def test_what_was_acknowledged_before_a_server_was_killed_is_there_when_it_is_back(
    store, server
):
    journal = Notes()

    async def talk_while_it_lasts(key):
        with pytest.raises(StoreUnavailable):
            await talk(store, journal, key)

    keys = [f"{number}" for number in range(8)]
    for key in keys:
        await store.clear(BOT, key)
    async with anyio.create_task_group() as task_group:
        for key in keys:
            task_group.start_soon(talk_while_it_lasts, key)
        with anyio.fail_after(60):
            await journal.long_enough.wait()
        server.kill()
    server.start()
    await works_again(store)
    for key in keys:
        check_conversation(await store.get_state(BOT, key), journal.newest[key])


class Notes:
    """The number of the newest change of each conversation that was acknowledged."""

    def __init__(self):
        self.newest = {}
        self.long_enough = anyio.Event()

    def write(self, key, number):
        self.newest[key] = number
        if len(self.newest) == 8 and min(self.newest.values()) > 5:
            self.long_enough.set()


@pytest.mark.slow
async def test_a_store_does_not_open_on_a_server_that_is_away(server):
    url = server.url() if callable(server.url) else server.url
    server.kill()
    try:
        with anyio.fail_after(60), pytest.raises(StoreUnavailable):
            async with FSMStore(url):
                pytest.fail("nobody is there")
    finally:
        server.start()
    async with FSMStore(url) as store:
        await store.init(BOT)
        await works_again(store)


@pytest.mark.slow
async def test_the_sweep_goes_on_when_the_server_is_back(mortal_postgres):
    told = []
    url = mortal_postgres.url()
    async with FSMStore(url, call_timeout_ms=TIMEOUT_MS, sweep_interval_ms=5) as store:
        store.events.subscribe(told.append)
        await store.init(BOT, ttl_ms=1)
        mortal_postgres.kill()
        try:
            with pytest.raises(StoreUnavailable):
                await store.get_state(BOT, KEY)
        finally:
            mortal_postgres.start()
        await works_again(store)
        await store.set_state(BOT, "short", "a")
        with anyio.fail_after(60):
            while not told:  # noqa: ASYNC110
                await anyio.sleep(0.005)
    assert [event.key for event in told] == ["short"]


# -- a full mailbox ----------------------------------------------------------------------------


@contextmanager
def writing_elsewhere(path):
    """Another program has begun to write to the file, and does not get to an end."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def test_a_caller_that_finds_no_room_in_time_gets_an_error_and_only_what_was_begun_is_stored(
    tmp_path,
):
    refusals: list[str] = []
    options = {"mailbox_size": 2, "max_batch": 1, "call_timeout_ms": 300}
    async with FSMStore(f"sqlite:///{tmp_path / 'bot.db'}", **options) as store:
        await store.init(BOT)
        await store.set_data(BOT, KEY, {"x": 1})
        with writing_elsewhere(tmp_path / "bot.db"), anyio.fail_after(60):
            async with anyio.create_task_group() as task_group:
                for number in range(20):
                    update = partial(store.update_data, BOT, KEY, {number: number})
                    task_group.start_soon(refused, update, refusals)
            # Reads have a worker of their own, and do not wait behind the writes.
            assert await store.get_data(BOT, KEY) == {"x": 1}
        assert len(refusals) == 20
        assert all("did not reply within 300 ms" in refusal for refusal in refusals)
        stored = await store.update_data(BOT, KEY, {"y": 2})
        assert {"x", "y"} <= stored.keys()
        assert len(stored) <= 3


async def test_a_caller_that_finds_no_room_waits_for_it_and_is_served_in_order(url):
    served = []

    async def update(number, *, task_status):
        task_status.started()
        await store.update_data(BOT, KEY, {"last": number})  # type: ignore[attr-defined]
        served.append(number)

    async with FSMStore(url, mailbox_size=1, max_batch=2) as store:
        await store.init(BOT)
        async with anyio.create_task_group() as task_group:
            for number in range(100):
                await task_group.start(update, number)
        assert sorted(served) == list(range(100))
        assert await store.get_data(BOT, KEY) == {"last": 99}
