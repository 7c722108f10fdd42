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
from weakref import WeakKeyDictionary

import anyio
import structlog
from uuid_utils import uuid7

from trunkline.actors.lifetime import open_task_group
from trunkline.backends.errors import ConnectionLost
from trunkline.errors import TrunklineError

__all__ = ("KeyLocks", "Lease", "hold_shared")

_log = structlog.get_logger("trunkline.backends")

#: Between two attempts at a lock that another process holds, in seconds.
_FIRST_WAIT, _LONGEST_WAIT = 0.002, 0.05

#: How long giving a lock back may keep its owner, in seconds.
_LONGEST_RETURN = 1.0


class KeyLocks:
    """Locks by key within one event loop, first come, first served."""

    def __init__(self) -> None:
        # A key that nobody holds is not in here.
        self._lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        """Keys that are held."""
        return len(self._lines)

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncGenerator[None, Any]:
        """Hold `key` inside; whoever comes meanwhile waits in line.

        Raises:
            RuntimeError: this task holds it already, and would wait for itself.
        """
        await self._acquire(key)
        try:
            yield
        finally:
            self._release(key)

    async def _acquire(self, key: str) -> None:
        task_id = anyio.get_current_task().id
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = _Line(task_id)
            return
        if line.owner_id == task_id:
            raise RuntimeError(f"this task holds the lock {key!r} already")
        turn = anyio.Event()
        line.waiters.append((turn, task_id))
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # it was this one's turn already: hand it on
                self._release(key)
            else:
                line.waiters.remove((turn, task_id))
            raise

    def _release(self, key: str) -> None:
        line = self._lines[key]
        if line.waiters:
            turn, line.owner_id = line.waiters.popleft()
            turn.set()
        else:
            del self._lines[key]


class _Line:
    """Who holds a key, and who waits for it."""

    __slots__ = ("owner_id", "waiters")

    def __init__(self, owner_id: int) -> None:
        self.owner_id = owner_id
        self.waiters: deque[tuple[anyio.Event, int]] = deque()


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


#: Locks that could not be given back in time, since the server did not answer. Where a lock lives
#: as long as a connection, it would not end by itself when the server goes on.
_unreturned: WeakKeyDictionary[Lockable, list[Lease]] = WeakKeyDictionary()


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
    left_over = _unreturned.get(adapter)
    while left_over and await _give_back(ask, adapter, left_over.pop()):
        continue
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
        await _give_back(ask, adapter, lease)


async def _give_back(ask: Callable[..., Awaitable[Any]], adapter: Lockable, lease: Lease) -> bool:
    """Give a lock back; whether the server knows of it."""
    returned = lost = False
    try:
        with anyio.move_on_after(_LONGEST_RETURN, shield=True):
            await ask(adapter.unlock, lease.key, lease.token)
            returned = True
    except ConnectionLost:
        # All that were held through the connection have ended, or will by themselves.
        _unreturned.pop(adapter, None)
        lost = True
    except TrunklineError:
        pass
    finally:  # also if asyncio cancels this task a second time, which no shield prevents
        if not returned and not lost:
            _unreturned.setdefault(adapter, []).append(lease)
    return returned


async def _renew(ask: Callable[..., Awaitable[Any]], adapter: Lockable, lease: Lease) -> None:
    while not lease.lost:
        await anyio.sleep(adapter.lease_ms / 3000)
        try:
            lease.lost = not await ask(adapter.renew_lock, lease.key, lease.token)
        except TrunklineError:
            continue  # it may be back before the lease ends
    _log.warning("lock_lost", key=lease.key, lease_ms=adapter.lease_ms)
