"""The handle on an actor: the only way to reach it, and safe to keep across its restarts."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from enum import Enum
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    TypeVar,
    TypeVarTuple,
    overload,
)

import anyio.from_thread
import anyio.lowlevel

from trunkline.actors.actor import Actor
from trunkline.errors import ActorStopped, TrunklineError

if TYPE_CHECKING:
    from trunkline.actors.cell import Cell

__all__ = ("NOT_LOCAL", "ActorRef", "NotLocal")

A = TypeVar("A", bound=Actor)
P = ParamSpec("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class _NotLocal(Enum):
    NOT_LOCAL = "this call has to take the mailbox"


#: What `ActorRef.call_local` returns for a call that has to be queued.
NOT_LOCAL: Final = _NotLocal.NOT_LOCAL

#: Its type.
NotLocal = Literal[_NotLocal.NOT_LOCAL]


class ActorRef(Generic[A]):
    """A handle on an actor of type `A`. `Supervisor.spawn` gives one."""

    __slots__ = ("_cell", "_thread", "_token", "actor", "local_turns")

    #: The present incarnation; `None` while the actor is down. Only for `claim` and `peek`.
    actor: A | None
    #: Calls that may still run in their callers' tasks. It is 0 whenever that would be wrong: the
    #: actor is down or busy, a call is queued, the turns are used up, or it serves batches. One
    #: integer stands for all of these, so that a local call has one thing to look at.
    local_turns: int

    def __init__(self, cell: Cell[A]) -> None:
        self.actor = None
        self.local_turns = 0
        self._cell = cell
        self._token = anyio.lowlevel.current_token()
        self._thread = threading.get_ident()

    def __repr__(self) -> str:
        return f"<ActorRef {self.name} {'up' if self.is_up else 'down'}>"

    @property
    def name(self) -> str:
        """The name under which the actor was spawned; it stands in logs and errors."""
        return self._cell.name

    @property
    def is_up(self) -> bool:
        """Whether an incarnation is ready to serve; false while the actor rests after a crash."""
        return self.actor is not None

    @property
    def mailbox_depth(self) -> int:
        """Calls that wait to be begun."""
        return self._cell.mailbox_depth

    @property
    def pending(self) -> int:
        """Calls without a reply, whether they wait or run."""
        return self._cell.pending

    @property
    def restarts(self) -> int:
        """How often the actor was started again after a crash."""
        return self._cell.restarts

    @property
    def local_calls(self) -> int:
        """Calls that ran at once in their callers' tasks."""
        return self._cell.local_calls

    @property
    def queued_calls(self) -> int:
        """Calls that went through the mailbox."""
        return self._cell.queued_calls

    @overload
    async def call(
        self,
        handler: Callable[Concatenate[A, P], Awaitable[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...

    @overload
    async def call(
        self, handler: Callable[Concatenate[A, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    async def call(self, handler: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run `handler(actor, *args, **kwargs)` in the actor's order of arrival.

        A handler that never awaits runs at once in this task if the actor is up, idle and nobody
        waits (the "local calls" of Seastar's `submit_to` and of Orleans). After 128 such calls in
        a row one takes the mailbox, so that a tight loop lets other tasks run.

        Args:
            handler: a method of the actor's class, `Counter.add`, or any function that takes the
                actor first; plain or `async def`. (A plain one that returns a coroutine, such as
                `lambda counter: counter.add_slowly(2)`, is not awaited.)
            *args: what it takes besides.
            **kwargs: what it takes by name.

        Returns:
            What the handler returned.

        Raises:
            TrunklineError: whichever the handler raised.
            ActorCrashed: the handler raised anything else; it is chained as the cause.
            ActorStopped: the actor has stopped for good.
            CallTimeout: no reply came in time, or there was no room in the mailbox.
        """
        if not is_async(handler):
            here = partial(handler, **kwargs) if kwargs else handler
            result = self.call_local(here, *args)
            if result is not NOT_LOCAL:
                return result
        return await self._cell.ask(handler, args, kwargs)

    def call_local(self, handler: Callable[[A, *Ts], R], /, *args: *Ts) -> R | NotLocal:
        """Run a handler that never awaits at once in this task, if its turn is now.

        `call` does this first. It stands alone for callers that are no coroutines, or that count
        nanoseconds.

        Args:
            handler: a plain method of the actor's class, or a plain function that takes the actor
                first.
            *args: what it takes besides.

        Returns:
            What the handler returned; `NOT_LOCAL` if the call has to be queued with `await call()`.

        Raises:
            TrunklineError: whichever the handler raised.
            ActorCrashed: the handler raised anything else; it is chained as the cause.
        """
        if not self.local_turns:
            return NOT_LOCAL
        self.local_turns -= 1
        try:
            return handler(self.actor, *args)  # type: ignore[arg-type]
        except TrunklineError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            raise self._cell.crashed(error) from error

    def claim(self) -> A | None:
        """The actor itself if a handler that never awaits may run on it now, else `None`.

        This is the inside of `call`, for callers that count nanoseconds. Whoever gets the actor
        runs one plain handler on it at once, before any await, and turns an exception that is not
        a `TrunklineError` into `raise ref.crashed(error) from error`.
        """
        if self.local_turns:
            self.local_turns -= 1
            return self.actor
        return None

    def crashed(self, error: BaseException) -> Exception:
        """Take the actor down after a handler run by `claim` raised `error`; what to raise."""
        return self._cell.crashed(error)

    def peek(self, read: Callable[[A], R], default: R) -> R:
        """What `read` finds on the actor at this moment, or `default` while it is down.

        It is no call: it takes no turn, and so must change nothing and be called in the event
        loop's thread. For gauges, such as how much an actor holds.
        """
        return default if self.actor is None else read(self.actor)

    def call_from_thread(
        self, handler: Callable[Concatenate[A, P], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """`call` for a thread that is not the event loop's. Blocks that thread until the reply.

        Raises:
            RuntimeError: called in the event loop's own thread, where it would wait for itself.
            Exception: all that `call` raises.
        """
        # Before the thread is looked at: after its event loop has ended, it is a thread as any.
        self._cell.require_open()
        if threading.get_ident() == self._thread:
            raise RuntimeError("call_from_thread() in the event loop's thread: use await call()")
        try:
            return anyio.from_thread.run(
                partial(self.call, handler, *args, **kwargs), token=self._token
            )
        except anyio.RunFinishedError:
            raise ActorStopped(f"{self.name} has stopped: its event loop is closed") from None


def is_async(handler: Callable[..., Any]) -> bool:
    """Whether `handler` is a coroutine function, and so may await."""
    try:
        flags: int = handler.__code__.co_flags
    except AttributeError:  # a partial, or an object with __call__
        return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            type(handler).__call__
        )
    return bool(flags & inspect.CO_COROUTINE)
