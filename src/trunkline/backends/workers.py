"""The actors that run an adapter: one in the event loop, one with a thread of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import copy
from time import monotonic, sleep
from typing import Any, ClassVar

from anyio.lowlevel import checkpoint_if_cancelled

from trunkline.actors import Actor, BatchActor, Call
from trunkline.backends.adapter import Adapter, Operation
from trunkline.backends.errors import Conflict, ConnectionLost
from trunkline.backends.thread import WorkerThread
from trunkline.errors import StoreUnavailable, TrunklineError

__all__ = ("DirectWorker", "ThreadWorker", "run_operation")


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
        try:
            return operation.run(self._adapter)
        except TrunklineError:
            raise
        except Exception as error:
            bug = self._adapter.shown_bug(error)
        raise bug


class ThreadWorker(BatchActor):
    """Runs an adapter that waits for I/O, in a thread, a batch of calls at a time.

    A batch is one transaction: many callers share one commit. If a call fails, the batch is rolled
    back and its calls are run one by one, so that the one fails alone. A call that met another
    transaction is tried again while somebody may still wait for it.

    Args:
        adapter: nobody else calls it.
        read_only: the calls change nothing; one that fails does not trouble the others.
        timeout_ms: how long callers wait at most.
        restarted: an incarnation before this one was open. If the database is away now, this one
            comes up all the same, and opens it when it is back.
    """

    always_waits: ClassVar = True

    def __init__(
        self, adapter: Adapter, *, read_only: bool, timeout_ms: int, restarted: bool = False
    ) -> None:
        self._adapter = adapter
        self._read_only = read_only
        self._timeout = timeout_ms / 1000
        self._restarted = restarted
        self._is_open = False

    async def on_start(self) -> None:
        self._thread = WorkerThread(f"trunkline: {type(self._adapter).__name__}")
        try:
            await self._thread.run(self._open)
        except BaseException as error:
            if not (self._restarted and isinstance(error, StoreUnavailable)):
                self._thread.stop()
                raise

    async def on_stop(self) -> None:
        try:
            await self._thread.run(self._adapter.close)
        finally:
            self._thread.stop()

    async def handle_batch(self, calls: Sequence[Call]) -> None:
        deadline = monotonic() + self._timeout
        operations: list[Operation] = [call.args[0] for call in calls]

        def reply_all(failure: Exception | None) -> None:
            if failure is None:
                for call in calls:
                    _reply(call)

        # Not by this task, which goes on a turn of the event loop later.
        failure = await self._thread.run(self._run_batch, operations, then=reply_all)
        if failure is not None:
            await self._run_singly(calls, failure, deadline)
            reply_all(None)
        for operation in operations:
            if operation.error is not None and not isinstance(operation.error, TrunklineError):
                raise self._adapter.shown_bug(operation.error)

    async def _run_singly(self, calls: Sequence[Call], failure: Exception, deadline: float) -> None:
        """Run each in a transaction of its own, after `failure` has undone them all.

        Each gets its reply at once: the next may have to wait for another process.
        """
        operations: list[Operation] = [call.args[0] for call in calls]
        for index, call in enumerate(calls):
            if monotonic() > deadline:
                # Nobody waits any more for those that are left, and others wait behind them.
                _fail_all(operations[index:], _no_time_left(failure))
                return
            # A store that is cancelled leaves the rest of them: the thread itself heeds nobody.
            await checkpoint_if_cancelled()
            await self._thread.run(self._run_alone, operations[index], deadline)
            _reply(call)
            error = operations[index].error
            if isinstance(error, ConnectionLost):
                _fail_all(operations[index + 1 :], error)
                return

    # -- in the thread ---------------------------------------------------------------------------

    def _open(self) -> None:
        self._adapter.open()
        self._is_open = True

    def _run_batch(self, operations: Sequence[Operation]) -> Exception | None:
        """Run all in one transaction; why that was undone, if each should be run alone."""
        begun = False
        try:
            if not self._is_open:
                self._open()
            with self._adapter.transaction(read_only=self._read_only):
                begun = True
                if self._read_only:
                    for operation in operations:
                        self._answer(operation)
                else:
                    self._adapter.run_together(operations)
        except Exception as error:
            is_final = len(operations) == 1 and not isinstance(error, Conflict)
            if begun and not is_final and not isinstance(error, ConnectionLost):
                return error
            _fail_all(operations, error)
        return None

    def _run_alone(self, operation: Operation, deadline: float) -> None:
        while True:
            operation.value = operation.error = None
            try:
                with self._adapter.transaction(read_only=self._read_only):
                    if self._read_only:
                        operation.value = operation.run(self._adapter)
                    else:
                        self._adapter.run_together([operation])
                return
            except Conflict as error:
                operation.error = error
                if monotonic() > deadline:
                    return
            except Exception as error:
                operation.error = error
                return
            # Those who met part for different times, or they would meet again.
            sleep(random.uniform(0.0, _LONGEST_REST))

    def _answer(self, operation: Operation) -> None:
        try:
            operation.value = operation.run(self._adapter)
        except StoreUnavailable:
            raise
        except TrunklineError as error:
            operation.error = error


#: Between two attempts of a call that met another transaction, in seconds.
_LONGEST_REST = 0.02


def _reply(call: Call) -> None:
    """Give the caller what came of its operation; a bug is for the actor to die of."""
    operation: Operation = call.args[0]
    if operation.error is None:
        call.answer(operation.value)
    elif isinstance(operation.error, TrunklineError):
        call.fail(operation.error)


def _fail_all(operations: Sequence[Operation], error: Exception) -> None:
    for operation in operations:
        # Each its own, since raising an exception changes it. A bug is only shown as a cause.
        operation.error = copy(error) if isinstance(error, TrunklineError) else error


def _no_time_left(error: Exception) -> StoreUnavailable:
    if isinstance(error, StoreUnavailable):
        return error
    return StoreUnavailable("a call beside this one failed, and no time was left to run it again")
