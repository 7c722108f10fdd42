"""What runs an actor: its mailbox, its present incarnation, and the loop that serves its calls."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import suppress
from contextvars import Context
from functools import partial
from types import coroutine
from typing import Any, Generic, NoReturn, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from trunkline.actors.actor import Actor, BatchActor
from trunkline.actors.log import safe_repr
from trunkline.actors.mailbox import Call, Mailbox
from trunkline.actors.ref import ActorRef, is_async
from trunkline.actors.turns import LocalTurns
from trunkline.errors import ActorCrashed, ActorStopped, CallTimeout, TrunklineError

__all__ = ("Cell",)

A = TypeVar("A", bound=Actor)

#: How long an incarnation may take to clean up, also when its task was cancelled.
STOP_SECONDS = 5.0


class Cell(Generic[A]):
    """One supervised actor, across all of its incarnations."""

    __slots__ = (
        "_batch",
        "_borrowed",
        "_call_timeout_ms",
        "_closed",
        "_closing",
        "_factory",
        "_idle",
        "_lent",
        "_mailbox",
        "_max_batch",
        "_turns",
        "finished",
        "name",
        "queued_calls",
        "ref",
        "restarts",
    )

    #: The handle that callers hold. The cell keeps what they see there up to date.
    ref: ActorRef[A]
    #: Set when the actor has stopped for good.
    finished: anyio.Event

    def __init__(
        self,
        factory: Callable[[], A],
        *,
        name: str,
        mailbox_size: int,
        call_timeout_ms: int,
        max_batch: int,
    ) -> None:
        self.name = name
        self.ref = ActorRef(self)
        self.queued_calls = 0
        self.restarts = 0
        self.finished = anyio.Event()
        self._factory = factory
        self._call_timeout_ms = call_timeout_ms
        self._max_batch = max_batch
        # Whether the actor is up and waits for a call, so that local calls may be made.
        self._idle = False
        self._turns = LocalTurns.of_this_event_loop()
        # Local turns borrowed since the event loop has run, and those used or left in all.
        self._borrowed = self._lent = 0
        # Makes the error that a call gets once the actor takes no more.
        self._closed: Callable[[], TrunklineError] | None = None
        self._closing = anyio.Event()
        self._mailbox = Mailbox(mailbox_size, call_timeout_ms)
        # Calls taken out of the mailbox and not yet begun; a crash leaves them to the next
        # incarnation.
        self._batch: deque[Call] = deque()

    # -- the caller's side -----------------------------------------------------------------------

    @property
    def local_calls(self) -> int:
        """Calls that ran in their callers' tasks so far."""
        return self._lent - self.ref.local_turns

    @property
    def mailbox_depth(self) -> int:
        """Calls that wait to be begun."""
        return len(self._mailbox) + len(self._batch)

    @property
    def pending(self) -> int:
        """Calls without a reply, whether they wait or run."""
        return self._mailbox.pending

    async def ask(
        self, handler: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Send a call through the mailbox and wait for its reply.

        Raises:
            ActorStopped, RestartIntensityExceeded: the actor will never serve it.
            CallTimeout: no reply within the timeout.
            RuntimeError: called in another thread than the actor's.
        """
        if self._closed is not None:
            await checkpoint()  # a tight loop of refused calls must not block the event loop
        self.require_open()
        self.require_thread()
        self._end_local_calls()
        self.queued_calls += 1
        call = Call(handler, args, kwargs)
        if not await self._mailbox.ask(call):
            then = (
                "the call began, and may take effect" if call.begun else "the call will never begin"
            )
            raise CallTimeout(
                f"{self.name} did not reply within {self._call_timeout_ms} ms; {then}",
                begun=call.begun,
            )
        return call.result()

    def require_open(self) -> None:
        """Raise `ActorStopped` or its like if the actor takes no more calls."""
        if self._closed is not None:
            raise self._closed()

    def require_thread(self) -> None:
        """Raise an error in any thread but the one that runs the actor's event loop."""
        if threading.get_ident() != self.ref.thread:
            self.require_open()
            raise RuntimeError(
                f"{self.name} runs in the event loop of another thread:"
                " use ActorRef.call_from_thread(), or give each event loop its own"
            )

    def borrow_turns(self) -> bool:
        """Get local turns for the next calls; false if the next one has to take the mailbox.

        Raises:
            RuntimeError: called in another thread than the actor's.
        """
        self.require_thread()
        turns = self._turns.lend(self, self._borrowed) if self._idle else 0
        self._borrowed += turns
        self._lent += turns
        self.ref.local_turns = turns
        return turns > 0

    def drop_turns(self) -> None:
        """What was borrowed can be lent to others now."""
        self._lent -= self.ref.local_turns
        self._borrowed = self.ref.local_turns = 0

    def crashed(self, error: BaseException) -> ActorCrashed:
        """Take the actor down for `error` out of a handler in its caller's task; what to raise."""
        self._down()
        self._mailbox.put(Call(_raise, (error,), {}))
        return self._crash_reply(error)

    def _crash_reply(self, error: BaseException) -> ActorCrashed:
        return ActorCrashed(f"{self.name} crashed while it served this call: {safe_repr(error)}")

    # -- the actor's side ------------------------------------------------------------------------

    async def run_incarnation(self, on_up: Callable[[], None]) -> None:
        """Run one incarnation until its mailbox is closed and empty.

        Args:
            on_up: called when the incarnation is ready to serve.

        Raises:
            Exception: what made it crash.
        """
        try:
            await self._live(on_up)
        except asyncio.CancelledError as error:
            if not _is_bug(error):
                raise
            raise RuntimeError(f"{error!r} in {self.name}, which was not cancelled") from error

    async def _live(self, on_up: Callable[[], None]) -> None:
        actor = self._factory()
        self._mailbox.answers_late = isinstance(actor, BatchActor) and actor.always_waits
        await actor.on_start()
        try:
            self.ref.actor = actor
            on_up()
            await self._serve(actor)
        finally:
            self._down()
            with anyio.move_on_after(STOP_SECONDS, shield=True):
                await actor.on_stop()

    async def back_off(self, backoff_ms: float) -> None:
        """Wait after a crash. A closed actor that is drained need not wait any longer."""
        with anyio.move_on_after(backoff_ms / 1000):
            await self._closing.wait()
            if not self.drained:
                await anyio.sleep_forever()

    @property
    def drained(self) -> bool:
        """Whether it takes no more calls and no caller is waiting."""
        return self._closed is not None and not self._mailbox.awaited

    def close(self) -> None:
        """Take no more calls; the actor ends once it has served those it took."""
        self._mailbox.close(self._refuse_new(ActorStopped, "it was stopped"))
        self._closing.set()

    def finish(self, error: type[TrunklineError], reason: str) -> None:
        """The actor has ended for good: every call that has no reply gets an `error`."""
        closed = self._refuse_new(error, reason)
        self._down()
        self._mailbox.refuse_all(closed)
        self.finished.set()

    def _refuse_new(self, error: type[TrunklineError], reason: str) -> Callable[[], TrunklineError]:
        self._end_local_calls()
        if self._closed is None or error is not ActorStopped:
            self._closed = partial(error, f"{self.name} has stopped: {reason}")
        return self._closed

    def _down(self) -> None:
        self._end_local_calls()
        self.ref.actor = None

    def _end_local_calls(self) -> None:
        """Let no call overtake those that are queued from now on."""
        self._lent -= self.ref.local_turns
        self.ref.local_turns = 0
        self._idle = False

    async def _serve(self, actor: A) -> None:
        serve_batch = self._serve_together if isinstance(actor, BatchActor) else self._serve_singly
        while True:
            if not self._batch:
                try:
                    self._batch.append(await self._next_call(actor))
                except anyio.EndOfStream:
                    return
            # Behind the calls that are left from the batch before.
            with suppress(anyio.WouldBlock, anyio.EndOfStream):
                while len(self._batch) < self._max_batch:
                    self._batch.append(self._mailbox.take_nowait())
            await serve_batch(actor)

    async def _next_call(self, actor: A) -> Call:
        try:
            call = self._mailbox.take_nowait()
        except anyio.WouldBlock:
            self._idle = self._closed is None and not isinstance(actor, BatchActor)
            call = await self._mailbox.take()
            self._turns.take_back()
            return call
        # A mailbox that never runs empty must not block the event loop.
        if not (isinstance(actor, BatchActor) and actor.always_waits):
            await checkpoint()
        return call

    async def _serve_singly(self, actor: A) -> None:
        batch = self._batch
        while batch:
            call = batch.popleft()
            if not call.begin():
                continue
            try:
                result = call.context.run(call.handler, actor, *call.args, **call.kwargs)
                if is_async(call.handler):
                    result = await _wait_in(call.context, result)
            except TrunklineError as error:
                call.fail(error)
            except BaseException as error:
                if _is_bug(error):
                    call.fail(_caused(self._crash_reply(error), error))
                del call  # the traceback holds this frame
                raise
            else:
                call.answer(result)

    async def _serve_together(self, actor: A) -> None:
        assert isinstance(actor, BatchActor)
        calls = [call for call in self._batch if call.awaited]
        self._batch.clear()
        if not calls:
            return
        try:
            again = await actor.handle_batch(calls)
            unanswered = [call for call in calls if call.awaited and not call.answered]
            if len(unanswered) > len(again):
                raise RuntimeError(f"{self.name} left {unanswered[0]!r} without a reply")
            self._batch.extend(again)
        except BaseException as error:
            if _is_bug(error):
                for call in calls:
                    call.fail(_caused(self._crash_reply(error), error))
            raise


@coroutine
def _wait_in(context: Context, awaitable: Awaitable[Any]) -> Generator[Any, Any, Any]:
    """Await `awaitable` in this task, with the context variables of `context`."""
    steps: Any = awaitable.__await__()
    step, value = steps.send, None
    while True:
        try:
            waits_for = context.run(step, value)
        except StopIteration as end:
            return end.value
        try:
            step, value = steps.send, (yield waits_for)
        except BaseException as error:
            step, value = steps.throw, error


def _raise(_actor: Actor, error: BaseException) -> NoReturn:
    """A handler that crashes its actor for one that ran in its caller's task."""
    try:
        raise error
    finally:
        del error  # its traceback holds this frame


def _caused(error: ActorCrashed, cause: BaseException) -> ActorCrashed:
    error.__cause__ = cause
    return error


def _is_bug(error: BaseException) -> bool:
    """Whether `error` is the actor's fault, and no cancellation of its task.

    asyncio's `CancelledError` is also raised by awaiting another task that was cancelled. If it
    left the actor's task, it would end the whole supervisor silently.
    """
    if not isinstance(error, asyncio.CancelledError):
        return isinstance(error, Exception)
    try:
        task = asyncio.current_task()
    except RuntimeError:  # on trio, whose own Cancelled is never stray
        return True
    return task is None or not task.cancelling()
