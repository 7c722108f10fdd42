"""Cancellation of a task at each of its suspensions, in every form that Python has."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from itertools import count
from typing import Any

import anyio
from anyio.lowlevel import current_token

#: A task that is cancelled once more whenever it suspends.
AGAIN = "task, again and again"


def forms() -> list[str]:
    """The forms of cancellation that this event loop has."""
    if isinstance(current_token().native_token, asyncio.AbstractEventLoop):
        return ["scope", "task", AGAIN, "timeout", "wait_for"]
    return ["scope"]


async def cancel_at_suspension(
    number: int, form: str, function: Callable[[], Coroutine[Any, Any, Any]]
) -> bool:
    """Run `function` and cancel it when it suspends for that time, counted from 1.

    Returns:
        Whether it came so far.
    """
    suspensions = count(1)
    reached = False

    def on_suspension() -> None:
        nonlocal reached
        current = next(suspensions)
        if current == number or (current > number and form == AGAIN):
            reached = True
            cancellation.cancel()

    cancellation = Cancellation(form)
    await cancellation.run(_counted(function(), on_suspension))
    return reached


async def cancel_when(
    ready: Callable[[], Awaitable[Any]], form: str, function: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    """Run `function` and cancel it once `ready()` returns."""
    cancellation = Cancellation(form)

    async def wait() -> None:
        await ready()
        cancellation.cancel()

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(wait)
        await cancellation.run(function())


class Cancellation:
    """Runs a coroutine, and cancels it in one of the forms."""

    #: Cancels what runs; from outside or inside of it.
    cancel: Callable[[], Any]

    def __init__(self, form: str) -> None:
        self._form = form

    async def run(self, coroutine: Any) -> None:
        if self._form == "scope":
            with anyio.CancelScope() as scope:
                self.cancel = scope.cancel
                await coroutine
            return
        loop = asyncio.get_running_loop()
        if self._form == "timeout":
            with suppress(TimeoutError):
                async with asyncio.timeout(None) as timeout:
                    self.cancel = lambda: timeout.reschedule(loop.time())
                    await coroutine
            return
        task = asyncio.create_task(self._run(coroutine))
        self.cancel = lambda: loop.call_soon(task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    async def _run(self, coroutine: Any) -> None:
        if self._form == "wait_for":
            await asyncio.wait_for(_awaited(coroutine), 3_600)
        else:
            await coroutine


async def _awaited(counted: Any) -> None:
    await counted


@types.coroutine
def _counted(coroutine: Coroutine[Any, Any, Any], on_suspension: Callable[[], None]) -> Any:
    value, error = None, None
    while True:
        try:
            waits_for = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration as end:
            return end.value
        on_suspension()
        value, error = None, None
        try:
            value = yield waits_for
        except BaseException as raised:
            error = raised
