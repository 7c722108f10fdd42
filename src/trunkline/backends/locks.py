"""Locks by key: first come, first served in one process, and shared with others where a server can.

A lock in this process is an entry in a dictionary that exists only while a task holds or wants the
key. Behind it, a lock between processes is a lease of the adapter's: taken, renewed while it is
held, and ended by the server when its owner dies. A task of the store's own does all of that, so
that every lease is given back, however its owner is cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import anyio
from anyio.abc import TaskGroup
from uuid_utils import uuid7

from trunkline.actors.log import Log
from trunkline.actors.task_group import open_task_group
from trunkline.backends.adapter import Adapter
from trunkline.errors import LockLost, StoreUnavailable, TrunklineError

__all__ = ("KeyLocks", "Leases", "Lock")

_log = Log("trunkline.backends")

#: Between two attempts at a lock that another process holds, in seconds.
_FIRST_WAIT, _LONGEST_WAIT = 0.002, 0.05

#: Between two attempts to give a lock back to a server that is away, in seconds.
_RETRY_WAIT = 0.5

#: How long the owner of a lock waits for the server to take it back, in seconds.
_LONGEST_RETURN = 1.0


class Lock:
    """A lock that is held, as `async with store.lock(…) as lock` gives it."""

    __slots__ = ("_lost", "key", "lost", "token")

    def __init__(self, key: str) -> None:
        self.key = key
        #: Proves to the server who holds the lock.
        self.token = str(uuid7())
        #: Whether it has ended before it was released, as far as is known: its server was away for
        #: longer than a lease, this process was frozen, or the store has stopped.
        self.lost = False
        self._lost: anyio.Event | None = None

    async def wait_lost(self) -> None:
        """Wait until the lock is lost; for ever if it never is."""
        if not self.lost:
            if self._lost is None:
                self._lost = anyio.Event()
            await self._lost.wait()

    def require_held(self) -> None:
        """Raise `LockLost` if it is lost."""
        if self.lost:
            raise LockLost(
                f"the lock {self.key!r} ended before it was released, and another process may have"
                " held it meanwhile"
            )

    def mark_lost(self) -> None:
        self.lost = True
        if self._lost is not None:
            self._lost.set()


class KeyLocks:
    """Locks by key within one event loop, first come, first served."""

    def __init__(self) -> None:
        #: By key, the tasks that want it, the first of which holds it. Of each its id, and the
        #: event that wakes it if it has to wait. A key that no task wants is not in here.
        self._queues: dict[str, deque[tuple[int, anyio.Event | None]]] = {}

    def __len__(self) -> int:
        """Keys that are held."""
        return len(self._queues)

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncGenerator[None, Any]:
        """Hold `key` inside; tasks that come meanwhile wait in a queue.

        Raises:
            RuntimeError: this task holds it already, and would wait for itself.
        """
        await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)

    async def acquire(self, key: str) -> None:
        """Take `key`, as `hold` does; it must be released."""
        task_id = anyio.get_current_task().id
        queue = self._queues.setdefault(key, deque())
        if not queue:
            queue.append((task_id, None))
            return
        if queue[0][0] == task_id:
            raise RuntimeError(f"this task holds the lock {key!r} already")
        turn = anyio.Event()
        queue.append((task_id, turn))
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # it was this task's turn already: hand it on
                self.release(key)
            else:
                queue.remove((task_id, turn))
            raise

    def release(self, key: str) -> None:
        """Hand `key` on to the task that has waited longest."""
        queue = self._queues[key]
        queue.popleft()
        if not queue:
            del self._queues[key]
        elif (turn := queue[0][1]) is not None:
            turn.set()


class Leases:
    """Locks between processes: of each, a task takes the lease, renews it and gives it back.

    Args:
        adapter: how long a lease lasts, and the methods that `ask` calls.
        ask: calls a method of the adapter with arguments, in their order.
    """

    def __init__(self, adapter: Adapter, ask: Callable[..., Awaitable[Any]]) -> None:
        self._adapter = adapter
        self._ask = ask
        self._task_group: TaskGroup | None = None

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None, Any]:
        """Leases can be taken inside. Those that are held on leaving are lost.

        The adapter gives them back when it is closed.
        """
        async with open_task_group() as self._task_group:
            try:
                yield
            finally:
                self._task_group.cancel_scope.cancel("the store is closing")
                self._task_group = None

    async def acquire(self, lock: Lock) -> _Lease:
        """Take the lease of `lock`, as soon as no other process has it; it must be released.

        Raises:
            TrunklineError: the server could not be asked.
        """
        lease = _Lease(lock)
        if self._task_group is None:
            raise lease.failure
        self._task_group.start_soon(self._keep, lease)
        try:
            await lease.settled.wait()
        except BaseException:
            await self.release(lease)
            raise
        if not lease.is_taken:
            lease.released.set()
            raise lease.failure
        return lease

    async def release(self, lease: _Lease) -> None:
        """Have the lease given back, and wait for that up to a second.

        If this task is cancelled, the task of the lease continues.
        """
        lease.released.set()
        with anyio.move_on_after(_LONGEST_RETURN, shield=True):
            await lease.ended.wait()

    async def _keep(self, lease: _Lease) -> None:
        """The life of one lease."""
        try:
            try:
                await self._take(lease)
            except TrunklineError as error:
                # The server may have granted it all the same.
                lease.failure = error
                lease.expires_at = monotonic() + self._adapter.lease_ms / 1000
            lease.settled.set()
            if lease.is_taken:
                await self._renew(lease)
            await self._give_back(lease)
        finally:
            if not lease.released.is_set():
                lease.lock.mark_lost()  # the store is closing
            lease.settled.set()
            lease.ended.set()

    async def _take(self, lease: _Lease) -> None:
        wait = _FIRST_WAIT
        while not lease.released.is_set():
            lease.is_taken = await self._ask_in_time(lease, self._adapter.try_lock)
            if lease.is_taken:
                return
            with anyio.move_on_after(wait):
                await lease.released.wait()
            wait = min(wait * 2, _LONGEST_WAIT)

    async def _renew(self, lease: _Lease) -> None:
        """Renew the lease every third of its time until it is released or lost."""
        while not lease.released.is_set():
            with anyio.move_on_after(self._adapter.lease_ms / 3000):
                await lease.released.wait()
                return
            try:
                is_held = await self._ask_in_time(lease, self._adapter.renew_lock)
            except TrunklineError:
                # The server may be back before the lease ends.
                is_held = monotonic() < lease.expires_at
            if not is_held and not lease.released.is_set():
                lease.lock.mark_lost()
                _log.warning("lock_lost", key=lease.lock.key, lease_ms=self._adapter.lease_ms)
                await lease.released.wait()

    async def _give_back(self, lease: _Lease) -> None:
        """Give the lease back; if the server is away, until it has ended by itself."""
        is_first = True
        while True:
            try:
                was_held = await self._ask(self._adapter.unlock, lease.lock.key, lease.lock.token)
            except TrunklineError:
                if monotonic() > lease.expires_at:
                    return
            else:
                if is_first and lease.is_taken and not was_held:
                    lease.lock.mark_lost()
                return
            is_first = False  # the next answer may be that of a lease that this attempt has ended
            await anyio.sleep(_RETRY_WAIT)

    async def _ask_in_time(self, lease: _Lease, method: Callable[[str, str], bool]) -> bool:
        """Ask for the lease, and note when it ends."""
        asked_at = monotonic()
        is_held: bool = await self._ask(method, lease.lock.key, lease.lock.token)
        if is_held:
            lease.expires_at = asked_at + self._adapter.lease_ms / 1000
        return is_held


class _Lease:
    """A lease, as shared by the owner of the lock and the task of the lease."""

    __slots__ = ("ended", "expires_at", "failure", "is_taken", "lock", "released", "settled")

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        #: When the server ends it by itself, by this process's monotonic clock.
        self.expires_at = 0.0
        self.is_taken = False
        #: Why it is not taken.
        self.failure: TrunklineError = StoreUnavailable("the store has stopped")
        #: Set when it is taken, or cannot be.
        self.settled = anyio.Event()
        #: Set when its owner does not need it any more.
        self.released = anyio.Event()
        #: Set when the server does not know of it any more.
        self.ended = anyio.Event()
