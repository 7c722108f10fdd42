"""The handle on an actor: the only way to reach it, and safe to keep across its restarts."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from functools import partial
from threading import get_ident
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

_ABSENT: Final = object()


class ActorRef(Generic[A]):
    """A handle on an actor of type `A`. `Supervisor.spawn` gives one."""

    __slots__ = ("_cell", "_token", "actor", "local_turns", "thread")

    #: The present incarnation; `None` while the actor is down. Only for `call_local` and `peek`.
    actor: A | None
    #: Calls that may run in their callers' tasks before more are borrowed. It is 0 whenever none
    #: may: the actor is down or busy, a call is queued, or it serves batches. One integer stands
    #: for all of these, so that a local call has one thing to look at.
    local_turns: int
    #: The thread of the actor's event loop.
    thread: int

    def __init__(self, cell: Cell[A]) -> None:
        self.actor = None
        self.local_turns = 0
        self._cell = cell
        self._token = anyio.lowlevel.current_token()
        self.thread = get_ident()

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

        A handler that never awaits runs at once in this task if the actor is up and idle and its
        mailbox is empty (the "local calls" of Seastar's `submit_to` and of Orleans). After 128
        such calls in a row on one actor, and 1,024 in an event loop, one takes the mailbox, so that
        a tight loop lets other tasks run. Either way the handler sees the caller's context
        variables; what it sets in them may be lost.

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
            RestartIntensityExceeded: its supervisor has given up.
            CallTimeout: no reply came in time, or there was no room in the mailbox.
            RuntimeError: called in another thread than the actor's: use `call_from_thread`.
        """
        if not is_async(handler):
            here = partial(handler, **kwargs) if kwargs else handler
            result = self.call_local(here, *args)
            if result is not NOT_LOCAL:
                return result
        return await self._cell.ask(handler, args, kwargs)

    if TYPE_CHECKING:

        def call_local(self, handler: Callable[[A, *Ts], R], /, *args: *Ts) -> R | NotLocal:
            """Run `handler(actor, *args)`, which never awaits, at once if its turn is now.

            `call` does this first. It stands alone for callers that are not coroutines, or that
            count nanoseconds.

            Args:
                handler: a plain method of the actor's class, or a plain function that takes the
                    actor first.
                *args: what it takes besides.

            Returns:
                What the handler returned; `NOT_LOCAL` if the call has to be queued with
                `await call()`.

            Raises:
                TrunklineError: whichever the handler raised.
                ActorCrashed: the handler raised anything else; it is chained as the cause.
                RuntimeError: called in another thread than the actor's. (While the actor's event
                    loop is in the middle of a row of local calls, at the latest after 16 calls.)
            """

    else:
        # Arguments one by one: to hand over a tuple takes a tenth of the time of `resolve`.
        def call_local(
            self,
            handler: Any,
            first: Any = _ABSENT,
            second: Any = _ABSENT,
            third: Any = _ABSENT,
            /,
            *others: Any,
        ) -> Any:
            if not self.local_turns and not self._cell.borrow_turns():
                return NOT_LOCAL
            self.local_turns -= 1
            try:
                if second is _ABSENT:
                    return handler(self.actor) if first is _ABSENT else handler(self.actor, first)
                if third is _ABSENT:
                    return handler(self.actor, first, second)
                if not others:
                    return handler(self.actor, first, second, third)
                return handler(self.actor, first, second, third, *others)
            except TrunklineError:
                raise
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, RecursionError) and _is_stack_deep():
                    raise
                raise self._cell.crashed(error) from error

    def ask(
        self, handler: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Awaitable[Any]:
        """`call` through the mailbox, also if its turn could be now. Raises the same."""
        return self._cell.ask(handler, args, kwargs)

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
        if get_ident() == self.thread:
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
        while isinstance(handler, partial):
            handler = handler.func
        return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            type(handler).__call__
        )
    return bool(flags & inspect.CO_COROUTINE)


def _is_stack_deep() -> bool:
    """Whether the caller had used up half of the stack before its handler began."""
    frames, frame = 0, sys._getframe()
    while frame.f_back is not None:
        frames, frame = frames + 1, frame.f_back
    return frames > sys.getrecursionlimit() // 2
