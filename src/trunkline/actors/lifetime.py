"""Lifetimes: `async with`, or `start` and `stop` for frameworks that call them in two tasks."""

from __future__ import annotations

import asyncio
from typing import Self

import anyio
from anyio import AsyncContextManagerMixin

from trunkline.actors.log import Log, safe_repr

__all__ = ("Service",)

_log = Log("trunkline.actors")


class Service(AsyncContextManagerMixin):
    """Something that runs between entering and leaving it.

    `async with service:` is the way. Where a framework has start and stop hooks that run in
    different tasks (python-telegram-bot, ASGI lifespans), `await service.start()` and
    `await service.stop()` do the same on asyncio, and keep the context in a task of their own.
    """

    __holder: asyncio.Task[None] | None = None
    __entered: asyncio.Future[None]
    __stop_requested: asyncio.Event

    async def start(self) -> Self:
        """Enter the context in a task of its own; returns when it is entered.

        A service that is started already is left as it is: frameworks may call this twice. One that
        has ended, or that a cancelled `stop()` still leaves in the background, is started again.

        Raises:
            RuntimeError: it was entered with `async with`, or the event loop is not asyncio's.
            Exception: whatever entering raised.
        """
        loop = _asyncio_loop(type(self).__name__)
        while (holder := self.__holder) is not None and not holder.done():
            if self.__stop_requested.is_set():
                await asyncio.wait([holder])
            elif self.__entered.done():
                self.__entered.result()
                return self
            else:
                await asyncio.wait([self.__entered])
        if holder is not None and not holder.cancelled():
            holder.exception()  # logged, and of no interest to the next life
        self.__entered = entered = loop.create_future()
        self.__stop_requested = asyncio.Event()
        holder = loop.create_task(self.__hold(entered), name=f"{type(self).__name__}.start")
        self.__holder = holder
        try:
            await asyncio.shield(entered)
        except BaseException:
            self.__stop_requested.set()
            holder.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([holder])
            raise
        return self

    async def stop(self) -> None:
        """Leave the context and wait until that is done.

        It does nothing without a `start`, or once the task of the context was cancelled, as
        `asyncio.run` does with all tasks at the end of a program.

        Raises:
            Exception: whatever leaving raised, or ended the service before.
        """
        holder = self.__holder
        if holder is None:
            return
        self.__stop_requested.set()
        if not holder.done():
            # A cancelled stop() leaves the holder running: leaving goes on in the background.
            await asyncio.wait([holder])
        if self.__holder is holder:
            self.__holder = None
        if not holder.cancelled():
            holder.result()

    async def __hold(self, entered: asyncio.Future[None]) -> None:
        try:
            async with self:
                if not entered.done():
                    entered.set_result(None)
                try:
                    await self.__stop_requested.wait()
                finally:
                    self.__stop_requested.set()  # also if something else ends it
        except BaseException as error:
            if entered.done():
                if isinstance(error, Exception):
                    _log.error(
                        "service_failed", service=type(self).__name__, error=safe_repr(error)
                    )
                raise
            if isinstance(error, asyncio.CancelledError):
                entered.cancel()
            else:
                entered.set_exception(error)


def _asyncio_loop(name: str) -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(f"{name}.start() needs asyncio; use 'async with' on trio") from None
