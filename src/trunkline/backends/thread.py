"""A thread that one actor has for itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import anyio

from trunkline.actors.future import Future, asyncio_loop, call_soon_from_thread, new_future

__all__ = ("WorkerThread",)

R = TypeVar("R")

#: How often an idle thread looks whether its event loop is still there.
_LOOK_SECONDS = 10.0


class WorkerThread:
    """Runs functions one after another, for tasks of the event loop in which it was made.

    anyio's `to_thread.run_sync` does the same with any thread of a pool. One that is always the
    same takes less to hand a function over and its result back, which a single caller notices.

    Args:
        name: what debuggers and profilers call the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._loop = asyncio_loop()
        # Trio leaves no task behind when it ends.
        has_ended = (lambda: False) if self._loop is None else self._loop.is_closed
        # A daemon: an event loop that is torn down may leave it to itself in the middle of a
        # function, and the program must end all the same.
        threading.Thread(
            target=copy_context().run,
            args=(_work, self._jobs, call_soon_from_thread(), has_ended),
            name=name,
            daemon=True,
        ).start()

    async def run(
        self, function: Callable[..., R], *args: Any, then: Callable[[R], object] | None = None
    ) -> R:
        """Run `function(*args)` in the thread, after all that was asked for before.

        A cancellation waits for its end. (asyncio's own `task.cancel()` does not; the function runs
        on, and what is asked for after it waits for it.)

        Args:
            function: what to run.
            *args: what it takes.
            then: called with its result in the event loop, a turn of it before this task goes on.

        Returns:
            What the function returned; raises what it raised.
        """
        job = _Job(function, args, then, new_future(self._loop))
        with anyio.CancelScope(shield=True):
            # The last thing before this task waits: the thread wants the interpreter's lock.
            self._jobs.put(job)
            await job.done
        if job.error is not None:
            try:
                raise job.error
            finally:
                del job  # it holds the error, which holds this frame
        result: R = job.result
        return result

    def stop(self) -> None:
        """End the thread once it has done all that it was asked for."""
        self._jobs.put(None)


class _Job:
    __slots__ = ("args", "done", "error", "function", "result", "then")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        then: Callable[[Any], object] | None,
        done: Future,
    ) -> None:
        self.function = function
        self.args = args
        self.then = then
        self.done = done
        self.result: Any = None
        self.error: BaseException | None = None


def _work(
    jobs: SimpleQueue[_Job | None], call_soon: Callable[..., object], has_ended: Callable[[], bool]
) -> None:
    while True:
        try:
            job = jobs.get(timeout=_LOOK_SECONDS)
        except Empty:
            if has_ended():
                return  # nobody was left to stop this thread
            continue
        if job is None:
            return
        try:
            job.result = job.function(*job.args)
        except BaseException as error:
            job.error = error
        try:
            call_soon(_finish, job)
        except RuntimeError:
            pass  # the event loop has ended, and with it whoever waited
        del job


def _finish(job: _Job) -> None:
    try:
        if job.then is not None and job.error is None:
            job.then(job.result)
    except BaseException as error:
        job.error = error
    finally:
        if not job.done.done():
            job.done.set_result(None)
