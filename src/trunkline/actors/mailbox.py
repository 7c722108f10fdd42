"""The queue in front of an actor: a bounded memory stream of calls, first come, first served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from math import inf
from time import monotonic
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from trunkline.actors.future import Future, asyncio_loop, new_future
from trunkline.errors import ActorStopped

__all__ = ("Call", "Crash", "Mailbox")


class Call:
    """One call on its way to an actor: a handler, its arguments and a place for the reply."""

    __slots__ = (
        "_unclaimed",
        "answered",
        "args",
        "awaited",
        "begun",
        "deadline",
        "error",
        "handler",
        "kwargs",
        "replied",
        "value",
    )

    #: The function to run; it takes the actor first.
    handler: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    #: False once the caller has given up.
    awaited: bool
    #: Whether the call was begun. Settled once its caller has the reply or has given up.
    begun: bool
    #: What the handler returned or raised, once that is known.
    value: Any
    error: BaseException | None
    #: Whether the reply is there.
    answered: bool
    #: What its caller waits for: the reply, or the end of its time.
    replied: Future | None
    #: When its time is over, on `time.monotonic`.
    deadline: float

    def __init__(
        self, handler: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.handler = handler
        self.args = args
        self.kwargs = kwargs
        self.awaited = True
        self.answered = False
        self.begun = False
        # Taken by whoever comes first: the actor, which begins the call, or the caller, who gives
        # up. list.pop() is atomic, and the actor may be a worker thread.
        self._unclaimed = [True]
        self.value = None
        self.error = None
        self.replied = None
        self.deadline = inf

    def __repr__(self) -> str:
        # The arguments stay out: they may be secrets.
        return f"<Call of {getattr(self.handler, '__qualname__', self.handler)!s}>"

    def begin(self) -> bool:
        """Claim the call in order to run it, or to run it once more. Any thread may ask.

        Returns:
            False if the caller has given up or the call's time is over: it must not be run.
        """
        if self.begun:
            return self.awaited
        self.begun = monotonic() < self.deadline and self._claim()
        return self.begun

    def give_up(self) -> None:
        """The caller waits no longer. A call that was not begun never will be."""
        self.awaited = False
        self.begun = not self._claim()

    def _claim(self) -> bool:
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True

    def answer(self, value: object) -> None:
        """Give the caller its result. A second reply to one call is dropped."""
        if not self.answered:
            self.value = value
            self.reply()

    def fail(self, error: BaseException) -> None:
        """Give the caller an exception. A second reply to one call is dropped."""
        if not self.answered:
            self.error = error
            self.reply()

    def reply(self) -> None:
        """Give the caller the `value` or the `error` that was set."""
        self.answered = True
        self.wake()

    def wake(self) -> None:
        """Let the caller go on, with a reply or without one."""
        if self.replied is not None and not self.replied.done():
            self.replied.set_result(None)

    def result(self) -> Any:
        """What the handler returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.value


class Crash:
    """Stands in the mailbox for a handler that crashed in its caller's task."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Mailbox:
    """A bounded stream of calls. Callers wait for room in the order in which they came.

    Args:
        capacity: calls that wait at most; more make their callers wait for room.
        timeout_ms: how long a caller waits, for room and for the reply.
    """

    __slots__ = (
        "_closed_because",
        "_loop",
        "_receive",
        "_room",
        "_send",
        "_timeout",
        "_timer",
        "_unanswered",
    )

    def __init__(self, capacity: int, timeout_ms: int) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Call | Crash](capacity)
        self._timeout = timeout_ms / 1000
        # Held by the one caller that waits for room. anyio's send() checkpoints before it
        # queues, so that without this lock a later caller could slip in between.
        self._room = anyio.Lock(fast_acquire=True)
        # Every call without a reply, the oldest first. A call may be in nobody's hands when a task
        # is cancelled between taking it and serving it; whoever closes the mailbox answers these.
        self._unanswered: dict[Call, None] = {}
        self._closed_because = ""
        # On asyncio one timer watches over all calls; a cancel scope for each would cost as much as
        # all the rest of a call.
        self._loop = asyncio_loop()
        self._timer: asyncio.TimerHandle | None = None

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
    def pending(self) -> int:
        """Calls without a reply, whether they wait or run."""
        return len(self._unanswered)

    @property
    def overfull(self) -> bool:
        """Whether callers wait for room, also if the actor has just made some."""
        return self._room.locked()

    async def ask(self, call: Call) -> bool:
        """Queue `call`, waiting for room, and wait for its reply; whether it came in time.

        A call whose reply did not come can still be given up.

        Raises:
            ActorStopped: the mailbox was closed before the call was taken.
        """
        self._unanswered[call] = None
        call.deadline = monotonic() + self._timeout
        try:
            queued = self._put_nowait(call)
            if queued and self._loop is not None:
                call.replied = self._loop.create_future()
                self._watch_over(self._loop, call.deadline)
                await call.replied
                return call.answered
            if queued:
                # Most replies are there after one turn of the event loop, and need no timer.
                await checkpoint()
            if not call.answered:
                call.replied = new_future(self._loop)
                with anyio.move_on_after(self._timeout):
                    if not queued:
                        await self._put(call)
                    await call.replied
            return call.answered
        finally:
            if not call.answered:
                call.give_up()
            del self._unanswered[call]

    def _watch_over(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        if self._timer is None:
            self._timer = loop.call_later(deadline - monotonic(), self._end_overdue, loop)

    def _end_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the callers whose time is over."""
        self._timer = None
        now = monotonic()
        for call in self._unanswered:  # in the order of their deadlines
            if call.deadline > now:
                self._watch_over(loop, call.deadline)
                return
            call.wake()

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
        if self._timer is not None:
            # It would keep the calls alive that nobody has taken out.
            self._timer.cancel()
            self._timer = None
        for call in tuple(self._unanswered):
            call.fail(ActorStopped(reason))
