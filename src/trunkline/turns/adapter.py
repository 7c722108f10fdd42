"""What a database must be able to do for the inbox."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from hashlib import blake2b
from itertools import groupby
from typing import Any, ClassVar

import msgspec
from xxhash import xxh3_64_intdigest

from trunkline.actors import Call
from trunkline.backends import Adapter
from trunkline.errors import NotFound, TrunklineError
from trunkline.turns import session as rules
from trunkline.turns.item import InboxCounts, ItemState
from trunkline.turns.policy import TurnPolicy
from trunkline.turns.session import RUNNING, Change, Claim, Claimant, Entry, NewItem, Session

__all__ = (
    "ALONE",
    "SHARDS",
    "URGENT",
    "Accepted",
    "Applied",
    "Beat",
    "Begun",
    "Cancelled",
    "Claimed",
    "Happening",
    "InboxAdapter",
    "ItemRow",
    "Loaded",
    "Owner",
    "is_running",
    "item_row",
    "mark_of",
    "shard_of",
    "short_mark",
)

#: The mark of an item without an external id serves a repeated `accept` alone.
_SHORT_MARK_MS = 60_000

#: Sessions that one call looks at most.
_PAGE = 256

#: The flags of an item as they are stored.
ALONE, URGENT = 1, 2

#: Parts of the keys of an inbox, where a database spreads them over servers.
SHARDS = 64


class ItemRow(msgspec.Struct, frozen=True, gc=False):
    """An item as it is stored, whatever its state."""

    id: str
    session: str
    external_id: str | None
    accepted_at_ms: int
    payload: bytes
    alone: bool = False
    urgent: bool = False
    #: Of a failed one: how often it was tried, and the last error.
    attempts: int = 0
    error: str | None = None


class Owner(msgspec.Struct, frozen=True):
    """A process that runs turns."""

    id: str
    #: Grows with each heartbeat.
    beat: int
    lease_ms: int
    #: Where it runs, so that a neighbour may know that it has ended: see `trunkline.turns.process`.
    process: str
    #: Whether it was found dead, and its turns were given back.
    is_buried: bool = False


class Happening(msgspec.Struct, frozen=True, gc=False):
    """Something to report as an event."""

    name: str
    session: str
    item_ids: tuple[str, ...]
    attempt: int = 0
    #: How long the oldest of the items has waited.
    waited_ms: int = 0


class Begun(msgspec.Struct, frozen=True, gc=False):
    """A turn that has begun, with all that its handler needs."""

    id: str
    session: str
    #: Those of the turn, those that it skips, and those that joined an earlier attempt.
    items: tuple[ItemRow, ...]
    skipped: tuple[ItemRow, ...]
    taken: tuple[ItemRow, ...]
    #: The ids of items that come from an interrupted turn.
    resumed: frozenset[str]
    attempt: int
    deaths: int
    urgent: bool
    #: What its steps are stored under, and the steps of earlier attempts by name.
    group: str
    steps: Mapping[str, bytes]
    #: Why the attempt before failed.
    error: str
    #: The store's clock when it began.
    began_at_ms: int


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """What came of `InboxAdapter.accept`."""

    outcome: str
    item_id: str
    waiting: int
    begun: Begun | None = None
    #: When the session's next turn may begin; `None` for not before an event.
    due_in_ms: int | None = None
    #: Turns that were interrupted.
    ended: tuple[str, ...] = ()
    #: Turns that run, which the item may join.
    joins: tuple[str, ...] = ()
    happened: tuple[Happening, ...] = ()


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """Turns that have begun, and when to ask for more."""

    begun: tuple[Begun, ...] = ()
    #: When the next turn of what was looked at may begin; `None` for not before an event.
    due_in_ms: int | None = None
    #: Whether the turn has failed for good.
    has_failed: bool = False
    happened: tuple[Happening, ...] = ()


class Cancelled(msgspec.Struct, frozen=True):
    """What came of `InboxAdapter.cancel`."""

    count: int
    ended: tuple[str, ...] = ()
    happened: tuple[Happening, ...] = ()


class Beat(msgspec.Struct, frozen=True):
    """What a heartbeat brings back."""

    #: Whether the owner is known and was not found dead.
    is_alive: bool
    #: turn id → (session, whether it may still do something).
    claims: Mapping[str, tuple[str, bool]]
    #: Every process that runs turns, this one included.
    owners: tuple[Owner, ...]


class Loaded(msgspec.Struct, frozen=True, gc=False):
    """What `InboxAdapter.load` has read."""

    now_ms: int
    #: session → its document, or why it cannot be read. A missing one is left out.
    sessions: Mapping[str, Session | TrunklineError]
    #: mark → item id, of those that were seen before.
    seen: Mapping[bytes, str]
    #: Sessions that were not read, but are as this process has left them; nor were their marks.
    #: `apply` tells whether that is so; what is not changed is loaded once more.
    guessed: frozenset[str] = frozenset()


class Applied(msgspec.Struct, frozen=True, gc=False):
    """What `InboxAdapter.apply` has done."""

    #: Sessions that another process has changed meanwhile; nothing of these was written.
    conflicts: frozenset[str] = frozenset()
    #: item id → its row, of those that were asked for.
    rows: Mapping[str, ItemRow] = {}
    #: group → its steps by name, of those that were asked for.
    steps: Mapping[str, Mapping[str, bytes]] = {}
    #: session → why nothing of it was written, where the others were.
    errors: Mapping[str, TrunklineError] = {}


class _Batch:
    """What one round of calls reads and changes."""

    def __init__(self, loaded: Loaded, policy: TurnPolicy, dedupe_ms: int) -> None:
        self.loaded = loaded
        self.policy = policy
        self.dedupe_ms = dedupe_ms
        self.changes: dict[str, Change] = {}
        self.seen: dict[bytes, str] = dict(loaded.seen)

    def change(self, key: str) -> Change:
        found = self.changes.get(key)
        if found is None:
            session = self.loaded.sessions.get(key)
            if isinstance(session, TrunklineError):
                raise session
            found = Change(key, session or Session(), self.policy, self.loaded.now_ms)
            self.changes[key] = found
        return found


class InboxAdapter(Adapter, ABC):
    """The contract of an inbox. Subclass it and run `trunkline.testing.InboxContract`.

    A subclass stores documents: sessions, and what belongs to them. What happens to a session is
    decided by `trunkline.turns.session`, which this class calls between `load` and `apply`. Where a
    database has transactions, both are in one, and `load` locks what it reads. Where it has none,
    `apply` compares, and returns the sessions that somebody else has changed since `load`: the
    calls on these are repeated.
    """

    store: ClassVar = "inbox"
    #: A session's document names its items, which are rows of their own.
    is_copied_whole: ClassVar = True

    #: How the messages of a session become turns. The store sets it.
    policy: TurnPolicy = TurnPolicy()
    #: How long an item is known after it was accepted. The store sets it.
    dedupe_ms: int = 86_400_000

    # -- what a subclass stores --------------------------------------------------------------------

    @abstractmethod
    def load(self, keys: Collection[str], marks: Mapping[bytes, str]) -> Loaded:
        """The documents of sessions, locked where the database can, and which marks are known.

        Args:
            keys: the sessions.
            marks: mark → its session.
        """

    @abstractmethod
    def apply(
        self, changes: Sequence[Change], items: Mapping[str, str], groups: Mapping[str, str]
    ) -> Applied:
        """Write changes, each wholly or not at all; return the items and steps that are asked for.

        A session that is empty now is removed. If `change.notify` is set, other processes that
        `wait` are woken after the commit.

        Args:
            changes: what to write.
            items: item id → its session, of those to return.
            groups: group of steps → its session, of those to return.
        """

    @abstractmethod
    def peek(self, keys: Collection[str]) -> Mapping[str, Session]:
        """Documents of sessions, without a lock. One that cannot be read is left out."""

    @abstractmethod
    def due(self, limit: int, *, urgent_only: bool) -> tuple[list[str], int | None]:
        """Sessions whose turn may begin, those that have waited longest first.

        Returns:
            Their keys, and in how many milliseconds the next one is due that is not yet.
        """

    @abstractmethod
    def recover(self) -> int:
        """Let `due` look at sessions again whose due time was set by a clock that ran ahead."""

    @abstractmethod
    def rows(self, after: str | None, limit: int, *, failed: bool) -> Sequence[ItemRow]:
        """Items in the order of their ids; failed ones, or all others."""

    @abstractmethod
    def row(self, item_id: str) -> ItemRow | None:
        """One item, whatever its state."""

    @abstractmethod
    def remove_failed(self, item_id: str) -> bool:
        """Remove a failed item; whether there was one."""

    @abstractmethod
    def counts(self) -> InboxCounts:
        """How much is stored."""

    @abstractmethod
    def load_policy(self) -> TurnPolicy | None:
        """The policy that was stored last."""

    @abstractmethod
    def save_policy(self, policy: TurnPolicy) -> None:
        """Store the policy for processes that have none of their own."""

    @abstractmethod
    def sweep(self, limit: int) -> int:
        """Remove up to `limit` marks whose time is over; how many there were."""

    # -- processes ---------------------------------------------------------------------------------

    @abstractmethod
    def register(self, owner: Owner) -> None:
        """A process begins to run turns."""

    @abstractmethod
    def unregister(self, owner_id: str) -> None:
        """A process ends; it runs no turns any more."""

    @abstractmethod
    def beat(self, owner_id: str) -> Beat:
        """A process is alive. Called from a thread of its own, on a sibling."""

    @abstractmethod
    def mark_buried(self, owner_id: str) -> None:
        """Note that a process is dead; it is forgotten after an hour."""

    @abstractmethod
    def sessions_of(self, owner_id: str, limit: int) -> list[str]:
        """Sessions with a claim of this process."""

    def wait(self, timeout_ms: int) -> bool:
        """Wait for a notice of another process; whether one came.

        Called from a thread of its own, on a sibling. The default knows no other processes.
        """
        return False

    # -- calls of the store ------------------------------------------------------------------------

    def accept(self, key: str, item: NewItem, claimant: Claimant | None) -> Accepted:
        """Store an item once. Begin a turn with it, if `claimant` is given and one is due."""
        batch = self._batch_of_call
        change = batch.change(key)
        known = batch.seen.get(item.mark)
        if known is not None:
            return self._accept_again(change, item, known)
        outcome, item_id, ended = rules.accept(change, item)
        joins: tuple[str, ...] = ()
        if outcome == "accepted":
            change.marks[item.mark] = batch.seen[item.mark] = item_id
            joins = self._joins(change, item_id)
        claim = None if claimant is None else rules.begin(change, claimant)
        due_in_ms = _until(change.due_at_ms, change.now_ms)
        if (due_in_ms is not None and (claimant is None or due_in_ms == 0)) or joins:
            change.notify = True
        return Accepted(
            outcome,
            item_id,
            change.session.waiting_count,
            self._begun(change, claim),
            due_in_ms,
            tuple(ended),
            joins,
            self._happened(change),
        )

    def _accept_again(self, change: Change, item: NewItem, known: str) -> Accepted:
        outcome = "duplicate"
        joins: tuple[str, ...] = ()
        if item.replace and rules.replace(change, known, item.payload):
            outcome = "accepted"
            joins = self._joins(change, known)
            change.is_changed = True
            change.notify = change.notify or bool(joins)
        elif known == item.id:
            outcome = "accepted"  # a call that is repeated
        due_in_ms = _until(change.due_at_ms, change.now_ms)
        return Accepted(outcome, known, change.session.waiting_count, None, due_in_ms, (), joins)

    def _joins(self, change: Change, item_id: str) -> tuple[str, ...]:
        """The running turns that an item may join."""
        if self.policy.while_busy != "steer":
            return ()
        return tuple(
            [
                claim.id
                for claim in change.session.claims
                if claim.state == RUNNING
                and any(one.id == item_id for one in rules.joinable(change.session, claim.id))
            ]
        )

    def finish(
        self,
        key: str,
        turn_id: str,
        taken: Sequence[str],
        item_ids: Sequence[str],
        again: bool,
        claimant: Claimant | None,
    ) -> Claimed:
        """A turn is done, with the items that joined it; begin the next one.

        Args:
            key: the session.
            turn_id: the turn.
            taken: items that joined it.
            item_ids: all of its items.
            again: whether the reply to an earlier call was lost.
            claimant: who takes the session's next turn.

        Raises:
            TurnLost: the turn may do nothing any more.
        """
        change = self._batch_of_call.change(key)
        if not (again and rules.is_finished(change, turn_id, item_ids)):
            rules.take(change, turn_id, taken)
            rules.finish(change, turn_id, item_ids)
        return self._next(change, claimant)

    def fail(
        self,
        key: str,
        turn_id: str,
        taken: Sequence[str],
        error: str,
        is_final: bool,
        jitter: float,
        claimant: Claimant | None,
        item_ids: Sequence[str] = (),
        again: bool = False,
    ) -> Claimed:
        """A handler has raised: the turn is tried again later, or its items have failed.

        Args:
            key: the session.
            turn_id: the turn.
            taken: items that joined it.
            error: what its handler raised, as text.
            is_final: whether another attempt is of no use.
            jitter: a factor for the delay, around 1.
            claimant: who takes the session's next turn.
            item_ids: all of its items.
            again: whether the reply to an earlier call was lost.

        Raises:
            TurnLost: the turn may do nothing any more.
        """
        change = self._batch_of_call.change(key)
        if again and rules.is_retrying(change, turn_id):
            return self._next(change, claimant)
        if again and item_ids and rules.is_finished(change, turn_id, item_ids):
            return self._next(change, claimant, has_failed=True)
        rules.take(change, turn_id, taken)
        has_failed = rules.fail(change, turn_id, error, is_final=is_final, jitter=jitter)
        return self._next(change, claimant, has_failed=has_failed)

    def stop(self, key: str, turn_id: str, taken: Sequence[str]) -> Claimed:
        """Give a turn back: its items wait again, and the attempt does not count.

        Raises:
            TurnLost: the turn may do nothing any more.
        """
        change = self._batch_of_call.change(key)
        rules.take(change, turn_id, taken)
        rules.stop(change, turn_id)
        return self._next(change, None)

    def end(self, key: str, turn_id: str, claimant: Claimant | None) -> Claimed:
        """The handler of a turn that was cancelled or interrupted has ended."""
        change = self._batch_of_call.change(key)
        rules.end(change, turn_id)
        return self._next(change, claimant)

    def cancel(self, key: str, waiting: bool) -> Cancelled:
        """End what runs in a session and discard what waits."""
        change = self._batch_of_call.change(key)
        count, ended = rules.cancel(change, waiting=waiting)
        change.notify = change.notify or (count > 0 and change.due_at_ms is not None)
        return Cancelled(count, tuple(ended), self._happened(change))

    def join(self, key: str, turn_id: str) -> tuple[ItemRow, ...]:
        """The items that may join a running turn.

        Raises:
            TurnLost: the turn may do nothing any more.
        """
        change = self._batch_of_call.change(key)
        return self._rows_of(change, rules.joinable(change.session, turn_id))

    def take(self, key: str, turn_id: str, taken: Sequence[str]) -> None:
        """Items have joined a running turn.

        Raises:
            TurnLost: the turn may do nothing any more.
        """
        rules.take(self._batch_of_call.change(key), turn_id, taken)

    def step(self, key: str, turn_id: str, taken: Sequence[str], name: str, value: bytes) -> None:
        """Store what a step has returned.

        Raises:
            TurnLost: the turn may do nothing any more.
        """
        change = self._batch_of_call.change(key)
        claim = rules.find_claim(change.session, turn_id)
        rules.take(change, turn_id, taken)
        change.steps[claim.group, name] = value
        claim.has_steps = change.is_changed = True

    def claim(self, claimant: Claimant, limit: int) -> Claimed:
        """Begin turns of the sessions that have waited longest."""
        page = limit = min(limit, _PAGE)
        room = limit
        #: session → how many of its turns have begun.
        counts: dict[str, int] = {}

        def take_turns(change: Change) -> tuple[list[Begun], tuple[Happening, ...], int | None]:
            nonlocal claimant, room
            # Not those of an earlier look, which another process has overtaken.
            room += counts.pop(change.key, 0)
            started = []
            while room > 0:
                claim = rules.begin(change, claimant)
                if claim is None:
                    break
                if claim.deaths >= 2:
                    # One at a time: see `Claimant.takes_suspects`.
                    claimant = msgspec.structs.replace(claimant, takes_suspects=False)
                found = self._begun(change, claim)
                assert found is not None
                started.append(found)
                room -= 1
            counts[change.key] = len(started)
            # Also if nothing has begun: its due time may have been wrong.
            change.is_changed = True
            return started, self._happened(change), _until(change.due_at_ms, change.now_ms)

        happened: list[Happening] = []
        while True:
            keys, due_in_ms = self.due(page, urgent_only=not claimant.is_free)
            begun: list[Begun] = []
            due = [0] if len(keys) == page else [due_in_ms]
            for started, events, next_in_ms in self._each(keys, take_turns):
                begun += started
                happened += events
                due.append(next_in_ms)
            # Those in front may wait for a process that takes suspects, or be unreadable.
            if begun or len(keys) < page or page == _PAGE:
                break
            page = min(4 * page, _PAGE)
        next_due_ms = min((one for one in due if one is not None), default=None)
        return Claimed(tuple(begun), next_due_ms, False, tuple(happened))

    def bury(self, owner_id: str, limit: int) -> tuple[int, tuple[Happening, ...]]:
        """Give back up to `limit` sessions of a process that is dead; how many were given back."""
        self.mark_buried(owner_id)
        keys = self.sessions_of(owner_id, limit)

        def give_back(change: Change) -> tuple[Happening, ...]:
            for claim in rules.abandon(change, owner_id):
                change.events.append(("taken_over", claim.every_entry, claim.attempt))
            # The claim may be known to the index alone.
            change.is_changed = change.notify = True
            return self._happened(change)

        happened = self._each(keys, give_back)
        # Without those that cannot be read: whoever asks until there are no more would never end.
        return len(happened), tuple([one for events in happened for one in events])

    def forget(self, key: str, turn_id: str) -> None:
        """Give back a turn that the store has and its owner does not know: its reply was lost."""
        change = self._batch_of_call.change(key)
        for claim in change.session.claims:
            if claim.id == turn_id:
                if claim.state == RUNNING:
                    rules.stop(change, turn_id)
                else:
                    rules.end(change, turn_id)
                return

    def waiting(self, key: str) -> int:
        """How many items of a session wait."""
        session = self.peek([key]).get(key)
        return 0 if session is None else session.waiting_count

    def oldest_waiting_ms(self) -> int:
        """How long the item that was accepted first waits, of those whose delay is over.

        It looks at the first 1,024 items; 0 if none of them waits.
        """
        now_ms = self.load((), {}).now_ms
        after: str | None = None
        for _ in range(4):
            page = self.rows(after, _PAGE, failed=False)
            sessions = self.peek({row.session for row in page})
            for row in page:
                session = sessions.get(row.session, Session())
                arrived = [
                    entry.arrived_at_ms
                    for entry in session.every_waiting_entry
                    if entry.id == row.id and entry.arrived_at_ms <= now_ms
                ]
                if arrived:
                    return now_ms - arrived[0]
            if len(page) < _PAGE:
                break
            after = page[-1].id
        return 0

    def list_items(self, state: ItemState, limit: int, after: str | None) -> list[ItemRow]:
        """Items in one state, in the order of their ids."""
        if state == "failed":
            return [*self.rows(after, limit, failed=True)]
        found: list[ItemRow] = []
        while len(found) < limit:
            page = self.rows(after, _PAGE, failed=False)
            sessions = self.peek({row.session for row in page})
            for row in page:
                attempt = _attempt_if(state, row, sessions.get(row.session))
                if attempt is not None:
                    found.append(msgspec.structs.replace(row, attempts=attempt))
            if len(page) < _PAGE:
                break
            after = page[-1].id
        return found[:limit]

    def retry(self, item_id: str) -> None:
        """Let a failed item wait again.

        Raises:
            NotFound: there is no such failed item.
        """

        def failed() -> ItemRow:
            row = self.row(item_id)
            if row is None or row.error is None:
                raise NotFound(f"there is no failed item {item_id!r}")
            return row

        def revive(change: Change) -> None:
            # Asked again: another process may have retried it before the session was locked.
            row = failed()
            rules.revive(change, Entry(row.id, row.accepted_at_ms, b"", row.alone, row.urgent))

        row = failed()
        self._one(row.session, revive)

    def discard(self, item_id: str) -> Cancelled:
        """Remove an item that waits, also for another attempt, or has failed; none that runs.

        Raises:
            NotFound: there is no such item.
        """
        row = self.row(item_id)
        if row is None:
            raise NotFound(f"there is no item {item_id!r}")
        if row.error is not None:
            removed = self.remove_failed(item_id)
            return _discarded((Happening("cancelled", row.session, (item_id,)),) if removed else ())

        def discard(change: Change) -> tuple[Happening, ...]:
            entry = rules.discard(change, item_id)
            if entry is not None:
                change.events.append(("cancelled", [entry], 0))
                # What waited behind it may be due now.
                change.notify = change.notify or change.due_at_ms is not None
            return self._happened(change)

        return _discarded(self._one(row.session, discard))

    # -- batches -----------------------------------------------------------------------------------

    #: The batch that the call under way belongs to.
    _batch: _Batch | None = None
    #: Items and groups of steps that its results need → their sessions.
    _wanted: dict[str, str]
    _wanted_groups: dict[str, str]

    def run_together(self, calls: Sequence[Call]) -> None:
        def is_of_a_session(call: Call) -> bool:
            return call.handler.__name__ in _OF_A_SESSION

        for together, group in groupby(calls, key=is_of_a_session):
            if together:
                self._run_calls([*group])
            else:
                for call in group:
                    self._run_one(call)

    def perform(self, method: Callable[..., Any], *args: Any) -> Any:
        if method.__name__ not in _OF_A_SESSION or self._batch is not None:
            return getattr(self, method.__name__)(*args)
        marks = {args[1].mark: args[0]} if method.__name__ == "accept" else {}
        while True:
            batch = self._begin_batch(args[:1], marks)
            try:
                try:
                    value = getattr(self, method.__name__)(*args)
                except TrunklineError:
                    if args[0] in batch.loaded.guessed:
                        continue  # it may be that of a session which is different by now
                    raise
                applied = self._apply(batch)
            finally:
                self._batch = None
            for error in applied.errors.values():
                raise error
            if not applied.conflicts:
                return _with_rows(value, applied)

    def _run_calls(self, calls: Sequence[Call]) -> None:
        """Run calls on sessions: load all of these, change them, and write them, in one go."""
        while calls:
            keys = {call.args[0]: None for call in calls}
            marks = {
                call.args[1].mark: call.args[0]
                for call in calls
                if call.handler.__name__ == "accept"
            }
            batch = self._begin_batch([*keys], marks)
            try:
                for call in calls:
                    try:
                        call.value = getattr(self, call.handler.__name__)(*call.args)
                        call.error = None
                    except TrunklineError as error:
                        call.error = error
                for call in calls:
                    if call.error is None:
                        call.value = _without_ended(batch, call.value)
                applied = self._apply(batch)
            finally:
                self._batch = None
            again = [call for call in calls if call.args[0] in applied.conflicts]
            for call in calls:
                key = call.args[0]
                if key in applied.errors:
                    # Each its own, since raising an exception changes it.
                    call.error = call.error or copy(applied.errors[key])
                elif call.error is None and key not in applied.conflicts:
                    call.value = _with_rows(call.value, applied)
            calls = again

    def _one(self, key: str, function: Callable[[Change], Any]) -> Any:
        """Change one session with `function`; what it returned."""
        (result,) = self._each([key], function, skip_failed=False)
        return result

    def _each(
        self, keys: Sequence[str], function: Callable[[Change], Any], *, skip_failed: bool = True
    ) -> list[Any]:
        """Change sessions, each with `function`; what it returned for each.

        One that cannot be read or written must not hold up the others, and so is left out.
        """
        results: dict[str, Any] = {}
        left = list(dict.fromkeys(keys))
        while left:
            batch = self._begin_batch(left, {})
            try:
                for key in left:
                    try:
                        results[key] = function(batch.change(key))
                    except TrunklineError:
                        if not skip_failed:
                            raise
                applied = self._apply(batch)
            finally:
                self._batch = None
            for key, error in applied.errors.items():
                if not skip_failed:
                    raise error
                del results[key]
            for key in left:
                if key in results and key not in applied.conflicts:
                    results[key] = _with_rows(results[key], applied)
            left = [key for key in left if key in applied.conflicts]
        return [results[key] for key in dict.fromkeys(keys) if key in results]

    def _begin_batch(self, keys: Collection[str], marks: Mapping[bytes, str]) -> _Batch:
        loaded = self.load(keys, marks)
        self._batch = _Batch(loaded, self.policy, self.dedupe_ms)
        self._wanted, self._wanted_groups = {}, {}
        return self._batch

    def _apply(self, batch: _Batch) -> Applied:
        changes = [change for change in batch.changes.values() if change.is_changed]
        own = {
            entry.id: item_row(change.key, entry, item)
            for change in changes
            for entry, item in change.added
            if entry.id in self._wanted
        }
        wanted = {item_id: key for item_id, key in self._wanted.items() if item_id not in own}
        guessed = batch.loaded.guessed.difference([change.key for change in changes])
        if not changes and not wanted and not self._wanted_groups:
            return Applied(guessed)
        applied = self.apply(changes, wanted, self._wanted_groups)
        if not (own or guessed):
            return applied
        return msgspec.structs.replace(
            applied, conflicts=applied.conflicts | guessed, rows={**applied.rows, **own}
        )

    @property
    def _batch_of_call(self) -> _Batch:
        assert self._batch is not None, "outside a batch"
        return self._batch

    def mark_expiry_ms(self, change: Change, item_id: str, mark: bytes) -> int:
        """When a mark of `change` may be swept."""
        return change.now_ms + (_SHORT_MARK_MS if mark == short_mark(item_id) else self.dedupe_ms)

    def _next(
        self, change: Change, claimant: Claimant | None, *, has_failed: bool = False
    ) -> Claimed:
        claim = None if claimant is None else rules.begin(change, claimant)
        begun = self._begun(change, claim)
        due_in_ms = _until(change.due_at_ms, change.now_ms)
        if due_in_ms is not None and (claimant is None or due_in_ms == 0):
            change.notify = True
        return Claimed(
            () if begun is None else (begun,),
            due_in_ms,
            has_failed,
            self._happened(change),
        )

    def _begun(self, change: Change, claim: Claim | None) -> Begun | None:
        if claim is None:
            return None
        if claim.has_steps:
            self._wanted_groups[claim.group] = change.key
        return Begun(
            claim.id,
            change.key,
            self._rows_of(change, claim.entries),
            self._rows_of(change, claim.skipped),
            self._rows_of(change, claim.taken),
            frozenset([entry.id for entry in claim.entries if entry.resumed]),
            claim.attempt,
            claim.deaths,
            claim.urgent,
            claim.group,
            {},
            claim.error,
            change.now_ms,
        )

    def _rows_of(self, change: Change, entries: Iterable[Entry]) -> tuple[ItemRow, ...]:
        """Rows without their payloads, which `_with_rows` puts in once they are read."""
        rows = []
        for entry in entries:
            self._wanted[entry.id] = change.key
            rows.append(ItemRow(entry.id, change.key, None, entry.accepted_at_ms, b""))
        return tuple(rows)

    def _happened(self, change: Change) -> tuple[Happening, ...]:
        if not change.events:
            return ()
        return tuple(
            Happening(
                name,
                change.key,
                tuple(entry.id for entry in entries),
                attempt,
                max((change.now_ms - entry.accepted_at_ms for entry in entries), default=0),
            )
            for name, entries, attempt in change.take_events()
        )


#: Calls whose first argument is a session: they share one `load` and one `apply`.
_OF_A_SESSION = frozenset(
    ("accept", "cancel", "end", "fail", "finish", "forget", "join", "step", "stop", "take")
)


def _until(due_at_ms: int | None, now_ms: int) -> int | None:
    return None if due_at_ms is None else max(due_at_ms - now_ms, 0)


def shard_of(key: str) -> int:
    """The shard of a session."""
    return xxh3_64_intdigest(key.encode()) % SHARDS


def mark_of(key: str, external_id: str) -> bytes:
    """The mark of an item with an external id. Its first byte is the shard of its session."""
    digest = blake2b(f"{key}\0{external_id}".encode(), digest_size=15).digest()
    return bytes((shard_of(key),)) + digest


def short_mark(item_id: str) -> bytes:
    """The mark of an item without an external id: that of its id alone."""
    return bytes.fromhex(item_id.replace("-", ""))


def _discarded(happened: tuple[Happening, ...]) -> Cancelled:
    return Cancelled(len(happened), (), happened)


def item_row(key: str, entry: Entry, item: NewItem) -> ItemRow:
    """The row of an item that was just accepted."""
    return ItemRow(
        entry.id, key, item.external_id, entry.accepted_at_ms, item.payload, item.alone, item.urgent
    )


def is_running(session: Session, turn_id: str) -> bool:
    """Whether a turn may still do something."""
    return any(claim.id == turn_id and claim.state == RUNNING for claim in session.claims)


def _without_ended(batch: _Batch, value: Any) -> Any:
    """`value` without a turn that a later call of the same batch has cancelled or interrupted.

    No handler runs it, and so it has ended; what waits behind it may begin.
    """
    if isinstance(value, Accepted) and value.begun is not None:
        if not _end_early(batch, value.begun):
            return value
        return msgspec.structs.replace(value, begun=None, due_in_ms=0)
    if isinstance(value, Claimed) and value.begun:
        begun = tuple([one for one in value.begun if not _end_early(batch, one)])
        if len(begun) < len(value.begun):
            return msgspec.structs.replace(value, begun=begun, due_in_ms=0)
    return value


def _end_early(batch: _Batch, begun: Begun) -> bool:
    change = batch.change(begun.session)
    if is_running(change.session, begun.id):
        return False
    rules.end(change, begun.id)
    change.notify = True
    return True


def _with_rows(value: Any, applied: Applied) -> Any:
    """`value` with the rows and steps that were read after it was made."""
    if isinstance(value, Accepted):
        if value.begun is None:
            return value
        return msgspec.structs.replace(value, begun=_filled(value.begun, applied))
    if isinstance(value, Claimed):
        if not value.begun:
            return value
        return msgspec.structs.replace(
            value, begun=tuple([_filled(one, applied) for one in value.begun])
        )
    if isinstance(value, tuple | list):
        # Without a lock, an item may have been removed meanwhile.
        found = [one for one in value if not isinstance(one, ItemRow) or one.id in applied.rows]
        return type(value)([_with_rows(one, applied) for one in found])
    if isinstance(value, ItemRow):
        return applied.rows[value.id]
    return _filled(value, applied) if isinstance(value, Begun) else value


def _filled(begun: Begun, applied: Applied) -> Begun:
    rows = applied.rows
    return msgspec.structs.replace(
        begun,
        items=tuple([rows[one.id] for one in begun.items]),
        skipped=tuple([rows[one.id] for one in begun.skipped]),
        taken=tuple([rows[one.id] for one in begun.taken]),
        steps=applied.steps.get(begun.group, {}),
    )


def _attempt_if(state: ItemState, row: ItemRow, session: Session | None) -> int | None:
    """The attempts of an item that is in this state; `None` if it is not."""
    if session is None:
        return None
    for claim in session.claims:
        if any(entry.id == row.id for entry in claim.every_entry):
            is_running = claim.state == RUNNING
            return claim.attempt if is_running == (state == "running") else None
    waits = any(entry.id == row.id for entry in (*session.waiting, *session.delayed))
    return 0 if waits and state == "waiting" else None
