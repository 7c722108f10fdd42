"""The life of a store: entered or started, used, left, and entered again."""

from __future__ import annotations

import threading

import pytest

from tests.backends.ledger import Book, Bug, Ledger, LedgerStore
from trunkline.actors import RestartPolicy
from trunkline.backends import Adapter, Store
from trunkline.errors import (
    ActorCrashed,
    ConfigurationError,
    RestartIntensityExceeded,
    StoreUnavailable,
)

ASYNCIO_ONLY = pytest.mark.parametrize("anyio_backend", ["asyncio"])


async def test_a_store_that_was_not_entered_says_how_to():
    store = LedgerStore(Ledger(readers=1))
    for call in (store.write("a"), store.read()):
        with pytest.raises(
            StoreUnavailable, match="ledger does not run: enter it with 'async with'"
        ):
            await call


async def test_a_store_that_was_left_says_that_it_has_stopped():
    async with LedgerStore(Ledger(readers=1)) as store:
        await store.write("a")
    for call in (store.write("b"), store.read()):
        with pytest.raises(StoreUnavailable, match="has stopped"):
            await call


async def test_a_store_can_be_entered_again():
    store = LedgerStore(Ledger(readers=1))
    for line in "ab":
        async with store:
            await store.write(line)
    async with store:
        assert await store.read() == ["a", "b"]


async def test_every_worker_has_a_connection_of_its_own_and_closes_it():
    async with LedgerStore(Ledger(writers=3, readers=2)) as store:
        assert store.book.opened == 5
    assert store.book.closed == 5


async def test_those_that_were_opened_are_closed_if_a_later_one_cannot_be():
    book = Book()
    book.on_open = [None, None, StoreUnavailable("too many connections")]
    with pytest.raises(StoreUnavailable, match="too many connections"):
        async with LedgerStore(Ledger(book, writers=2, readers=2)):
            pytest.fail("it was entered")
    assert (book.opened, book.closed) == (3, 2)


@ASYNCIO_ONLY
async def test_start_and_stop_do_what_async_with_does():
    store = await LedgerStore(Ledger()).start()
    assert await store.write("a") == "A"
    await store.stop()
    assert store.book.closed == 1
    with pytest.raises(StoreUnavailable, match="has stopped"):
        await store.write("b")


@ASYNCIO_ONLY
async def test_start_raises_what_opening_raises():
    book = Book()
    book.on_open = [StoreUnavailable("away")]
    with pytest.raises(StoreUnavailable, match="away"):
        await LedgerStore(Ledger(book)).start()


async def test_a_store_that_crashes_too_often_gives_up_and_says_why():
    async def crash_twice() -> None:
        policy = RestartPolicy(max_restarts=1, min_backoff_ms=1, max_backoff_ms=1)
        async with LedgerStore(Ledger(), restart_policy=policy) as store:
            for _ in range(2):
                with pytest.raises(ActorCrashed):
                    await store.fail("a", Bug())

    with pytest.raises(RestartIntensityExceeded, match=r"ledger gave up: more than 1 .* Bug"):
        await crash_twice()


@pytest.mark.parametrize("option", ["call_timeout_ms", "mailbox_size", "max_batch"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_an_option_that_makes_no_sense_is_named(option, value):
    with pytest.raises(ConfigurationError, match=option):
        LedgerStore(Ledger(), **{option: value})


class Threads(Adapter):
    """Tells in which thread its methods run."""

    def which(self) -> int:
        return threading.get_ident()


class DirectThreads(Threads):
    blocking = False


async def test_an_adapter_that_waits_runs_in_a_thread_and_one_that_does_not_in_the_event_loop():
    for adapter, in_loop in ((Threads(), False), (DirectThreads(), True)):
        async with Store(adapter, name="threads") as store:
            ident = await store._write("", Threads.which)
            assert (ident == threading.get_ident()) is in_loop
