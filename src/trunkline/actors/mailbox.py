"""The queue in front of an actor: a bounded memory stream of calls, first come, first served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from trunkline.errors import ActorStopped

__all__ = ("Call", "Crash", "Mailbox")


class Call:
    """One call on its way to an actor: a handler, its arguments and a place for the reply."""

    __slots__ = ("_error", "_replied", "_value", "answered", "args", "awaited", "handler", "kwargs")

    #: The function to run; it takes the actor first.
    handler: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    #: Whether a caller still waits for the reply. A call that nobody awaits is not begun.
    awaited: bool
    #: Whether the reply is there.
    answered: bool

    def __init__(
        self, handler: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.handler = handler
        self.args = args
        self.kwargs = kwargs
        self.awaited = True
        self.answered = False
        self._value: Any = None
        self._error: BaseException | None = None
        # Made only if the caller has to wait. Most replies are there after one turn of the event
        # loop, and without it they cost half of what they do on an anyio.Future.
        self._replied: anyio.Event | None = None

    def __repr__(self) -> str:
        # The arguments stay out: they may be secrets.
        return f"<Call of {getattr(self.handler, '__qualname__', self.handler)!s}>"

    def answer(self, value: object) -> None:
        """Give the caller its result. A second reply to one call is dropped."""
        self._reply(value, None)

    def fail(self, error: BaseException) -> None:
        """Give the caller an exception. A second reply to one call is dropped."""
        self._reply(None, error)

    def _reply(self, value: object, error: BaseException | None) -> None:
        if self.answered:
            return
        self.answered = True
        self._value = value
        self._error = error
        if self._replied is not None:
            self._replied.set()

    async def wait(self) -> None:
        """Wait until the reply is there."""
        if not self.answered:
            self._replied = anyio.Event()
            await self._replied.wait()

    def result(self) -> Any:
        """What the handler returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._value


class Crash:
    """Stands in the mailbox for a handler that crashed in its caller's task."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Mailbox:
    """A bounded stream of calls. Callers wait for room in the order in which they came."""

    __slots__ = ("_closed_because", "_receive", "_room", "_send", "_unanswered")

    def __init__(self, capacity: int) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Call | Crash](capacity)
        # Held by the one caller that waits for room. anyio's send() checkpoints before it
        # queues, so that without this lock a later caller could slip in between.
        self._room = anyio.Lock(fast_acquire=True)
        # Every call without a reply. A call may be in nobody's hands when a task is cancelled
        # between taking it and serving it; whoever closes the mailbox answers these.
        self._unanswered: set[Call] = set()
        self._closed_because = ""

    def __len__(self) -> int:
        """Calls that wait, those that wait for room included."""
        statistics = self._send.statistics()
        waiting = self._room.statistics().tasks_waiting
        return statistics.current_buffer_used + statistics.tasks_waiting_send + waiting

    @property
    def accepted(self) -> int:
        """Calls in the queue, if anybody still waits for a reply; those that wait for room are not.

        What was left in the queue by callers that gave up is nothing to stay up for.
        """
        return self._send.statistics().current_buffer_used if self._unanswered else 0

    @property
    def overfull(self) -> bool:
        """Whether callers wait for room, also if the actor has just made some."""
        return self._room.locked()

    async def ask(self, call: Call, timeout_ms: int) -> bool:
        """Queue `call`, waiting for room, and wait for its reply; whether it came in time.

        Raises:
            ActorStopped: the mailbox was closed before the call was taken.
        """
        self._unanswered.add(call)
        try:
            queued = self._put_nowait(call)
            if queued:
                # The actor is woken before this task goes on, so that a short handler of an idle
                # actor has replied after one turn of the event loop, and needs no timer.
                await checkpoint()
            if not call.answered:
                with anyio.move_on_after(timeout_ms / 1000):
                    if not queued:
                        await self._put(call)
                    await call.wait()
            return call.answered
        finally:
            call.awaited = False
            self._unanswered.discard(call)

    def _put_nowait(self, call: Call) -> bool:
        if self._room.locked():
            return False
        try:
            self._send.send_nowait(call)
        except anyio.WouldBlock:
            return False
        return True

    async def _put(self, call: Call) -> None:
        try:
            async with self._room:
                await self._send.send(call)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise ActorStopped(self._closed_because) from None

    def put_crash(self, crash: Crash) -> None:
        """Tell the actor's task of a crash in a caller's task. Only an empty mailbox takes it."""
        self._send.send_nowait(crash)

    async def take(self) -> Call | Crash:
        """The next item.

        Raises:
            anyio.EndOfStream: the mailbox is closed and empty.
        """
        return await self._receive.receive()

    def take_nowait(self) -> Call | Crash:
        """The next item if there is one.

        Raises:
            anyio.WouldBlock: there is none at the moment.
            anyio.EndOfStream: the mailbox is closed and empty.
        """
        return self._receive.receive_nowait()

    def close(self, reason: str) -> None:
        """Take no more calls; whoever waits for room gets `ActorStopped` with this reason.

        Calls in the queue can still be taken out of it.
        """
        self._closed_because = reason
        self._send.close()

    def refuse_all(self, reason: str) -> None:
        """Close for good; every call that has no reply gets `ActorStopped` with this reason."""
        self.close(reason)
        self._receive.close()
        for call in tuple(self._unanswered):
            call.fail(ActorStopped(reason))
