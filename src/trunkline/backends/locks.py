"""Locks by key: first come, first served in one process, and shared with others where a server can.

A lock in this process is an entry in a dictionary that is there only while somebody holds or wants
it. Behind it, an adapter with leases is asked for the lock among processes, which is renewed while
it is held and ends by itself when its owner dies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
from uuid_utils import uuid7

from trunkline.actors.lifetime import open_task_group
from trunkline.errors import StoreUnavailable

__all__ = ("KeyLocks", "Lease", "hold_shared")

#: Between two attempts at a lock that another process holds, in seconds.
_FIRST_WAIT, _LONGEST_WAIT = 0.002, 0.05


class KeyLocks:
    """Locks by key within one event loop, first come, first served."""

    def __init__(self) -> None:
        # Who waits for a key that is held. A key that nobody holds is not in here.
        self._waiters: dict[str, deque[anyio.Event]] = {}

    def __len__(self) -> int:
        """Keys that are held."""
        return len(self._waiters)

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncGenerator[None, Any]:
        """Hold `key` inside; whoever comes meanwhile waits in line."""
        await self._acquire(key)
        try:
            yield
        finally:
            self._release(key)

    async def _acquire(self, key: str) -> None:
        waiters = self._waiters.get(key)
        if waiters is None:
            self._waiters[key] = deque()
            return
        turn = anyio.Event()
        waiters.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # it was this one's turn already: hand it on
                self._release(key)
            else:
                waiters.remove(turn)
            raise

    def _release(self, key: str) -> None:
        waiters = self._waiters[key]
        if waiters:
            waiters.popleft().set()
        else:
            del self._waiters[key]


class Lease:
    """Proof that a lock among processes is held: who holds what, and whether still."""

    __slots__ = ("key", "lost", "token")

    def __init__(self, key: str, token: str) -> None:
        self.key = key
        self.token = token
        #: Set once the lease is known to have ended before it was given back.
        self.lost = False


class Lockable(Protocol):
    """An adapter that can lock among processes; see `Adapter.lease_ms`."""

    lease_ms: int

    def try_lock(self, key: str, token: str) -> bool: ...

    def renew_lock(self, key: str, token: str) -> bool: ...

    def unlock(self, key: str, token: str) -> None: ...


@asynccontextmanager
async def hold_shared(
    ask: Callable[..., Awaitable[Any]], adapter: Lockable, key: str
) -> AsyncGenerator[Lease, Any]:
    """Hold the lock `key` among processes, and renew its lease every third of its time.

    Args:
        ask: calls a method of the adapter with arguments.
        adapter: whose methods these are, and how long a lease lasts.
        key: the lock.
    """
    lease = Lease(key, str(uuid7()))
    try:
        wait = _FIRST_WAIT
        while not await ask(adapter.try_lock, key, lease.token):
            await anyio.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT)
        async with open_task_group() as task_group:
            task_group.start_soon(_renew, ask, adapter, lease)
            try:
                yield lease
            finally:
                task_group.cancel_scope.cancel("the lock is given back")
    finally:
        # Also after a cancelled attempt: the lock may have been taken just then.
        with anyio.move_on_after(1, shield=True):
            try:
                await ask(adapter.unlock, key, lease.token)
            except StoreUnavailable:
                pass  # the server is away, and the lease ends by itself


async def _renew(ask: Callable[..., Awaitable[Any]], adapter: Lockable, lease: Lease) -> None:
    while not lease.lost:
        await anyio.sleep(adapter.lease_ms / 3000)
        try:
            lease.lost = not await ask(adapter.renew_lock, lease.key, lease.token)
        except StoreUnavailable:
            continue  # it may be back before the lease ends
