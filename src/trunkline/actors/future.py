"""A reply that one task waits for, on asyncio and trio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Protocol, cast

import anyio
import anyio.lowlevel

__all__ = ("Future", "asyncio_loop", "call_soon_from_thread", "new_future")


class Future(Protocol):
    """As much of `asyncio.Future` as a reply needs. On asyncio it is one, which costs least."""

    def set_result(self, result: None, /) -> None: ...

    def done(self) -> bool: ...

    def __await__(self) -> Generator[Any, Any, None]: ...


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs this task if it is asyncio's, else `None`."""
    loop = anyio.lowlevel.current_token().native_token
    return loop if isinstance(loop, asyncio.AbstractEventLoop) else None


def new_future(loop: asyncio.AbstractEventLoop | None) -> Future:
    """A future of the event loop that runs this task, which is `loop` if that is asyncio's."""
    return _EventFuture() if loop is None else loop.create_future()


def call_soon_from_thread() -> Callable[..., object]:
    """What has the event loop that runs this task call a function soon: `soon(function, *args)`.

    Any thread may call it. It raises a `RuntimeError` once the event loop has ended.
    """
    loop = asyncio_loop()
    if loop is not None:
        return loop.call_soon_threadsafe
    # Only trio is left, whose token has this method.
    token: Any = anyio.lowlevel.current_token().native_token
    return cast(Callable[..., object], token.run_sync_soon)


class _EventFuture:
    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set_result(self, _result: None, /) -> None:
        self._event.set()

    def done(self) -> bool:
        return self._event.is_set()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._event.wait().__await__()
