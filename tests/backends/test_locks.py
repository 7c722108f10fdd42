"""Locks by key: in one event loop, and among processes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trunkline.backends import Adapter
from trunkline.backends.locks import KeyLocks, Leases, Lock
from trunkline.errors import CallTimeout, ConfigurationError, LockLost, StoreUnavailable
from trunkline.fsm import FSMStore

KEY = "key"


# -- in one event loop ---------------------------------------------------------------------------


async def test_a_key_that_nobody_holds_leaves_no_trace():
    locks = KeyLocks()
    for number in range(100):
        async with locks.hold(str(number)):
            assert len(locks) == 1
    assert len(locks) == 0


async def test_two_keys_are_held_at_once():
    locks = KeyLocks()
    async with locks.hold("one"), locks.hold("other"):
        assert len(locks) == 2


async def test_who_comes_first_is_first(visits):
    locks = KeyLocks()
    async with anyio.create_task_group() as task_group, locks.hold(KEY):
        for name in "abcde":
            task_group.start_soon(visits.visit, locks, name)
            await anyio.wait_all_tasks_blocked()
        assert visits.made == []
    assert visits.made == list("abcde")
    assert len(locks) == 0


async def test_a_task_that_comes_while_a_lock_is_handed_on_is_behind_those_that_wait(visits):
    locks = KeyLocks()
    async with anyio.create_task_group() as task_group:
        async with locks.hold(KEY):
            task_group.start_soon(visits.visit, locks, "waited")
            await anyio.wait_all_tasks_blocked()
        # It was handed on, and the one who waited has not run since.
        await visits.visit(locks, "came")
    assert visits.made == ["waited", "came"]


async def test_one_who_gives_up_leaves_the_line(visits):
    locks = KeyLocks()
    impatient = anyio.CancelScope()
    async with anyio.create_task_group() as task_group, locks.hold(KEY):
        task_group.start_soon(visits.visit, locks, "first")
        await anyio.wait_all_tasks_blocked()
        task_group.start_soon(visits.visit, locks, "impatient", impatient)
        await anyio.wait_all_tasks_blocked()
        task_group.start_soon(visits.visit, locks, "last")
        await anyio.wait_all_tasks_blocked()
        impatient.cancel()
    assert visits.made == ["first", "last"]
    assert len(locks) == 0


async def test_one_who_gives_up_as_the_turn_comes_hands_it_on(visits):
    locks = KeyLocks()
    impatient = anyio.CancelScope()
    async with anyio.create_task_group() as task_group, locks.hold(KEY):
        task_group.start_soon(visits.visit, locks, "impatient", impatient)
        await anyio.wait_all_tasks_blocked()
        task_group.start_soon(visits.visit, locks, "last")
        await anyio.wait_all_tasks_blocked()
        impatient.cancel()
        # The turn comes after the cancellation, and before that one has run.
    assert visits.made == ["last"]
    assert len(locks) == 0


async def test_one_who_gives_up_after_the_turn_came_hands_it_on(visits):
    locks = KeyLocks()
    impatient = anyio.CancelScope()
    async with anyio.create_task_group() as task_group:
        async with locks.hold(KEY):
            task_group.start_soon(visits.visit, locks, "impatient", impatient)
            await anyio.wait_all_tasks_blocked()
            task_group.start_soon(visits.visit, locks, "last")
            await anyio.wait_all_tasks_blocked()
        impatient.cancel()
    assert "last" in visits.made
    assert len(locks) == 0


async def test_an_owner_that_fails_lets_go():
    locks = KeyLocks()
    with pytest.raises(ZeroDivisionError):
        async with locks.hold(KEY):
            raise ZeroDivisionError
    assert len(locks) == 0


async def test_an_owner_that_is_cancelled_lets_go(visits):
    locks = KeyLocks()
    async with anyio.create_task_group() as task_group:
        with anyio.CancelScope() as scope:
            async with locks.hold(KEY):
                task_group.start_soon(visits.visit, locks, "next")
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                await anyio.sleep_forever()
    assert visits.made == ["next"]
    assert len(locks) == 0


async def test_a_task_that_would_wait_for_itself_gets_an_error(visits):
    locks = KeyLocks()
    async with anyio.create_task_group() as task_group, locks.hold(KEY):
        with pytest.raises(RuntimeError, match="this task holds the lock 'key' already"):
            await visits.visit(locks, "again")
        # Another task is no such case, even if this one has started it.
        task_group.start_soon(visits.visit, locks, "child")
        await anyio.wait_all_tasks_blocked()
        assert visits.made == []
    assert visits.made == ["child"]


async def test_a_task_that_was_handed_the_lock_gets_the_same_error(visits):
    locks = KeyLocks()

    async def hold_twice():
        async with locks.hold(KEY):
            with pytest.raises(RuntimeError, match="holds the lock"):
                await visits.visit(locks, "again")

    async with anyio.create_task_group() as task_group, locks.hold(KEY):
        task_group.start_soon(hold_twice)
        await anyio.wait_all_tasks_blocked()
    assert len(locks) == 0


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.booleans(), st.booleans()),
        max_size=12,
    )
)
async def test_however_tasks_come_stay_and_are_cancelled_one_is_inside_and_all_get_in(plan):
    locks = KeyLocks()
    inside = {"a": 0, "b": 0}
    been = set()
    scopes = [anyio.CancelScope() for _ in plan]

    async def visit(number, key, stay):
        with scopes[number]:
            async with locks.hold(key):
                inside[key] += 1
                try:
                    assert inside[key] == 1
                    been.add(number)
                    for _ in range(stay):
                        await checkpoint()
                finally:
                    inside[key] -= 1

    async with anyio.create_task_group() as task_group:
        for number, (key, stay, let_run, cancels) in enumerate(plan):
            task_group.start_soon(visit, number, key, stay)
            if let_run:
                await checkpoint()
            if cancels:
                scopes[number // 2].cancel()
    assert len(locks) == 0
    spared = {number for number, scope in enumerate(scopes) if not scope.cancel_called}
    assert spared <= been


class Visits:
    """Who has held a lock, in order."""

    def __init__(self):
        self.made = []

    async def visit(self, locks, name, scope=None):
        with anyio.CancelScope() if scope is None else scope:
            async with locks.hold(KEY):
                self.made.append(name)


@pytest.fixture
def visits():
    return Visits()


# -- among processes -----------------------------------------------------------------------------


def valkey_adapter(url, lease_ms=10_000):
    from trunkline.fsm.redis import RedisFSMAdapter

    return type("Adapter", (RedisFSMAdapter,), {"lease_ms": lease_ms})(url)


def postgres_adapter(url, lease_ms=15_000):
    from trunkline.fsm.sql import SQLFSMAdapter

    adapter = SQLFSMAdapter(url)
    adapter.lease_ms = lease_ms
    return adapter


@asynccontextmanager
async def open_stores(*adapters, **options):
    """Stores that share nothing but the server, as those of several processes do."""
    async with FSMStore(adapter=adapters[0], **options) as one:
        if len(adapters) == 1:
            yield [one]
        else:
            async with open_stores(*adapters[1:], **options) as others:
                yield [one, *others]


async def wait_until(is_true):
    """Until what another thread or a server does is done."""
    with anyio.fail_after(60):
        while not is_true():  # noqa: ASYNC110
            await anyio.sleep(0.002)


class Valkey:
    """The locks that a Valkey server knows of."""

    def __init__(self, server):
        self.server = server
        self.url = server.url
        self.adapter = valkey_adapter

    def locks(self):
        return len(self.server.execute("KEYS", "*lock*"))

    def end_leases(self):
        """What the server does to a lease that was not renewed in time."""
        for key in self.server.execute("KEYS", "*lock*"):
            self.server.execute("PEXPIRE", key, 0)


class PostgreSQL:
    """The locks that a PostgreSQL server knows of."""

    def __init__(self, server, url):
        self.server = server
        self.url = url
        self.adapter = postgres_adapter

    def locks(self):
        rows = self.server.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        return rows[0][0]

    def end_leases(self):
        """What the server does to a connection whose client has closed it."""
        self.server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        )


@pytest.fixture(params=["valkey", "postgres"])
def shared(request):
    url = request.getfixturevalue(f"{request.param}_url")
    server = request.getfixturevalue(f"{request.param}_server")
    return Valkey(server) if request.param == "valkey" else PostgreSQL(server, url)


async def test_a_lock_is_known_to_the_server_only_while_it_is_held(shared):
    async with open_stores(shared.adapter(shared.url)) as (store,):
        assert shared.locks() == 0
        async with store._hold(KEY):
            assert shared.locks() == 1
        assert shared.locks() == 0


async def test_a_lock_is_held_by_one_store_at_a_time(shared):
    made = []

    async def visit(store, name):
        async with store._hold(KEY):
            made.append(name)
            await checkpoint()
            made.append(name)

    adapters = [shared.adapter(shared.url) for _ in range(3)]
    async with open_stores(*adapters) as stores, anyio.create_task_group() as task_group:
        for number in range(12):
            task_group.start_soon(visit, stores[number % 3], number)
    assert made[::2] == made[1::2]
    assert shared.locks() == 0


async def test_an_attempt_that_is_cancelled_leaves_no_lock(shared):
    async with open_stores(*(shared.adapter(shared.url) for _ in range(2))) as (one, other):
        for turns in range(30):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as task_group:
                    task_group.start_soon(hold_for_ever, one)
                    for _ in range(turns):
                        await checkpoint()
                    scope.cancel()
        with anyio.fail_after(8):  # less than a lease lasts
            async with other._hold(KEY):
                assert shared.locks() == 1
        assert shared.locks() == 0


async def hold_for_ever(store):
    async with store._hold(KEY):
        await anyio.sleep_forever()


async def test_one_who_gives_up_on_another_process_leaves_the_lock_to_it(shared):
    async with open_stores(*(shared.adapter(shared.url) for _ in range(2))) as (one, other):
        async with one._hold(KEY) as lease:
            with anyio.move_on_after(0.05) as scope:
                await hold_for_ever(other)
            assert scope.cancelled_caught
            assert shared.locks() == 1
            assert await one._ask_locker(one._adapter.renew_lock, lease.key, lease.token)
        assert shared.locks() == 0


async def test_a_lease_that_ended_is_noticed_and_the_next_owner_is_left_alone(shared, log):
    adapters = shared.adapter(shared.url, lease_ms=600), shared.adapter(shared.url)
    async with open_stores(*adapters) as (sleeper, other), sleeper._hold(KEY) as lease:
        assert not lease.lost
        shared.end_leases()
        with anyio.fail_after(60):
            async with other._hold(KEY) as next_lease:
                await wait_until(lambda: lease.lost)
                # The sleeper releases what it no longer holds.
                await sleeper._ask_locker(sleeper._adapter.unlock, lease.key, lease.token)
                assert await other._ask_locker(
                    other._adapter.renew_lock, next_lease.key, next_lease.token
                )
                assert shared.locks() == 1
    lost = [entry for entry in log if entry["event"] == "lock_lost"]
    assert lost == [{"event": "lock_lost", "log_level": "warning", "key": KEY, "lease_ms": 600}]


async def test_a_lease_is_renewed_while_its_owner_works(valkey_url, valkey_server):
    adapter = valkey_adapter(valkey_url, lease_ms=900)
    async with open_stores(adapter) as (store,), store._hold(KEY) as lease:
        (name,) = valkey_server.execute("KEYS", "*lock*")
        left_ms = []

        def is_renewed():
            left_ms.append(valkey_server.execute("PTTL", name))
            return any(later > earlier for earlier, later in pairwise(left_ms))

        for _ in range(3):
            await wait_until(is_renewed)
            left_ms.clear()
        assert not lease.lost
        assert valkey_server.execute("GET", name) == lease.token.encode()


async def test_asked_a_second_time_by_the_same_owner_a_server_gives_the_same_answer(shared):
    async with open_stores(*(shared.adapter(shared.url) for _ in range(2))) as (one, other):
        for _ in range(2):
            assert await one._ask_locker(one._adapter.try_lock, KEY, "mine")
            assert not await other._ask_locker(other._adapter.try_lock, KEY, "theirs")
        await one._ask_locker(one._adapter.unlock, KEY, "mine")
        assert await other._ask_locker(other._adapter.try_lock, KEY, "theirs")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_tasks_that_asyncio_cancels_twice_leave_no_lock(shared):
    adapters = [shared.adapter(shared.url) for _ in range(2)]
    async with open_stores(*adapters) as (one, other):
        for turns in range(40):
            task = asyncio.create_task(hold_for_ever(one))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            for _ in range(turns % 7):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(one._locks) == 0
        with anyio.fail_after(8):  # less than a lease lasts
            async with other._hold(KEY):
                pass
        await wait_until(lambda: shared.locks() == 0)


async def test_a_thousand_locks_at_once_are_asked_for_together(valkey_url, valkey_server):
    async with open_stores(valkey_adapter(valkey_url)) as (store,):
        holding = 0
        all_held, go = anyio.Event(), anyio.Event()

        async def hold(number):
            nonlocal holding
            async with store._hold(f"{number}"):
                holding += 1
                if holding == 1_000:
                    all_held.set()
                await go.wait()

        async with anyio.create_task_group() as task_group:
            for number in range(1_000):
                task_group.start_soon(hold, number)
            with anyio.fail_after(60):
                await all_held.wait()
            assert len(valkey_server.execute("KEYS", "*lock*")) == 1_000
            go.set()
    assert valkey_server.execute("KEYS", "*lock*") == []


# -- a lock that is lost, and one that is not free in time -----------------------------------------


@asynccontextmanager
async def conversation(store, **options):
    """The lock of a conversation, as users of the store take it."""
    await store.init("bot")
    async with store.lock("bot", KEY, **options) as lock:
        yield lock


async def test_whoever_leaves_a_lock_that_was_lost_hears_of_it(shared):
    async def own():
        async with conversation(store) as lock:
            assert not lock.lost
            # It is not renewed for seconds, so that only giving it back finds out.
            shared.end_leases()

    async with open_stores(shared.adapter(shared.url)) as (store,):
        with pytest.raises(LockLost, match="ended before it was released"):
            await own()
        async with conversation(store) as lock:
            assert not lock.lost


async def test_an_owner_can_wait_for_the_loss_of_its_lock(shared):
    async def own():
        async with conversation(store) as lock:
            async with anyio.create_task_group() as task_group:
                for _ in range(2):
                    task_group.start_soon(lock.wait_lost)
                await anyio.wait_all_tasks_blocked()
                shared.end_leases()
            await lock.wait_lost()

    async with open_stores(shared.adapter(shared.url, lease_ms=600)) as (store,):
        with pytest.raises(LockLost), anyio.fail_after(60):
            await own()


async def test_what_is_raised_inside_a_lost_lock_comes_out_as_itself(shared):
    async def own():
        async with conversation(store):
            shared.end_leases()
            raise ZeroDivisionError

    async with open_stores(shared.adapter(shared.url)) as (store,):
        with pytest.raises(ZeroDivisionError):
            await own()


async def test_a_lock_is_lost_once_its_server_was_away_for_as_long_as_a_lease(mortal):
    async def own():
        async with conversation(store) as lock:
            with mortal.server.frozen():
                await lock.wait_lost()

    adapter = mortal.adapter(mortal.url, lease_ms=600)
    async with open_stores(adapter, call_timeout_ms=700) as (store,):
        with pytest.raises(LockLost), anyio.fail_after(60):
            await own()


async def test_a_lock_whose_store_stops_is_lost(shared):
    async def own():
        async with conversation(store):
            held.set()
            await stopped.wait()

    async def own_and_lose():
        with pytest.raises(LockLost):
            await own()

    held, stopped = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as task_group:
        async with open_stores(shared.adapter(shared.url)) as (store,):
            task_group.start_soon(own_and_lose)
            await held.wait()
        stopped.set()


async def test_a_lock_of_a_store_that_has_stopped_is_refused(shared):
    async with open_stores(shared.adapter(shared.url)) as (store,):
        pass
    with pytest.raises(StoreUnavailable):
        async with store._hold(KEY):
            pytest.fail("no server was asked")


async def test_a_lock_that_is_not_free_in_time_raises_call_timeout(shared):
    async with open_stores(*(shared.adapter(shared.url) for _ in range(2))) as (one, other):
        for rival in (one, other):
            async with one._hold(KEY), anyio.create_task_group() as task_group:
                task_group.start_soon(meet_timeout, rival)  # a task holds a key only once
            await wait_until(lambda: shared.locks() == 0)
            async with conversation(rival, timeout_ms=5_000):
                assert shared.locks() == 1


async def meet_timeout(store):
    with pytest.raises(CallTimeout, match="'key' was not free within 20 ms") as raised:
        async with store._hold(KEY, 20):
            pytest.fail("another has it")
    assert isinstance(raised.value, TimeoutError)


async def test_who_is_out_of_time_leaves_its_place_in_the_queue(visits):
    async def visit(name, timeout_ms=None):
        try:
            async with store._hold(KEY, timeout_ms):
                visits.made.append(name)
        except CallTimeout:
            out_of_time.set()

    out_of_time = anyio.Event()
    async with FSMStore("memory://") as store:
        async with anyio.create_task_group() as task_group, store._hold(KEY):
            task_group.start_soon(visit, "impatient", 10)
            await anyio.wait_all_tasks_blocked()
            task_group.start_soon(visit, "patient")
            await out_of_time.wait()
            assert visits.made == []
        assert visits.made == ["patient"]
        assert len(store._locks) == 0


@pytest.mark.parametrize("timeout_ms", [0, -1, 1.5, True, "soon"])
async def test_a_timeout_that_makes_no_sense_is_refused(timeout_ms):
    async with FSMStore("memory://") as store:
        with pytest.raises(ConfigurationError, match="timeout_ms"):
            async with store._hold(KEY, timeout_ms):
                pytest.fail("it was taken")


class Forgetful(Adapter):
    """An adapter's locks, whose replies are lost when they are given back."""

    lease_ms = 10_000

    def __init__(self):
        self.is_held = False
        self.losses = 1

    def try_lock(self, key, token):
        self.is_held = True
        return True

    def renew_lock(self, key, token):
        return self.is_held

    def unlock(self, key, token):
        was_held, self.is_held = self.is_held, False
        if self.losses:
            self.losses -= 1
            raise StoreUnavailable("the reply was lost")
        return was_held


async def test_a_lock_whose_return_was_not_confirmed_at_once_is_not_lost():
    async def ask(method, *args):
        await checkpoint()
        return method(*args)

    leases, lock = Leases(Forgetful(), ask), Lock(KEY)
    async with leases.run():
        await leases.release(await leases.acquire(lock))
    assert not lock.lost


# -- a server that is away -----------------------------------------------------------------------


async def test_a_lock_of_a_server_that_is_away_is_refused_and_is_free_afterwards(mortal):
    async with open_stores(mortal.adapter(mortal.url), call_timeout_ms=2_000) as (store,):
        mortal.server.kill()
        try:
            with anyio.fail_after(60):
                for _ in range(3):
                    with pytest.raises(StoreUnavailable):
                        async with store._hold(KEY):
                            pytest.fail("nobody knows who holds it")
            assert len(store._locks) == 0
        finally:
            mortal.server.start()
        with anyio.fail_after(60):
            async with store._hold(KEY):
                assert mortal.locks() == 1
        assert mortal.locks() == 0


async def test_an_owner_works_on_while_the_server_is_away_and_hears_that_its_lock_is_lost(
    mortal, log
):
    async with open_stores(mortal.adapter(mortal.url, lease_ms=600)) as (store,):
        async with store._hold(KEY) as lease:
            mortal.server.kill()
            mortal.server.start()
            mortal.end_leases()
            await wait_until(lambda: lease.lost)
        with anyio.fail_after(60):
            async with store._hold(KEY) as lease:
                assert not lease.lost
        assert mortal.locks() == 0
    assert [entry["event"] for entry in log].count("lock_lost") == 1


async def test_a_lock_that_could_not_be_given_back_in_time_is_given_back_when_the_server_answers(
    mortal,
):
    adapters = [mortal.adapter(mortal.url) for _ in range(2)]
    async with open_stores(*adapters, call_timeout_ms=1_200) as (one, other):
        with mortal.server.frozen(), pytest.raises(StoreUnavailable):
            async with one._hold(KEY):
                pytest.fail("a server that stands still has granted it")
        # What it was asked for while it stood still, it does now.
        with anyio.fail_after(8):  # less than a lease lasts
            async with other._hold(KEY):
                assert mortal.locks() == 1
        await wait_until(lambda: mortal.locks() == 0)


@pytest.fixture(params=["valkey", "postgres"])
def mortal(request):
    """A server that the test may kill or freeze."""
    server = request.getfixturevalue(f"mortal_{request.param}")
    if request.param == "valkey":
        server.execute("FLUSHALL")
        return Valkey(server)
    return PostgreSQL(server, server.url())
