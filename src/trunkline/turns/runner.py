"""Turns: runs the handler of a bot over what its inbox holds."""

from __future__ import annotations

import asyncio
import random
import signal
from asyncio import CancelledError
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from traceback import format_exception
from typing import Any, Literal, Self, TypeAlias

import anyio
from anyio.abc import TaskGroup
from uuid_utils import uuid7

from trunkline.actors import RestartPolicy, Service
from trunkline.actors.clock import monotonic_ms
from trunkline.actors.future import Future, asyncio_loop, new_future
from trunkline.actors.log import Log, safe_repr
from trunkline.actors.policy import CrashHistory
from trunkline.actors.task_group import open_task_group
from trunkline.errors import ConfigurationError, StoreUnavailable, TrunklineError, TurnLost
from trunkline.observe import Events
from trunkline.routing.key import AnySessionKey
from trunkline.turns.adapter import Accepted, Beat, Begun, Claimed, InboxAdapter, Owner
from trunkline.turns.events import TurnStats, Window
from trunkline.turns.heartbeat import Heartbeat, Listener
from trunkline.turns.inbox import Inbox
from trunkline.turns.item import InboxCounts
from trunkline.turns.policy import TurnPolicy
from trunkline.turns.process import this_process
from trunkline.turns.session import Claimant
from trunkline.turns.turn import Turn
from trunkline.validation import require_non_negative, require_positive

__all__ = ("Handler", "OnFailed", "Runner", "Turns")

Handler: TypeAlias = Callable[[Any], Awaitable[object]]
#: Why a handler was cancelled: its time was over; nothing of its turn stands any more; the process
#: stops; the runner has a bug.
Reason: TypeAlias = Literal["", "timeout", "lost", "stop", "crash"]
OnFailed: TypeAlias = Callable[[Any, Exception], Awaitable[object] | object]

_log = Log("trunkline.turns")

#: Between two attempts at a store that is away, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0

#: A handler that was cancelled and runs on after so many seconds is reported as stuck.
_STUCK_SECONDS = 5.0

#: Sessions of a dead process that are given back in one go.
_LOT = 256

#: How often `idle` looks at the store, in seconds.
_IDLE_SECONDS = 0.02

#: How long a process that stops tries to tell the others so, in seconds.
_LEAVE_SECONDS = 1.0

#: Workers that go on waiting for a turn while none runs; others end.
_IDLE_WORKERS = 8

#: A turn that has killed so many processes runs while no other such turn runs here.
_SUSPECT = 2

#: Turns of which something is remembered before they are known.
_MOST_EARLY = 256

#: Characters of an error that are stored.
_LONGEST_ERROR = 2_000


class Turns(Service):
    """Runs a handler over the items of an inbox, as turns.

    Args:
        inbox: entered before this and left after it.
        handler: an async function of a `Turn`. One that raises is tried again.
        policy: how items become turns. It is stored, and other processes follow it.
        max_running: turns that run at once in this process; urgent ones come on top.
        lease_ms: how long this process may stand still before others take its turns over.
        stop_timeout_ms: how long leaving waits for running turns before it cancels them.
        on_failed: called with a turn and the error of its last attempt, before its items become
            `failed`; plain or async. It may be called again if the process dies or stops in it, and
            may take as long as a handler.
        name: stands in events, logs and errors.

    Raises:
        ConfigurationError: an argument that cannot work; or, on entering, turns run on this `Inbox`
            already.

    Example:
        >>> import anyio
        >>> from trunkline import Inbox, TurnPolicy, Turns
        >>> async def main() -> None:
        ...     async def answer(turn) -> None:
        ...         print(turn.session_key.room_id, [item.payload for item in turn.items])
        ...     async with Inbox("memory://") as inbox:
        ...         async with Turns(inbox, answer, TurnPolicy(quiet_ms=10)) as turns:
        ...             await inbox.accept(("telegram", "bot", "42"), "hi")
        ...             await inbox.accept(("telegram", "bot", "42"), "are you there?")
        ...             await turns.idle()
        >>> anyio.run(main)
        42 ['hi', 'are you there?']
    """

    def __init__(
        self,
        inbox: Inbox,
        handler: Handler,
        policy: TurnPolicy | None = None,
        *,
        max_running: int = 64,
        lease_ms: int = 10_000,
        stop_timeout_ms: int = 5_000,
        on_failed: OnFailed | None = None,
        name: str = "turns",
        restart_policy: RestartPolicy | None = None,
    ) -> None:
        if not callable(handler):
            raise ConfigurationError(f"a handler is an async function of a turn, not {handler!r}")
        self.name = name
        self.inbox = inbox
        self.policy = policy or inbox.own_policy or TurnPolicy()
        self.max_running = require_positive("max_running", max_running)
        self.lease_ms = require_positive("lease_ms", lease_ms)
        self.stop_timeout_ms = require_non_negative("stop_timeout_ms", stop_timeout_ms)
        self.handler = handler
        self.on_failed = on_failed
        self._restart_policy = RestartPolicy() if restart_policy is None else restart_policy
        self._runner: Runner | None = None
        self._stopping = anyio.Event()
        self.waits, self.runs = Window(), Window()
        #: What the inbox held at the last look at it.
        self._last_counts = InboxCounts()
        self._oldest_waiting_ms = 0

    @property
    def events(self) -> Events:
        """Whom the turns and their inbox tell what happens: `turns.events.subscribe(function)`."""
        return self.inbox.events

    def make_turn(self, runner: Runner, begun: Begun) -> Any:
        """What the handler gets."""
        return Turn(runner, begun)

    def stats(self) -> TurnStats:
        """What runs at this moment, and what happened so far."""
        runner = self._runner
        counts = self._last_counts
        return TurnStats(
            0 if runner is None else runner.running_count,
            counts.waiting,
            counts.sessions,
            self._oldest_waiting_ms,
            dict(self.inbox.counted),
            self.waits.quantiles(),
            self.runs.quantiles(),
        )

    async def look(self) -> None:
        """Note what the inbox holds, for `stats`. The runner calls it every half lease."""
        counts, oldest_waiting_ms = await self.inbox.look()
        self._last_counts, self._oldest_waiting_ms = counts, oldest_waiting_ms

    async def cancel(self, session_key: AnySessionKey, waiting: bool = True) -> int:
        """End the running turn of a session and discard what waits: see `Inbox.cancel`."""
        return await self.inbox.cancel(session_key, waiting)

    async def idle(self) -> None:
        """Wait until no item waits in this inbox and no turn runs in this process."""
        while True:
            runner = self._runner
            if runner is None or not runner.running_count:
                self._last_counts = counts = await self.inbox.counts()
                if not (counts.waiting or counts.running):
                    self._oldest_waiting_ms = 0
                    return
            await anyio.sleep(_IDLE_SECONDS)

    async def serve(self) -> None:
        """Run until SIGINT or SIGTERM. Leaving `async with` then stops the turns."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                return

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, Any]:
        self._stopping = anyio.Event()
        async with open_task_group() as task_group:
            await task_group.start(self._supervise)
            try:
                yield self
            finally:
                self._stopping.set()

    async def _supervise(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Run turns; after a bug of the runner again, with another owner id."""
        crashes = CrashHistory(self._restart_policy.within_ms)
        await self.inbox.follow(self.policy)
        is_first = True
        while not self._stopping.is_set():
            runner = self._runner = Runner(self)
            try:
                self.inbox.attach(runner)
                await runner.run(self._stopping, task_status if is_first else None)
                return
            except Exception as error:
                if is_first and runner.started_at is None:
                    raise
                if not isinstance(error, _OwnerLost):
                    _log.error("runner_crashed", turns=self.name, error=safe_repr(error))
                count = crashes.add(monotonic_ms())
                if count > self._restart_policy.max_restarts:
                    raise
                await anyio.sleep(self._restart_policy.backoff_ms(count) / 1000)
            finally:
                self.inbox.detach(runner)
                self._runner = None
            is_first = False


class _OwnerLost(Exception):
    """Others hold this process for dead: it begins anew under another id."""


class _Running:
    """A turn that runs in this process."""

    __slots__ = (
        "began_at",
        "begun",
        "deadline",
        "has_ended",
        "has_joins",
        "has_returned",
        "is_cancelled_at",
        "is_reported",
        "loss",
        "reason",
        "reporting",
        "run_ms",
        "scope",
        "stuck_at",
        "turn",
    )

    def __init__(self, begun: Begun, deadline: float) -> None:
        self.begun = begun
        #: What the handler has got, once it has.
        self.turn: Any = None
        self.scope = anyio.CancelScope()
        self.deadline = deadline
        #: Why its handler was cancelled.
        self.reason: Reason = ""
        self.loss: TurnLost | None = None
        self.is_cancelled_at = 0.0
        #: Whether the handler returned, how long it has run, and since when it runs.
        self.has_returned = False
        self.run_ms = 0
        #: Whether the handler has ended, and the store is to hear of it.
        self.has_ended = False
        #: Whether items came that may join, before there was a turn to join.
        self.has_joins = False
        self.began_at = 0.0
        #: When it counts as stuck.
        self.stuck_at = float("inf")
        #: Whether `on_failed` was called, and the scope of a call under way.
        self.is_reported = False
        self.reporting: anyio.CancelScope | None = None

    @property
    def item_ids(self) -> list[str]:
        return [] if self.turn is None else self.turn.every_item_id

    @property
    def unstored(self) -> list[str]:
        return [] if self.turn is None else self.turn.unstored()

    def cancel(self, reason: Reason) -> None:
        if reason == "lost":
            self.reason = reason
        if self.has_ended:
            return  # too late for anything else
        self.reason = self.reason or reason
        if not self.is_cancelled_at:
            self.is_cancelled_at = monotonic()
            self.stuck_at = self.is_cancelled_at + _STUCK_SECONDS
        self.scope.cancel(reason)


class _Worker:
    """A task that waits for its next turn."""

    __slots__ = ("_given", "_loop", "_running")

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._given: Future | None = None
        self._running: _Running | None = None

    def give(self, running: _Running | None) -> None:
        """Let it go on with a turn, or end."""
        self._running = running
        if self._given is not None:
            self._given.set_result(None)

    async def next(self) -> _Running | None:
        self._given = new_future(self._loop)
        await self._given
        running, self._given, self._running = self._running, None, None
        return running


class Runner:
    """Runs turns under one owner id, until it is stopped or has a bug."""

    def __init__(self, turns: Turns) -> None:
        self.inbox = turns.inbox
        self._turns = turns
        self._owner = Owner(str(uuid7()), 0, turns.lease_ms, this_process())
        #: Turns that run here; how many of these are urgent, and how many killed two processes.
        self._running: dict[str, _Running] = {}
        self._urgent = self._suspects = 0
        #: session → how many of its turns run here.
        self._sessions: Counter[str] = Counter()
        #: Workers without a turn.
        self._idle: list[_Worker] = []
        self._loop = asyncio_loop()
        #: Room that was promised to calls which may bring a turn.
        self._reserved = 0
        self._tasks: TaskGroup | None = None
        self._is_stopping = False
        self._wake = anyio.Event()
        #: When to ask for turns that are due, on `time.monotonic`; and whether some wait by now.
        self._due_at = float("inf")
        self._has_backlog = True
        #: When the clockwork looks at deadlines next.
        self._looks_at = 0.0
        #: What the threads have found: processes that are dead, claims that nobody here knows, and
        #: whether another process has changed something.
        self._dead: list[str] = []
        self._to_forget: list[tuple[str, str]] = []
        self._is_noticed = False
        #: Whether to look at the whole store: what it holds, and what a clock that went back hides.
        self._must_scan = True
        #: Whether the store may have begun a turn for a call whose caller was cancelled, or whose
        #: reply was lost.
        self._may_have_orphans = False
        #: Turns whose first reply has yet to come, which were cancelled or got items that may join.
        self._early: dict[str, Literal["ended", "joins"]] = {}
        self._turn_ended = anyio.Event()
        #: Whether turns that the store cannot be told of are left to others.
        self._gives_up = False
        self._heartbeat: Heartbeat | None = None
        self._failure: Exception | None = None
        self._is_broken = False
        self.started_at: float | None = None
        #: Turns to give back: the store has them, and no reply brought them.
        self._unknown: Counter[str] = Counter()

    # -- for the inbox -----------------------------------------------------------------------------

    @property
    def running_count(self) -> int:
        return len(self._running)

    def reserve(self, key: str) -> Claimant | None:
        """Room for a turn that a call on a session may begin; `settle` must follow."""
        if self._is_stopping or self._tasks is None:
            return None
        # A session whose turn runs here needs no room: the end of that turn has it.
        is_busy = key in self._sessions and self.inbox.policy.while_busy != "concurrent"
        # It may just have ended, though: where there is much room, some is kept for the item, which
        # would have to be claimed otherwise.
        spare = self._turns.max_running // 4 if is_busy else 0
        is_free = self._free > spare and not self._has_backlog
        if is_free:
            self._reserved += 1
        return Claimant(self._owner.id, is_free)

    def settle(self, claimant: Claimant, accepted: Accepted | None) -> None:
        """What came of a call that had room reserved."""
        if claimant.is_free:
            self._reserved -= 1
        if accepted is None:
            self.find_orphans()
            return
        self._supervised(self._take_note)(accepted)

    def _take_note(self, accepted: Accepted) -> None:
        if accepted.begun is not None:
            self._launch(accepted.begun)
        self._note_due(accepted.due_in_ms)

    def find_orphans(self) -> None:
        """The store may have begun a turn, and no reply brought it: look for such turns soon."""
        self._may_have_orphans = True
        self.wake()

    def cancel_turns(self, turn_ids: Sequence[str]) -> None:
        """End the handlers of those of these turns that run here."""
        for turn_id in turn_ids:
            running = self._running.get(turn_id)
            if running is not None:
                self._lose(running, TurnLost(f"turn {turn_id} was cancelled or interrupted"))
            else:
                self._note_early(turn_id, "ended")

    async def refresh(self, turn_ids: Sequence[str]) -> None:
        """Tell turns that run here what may join them."""
        for turn_id in turn_ids:
            running = self._running.get(turn_id)
            if running is not None:
                await self._refresh(running)
            else:
                self._note_early(turn_id, "joins")

    def refresh_soon(self, turn_ids: Sequence[str]) -> None:
        """The same, for a caller that is cancelled."""
        if self._tasks is not None and turn_ids:
            self._tasks.start_soon(self.refresh, turn_ids)

    def wake(self) -> None:
        """Look at the store: something may have changed."""
        self._has_backlog = True
        self._wake.set()

    # -- for turns ---------------------------------------------------------------------------------

    def lose(self, turn: Turn, loss: TurnLost) -> None:
        """The store says that a turn may do nothing any more."""
        running = self._running.get(turn.id)
        if running is not None:
            self._lose(running, loss)

    def journal(self, turn: Turn) -> None:
        """Store which items a turn has taken."""
        if self._tasks is not None:
            self._tasks.start_soon(self._journal, turn)

    # -- its life ----------------------------------------------------------------------------------

    async def run(
        self, stopping: anyio.Event, task_status: anyio.abc.TaskStatus[None] | None
    ) -> None:
        """Run turns until `stopping` is set, and then end those that run."""
        adapter = self.inbox.adapter
        await self.inbox.ask(None, InboxAdapter.register, self._owner)
        threads: list[Heartbeat | Listener] = []
        if adapter.blocking:
            self._heartbeat = Heartbeat(
                adapter.sibling(),
                self._owner,
                self._supervised(self._on_beat),
                self._supervised(self._dead_soon),
            )
            listener = Listener(adapter.sibling(), self._supervised(self._on_notice))
            threads = [self._heartbeat, listener]
        try:
            async with open_task_group() as self._tasks:
                for thread in threads:
                    thread.start()
                self._tasks.start_soon(self._watch)
                self.started_at = monotonic()
                if task_status is not None:
                    task_status.started()
                try:
                    await stopping.wait()
                finally:
                    # Also if the runner has a bug, and then at once.
                    with anyio.CancelScope(shield=True):
                        await self._stop(0 if self._is_broken else self._turns.stop_timeout_ms)
                self._tasks.cancel_scope.cancel("the turns have ended")
        finally:
            self._is_stopping, self._tasks = True, None
            for thread in threads:
                thread.stop()
            with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
                await self._leave()
            with anyio.CancelScope(shield=True):
                for thread in threads:
                    await anyio.to_thread.run_sync(thread.join, _LEAVE_SECONDS)

    async def _leave(self) -> None:
        owner_id = self._owner.id
        try:
            # What a bug has left, or was begun for a call whose caller was cancelled.
            if await self.inbox.ask(None, InboxAdapter.sessions_of, owner_id, 1):
                await self._bury(owner_id)
            else:
                await self.inbox.ask(None, InboxAdapter.unregister, owner_id)
        except TrunklineError as error:
            _log.debug("owner_not_removed", owner=self._owner.id, error=repr(error))

    async def _stop(self, timeout_ms: int) -> None:
        """Let running turns end, and cancel those that take longer than `timeout_ms`."""
        self._is_stopping = True
        with anyio.move_on_after(timeout_ms / 1000):
            while self._running or self._reserved:
                await self._settled()
        for running in [*self._running.values()]:
            self._cancel(running, "crash" if self._is_broken else "stop")
            if running.reporting is not None:
                running.reporting.cancel("stop")
        self._gives_up = True
        while self._running:
            await self._settled()
        while self._idle:
            self._idle.pop().give(None)

    async def _settled(self) -> None:
        self._turn_ended = anyio.Event()
        with anyio.move_on_after(0.1):
            await self._turn_ended.wait()

    async def _watch(self) -> None:
        try:
            await self._run_clockwork()
        except Exception:
            self._is_broken = True
            raise

    async def _run_clockwork(self) -> None:
        """Deadlines, turns that are due, processes that are dead."""
        lease = self._turns.lease_ms / 1000
        scan_at = monotonic() + lease / 2
        while True:
            # Before the look: what is found while it lasts is looked at next.
            self._wake = anyio.Event() if self._wake.is_set() else self._wake
            if self._failure is not None:
                raise self._failure
            now = monotonic()
            self._end_overdue(now)
            if now >= scan_at:
                scan_at = now + lease / 2
                self._has_backlog = self._must_scan = True
            try:
                await self._look_after()
                if not self._is_stopping and (self._has_backlog or self._due_at <= now):
                    await self._claim()
            except TrunklineError as error:
                _log.debug("inbox_away", turns=self._turns.name, error=repr(error))
                self._note_due(int(_LONGEST_PAUSE * 1000))
            self._looks_at = min(scan_at, self._due_at, self._next_deadline())
            wait = self._looks_at - monotonic()
            is_behind = self._dead or self._to_forget or self._may_have_orphans
            if is_behind or (self._has_backlog and self._free > 0 and not self._is_stopping):
                wait = min(wait, _FIRST_PAUSE)
            with anyio.move_on_after(max(wait, 0.001)):
                await self._wake.wait()

    async def _look_after(self) -> None:
        """Do what the threads have found to do."""
        while self._dead:
            await self._bury(self._dead[-1])
        while self._to_forget:
            key, turn_id = self._to_forget[0]
            await self.inbox.ask(key, InboxAdapter.forget, key, turn_id)
            del self._to_forget[0]
            self._has_backlog = True
        if self._may_have_orphans:
            await self._find_orphans()
        if self._must_scan:
            self._must_scan = False
            await self.inbox.ask(None, InboxAdapter.recover)
            await self._turns.look()
        if self._is_noticed:
            self._is_noticed = False
            if self._running:
                await self._check_running()

    async def _find_orphans(self) -> None:
        """Give back the turns that the store has begun, and no reply brought."""
        self._may_have_orphans = False
        try:
            await self._forget_orphans()
        except TrunklineError:
            self._may_have_orphans = True
            raise

    async def _forget_orphans(self) -> None:
        before = await self.inbox.ask(None, InboxAdapter.beat, self._owner.id)
        # A reply that is on its way arrives meanwhile.
        await anyio.sleep(_FIRST_PAUSE)
        after = await self.inbox.ask(None, InboxAdapter.beat, self._owner.id)
        for turn_id, (key, _) in after.claims.items():
            if turn_id in before.claims and turn_id not in self._running:
                await self.inbox.ask(key, InboxAdapter.forget, key, turn_id)
                self._has_backlog = True

    async def _claim(self) -> None:
        """Begin what is due, as far as there is room."""
        # Not all of the room: items that come meanwhile would have to be claimed as well.
        room = (max(self._free, 0) + 1) // 2
        claimant = Claimant(self._owner.id, room > 0, not self._has_suspect)
        # Cleared before the look: what comes meanwhile is noticed.
        self._has_backlog, self._due_at = False, float("inf")
        self._reserved += room
        try:
            claimed = await self.inbox.ask(None, InboxAdapter.claim, claimant, min(room, _LOT) or 1)
        except BaseException:
            self._has_backlog = True
            raise
        finally:
            self._reserved -= room
        self._take_over(claimed)
        if claimed.due_in_ms != 0:
            return
        if claimed.begun or not room:
            # There may be more. Without room for it, the end of a turn brings it.
            self._note_due(0)
        else:
            # It waits for a process that may run it. What came meanwhile is not forgotten.
            self._due_at = min(self._due_at, monotonic() + _LONGEST_PAUSE)

    def _take_over(self, claimed: Claimed) -> None:
        self.inbox.report_happened(claimed.happened)
        for begun in claimed.begun:
            self._launch(begun)
        if claimed.due_in_ms:
            self._note_due(claimed.due_in_ms)

    async def _bury(self, owner_id: str) -> None:
        """Give back the turns of a process that is dead."""
        count = _LOT
        while count == _LOT:
            count, happened = await self.inbox.ask(None, InboxAdapter.bury, owner_id, _LOT)
            self.inbox.report_happened(happened)
            self._has_backlog = self._has_backlog or count > 0
        self._dead = [one for one in self._dead if one != owner_id]

    # -- from the threads --------------------------------------------------------------------------

    def _supervised(self, function: Callable[..., object]) -> Callable[..., None]:
        """`function` for a caller that cannot do anything about a bug of the runner."""

        def call(*args: object) -> None:
            try:
                function(*args)
            except Exception as error:
                self._failure = self._failure or error
                self._wake.set()

        return call

    def _on_beat(self, beat: Beat) -> None:
        """Compare what the store believes to run here with what runs here."""
        if self._tasks is None:
            return
        if not beat.is_alive:
            loss = TurnLost("this process stood still, and others have taken its turns over")
            for one in [*self._running.values()]:
                self._lose(one, loss)
            self._failure = _OwnerLost(self._owner.id)
            self._wake.set()
            return
        unknown: Counter[str] = Counter()
        for turn_id, (key, may_act) in beat.claims.items():
            running = self._running.get(turn_id)
            if running is not None and not may_act:
                self._lose(running, TurnLost(f"turn {turn_id} was cancelled or interrupted"))
            elif running is None:
                unknown[turn_id] = self._unknown[turn_id] + 1
                # Seen twice: its reply is not on its way any more.
                if unknown[turn_id] == 2:
                    self._to_forget.append((key, turn_id))
                    self._wake.set()
        self._unknown = unknown

    def _dead_soon(self, owner_id: str) -> None:
        if owner_id not in self._dead:
            self._dead.append(owner_id)
            self._wake.set()

    def _on_notice(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.beat_soon()
        self._is_noticed = True
        self.wake()

    async def _check_running(self) -> None:
        """Whether turns that run here were cancelled elsewhere, or got items that may join."""
        beat = await self.inbox.ask(None, InboxAdapter.beat, self._owner.id)
        for turn_id, (_, may_act) in beat.claims.items():
            running = self._running.get(turn_id)
            if running is not None and not may_act:
                self._lose(running, TurnLost(f"turn {turn_id} was cancelled or interrupted"))
        if self.inbox.policy.while_busy == "steer":
            await self.refresh([*self._running])

    # -- turns -------------------------------------------------------------------------------------

    @property
    def _free(self) -> int:
        """Turns that may begin here; urgent ones take no room."""
        return self._turns.max_running - len(self._running) + self._urgent - self._reserved

    @property
    def _has_suspect(self) -> bool:
        """Whether a turn runs here that has killed two processes."""
        return self._suspects > 0

    def _note_due(self, due_in_ms: int | None) -> None:
        """Ask for a turn that is due in so many milliseconds."""
        if due_in_ms is None:
            return
        if due_in_ms == 0:
            self._has_backlog = True
            if self._free > 0:
                self._wake.set()
            return
        due_at = monotonic() + due_in_ms / 1000
        if due_at < self._due_at:
            self._due_at = due_at
            self._wake.set()

    def _launch(self, begun: Begun) -> None:
        """Run a turn that the store has begun for this process."""
        if self._tasks is None:
            return  # it is given back with the owner
        running = self._take_up(begun)
        if self._idle:
            self._idle.pop().give(running)
        else:
            self._tasks.start_soon(self._work, running)

    def _take_up(self, begun: Begun) -> _Running:
        """Count a turn among those that run here."""
        timeout = self.inbox.policy.turn_timeout_ms / 1000
        self._running[begun.id] = running = _Running(begun, monotonic() + timeout)
        self._urgent += begun.urgent
        self._suspects += begun.deaths >= _SUSPECT
        self._sessions[begun.session] += not begun.urgent
        early = self._early.pop(begun.id, None) if self._early else None
        if early == "ended":
            self._lose(running, TurnLost(f"turn {begun.id} was cancelled or interrupted"))
        running.has_joins = early == "joins"
        if self._is_stopping:
            self._cancel(running, "stop")
        self._look_by(running.deadline)
        return running

    def _note_early(self, turn_id: str, what: Literal["ended", "joins"]) -> None:
        """Remember this for `_launch`. Most of them are turns of other processes."""
        if self._early.get(turn_id) != "ended":
            self._early[turn_id] = what
        if len(self._early) > _MOST_EARLY:
            del self._early[next(iter(self._early))]

    async def _work(self, running: _Running | None) -> None:
        """A worker: run a turn, and then others for as long as there are some.

        Nothing cancels it from outside: the runner cancels the scope of a turn, and then learns
        how its handler has ended.
        """
        worker = _Worker(self._loop)
        with anyio.CancelScope(shield=True):
            while running is not None:
                turn_id = running.begun.id
                try:
                    running = await self._run_turn(running)
                except Exception:
                    # A bug of the runner, which must not wait for this turn when it ends.
                    self._is_broken = True
                    self._running.pop(turn_id, None)
                    raise
                if running is not None:
                    continue
                if self._tasks is None or self._is_stopping:
                    return
                self._idle.append(worker)
                running = await worker.next()

    async def _run_turn(self, running: _Running) -> _Running | None:
        """Run a turn, and have those begin that follow it at once: one of them in this task."""
        begun = running.begun
        try:
            error = await self._handle(running)
            claimed = await self._conclude(running, error)
        finally:
            del self._running[begun.id]
            self._urgent -= begun.urgent
            self._sessions[begun.session] -= not begun.urgent
            if not self._sessions[begun.session]:
                del self._sessions[begun.session]
            if begun.deaths >= _SUSPECT:
                self._suspects -= 1
                self._has_backlog = True  # the next one may run now
            if self._has_backlog:
                self._wake.set()
            if self._is_stopping:
                self._turn_ended.set()
        self.inbox.report_happened(claimed.happened)
        self._note_due(claimed.due_in_ms)
        if not claimed.begun or self._tasks is None:
            return None
        following, *others = claimed.begun
        for begun in others:
            self._launch(begun)
        return self._take_up(following)

    async def _handle(self, running: _Running) -> Exception | None:
        """Run the handler; what it raised."""
        begun, turns = running.begun, self._turns
        running.began_at = monotonic()
        accepted_at_ms = min([row.accepted_at_ms for row in begun.items], default=0)
        waited_ms = max(begun.began_at_ms - accepted_at_ms, 0)
        turns.waits.add(waited_ms)
        name = "started" if begun.attempt == 1 else "retried"
        self._report(name, running, waited_ms=waited_ms)
        if begun.resumed:
            self._report("resumed", running, items=tuple(begun.resumed))
        error: Exception | None = None
        with running.scope:
            try:
                running.turn = turns.make_turn(self, begun)
                running.turn.early_loss(running.loss)
                if begun.attempt > self.inbox.policy.max_attempts:
                    # It has killed as many processes as it may.
                    raise _Died(begun.error)
                # What came between two attempts waits, and may join the second one.
                is_steered = begun.attempt > 1 and self.inbox.policy.while_busy == "steer"
                if (running.has_joins or is_steered) and self._tasks is not None:
                    self._tasks.start_soon(self._refresh, running)
                await turns.handler(running.turn)
                running.has_returned = True
            except Exception as raised:
                error = raised
            except CancelledError as raised:
                if running.scope.cancel_called:
                    raise
                error = _stray(raised)
        running.has_ended = True
        running.run_ms = int((monotonic() - running.began_at) * 1000)
        turns.runs.add(running.run_ms)
        if error is None and running.turn is not None:
            error = running.turn.fatal
        return error

    async def _conclude(self, running: _Running, error: Exception | None) -> Claimed:
        """Tell the store how a turn ended, for as long as it takes to reach it."""
        pause, again = _FIRST_PAUSE, False
        while True:
            try:
                if running.reason == "lost":
                    return await self._end(running)
                if running.reason == "crash" and not running.has_returned:
                    return Claimed()  # the owner is buried, and its turns with it
                if running.reason == "stop" and not running.has_returned:
                    return await self._give_back(running)
                if running.reason == "timeout":
                    error = error or TimeoutError(
                        f"the handler ran longer than {self.inbox.policy.turn_timeout_ms} ms"
                    )
                if error is not None:
                    return await self._fail(running, error, again)
                return await self._finish(running, again)
            except TurnLost as loss:
                running.reason, running.loss = "lost", loss
            except StoreUnavailable as away:
                _log.debug("inbox_away", turns=self._turns.name, error=repr(away))
                if self._gives_up:
                    return Claimed()  # others take the turn over, as that of a dead process
                again = True
                self.find_orphans()  # it may have begun the next turn
                await anyio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _finish(self, running: _Running, again: bool) -> Claimed:
        session = running.begun.session
        # Not repeated by `ask`: it has to know that it is.
        claimed = await self.inbox.ask_once(
            session,
            InboxAdapter.finish,
            session,
            running.begun.id,
            running.unstored,
            running.item_ids,
            again,
            self._next_claimant(),
        )
        self._report("finished", running, run_ms=running.run_ms)
        return claimed

    async def _fail(self, running: _Running, error: Exception, again: bool) -> Claimed:
        begun, policy = running.begun, self.inbox.policy
        is_final = running.turn is not None and running.turn.fatal is not None
        if is_final or begun.attempt >= policy.max_attempts:
            await self._report_failure(running, error)
            if self._gives_up and not running.is_reported:
                return await self._give_back(running)  # another attempt reports it
        # As of `finish`.
        claimed = await self.inbox.ask_once(
            begun.session,
            InboxAdapter.fail,
            begun.session,
            begun.id,
            running.unstored,
            safe_repr(error)[:_LONGEST_ERROR],
            is_final,
            random.uniform(0.75, 1.25),
            self._next_claimant(),
            running.item_ids,
            again,
        )
        _log.warning(
            "turn_failed",
            turns=self._turns.name,
            attempt=begun.attempt,
            is_final=claimed.has_failed,
            exception="".join(format_exception(error)).rstrip(),
        )
        if claimed.has_failed:
            self._report("failed", running, run_ms=running.run_ms, error=safe_repr(error))
        return claimed

    async def _report_failure(self, running: _Running, error: Exception) -> None:
        on_failed = self._turns.on_failed
        if on_failed is None or running.turn is None:
            running.is_reported = True
        if running.is_reported or on_failed is None:
            return
        # It may take as long as a handler.
        with anyio.move_on_after(self.inbox.policy.turn_timeout_ms / 1000) as running.reporting:
            try:
                result = on_failed(running.turn, error)
                if result is not None:
                    await result  # type: ignore[misc]
            except Exception as bug:
                _log.error("on_failed_raised", turns=self._turns.name, error=safe_repr(bug))
            except CancelledError as cancelled:
                if running.reporting.cancel_called:
                    raise
                stray = _stray(cancelled)
                _log.error("on_failed_raised", turns=self._turns.name, error=safe_repr(stray))
        is_late = running.reporting.cancelled_caught
        if is_late and not self._gives_up:
            _log.error("on_failed_raised", turns=self._turns.name, error="it takes too long")
        running.is_reported = not (is_late and self._gives_up)
        running.reporting = None

    async def _end(self, running: _Running) -> Claimed:
        session = running.begun.session
        claimed = await self.inbox.ask(
            session, InboxAdapter.end, session, running.begun.id, self._next_claimant()
        )
        self._report("lost", running, run_ms=running.run_ms, error=str(running.loss or ""))
        return claimed

    async def _give_back(self, running: _Running) -> Claimed:
        session = running.begun.session
        return await self.inbox.ask(
            session, InboxAdapter.stop, session, running.begun.id, running.unstored
        )

    def _report(self, name: str, running: _Running, **fields: Any) -> None:
        begun = running.begun
        if "items" not in fields:
            fields["items"] = _ids(begun)
        self.inbox.report(name, begun.session, attempt=begun.attempt, **fields)

    def _next_claimant(self) -> Claimant | None:
        """Whoever ends a turn has room for another, unless others have waited longer for room."""
        if self._is_stopping or self._failure is not None:
            return None
        is_free = self._free >= (1 if self._has_backlog else 0)
        return Claimant(self._owner.id, is_free)

    async def _journal(self, turn: Turn) -> None:
        taken = turn.unstored()
        if not taken:
            return
        session = turn.begun.session
        try:
            await self.inbox.ask(session, InboxAdapter.take, session, turn.id, taken)
        except TurnLost as loss:
            self.lose(turn, loss)
        except TrunklineError:
            return  # it is stored with what the turn does next
        turn.stored(taken)

    async def _refresh(self, running: _Running) -> None:
        session = running.begun.session
        try:
            rows = await self.inbox.ask(session, InboxAdapter.join, session, running.begun.id)
        except TurnLost as loss:
            self._lose(running, loss)
        except TrunklineError:
            return
        else:
            running.has_joins = running.turn is None
            if running.turn is not None:
                running.turn.join([self.inbox.item(row, running.begun.attempt) for row in rows])

    def _lose(self, running: _Running, loss: TurnLost) -> None:
        running.loss = running.loss or loss
        if running.turn is not None:
            running.turn.lose(loss)
        self._cancel(running, "lost")

    def _cancel(self, running: _Running, reason: Reason) -> None:
        running.cancel(reason)
        self._look_by(running.stuck_at)

    # -- deadlines ---------------------------------------------------------------------------------

    def _look_by(self, deadline: float) -> None:
        if deadline < self._looks_at:
            self._looks_at = deadline
            self._wake.set()

    def _next_deadline(self) -> float:
        return min(
            [
                (one.deadline if not one.is_cancelled_at else one.stuck_at)
                for one in self._running.values()
                if not one.has_ended
            ],
            default=float("inf"),
        )

    def _end_overdue(self, now: float) -> None:
        for running in self._running.values():
            if running.has_ended:
                continue
            if not running.is_cancelled_at:
                if now >= running.deadline:
                    running.cancel("timeout")
            elif now >= running.stuck_at:
                # Cancelled again: a handler may have swallowed the first one.
                running.stuck_at = now + _STUCK_SECONDS
                self._report("stuck", running)
                _log.warning("handler_stuck", turns=self._turns.name, reason=running.reason)


class _Died(Exception):
    """The processes that ran a turn have died."""


def _stray(cancelled: CancelledError) -> Exception:
    """What a handler failed with that was cancelled although nobody has cancelled its turn.

    asyncio's `CancelledError` is also raised by awaiting another task that was cancelled.
    """
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
    error = RuntimeError("the handler was cancelled, or awaited a task that was")
    return error.with_traceback(cancelled.__traceback__)


def _ids(begun: Begun) -> tuple[str, ...]:
    return tuple([row.id for row in begun.items])
