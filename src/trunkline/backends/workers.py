"""The actors that run an adapter: one in the event loop, one with a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import anyio
from anyio import to_thread

from trunkline.actors import Actor, BatchActor, Call
from trunkline.backends.adapter import Adapter, Operation
from trunkline.errors import StoreUnavailable, TrunklineError

__all__ = ("ConnectionLost", "DirectWorker", "ThreadWorker", "run_operation")

R = TypeVar("R")


class ConnectionLost(StoreUnavailable):
    """The connection is gone; what was under way may or may not have been committed."""


def run_operation(_worker: Actor, _operation: Operation) -> Any:
    """Stands for the handler of every call on a `ThreadWorker`, which takes them by the batch."""
    raise AssertionError("a ThreadWorker takes its calls by the batch")


class DirectWorker(Actor):
    """Runs an adapter that never waits, in the event loop.

    Args:
        adapter: it outlives this incarnation, and so does what it holds in memory.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    async def on_start(self) -> None:
        self._adapter.open()

    async def on_stop(self) -> None:
        self._adapter.close()

    def run(self, operation: Operation) -> Any:
        return operation.run(self._adapter)


class ThreadWorker(BatchActor):
    """Runs an adapter that waits for I/O, in a thread, a batch of calls at a time.

    A batch is one transaction: many callers share one commit. If a call fails, the batch is rolled
    back and its calls are run one by one, so that the one fails alone.

    Args:
        adapter: nobody else calls it.
        read_only: the calls change nothing; one that fails does not trouble the others.
    """

    def __init__(self, adapter: Adapter, *, read_only: bool) -> None:
        self._adapter = adapter
        self._read_only = read_only
        # Not anyio's default limiter: the program's own threads must not hold up a store.
        self._limiter = anyio.CapacityLimiter(1)

    async def on_start(self) -> None:
        await self._in_thread(self._adapter.open)

    async def on_stop(self) -> None:
        await self._in_thread(self._adapter.close)

    async def handle_batch(self, calls: Sequence[Call]) -> None:
        operations = [call.args[0] for call in calls]
        await self._in_thread(self._run_batch, operations)
        bug: Exception | None = None
        for call, operation in zip(calls, operations, strict=True):
            if operation.error is None:
                call.answer(operation.value)
            elif isinstance(operation.error, TrunklineError):
                call.fail(operation.error)
            else:
                bug = operation.error
        if bug is not None:
            raise bug

    async def _in_thread(self, function: Callable[..., R], *args: Any) -> R:
        return await to_thread.run_sync(function, *args, limiter=self._limiter)

    # -- in the thread ---------------------------------------------------------------------------

    def _run_batch(self, operations: Sequence[Operation]) -> None:
        try:
            with self._adapter.transaction(read_only=self._read_only):
                if self._read_only:
                    for operation in operations:
                        self._answer(operation)
                else:
                    self._adapter.run_together(operations)
        except ConnectionLost as error:
            for operation in operations:
                operation.error = ConnectionLost(str(error))
        except Exception as error:
            if len(operations) == 1:
                operations[0].error = error
            else:
                self._run_singly(operations)

    def _run_singly(self, operations: Sequence[Operation]) -> None:
        lost: ConnectionLost | None = None
        for operation in operations:
            operation.value = operation.error = None
            if lost is not None:
                operation.error = ConnectionLost(str(lost))
                continue
            try:
                with self._adapter.transaction(read_only=self._read_only):
                    if self._read_only:
                        operation.value = operation.run(self._adapter)
                    else:
                        self._adapter.run_together([operation])
            except ConnectionLost as error:
                operation.error = lost = error
            except Exception as error:
                operation.error = error

    def _answer(self, operation: Operation) -> None:
        try:
            operation.value = operation.run(self._adapter)
        except StoreUnavailable:
            raise
        except TrunklineError as error:
            operation.error = error
