"""The supervisor: starts actors, starts them again when they crash, and stops them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from traceback import format_exception
from typing import Any, NoReturn, Protocol, Self, TypeVar

import anyio
from anyio.abc import TaskGroup, TaskStatus

from trunkline.actors.actor import Actor
from trunkline.actors.cell import Cell
from trunkline.actors.clock import monotonic_ms
from trunkline.actors.lifetime import Service
from trunkline.actors.log import Log, safe_repr
from trunkline.actors.policy import CrashHistory, RestartPolicy
from trunkline.actors.ref import ActorRef
from trunkline.actors.task_group import open_task_group
from trunkline.errors import ActorStopped, RestartIntensityExceeded
from trunkline.validation import require_positive

__all__ = ("LifecycleListener", "Supervisor")

A = TypeVar("A", bound=Actor)

_log = Log("trunkline.actors")


class LifecycleListener(Protocol):
    """Notified of crashes and restarts, in a task of the supervisor. It must not raise."""

    def actor_crashed(self, name: str, error: Exception) -> None: ...

    def actor_restarted(self, name: str, restarts: int) -> None: ...

    def supervisor_gave_up(self, error: RestartIntensityExceeded) -> None: ...


class Supervisor(Service):
    """One-for-one supervision, after Erlang/OTP: a crash costs one actor its state, no more.

    Args:
        policy: how many crashes are forgiven, and the rest after each.
        name: stands in logs and errors.
        stop_timeout_ms: how long leaving waits for calls that were accepted; what has no reply
            by then gets `ActorStopped`.
        listener: notified of crashes and restarts, and when the supervisor gives up.

    Raises:
        RestartIntensityExceeded: out of `async with`, when crashes came faster than `policy`
            allows. Every actor is stopped by then, and every call on one raises it as well. (After
            `start()` it comes out of calls and of `stop()`.)
    """

    def __init__(
        self,
        *,
        policy: RestartPolicy | None = None,
        name: str = "supervisor",
        stop_timeout_ms: int = 5_000,
        listener: LifecycleListener | None = None,
    ) -> None:
        self.name = name
        self.policy = policy if policy is not None else RestartPolicy()
        self._stop_timeout_ms = require_positive("stop_timeout_ms", stop_timeout_ms)
        self._listener = listener
        self._cells: list[Cell[Any]] = []
        self._crashes = CrashHistory(self.policy.within_ms)
        self._task_group: TaskGroup | None = None
        self._stopping = False
        self._gave_up: str | None = None

    async def spawn(
        self,
        factory: Callable[[], A],
        *,
        name: str | None = None,
        mailbox_size: int = 1_024,
        call_timeout_ms: int = 5_000,
        max_batch: int = 128,
    ) -> ActorRef[A]:
        """Start an actor and wait until it is up.

        Args:
            factory: makes an incarnation: an actor's class, or a function without arguments.
                Called again after every crash.
            name: stands in logs and errors; by default the factory's name.
            mailbox_size: calls that may wait; more make their callers wait for room.
            call_timeout_ms: how long a caller waits for its reply.
            max_batch: calls that are taken out of the mailbox at once.

        Raises:
            RuntimeError: the supervisor does not run.
            ConfigurationError: a size that makes no sense.
            Exception: what `factory` or `on_start` raised; a first start is not tried again.
        """
        if self._task_group is None:
            raise RuntimeError(f"{self.name} does not run: enter it with 'async with' first")
        if self._stopping:
            raise RuntimeError(f"{self.name} is stopping and starts no more actors")
        cell = Cell(
            factory,
            name=name if name is not None else getattr(factory, "__name__", repr(factory)),
            mailbox_size=require_positive("mailbox_size", mailbox_size),
            call_timeout_ms=require_positive("call_timeout_ms", call_timeout_ms),
            max_batch=require_positive("max_batch", max_batch),
        )
        self._cells.append(cell)
        try:
            await self._task_group.start(self._supervise, cell, name=f"{self.name}: {cell.name}")
        except BaseException:
            if cell in self._cells:
                self._cells.remove(cell)
            cell.finish(ActorStopped, "it never came up")
            raise
        return cell.ref

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, Any]:
        self._crashes = CrashHistory(self.policy.within_ms)
        self._stopping = False
        self._gave_up = None
        try:
            async with open_task_group() as self._task_group:
                yield self
                self._stopping = True
                await self._stop_actors()
        finally:
            self._task_group = None
            self._cells.clear()

    async def _stop_actors(self) -> None:
        """Last started, first stopped; each serves what it took."""
        with anyio.move_on_after(self._stop_timeout_ms / 1000) as scope:
            for cell in reversed(self._cells):
                cell.close()
                await cell.finished.wait()
        if scope.cancelled_caught and self._task_group is not None:
            _log.warning("actors_cut_off", supervisor=self.name, after_ms=self._stop_timeout_ms)
            self._task_group.cancel_scope.cancel("stop_timeout_ms is over")

    async def _supervise(self, cell: Cell[A], *, task_status: TaskStatus[None]) -> None:
        """The life of one actor, across its crashes."""
        reason = "it was cancelled"
        crashes = CrashHistory(self.policy.within_ms)
        up_before = False

        def on_up() -> None:
            nonlocal up_before
            if up_before:
                self._note_restart(cell)
            else:
                up_before = True
                task_status.started()

        try:
            while True:
                try:
                    await cell.run_incarnation(on_up)
                except Exception as error:
                    if not up_before:
                        raise
                    self._note_crash(cell, error)
                    await cell.back_off(self.policy.backoff_ms(crashes.add(monotonic_ms())))
                if cell.drained:
                    reason = "it was stopped"
                    return
        finally:
            if self._gave_up is not None:
                cell.finish(RestartIntensityExceeded, self._gave_up)
            else:
                cell.finish(ActorStopped, reason)

    def _note_crash(self, cell: Cell[Any], error: Exception) -> None:
        _log.warning(
            "actor_crashed",
            supervisor=self.name,
            actor=cell.name,
            error=safe_repr(error),
            exception="".join(format_exception(error)).rstrip(),
        )
        if self._listener is not None:
            self._listener.actor_crashed(cell.name, error)
        if self._crashes.add(monotonic_ms()) > self.policy.max_restarts:
            self._give_up(
                f"{self.name} gave up: more than {self.policy.max_restarts} crashes within"
                f" {self.policy.within_ms} ms, the last in {cell.name}: {safe_repr(error)}",
                error,
            )

    def _give_up(self, reason: str, cause: Exception) -> NoReturn:
        self._gave_up = reason
        _log.error("supervisor_gave_up", supervisor=self.name, reason=reason)
        gave_up = RestartIntensityExceeded(reason)
        if self._listener is not None:
            self._listener.supervisor_gave_up(gave_up)
        if self._task_group is not None:
            # Cancelled before its calls are refused, the body does not add an error of its own to
            # what comes out of `async with`.
            self._task_group.cancel_scope.cancel(reason)
        raise gave_up from cause

    def _note_restart(self, cell: Cell[Any]) -> None:
        cell.restarts += 1
        _log.warning(
            "actor_restarted", supervisor=self.name, actor=cell.name, restarts=cell.restarts
        )
        if self._listener is not None:
            self._listener.actor_restarted(cell.name, cell.restarts)
