"""Servers that go away, stand still, or lose the answer, under a store that keeps running."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import anyio
import pytest
from anyio import to_thread

from tests.signal.proxy import run_proxy
from trunkline.errors import StoreUnavailable, TransactionConflict
from trunkline.signal import SignalStore
from trunkline.signal.redis import RedisSignalAdapter
from trunkline.signal.sql import SQLSignalAdapter

TIMEOUT_MS = 400
LEASE_MS = 600


@pytest.fixture(params=["postgresql", "valkey"])
def server(request):
    """A server that may be killed, and the URL of an empty database on it."""
    if request.param == "postgresql":
        server = request.getfixturevalue("mortal_postgres")
        name = server.create_database()
        server.signal_url = server.url(name)
        yield server
        server.drop_database(name)
    else:
        server = request.getfixturevalue("mortal_valkey")
        server.execute("FLUSHALL")
        server.signal_url = server.url
        yield server


@contextmanager
def killed(server):
    """The server is unavailable inside, and back afterwards."""
    server.kill()
    try:
        yield
    finally:
        server.start()


def open_store(url, *, timeout_ms=2_000, lease_ms=None):
    adapter_class = RedisSignalAdapter if url.startswith("valkey") else SQLSignalAdapter
    adapter = adapter_class(url, timeout_ms=timeout_ms)
    if lease_ms is not None:
        adapter.lease_ms = lease_ms
    return SignalStore(adapter=adapter, call_timeout_ms=timeout_ms)


async def write(tx):
    await tx.set({"session": {"ann": b"mine"}, "pre-key": {"1": b"mine"}})


async def stored(store):
    return await store.get("session", ["ann"]), await store.get("pre-key", ["1"])


MINE = ({"ann": b"mine"}, {"1": b"mine"})
NOTHING = ({}, {})


@pytest.mark.slow
async def test_a_store_says_that_its_server_is_away_and_works_again_when_it_is_back(server):
    async with open_store(server.signal_url) as store:
        await store.set({"session": {"bob": b"before"}})
        with killed(server):
            for use in (
                lambda: store.get("session", ["bob"]),
                lambda: store.set({"session": {"bob": b"lost"}}),
                lambda: store.clear(),
                lambda: store.transact("ann", write),
            ):
                with pytest.raises(StoreUnavailable):
                    await use()
        assert await store.get("session", ["bob"]) == {"bob": b"before"}
        await store.transact("ann", write)
        assert await stored(store) == MINE


@pytest.mark.slow
async def test_a_store_cannot_be_opened_while_its_server_is_away(server):
    with killed(server), pytest.raises(StoreUnavailable):
        async with open_store(server.signal_url):
            pass


@pytest.mark.slow
async def test_a_transaction_whose_server_goes_away_is_not_stored(server):
    async with open_store(server.signal_url, lease_ms=LEASE_MS) as store:
        with pytest.raises(StoreUnavailable):
            await begin_and_lose_the_server(store, server)
        server.start()
        assert await stored(store) == NOTHING
        # Valkey comes back with the lock, which nobody could give back: its lease ends.
        await store.transact("ann", write)
        assert await stored(store) == MINE


async def begin_and_lose_the_server(store, server):
    async with store.transaction("ann") as tx:
        await write(tx)
        server.kill()


@pytest.mark.slow
async def test_a_transaction_whose_server_was_away_keeps_its_lock_or_hears_of_it(server):
    async with open_store(server.signal_url) as store:
        try:
            async with store.transaction("ann") as tx:
                await write(tx)
                with killed(server):
                    pass
        except TransactionConflict:
            # A lock of PostgreSQL's ends with its connection; Valkey has it in its log.
            assert server.signal_url.startswith("postgresql")
            assert await stored(store) == NOTHING
        else:
            assert server.signal_url.startswith("valkey")
            assert await stored(store) == MINE


@pytest.mark.slow
async def test_a_frozen_server_keeps_nobody_waiting_and_what_it_was_sent_is_stored_wholly(server):
    async with open_store(server.signal_url, timeout_ms=TIMEOUT_MS) as store:
        await store.set({"session": {"bob": b"before"}})
        with server.frozen():
            # PostgreSQL does not even answer to BEGIN.
            with pytest.raises(StoreUnavailable, match=r"may have been stored|will never begin"):
                await write(store)
            with pytest.raises(StoreUnavailable):
                await store.get("session", ["bob"])
            with pytest.raises(StoreUnavailable):
                await store.transact("ann", write)
        with anyio.fail_after(30):
            await store.transact("bob", write)
        assert await stored(store) == MINE


# -- a lost answer ---------------------------------------------------------------------------------


@pytest.fixture(params=["postgresql", "valkey"])
def proxied(request):
    """A proxy before a server, the URL through it, and what is sent when something is stored."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        folder = url.partition("host=")[2]

        def connect():
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(f"{folder}/.s.PGSQL.5432")
            return connection

        with run_proxy(connect) as proxy:
            direct = url.partition("?")[0]
            url = direct.replace("@/", f"@127.0.0.1:{proxy.port}/") + "?sslmode=disable"
            yield proxy, url, [b"INSERT INTO trunkline_signal", b"COMMIT"]
    else:
        server = request.getfixturevalue("valkey_server")
        server.execute("FLUSHALL")

        def connect():
            return socket.create_connection(("127.0.0.1", server.port))

        with run_proxy(connect) as proxy:
            yield proxy, f"valkey://127.0.0.1:{proxy.port}/0", [b"MARK"]


MARK = {"session": {"ann": b"MARK"}, "pre-key": {"1": b"MARK"}}
MARKED = ({"ann": b"MARK"}, {"1": b"MARK"})


async def test_a_set_whose_answer_is_lost_may_be_stored_and_says_so(proxied):
    proxy, url, request = proxied
    async with open_store(url) as store:
        proxy.lose_answer_after = request
        with pytest.raises(StoreUnavailable, match="this may have been stored"):
            await store.set(MARK)
        proxy.lose_answer_after = []
        assert await stored(store) == MARKED
    assert proxy.lost == 1


async def test_a_transaction_whose_answer_is_lost_is_no_conflict_and_is_not_run_again(proxied):
    proxy, url, request = proxied
    runs = 0

    async def count_up(tx):
        nonlocal runs
        runs += 1
        found = await tx.get("session", ["count"])
        await tx.set({"session": {"count": found.get("count", 0) + 1}, "pre-key": {"1": b"MARK"}})

    async with open_store(url) as store:
        proxy.lose_answer_after = request
        with pytest.raises(StoreUnavailable, match="this may have been stored"):
            await store.transact("ann", count_up)
        proxy.lose_answer_after = []
        assert runs == 1
        assert await store.get("session", ["count"]) == {"count": 1}
        await store.transact("ann", count_up)
        assert await store.get("session", ["count"]) == {"count": 2}
    assert proxy.lost == 1


# -- leases ----------------------------------------------------------------------------------------


async def test_an_owner_that_sleeps_longer_than_its_lease_hears_of_it_and_stores_nothing(
    valkey_server, valkey_url
):
    async with open_store(valkey_url, lease_ms=LEASE_MS) as store:
        with pytest.raises(TransactionConflict, match="lock"):
            await sleep_in_transaction(store, valkey_server)
        assert await stored(store) == NOTHING
        await store.transact("ann", write)
        assert await stored(store) == MINE


async def sleep_in_transaction(store, server):
    async with store.transaction("ann") as tx:
        await write(tx)
        (lock,) = server.execute("KEYS", "*lock*")
        assert server.execute("PTTL", lock) <= LEASE_MS
        # The event loop stands still, so that nobody renews the lease.
        while server.execute("KEYS", "*lock*"):
            pass


async def test_an_owner_whose_lock_another_has_taken_stores_nothing(valkey_server, valkey_url):
    async with SignalStore(valkey_url) as store:
        with pytest.raises(TransactionConflict, match="lock"):
            await lose_lock_to_another(store, valkey_server)
        assert await stored(store) == NOTHING
        # The other's lock was not given back in its stead.
        (lock,) = valkey_server.execute("KEYS", "*lock*")
        assert valkey_server.execute("GET", lock) == b"another"


async def lose_lock_to_another(store, server):
    async with store.transaction("ann") as tx:
        await write(tx)
        (lock,) = server.execute("KEYS", "*lock*")
        server.execute("SET", lock, "another")


class CountingAdapter(RedisSignalAdapter):
    """Tells of each renewal."""

    lease_ms = LEASE_MS
    renewals = threading.Semaphore(0)

    def renew_lock(self, key, token):
        renewed = super().renew_lock(key, token)
        self.renewals.release()
        return renewed


async def test_an_owner_that_works_longer_than_its_lease_keeps_it(valkey_server, valkey_url):
    while CountingAdapter.renewals.acquire(blocking=False):
        pass
    async with SignalStore(adapter=CountingAdapter(valkey_url)) as store:
        async with store.transaction("ann") as tx:
            (lock,) = valkey_server.execute("KEYS", "*lock*")
            token = valkey_server.execute("GET", lock)
            for _ in range(5):  # a lease lasts three
                assert await to_thread.run_sync(CountingAdapter.renewals.acquire, True, 120)
            assert valkey_server.execute("GET", lock) == token
            assert 0 < valkey_server.execute("PTTL", lock) <= LEASE_MS
            await write(tx)
        assert await stored(store) == MINE
        assert valkey_server.execute("KEYS", "*lock*") == []


async def test_an_owner_whose_session_postgresql_has_ended_stores_nothing(
    postgres_server, postgres_url
):
    async with SignalStore(postgres_url) as store:
        with pytest.raises(TransactionConflict, match="lock"):
            await lose_session(store, postgres_server, postgres_url)
        assert await stored(store) == NOTHING
        await store.transact("ann", write)
        assert await stored(store) == MINE


async def lose_session(store, server, url):
    async with store.transaction("ann") as tx:
        await write(tx)
        database = url.partition("@/")[2].partition("?")[0]
        server.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE datname = '{database}'"
        )
