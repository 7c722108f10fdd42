"""The base class of an actor: state that only its own handlers touch, one call at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from trunkline.actors.mailbox import Call

__all__ = ("Actor", "BatchActor")


class Actor:
    """State with handlers. Subclass it, write plain methods, and call them through an `ActorRef`.

    A handler is any method (or function that takes the actor first). It runs alone: no other
    handler of the same actor runs until it has returned, also while it awaits. An exception that
    is a `TrunklineError` is an answer to its caller; any other is a bug, and the actor is replaced
    by a fresh one.

    Example:
        >>> import anyio
        >>> from trunkline.actors import Actor, Supervisor
        >>> class Counter(Actor):
        ...     def __init__(self) -> None:
        ...         self.value = 0
        ...     def add(self, amount: int) -> int:
        ...         self.value += amount
        ...         return self.value
        >>> async def main() -> int:
        ...     async with Supervisor() as supervisor:
        ...         counter = await supervisor.spawn(Counter)
        ...         await counter.call(Counter.add, 40)
        ...         return await counter.call(Counter.add, 2)
        >>> anyio.run(main)
        42
    """

    async def on_start(self) -> None:
        """Runs before the first call of this incarnation. What it raises counts as a crash."""

    async def on_stop(self) -> None:
        """Runs when this incarnation ends, also by a crash. No call is served after it."""


class BatchActor(Actor):
    """An actor whose calls are handed over a batch at a time, so that I/O can be shared by many.

    Calls on it always take the mailbox: a batch of one is as much I/O as a batch of a hundred.
    """

    #: Whether `handle_batch` lets the event loop run each time, whatever it is given. If not, the
    #: kernel sees to it between two batches.
    always_waits: ClassVar[bool] = False

    async def handle_batch(self, calls: Sequence[Call]) -> Sequence[Call]:
        """Serve `calls`, in their order, by giving each its `answer` or its `fail`.

        A call is claimed by `begin` before it takes effect. One that cannot be claimed any more is
        left alone.

        Returns:
            Calls without a reply, which are handed over again at the front of the next batch.

        Raises:
            Exception: any exception but a `TrunklineError` that belongs to one call is a crash:
                the calls that have no reply yet get `ActorCrashed`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it serves a batch")
