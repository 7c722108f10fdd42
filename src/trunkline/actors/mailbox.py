"""The queue in front of an actor: a bounded memory stream of calls, first come, first served."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from math import inf
from time import monotonic
from typing import Any

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from trunkline.actors.future import Future, asyncio_loop, new_future

__all__ = ("Call", "Mailbox")


class Call:
    """One call on its way to an actor: a handler, its arguments and a place for the reply."""

    __slots__ = (
        "_unclaimed",
        "answered",
        "args",
        "awaited",
        "begun",
        "context",
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
        #: The context variables of the caller, in which the handler runs.
        self.context = copy_context()
        self.awaited = True
        self.answered = False
        self.begun = False
        # Taken once: by the actor, which begins the call, or by the caller, who gives up.
        # list.pop() is atomic, and the actor may be a worker thread.
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
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


class Mailbox:
    """A bounded stream of calls. Callers wait for room in the order in which they came.

    Args:
        capacity: calls in the stream at most; more make their callers wait for room.
        timeout_ms: how long a caller waits, for room and for the reply.
    """

    __slots__ = (
        "_loop",
        "_receive",
        "_send",
        "_timeout",
        "_timer",
        "_unanswered",
        "_waiting",
        "answers_late",
    )

    def __init__(self, capacity: int, timeout_ms: int) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Call](capacity)
        self._timeout = timeout_ms / 1000
        # Calls for which the stream has no room. Their callers wait only for the reply. Taking a
        # call out of the stream moves the oldest of these into it.
        self._waiting: OrderedDict[Call, None] = OrderedDict()
        # Every call without a reply, the oldest first. If the actor's task is cancelled between
        # taking a call and serving it, this is the only reference; refuse_all() fails them all.
        self._unanswered: dict[Call, None] = {}
        # On asyncio one timer watches over all calls; a cancel scope for each would cost as much as
        # all the rest of a call.
        self._loop = asyncio_loop()
        self._timer: asyncio.TimerHandle | None = None
        #: Whether every reply takes several turns of the event loop, as from a thread: then a
        #: waiting caller can be cancelled in any case.
        self.answers_late = False

    def __len__(self) -> int:
        """Calls that wait, those that wait for room included."""
        return self._send.statistics().current_buffer_used + len(self._waiting)

    @property
    def awaited(self) -> bool:
        """Whether any caller waits for a reply."""
        return not all(call.answered for call in self._unanswered)

    @property
    def pending(self) -> int:
        """Calls without a reply, whether they wait or run."""
        return len(self._unanswered)

    async def ask(self, call: Call) -> bool:
        """Queue `call`, waiting for room, and wait for its reply; whether it came in time."""
        _require_stack(10)
        if not self.answers_late:
            # anyio does not cancel a task on asyncio that waits for a future which is done, and in
            # a loop of calls that may be so each time it looks. Here it finds the task between two.
            await checkpoint_if_cancelled()
        self._unanswered[call] = None
        call.deadline = monotonic() + self._timeout
        try:
            self.put(call)
            if self._loop is not None:
                call.replied = self._loop.create_future()
                if self._timer is None:
                    self._watch_over(self._loop, call.deadline)
                await call.replied
                return call.answered
            # Most replies are there after one turn of the event loop, and need no timer.
            await checkpoint()
            if not call.answered:
                call.replied = new_future(None)
                with anyio.move_on_after(self._timeout):
                    await call.replied
            return call.answered
        finally:
            del self._unanswered[call]
            if not call.answered:
                self._waiting.pop(call, None)
                call.give_up()

    def _watch_over(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
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

    def put(self, call: Call) -> None:
        """Queue `call` behind all others."""
        if not self._waiting:
            try:
                self._send.send_nowait(call)
            except anyio.WouldBlock:
                pass
            else:
                return
        self._waiting[call] = None

    async def take(self) -> Call:
        """The next call.

        Raises:
            anyio.EndOfStream: the mailbox is closed and empty.
        """
        call = await self._receive.receive()
        self._let_in()
        return call

    def take_nowait(self) -> Call:
        """The next call if there is one.

        Raises:
            anyio.WouldBlock: there is none at the moment.
            anyio.EndOfStream: the mailbox is closed and empty.
        """
        call = self._receive.receive_nowait()
        self._let_in()
        return call

    def _let_in(self) -> None:
        # A call that the stream handed over to the waiting actor has made no room.
        if self._waiting:
            with suppress(anyio.WouldBlock):
                self._send.send_nowait(next(iter(self._waiting)))
                self._waiting.popitem(last=False)

    def close(self, error: Callable[[], Exception]) -> None:
        """Take no more calls; those that wait for room fail with `error()`.

        Calls in the stream can still be taken out of it.
        """
        self._send.close()
        while self._waiting:
            self._waiting.popitem(last=False)[0].fail(error())

    def refuse_all(self, error: Callable[[], Exception]) -> None:
        """Close for good; every call that has no reply fails with `error()`."""
        self.close(error)
        self._receive.close()
        if self._timer is not None:
            # It would keep the calls that are left in the stream alive.
            self._timer.cancel()
            self._timer = None
        for call in tuple(self._unanswered):
            call.fail(error())


def _require_stack(frames: int) -> None:
    """Raise a `RecursionError` now if one would come so few frames deeper.

    Halfway into a queue it would leave the actor asleep and its caller waiting.
    """
    if frames:
        _require_stack(frames - 1)
