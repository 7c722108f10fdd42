"""What runs an actor: its mailbox, its present incarnation, and the loop that serves its calls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from trunkline.actors.actor import Actor, BatchActor
from trunkline.actors.mailbox import Call, Crash, Mailbox
from trunkline.actors.ref import ActorRef, is_async
from trunkline.errors import ActorCrashed, ActorStopped, CallTimeout, TrunklineError

__all__ = ("LOCAL_TURNS", "Cell", "LocalTurns", "shown")

A = TypeVar("A", bound=Actor)

#: Calls in a row that may run in their callers' tasks before one has to take the mailbox, and so
#: lets the event loop run. The number is that of tokio's cooperative budget.
LOCAL_TURNS = 128

#: How long an incarnation may take to clean up, also when its task was cancelled.
STOP_SECONDS = 5.0


class LocalTurns:
    """Renews the local turns of one supervisor's actors whenever one of them has used up its own.

    The trip through its mailbox has let the event loop run, and calls before and after that are not
    in a row. A router's partitions use up their turns together, and so share the cost of one trip.
    """

    __slots__ = ("_busy",)

    def __init__(self) -> None:
        # Actors that used up their turns lately. A supervisor may have thousands of others, and a
        # renewal must stay short.
        self._busy: deque[Cell[Any]] = deque(maxlen=64)

    def renew_after(self, cell: Cell[Any]) -> None:
        """Renew them, once the event loop has run because `cell` had no local turn left."""
        for busy in self._busy:
            busy.renew_local_turns()
        if cell not in self._busy:
            self._busy.append(cell)


class Cell(Generic[A]):
    """One supervised actor, across all of its incarnations."""

    __slots__ = (
        "_batch",
        "_call_timeout_ms",
        "_closed_because",
        "_closing",
        "_factory",
        "_granted_turns",
        "_idle",
        "_local_turns",
        "_mailbox",
        "_max_batch",
        "_used_up",
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
        local_turns: LocalTurns,
    ) -> None:
        self.name = name
        self.ref = ActorRef(self)
        self.queued_calls = 0
        self.restarts = 0
        self.finished = anyio.Event()
        self._factory = factory
        self._call_timeout_ms = call_timeout_ms
        self._max_batch = max_batch
        self._granted_turns = 0
        self._idle = False
        self._local_turns = local_turns
        # Whether a call has taken the mailbox because no local turn was left.
        self._used_up = False
        self._closed_because: str | None = None
        self._closing = anyio.Event()
        self._mailbox = Mailbox(mailbox_size, call_timeout_ms)
        # Calls taken out of the mailbox and not yet begun; a crash leaves them to the next
        # incarnation.
        self._batch: deque[Call] = deque()

    # -- the caller's side -----------------------------------------------------------------------

    @property
    def local_calls(self) -> int:
        """Calls that ran in their callers' tasks so far."""
        return self._granted_turns - self.ref.local_turns

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
            ActorStopped: the actor will never serve it.
            CallTimeout: no reply within the timeout.
        """
        if self._closed_because is not None:
            # Whoever calls on regardless must not keep the event loop to himself.
            await checkpoint()
            self.require_open()
        if self._idle and not self.ref.local_turns:
            self._used_up = True
        self._end_local_turns()
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
        """Raise `ActorStopped` if the actor takes no more calls."""
        if self._closed_because is not None:
            raise ActorStopped(self._stopped(self._closed_because))

    def renew_local_turns(self) -> None:
        """Grant all local turns again, now that the event loop has run."""
        if self._idle:
            self._grant_local_turns()

    def crashed(self, error: BaseException) -> ActorCrashed:
        """Take the actor down because of a handler that raised `error` in its caller's task."""
        self._down()
        self._mailbox.put_crash(Crash(error))
        return self._crash_reply(error)

    def _crash_reply(self, error: BaseException) -> ActorCrashed:
        return ActorCrashed(f"{self.name} crashed while it served this call: {shown(error)}")

    def _stopped(self, reason: str) -> str:
        return f"{self.name} has stopped: {reason}"

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
            raise RuntimeError(f"{error!r} in {self.name}, which nobody cancelled") from error

    async def _live(self, on_up: Callable[[], None]) -> None:
        actor = self._factory()
        await actor.on_start()
        try:
            self.ref.actor = actor
            on_up()
            await self._serve(actor)
        finally:
            self._down()
            with anyio.move_on_after(STOP_SECONDS, shield=True):
                await actor.on_stop()

    async def rest(self, rest_ms: float) -> None:
        """Rest after a crash. A closed actor that nobody waits for need not rest any longer."""
        with anyio.move_on_after(rest_ms / 1000):
            await self._closing.wait()
            if not self.drained:
                await anyio.sleep_forever()

    @property
    def drained(self) -> bool:
        """Whether it takes no more calls and has begun all that it took."""
        return self._closed_because is not None and not self._batch and not self._mailbox.accepted

    def close(self) -> None:
        """Take no more calls; the actor ends once it has served those it took."""
        self._refuse_new("it was stopped")
        self._mailbox.close(self._stopped("it was stopped"))
        self._closing.set()

    def finish(self, reason: str) -> None:
        """The actor is gone for good: every call that has no reply gets `ActorStopped`."""
        self._refuse_new(reason)
        self._down()
        self._mailbox.refuse_all(self._stopped(self._closed_because or reason))
        self.finished.set()

    def _refuse_new(self, reason: str) -> None:
        self._end_local_turns()
        if self._closed_because is None:
            self._closed_because = reason

    def _down(self) -> None:
        self._end_local_turns()
        self.ref.actor = None

    def _grant_local_turns(self) -> None:
        self._granted_turns += LOCAL_TURNS - self.ref.local_turns
        self.ref.local_turns = LOCAL_TURNS
        self._idle = True

    def _end_local_turns(self) -> None:
        self._granted_turns -= self.ref.local_turns
        self.ref.local_turns = 0
        self._idle = False

    async def _serve(self, actor: A) -> None:
        serve_batch = self._serve_together if isinstance(actor, BatchActor) else self._serve_singly
        while True:
            if not self._batch:
                try:
                    self._take(await self._next_item(actor))
                except anyio.EndOfStream:
                    return
            self._fill_batch()
            await serve_batch(actor)

    async def _next_item(self, actor: A) -> Call | Crash:
        try:
            item = self._mailbox.take_nowait()
        except anyio.WouldBlock:
            if self._may_serve_locally(actor):
                self._grant_local_turns()
            item = await self._mailbox.take()
            if self._used_up:
                self._used_up = False
                self._local_turns.renew_after(self)
            return item
        # A mailbox that never runs empty must not keep the event loop to itself.
        if not (isinstance(actor, BatchActor) and actor.always_waits):
            await checkpoint()
        return item

    def _may_serve_locally(self, actor: A) -> bool:
        # Those who wait for room came before anyone who calls now.
        return (
            self._closed_because is None
            and not self._mailbox.overfull
            and not isinstance(actor, BatchActor)
        )

    def _take(self, item: Call | Crash) -> None:
        """Move `item` into the batch.

        A `Crash` stands alone: it is sent to an empty mailbox, and the calls behind it are for
        the next incarnation.
        """
        if isinstance(item, Crash):
            raise item.error
        self._batch.append(item)

    def _fill_batch(self) -> None:
        """Move what waits into the batch, behind the calls that are left from the one before."""
        while len(self._batch) < self._max_batch:
            try:
                self._take(self._mailbox.take_nowait())
            except (anyio.WouldBlock, anyio.EndOfStream):
                return

    async def _serve_singly(self, actor: A) -> None:
        batch = self._batch
        while batch:
            call = batch.popleft()
            if not call.begin():
                continue
            try:
                result = call.handler(actor, *call.args, **call.kwargs)
                if is_async(call.handler):
                    result = await result
            except TrunklineError as error:
                call.fail(error)
            except BaseException as error:
                if _is_bug(error):
                    call.fail(_caused(self._crash_reply(error), error))
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


def shown(error: BaseException) -> str:
    """`repr(error)`, or as much as can be told of an error whose repr is a bug as well."""
    try:
        return repr(error)
    except Exception:
        return f"{type(error).__name__} (its repr() raised)"


def _caused(error: ActorCrashed, cause: BaseException) -> ActorCrashed:
    error.__cause__ = cause
    return error


def _is_bug(error: BaseException) -> bool:
    """Whether `error` is the actor's fault, and no cancellation of its task.

    asyncio's `CancelledError` also comes out of awaiting what somebody else has cancelled. If it
    went on through the actor's task, it would end the whole supervisor without a word.
    """
    if not isinstance(error, asyncio.CancelledError):
        return isinstance(error, Exception)
    try:
        task = asyncio.current_task()
    except RuntimeError:  # on trio, whose own Cancelled is never stray
        return True
    return task is None or not task.cancelling()
