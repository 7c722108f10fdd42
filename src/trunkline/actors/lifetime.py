"""Lifetimes: `async with`, or `start` and `stop` for frameworks that call them in two tasks."""

from __future__ import annotations

import asyncio
from typing import Self

import anyio
from anyio import AsyncContextManagerMixin

__all__ = ("Service",)


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

        While it is started, another call changes nothing: frameworks may call it twice.

        Raises:
            RuntimeError: it is being stopped, or the event loop is not asyncio's.
            Exception: whatever entering raised.
        """
        while self.__holder is not None and not self.__stop_requested.is_set():
            if self.__holder.done():
                self.__holder = None  # it failed, and is started again
            elif self.__entered.done():
                return self
            else:
                await asyncio.wait([self.__entered])
        if self.__holder is not None:
            raise RuntimeError(f"this {type(self).__name__} is being stopped")
        loop = _asyncio_loop(type(self).__name__)
        entered = self.__entered = loop.create_future()
        self.__stop_requested = asyncio.Event()
        holder = loop.create_task(self.__hold(entered), name=f"{type(self).__name__}.start")
        self.__holder = holder
        try:
            await asyncio.shield(entered)
        except BaseException:
            if self.__holder is holder:
                self.__holder = None
            holder.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([holder])
            raise
        return self

    async def stop(self) -> None:
        """Leave the context and wait until that is done. Without a `start` it does nothing.

        Raises:
            Exception: whatever leaving raised, or ended the service before.
        """
        holder = self.__holder
        if holder is None:
            return
        self.__stop_requested.set()
        try:
            # A cancelled stop() leaves the holder running: leaving goes on in the background.
            await asyncio.shield(holder)
        finally:
            if holder.done() and self.__holder is holder:
                self.__holder = None

    async def __hold(self, entered: asyncio.Future[None]) -> None:
        try:
            async with self:
                if not entered.done():
                    entered.set_result(None)
                await self.__stop_requested.wait()
        except BaseException as error:
            if entered.done():
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
