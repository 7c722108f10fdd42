"""The actors that run an adapter: one in the event loop, one with a thread of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from copy import copy
from time import sleep
from typing import Any, ClassVar

from anyio.lowlevel import checkpoint_if_cancelled

from trunkline.actors import Actor, BatchActor, Call
from trunkline.backends.adapter import Adapter
from trunkline.backends.errors import Conflict, ConnectionLost
from trunkline.backends.thread import WorkerThread
from trunkline.errors import StoreUnavailable, TrunklineError

__all__ = ("DirectWorker", "ThreadWorker")

#: Between two attempts of a call that met another transaction, in seconds at most.
_LONGEST_REST = 0.02


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

    def perform(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the adapter's contract."""
        try:
            return self._adapter.perform(method, *args)
        except TrunklineError:
            raise
        except Exception as error:
            bug = self._adapter.redacted(error)
        raise bug


class ThreadWorker(BatchActor):
    """Runs an adapter that waits for I/O, in a thread, a batch of calls at a time.

    The handler of a call is a method of the adapter's contract; its keyword `order_by` tells which
    calls must not overtake each other. A batch is one transaction: many callers share one commit.
    If a call fails after it has changed something, the batch is rolled back and its calls are run
    one by one, so that the one fails alone. A call that met another transaction is tried again for
    as long as its caller waits, beside the batches that come meanwhile.

    Args:
        adapter: no other worker calls it.
        read_only: the calls change nothing; one that fails does not affect the others.
        restarted: an incarnation before this one was open. If the database is unavailable now, this
            one comes up all the same, and opens it with its first batch.
    """

    always_waits: ClassVar = True

    def __init__(self, adapter: Adapter, *, read_only: bool, restarted: bool = False) -> None:
        self._adapter = adapter
        self._read_only = read_only
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

    async def handle_batch(self, calls: Sequence[Call]) -> Sequence[Call]:
        # What met another transaction in the batch before would hold up this one: it comes last.
        together, last = _split(calls)

        def reply_all(to_repeat: Sequence[Call]) -> None:
            if not to_repeat:
                for call in together:
                    _reply(call)

        # Not by this task, which continues a turn of the event loop later.
        to_repeat = await self._thread.run(self._run_batch, together, then=reply_all)
        again = await self._run_singly([*to_repeat, *last])
        for call in calls:
            if call.error is not None and not isinstance(call.error, TrunklineError):
                assert isinstance(call.error, Exception)
                raise self._adapter.redacted(call.error)
        return again

    async def _run_singly(self, calls: Sequence[Call]) -> Sequence[Call]:
        """Run each in a transaction of its own; those that have to wait for another transaction.

        Each gets its reply at once. One that meets another transaction makes only those wait that
        must not overtake it.
        """
        again: list[Call] = []
        keys: set[Hashable] = set()
        for index, call in enumerate(calls):
            if _order(call) in keys:
                again.append(call)
                continue
            # A store that is cancelled skips the rest of them: the thread itself cannot be.
            await checkpoint_if_cancelled()
            await self._thread.run(self._run_alone, call)
            if isinstance(call.error, Conflict) and call.awaited:
                again.append(call)
                keys.add(_order(call))
                continue
            _reply(call)
            if isinstance(call.error, ConnectionLost):
                _fail_all(others := [*again, *calls[index + 1 :]], call.error)
                for other in others:
                    _reply(other)
                return ()
        return again

    # -- in the thread ---------------------------------------------------------------------------

    def _open(self) -> None:
        self._adapter.open()
        self._is_open = True

    def _run_batch(self, calls: Sequence[Call]) -> Sequence[Call]:
        """Run all in one transaction; those to be run alone, if that was rolled back."""
        begun: Sequence[Call] = calls
        is_entered = False
        if not calls:
            return ()
        try:
            if not self._is_open:
                self._open()
            with self._adapter.transaction(read_only=self._read_only):
                is_entered = True
                # Only now: entering may have waited for another process, and whoever gave up
                # meanwhile was promised that nothing is stored.
                begun = [call for call in calls if call.begin()]
                self._run(begun)
        except Exception as error:
            is_final = len(begun) == 1 and not isinstance(error, Conflict)
            if is_entered and not is_final and not isinstance(error, ConnectionLost):
                return begun
            _fail_all(begun, error)
        return ()

    def _run_alone(self, call: Call) -> None:
        if isinstance(call.error, Conflict):
            # Those that met continue at different times, or they would meet again.
            sleep(random.uniform(0.0, _LONGEST_REST))
        call.value = call.error = None
        try:
            with self._adapter.transaction(read_only=self._read_only):
                if call.begin():
                    self._run([call])
        except Exception as error:
            call.error = error

    def _run(self, calls: Sequence[Call]) -> None:
        if not self._read_only:
            self._adapter.run_together(calls)
            return
        for call in calls:
            try:
                call.value = self._adapter.perform(call.handler, *call.args)
            except StoreUnavailable:
                raise
            except TrunklineError as error:
                call.error = error


def _split(calls: Sequence[Call]) -> tuple[Sequence[Call], Sequence[Call]]:
    """Calls to run together; those that met another transaction, with all of their orders."""
    met = {_order(call) for call in calls if isinstance(call.error, Conflict)}
    if not met:
        return calls, ()
    return (
        [call for call in calls if _order(call) not in met],
        [call for call in calls if _order(call) in met],
    )


def _order(call: Call) -> Hashable:
    """Calls of the same order are run in the order in which they were made."""
    key: Hashable = call.kwargs.get("order_by", call)
    return key


def _reply(call: Call) -> None:
    """Give the caller what came of its call; a bug is for the actor to crash with."""
    if call.error is None or isinstance(call.error, TrunklineError):
        call.reply()


def _fail_all(calls: Sequence[Call], error: Exception) -> None:
    for call in calls:
        # Each its own, since raising an exception changes it. A bug is only shown as a cause.
        call.error = copy(error) if isinstance(error, TrunklineError) else error
