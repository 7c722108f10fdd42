"""What the tests of the suite have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.abc import TaskStatus

from trunkline.errors import TransactionConflict
from trunkline.signal import SignalStore, SignalTransaction

__all__ = (
    "Changes",
    "Handle",
    "RollBack",
    "apply",
    "count_up",
    "elsewhere",
    "everything",
    "held",
    "raises_conflict",
    "remember",
    "rolled_back",
    "same",
    "write",
)

Handle: TypeAlias = SignalStore | SignalTransaction
#: What `set` takes.
Changes: TypeAlias = Mapping[str, Mapping[str, Any]]


class RollBack(Exception):
    """What a transaction of these tests ends with if it is to be rolled back."""


@contextmanager
def rolled_back() -> Iterator[None]:
    with pytest.raises(RollBack):
        yield


@contextmanager
def raises_conflict() -> Iterator[pytest.ExceptionInfo[TransactionConflict]]:
    with pytest.raises(TransactionConflict, match="nothing was stored") as conflict:
        yield conflict


@asynccontextmanager
async def elsewhere() -> AsyncIterator[Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]]:
    """What runs functions in a task that is started here, outside of transactions begun later."""
    send, receive = anyio.create_memory_object_stream[tuple[Callable[[], Any], anyio.Event]]()
    results: list[Any] = []

    async def serve() -> None:
        async with receive:
            async for function, done in receive:
                results.append(await function())
                done.set()

    async def run(function: Callable[[], Awaitable[Any]]) -> Any:
        done = anyio.Event()
        await send.send((function, done))
        await done.wait()
        return results.pop()

    async with anyio.create_task_group() as task_group, send:
        task_group.start_soon(serve)
        yield run


@asynccontextmanager
async def held(store: SignalStore, key: str) -> AsyncIterator[None]:
    """The lock of `key` is held inside, by a transaction of another task."""

    async def hold(*, task_status: TaskStatus[None]) -> None:
        async with store.transaction(key):
            task_status.started()
            await let_go.wait()

    let_go = anyio.Event()
    async with anyio.create_task_group() as task_group:
        await task_group.start(hold)
        try:
            yield
        finally:
            let_go.set()


async def remember(tx: SignalTransaction) -> bytes:
    value: bytes = (await tx.get("session", ["ann"]))["ann"]
    await tx.set({"session": {"memory": value}})
    return value


async def count_up(tx: SignalTransaction) -> int:
    count: int = (await tx.get("session", ["count"])).get("count", 0) + 1
    await tx.set({"session": {"count": count}})
    return count


async def apply(handle: Handle, change: Changes | None) -> None:
    await (handle.clear() if change is None else handle.set(change))


async def everything(store: SignalStore) -> dict[str, dict[str, Any]]:
    """All that the tests of conflicts ever store."""
    ids = ["ann", "bob", "new", "1", "2"]
    return {
        family: await store.get(family, ids) for family in ("session", "pre-key", "identity-key")
    }


def same(found: object, value: object) -> bool:
    """Whether both are equal type by type, and in the order of their maps; NaN equals itself."""
    return repr(found) == repr(value)


async def write(tx: Handle) -> None:
    await tx.set({"session": {"ann": b"mine"}})
