"""A store: an adapter run as supervised actors, with order, batches, timeouts and clear errors."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, Generic, Self, TypeVar, TypeVarTuple

import anyio
import msgspec

from trunkline.actors import NOT_LOCAL, ActorRef, RestartPolicy, Service, Supervisor
from trunkline.backends.adapter import Adapter
from trunkline.backends.locks import KeyLocks, Leases, Lock
from trunkline.backends.workers import DirectWorker, ThreadWorker
from trunkline.errors import ActorStopped, CallTimeout, StoreUnavailable
from trunkline.observe import Events
from trunkline.validation import require_positive

__all__ = ("Store", "StoreStats")

AdapterT = TypeVar("AdapterT", bound=Adapter)
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class StoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the store was entered, over all of its workers."""

    #: Calls made so far.
    calls: int = 0
    #: Calls that wait now.
    mailbox_depth: int = 0
    #: Restarts of workers after a crash.
    restarts: int = 0
    #: Workers that are up, and how many there are.
    workers_up: int = 0
    workers: int = 0


class Store(Service, Generic[AdapterT]):
    """Base of the stores. A domain adds methods that `_read` and `_write` its adapter.

    Writes go to the writers, reads to the readers where the adapter has them, so that a read does
    not wait behind a long batch of writes. A write that returned is committed, and so is seen by
    every read that is made after it.

    Args:
        adapter: what stands before the database.
        name: stands in events, logs and errors.
        call_timeout_ms: how long a call may take, waiting included.
        mailbox_size: calls that may wait for one worker; more make their callers wait for room.
        max_batch: calls that are committed together at most.
        restart_policy: how many crashes are forgiven, and the rest after each.
    """

    def __init__(
        self,
        adapter: AdapterT,
        *,
        name: str,
        call_timeout_ms: int = 5_000,
        mailbox_size: int = 1_024,
        max_batch: int = 256,
        restart_policy: RestartPolicy | None = None,
    ) -> None:
        self.name = name
        #: Whom the store tells what happens: `store.events.subscribe(function)`.
        self.events = Events()
        #: What makes a context around each call, by its name; see `trunkline.observe.otel`.
        self.tracing: Callable[[str], AbstractContextManager[Any]] | None = None
        self._adapter = adapter
        self._call_timeout_ms = require_positive("call_timeout_ms", call_timeout_ms)
        self._mailbox_size = require_positive("mailbox_size", mailbox_size)
        self._max_batch = require_positive("max_batch", max_batch)
        self._restart_policy = restart_policy
        self._writers: tuple[ActorRef[Any], ...] = ()
        self._readers: tuple[ActorRef[Any], ...] = ()
        self._locker: ActorRef[Any] | None = None
        self._locks = KeyLocks()
        self._leases = Leases(adapter, self._ask_locker)

    def stats(self) -> StoreStats:
        """The counters of this moment."""
        workers = [*self._writers, *self._readers]
        return StoreStats(
            calls=sum(worker.local_calls + worker.queued_calls for worker in workers),
            mailbox_depth=sum(worker.mailbox_depth for worker in workers),
            restarts=sum(worker.restarts for worker in workers),
            workers_up=sum(worker.is_up for worker in workers),
            workers=len(workers),
        )

    # Few of these are async themselves: a coroutine costs time in each call.

    def _read(self, method: Callable[[AdapterT, *Ts], R], *args: *Ts) -> Awaitable[R]:
        """Call a method of the adapter that changes nothing."""
        workers = self._readers or self._writers
        # Reads need no order among themselves: to the worker that has least to do.
        worker = min(workers, key=_pending) if len(workers) > 1 else self._one_of(workers)
        return self._call(worker, method, args, {})

    def _write(
        self, order_by: Hashable, method: Callable[[AdapterT, *Ts], R], *args: *Ts
    ) -> Awaitable[R]:
        """Call a method of the adapter that changes something.

        Calls of the same `order_by` are run in the order in which they are made.
        """
        workers = self._writers
        worker = (
            workers[hash(order_by) % len(workers)] if len(workers) > 1 else self._one_of(workers)
        )
        return self._call(worker, method, args, {"order_by": order_by})

    def _call(
        self,
        worker: ActorRef[Any],
        method: Callable[..., R],
        args: tuple[Any, ...],
        order: Mapping[str, Hashable],
    ) -> Awaitable[R]:
        call: Awaitable[R]
        if self._adapter.blocking:
            call = self._queue(worker, method, args, order)
        else:
            call = self._perform(worker, method, args)
        if self.tracing is None:
            return call
        return self._trace(self.tracing(method.__name__), call)

    async def _perform(
        self, worker: ActorRef[Any], method: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        """Call a `DirectWorker`: at once if its turn is now."""
        result = worker.call_local(DirectWorker.perform, method, *args)
        if result is NOT_LOCAL:
            return await self._queue(worker, DirectWorker.perform, (method, *args), {})
        return result

    async def _queue(
        self,
        worker: ActorRef[Any],
        method: Callable[..., Any],
        args: tuple[Any, ...],
        order: Mapping[str, Hashable],
    ) -> Any:
        try:
            return await worker.ask(method, args, order)
        except (ActorStopped, CallTimeout) as error:
            raise StoreUnavailable(str(error)) from error

    async def _trace(self, context: AbstractContextManager[Any], call: Awaitable[R]) -> R:
        with context:
            return await call

    def _one_of(self, workers: tuple[ActorRef[Any], ...]) -> ActorRef[Any]:
        if not workers:
            raise StoreUnavailable(
                f"{self.name} does not run: enter it with 'async with', or await start()"
            )
        return workers[0]

    @asynccontextmanager
    async def _hold(self, key: str, timeout_ms: int | None = None) -> AsyncGenerator[Lock, Any]:
        """Hold a lock: in this process in the order of arrival, between processes by a lease.

        Args:
            key: what is locked.
            timeout_ms: how long to wait for it; for ever by default.

        Raises:
            CallTimeout: it was not free in time.
            RuntimeError: this task holds it already.
        """
        self._one_of(self._writers)  # a store that does not run has no lock to give
        seconds = (
            math.inf if timeout_ms is None else require_positive("timeout_ms", timeout_ms) / 1000
        )
        lock, lease = Lock(key), None
        with anyio.move_on_after(seconds) as scope:
            await self._locks.acquire(key)
            if self._locker is not None:
                try:
                    lease = await self._leases.acquire(lock)
                except BaseException:
                    self._locks.release(key)
                    raise
        if scope.cancelled_caught:
            raise CallTimeout(f"{self.name}: the lock {key!r} was not free within {timeout_ms} ms")
        try:
            yield lock
        finally:
            try:
                if lease is not None:
                    await self._leases.release(lease)
            finally:
                self._locks.release(key)

    async def _ask_locker(self, method: Callable[..., Any], *args: Any) -> Any:
        assert self._locker is not None
        return await self._call(self._locker, method, args, {})

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, Any]:
        async with Supervisor(policy=self._restart_policy, name=self.name) as supervisor:
            # The first writer creates or migrates the schema before any other connects.
            first = await self._spawn(supervisor, "writer", 0, self._adapter)
            others = [
                await self._spawn(supervisor, "writer", index, self._adapter.sibling())
                for index in range(1, self._adapter.writers)
            ]
            self._writers = (first, *others)
            self._readers = tuple(
                [
                    await self._spawn(supervisor, "reader", index, self._adapter.sibling())
                    for index in range(self._adapter.readers)
                ]
            )
            if self._adapter.lease_ms:
                # With a connection of its own: a lock must not wait behind a batch of calls.
                sibling = self._adapter.sibling()
                self._locker = await self._spawn(supervisor, "locker", 0, sibling)
            async with self._leases.run():
                yield self

    async def _spawn(
        self, supervisor: Supervisor, role: str, index: int, adapter: AdapterT
    ) -> ActorRef[Any]:
        restarted = False

        def worker() -> Any:
            nonlocal restarted
            if not adapter.blocking:
                return DirectWorker(adapter)
            worker = ThreadWorker(
                adapter,
                read_only=role == "reader",
                restarted=restarted,
            )
            restarted = True
            return worker

        return await supervisor.spawn(
            worker,
            name=f"{self.name}/{role}-{index}",
            mailbox_size=self._mailbox_size,
            call_timeout_ms=self._call_timeout_ms,
            max_batch=self._max_batch,
        )


def _pending(worker: ActorRef[Any]) -> int:
    return worker.pending
