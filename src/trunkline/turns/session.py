"""The state machine of an inbox: what each event does to a session and to its items.

A session is what waits and what runs in one conversation. Every adapter stores it as one document
and changes it with the functions below, inside a transaction; none has rules of its own.

An item is in one of these states; `-` is: not stored, and an empty cell: nothing happens.

| event               | -       | waiting     | running  | retrying | failed  |
|---------------------|---------|-------------|----------|----------|---------|
| accept              | waiting | waiting (1) | running  | retrying | failed  |
| begin               |         | running     |          | running  |         |
| finish              |         |             | -        |          |         |
| fail, attempts left |         |             | retrying |          |         |
| fail, none left     |         |             | failed   |          |         |
| stop, forget        |         |             | retrying |          |         |
| the owner dies      |         |             | retrying |          |         |
| interrupt           |         | waiting     | waiting  | waiting  |         |
| cancel              |         | -           | -        | -        |         |
| expire              |         | - (2)       |          |          |         |
| retry               |         |             |          |          | waiting |
| discard             |         | -           |          | -        | -       |

(1) With `replace`, its payload is replaced. (2) Only before its first turn. What a turn skips
in the mode `latest` and what joined it in the mode `steer` share the state of its items. But what
joined an earlier attempt and not the one that finishes waits again.

What is accepted again is known by a mark of its external id, which also outlives the item: a
handled item that comes again is a duplicate.

A claim is one turn of a session, with its items. Its id is the fencing token: what a cell leaves
empty raises `TurnLost`, where it is the turn that asks.

| event          | -       | running       | retrying          | ending |
|----------------|---------|---------------|-------------------|--------|
| begin          | running |               | running, a new id |        |
| finish         |         | -             |                   |        |
| fail           |         | retrying or - |                   |        |
| stop           |         | retrying      |                   |        |
| forget         |         | retrying      |                   | -      |
| the owner dies |         | retrying      |                   | -      |
| interrupt (3)  |         | ending        | -                 |        |
| cancel         |         | ending        | -                 |        |
| discard        |         |               | - (4)             |        |
| end            |         |               |                   | -      |

(3) But for a turn that is alone, behind an item that is alone, and after five in a row. (4) If it
was the last of its items. `forget` and `end` raise nothing: an owner calls them of a turn that it
has lost.

An ending claim has no items any more and can do nothing; its handler may still run. A session with
a claim in any of these states is busy, unless the claim is urgent: no other turn begins, except
those of urgent items, and in the mode `concurrent`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec
from uuid_utils import uuid7

from trunkline.errors import InboxFull, TurnLost
from trunkline.turns.policy import LONGEST_RETRY_DELAY_MS, TurnPolicy

__all__ = (
    "ENDING",
    "RETRYING",
    "RUNNING",
    "Change",
    "Claim",
    "Claimant",
    "Entry",
    "NewItem",
    "Session",
    "abandon",
    "accept",
    "begin",
    "cancel",
    "discard",
    "due_at",
    "end",
    "fail",
    "find_claim",
    "finish",
    "is_finished",
    "is_retrying",
    "joinable",
    "replace",
    "revive",
    "stop",
    "take",
)

#: So many interruptions in a row; after them an item waits for the end of the turn.
_MOST_INTERRUPTS = 5

RUNNING, RETRYING, ENDING = "running", "retrying", "ending"


class Entry(msgspec.Struct, array_like=True, gc=False):
    """An item, as its session keeps it; its payload is stored apart."""

    id: str
    accepted_at_ms: int
    #: The digest of the external id, or nothing.
    mark: bytes = b""
    alone: bool = False
    urgent: bool = False
    #: How long after `accepted_at_ms` it may be handled.
    delay_ms: int = 0
    #: Whether it was in a turn already, and so never expires.
    begun: bool = False
    #: Whether that turn was interrupted.
    resumed: bool = False

    @property
    def arrived_at_ms(self) -> int:
        return self.accepted_at_ms + self.delay_ms


class Claim(msgspec.Struct, array_like=True):
    """One turn, as its session keeps it."""

    #: New with each attempt: the fencing token.
    id: str
    #: Who runs it; empty while it waits for another attempt.
    owner: str
    entries: list[Entry]
    #: What its steps are stored under: the id of its first attempt.
    group: str
    state: str = RUNNING
    urgent: bool = False
    attempt: int = 1
    #: Older items that it answers as well, in the mode `latest`.
    skipped: list[Entry] = []
    #: Items that joined it, in the mode `steer`, in the order in which its handler took them.
    taken: list[Entry] = []
    #: How many processes died while it ran.
    deaths: int = 0
    #: When the next attempt may begin.
    due_at_ms: int = 0
    has_steps: bool = False
    #: Why the last attempt failed.
    error: str = ""

    @property
    def every_entry(self) -> list[Entry]:
        return [*self.skipped, *self.entries, *self.taken]

    @property
    def count(self) -> int:
        return len(self.skipped) + len(self.entries) + len(self.taken)


class Session(msgspec.Struct, array_like=True):
    """What waits and what runs in one conversation."""

    #: In the order in which they were accepted, urgent ones first.
    waiting: list[Entry] = []
    #: Those whose delay is not over; they hold up nobody.
    delayed: list[Entry] = []
    claims: list[Claim] = []
    #: Turns that were interrupted in a row.
    interrupts: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.waiting or self.delayed or self.claims)

    @property
    def waiting_count(self) -> int:
        count = len(self.waiting) + len(self.delayed)
        for claim in self.claims:
            if claim.state == RETRYING:
                count += claim.count
        return count

    @property
    def every_waiting_entry(self) -> list[Entry]:
        retrying = [claim for claim in self.claims if claim.state == RETRYING]
        return [
            *self.waiting,
            *self.delayed,
            *(entry for claim in retrying for entry in claim.every_entry),
        ]

    @property
    def running_count(self) -> int:
        return sum(claim.count for claim in self.claims if claim.state == RUNNING)


class Claimant(msgspec.Struct, frozen=True, gc=False):
    """A process that runs turns, as it asks for one."""

    owner: str
    #: Whether it has room for a turn. Urgent ones need none.
    is_free: bool = True
    #: Whether it may run a turn that has killed two processes. Asked for by one call at a time, so
    #: that no two such turns run beside each other.
    takes_suspects: bool = False


class NewItem(msgspec.Struct, frozen=True, gc=False):
    """An item on its way into the inbox."""

    id: str
    payload: bytes
    external_id: str | None
    #: 16 bytes that are the same for the same item; see `Inbox.accept`.
    mark: bytes
    alone: bool = False
    urgent: bool = False
    delay_ms: int = 0
    replace: bool = False


class Change:
    """What an adapter has to write for one session, collected while its document is changed."""

    __slots__ = (
        "added",
        "claimed",
        "ended_groups",
        "events",
        "failed",
        "is_changed",
        "key",
        "marks",
        "notify",
        "now_ms",
        "policy",
        "released",
        "removed",
        "replaced",
        "revived",
        "session",
        "steps",
    )

    def __init__(self, key: str, session: Session, policy: TurnPolicy, now_ms: int) -> None:
        self.key = key
        self.session = session
        self.policy = policy
        #: The store's clock: milliseconds since 1970.
        self.now_ms = now_ms
        self.is_changed = False
        #: Whether other processes should look.
        self.notify = False
        self.added: list[tuple[Entry, NewItem]] = []
        #: item id → new payload.
        self.replaced: dict[str, bytes] = {}
        #: Items that are done.
        self.removed: list[str] = []
        #: item → attempts and the last error.
        self.failed: list[tuple[Entry, int, str]] = []
        self.revived: list[str] = []
        #: mark → item id.
        self.marks: dict[bytes, str] = {}
        #: turn id → owner.
        self.claimed: dict[str, str] = {}
        self.released: dict[str, str] = {}
        #: (group, name) → value.
        self.steps: dict[tuple[str, str], bytes] = {}
        #: Groups whose steps are not needed any more.
        self.ended_groups: list[str] = []
        #: What happened: name, items, attempt.
        self.events: list[tuple[str, Sequence[Entry], int]] = []

    @property
    def due_at_ms(self) -> int | None:
        return due_at(self.session, self.policy, self.now_ms)

    def take_events(self) -> list[tuple[str, Sequence[Entry], int]]:
        events, self.events = self.events, []
        return events

    def remove(self, entries: Iterable[Entry]) -> None:
        self.removed.extend([entry.id for entry in entries])

    def claim(self, claim: Claim) -> None:
        self.is_changed = True
        self.claimed[claim.id] = claim.owner

    def release(self, claim: Claim) -> None:
        """`claim` belongs to its owner no longer."""
        self.is_changed = True
        if self.claimed.pop(claim.id, None) is None:
            self.released[claim.id] = claim.owner


# -- items come --------------------------------------------------------------------------------


def accept(change: Change, item: NewItem) -> tuple[str, str, list[str]]:
    """An item comes that is no duplicate.

    Returns:
        The outcome, the item's id, and the turns that were interrupted.

    Raises:
        InboxFull: as many wait as may, and the policy refuses more.
    """
    session, policy, now_ms = change.session, change.policy, change.now_ms
    busy = [claim for claim in session.claims if not claim.urgent]
    if policy.while_busy == "drop" and busy and not (item.urgent or item.delay_ms):
        return "dropped", item.id, []
    entry = Entry(item.id, now_ms, item.mark, item.alone, item.urgent, item.delay_ms)
    if item.delay_ms:
        session.delayed.append(entry)
    else:
        if not item.urgent:
            _make_room(change)
        _line_up(session, entry)
    change.added.append((entry, item))
    change.is_changed = True
    interrupted: list[str] = []
    is_ordinary = not (item.urgent or item.alone or item.delay_ms)
    if policy.while_busy == "interrupt" and is_ordinary and not _has_barrier(session):
        interrupted = _interrupt(change, busy)
    return "accepted", item.id, interrupted


def replace(change: Change, item_id: str, payload: bytes) -> bool:
    """The payload of an item that still waits is replaced; whether it still waits."""
    session = change.session
    for entry in (*session.waiting, *session.delayed):
        if entry.id == item_id:
            change.replaced[item_id] = payload
            return True
    return False


def _make_room(change: Change) -> None:
    session, policy = change.session, change.policy
    if len(session.waiting) < policy.max_waiting:
        return
    expired = _expired(change)
    ordinary = [entry for entry in session.waiting if not entry.urgent and entry not in expired]
    if len(ordinary) < policy.max_waiting:
        _expire(change)
        return
    # Nothing is changed before this: a call that raises leaves the session as it is.
    if policy.when_full == "refuse":
        raise InboxFull(
            f"{len(ordinary)} items of session {change.key!r} wait already: nothing was stored"
        )
    excess = ordinary[: len(ordinary) - policy.max_waiting + 1]
    session.waiting = [entry for entry in session.waiting if entry not in excess]
    change.remove(excess)
    change.events.append(("dropped", excess, 0))


def _has_barrier(session: Session) -> bool:
    """Whether what comes now cannot be in the next turn."""
    return any(entry.alone and not entry.urgent for entry in session.waiting)


def _line_up(session: Session, entry: Entry) -> None:
    """An item waits behind all others; an urgent one behind those that are urgent."""
    if entry.urgent:
        session.waiting.insert(_first_ordinary(session.waiting), entry)
    else:
        session.waiting.append(entry)


def _put_back(session: Session, entries: Iterable[Entry]) -> None:
    """Items of a turn wait again, before all others but the urgent ones."""
    place = _first_ordinary(session.waiting)
    session.waiting[place:place] = entries


def _first_ordinary(waiting: Sequence[Entry]) -> int:
    """Where the urgent items end."""
    for place, entry in enumerate(waiting):
        if not entry.urgent:
            return place
    return len(waiting)


def _interrupt(change: Change, claims: Sequence[Claim]) -> list[str]:
    """Give back the items of the turns that an ordinary item interrupts."""
    session = change.session
    interrupted = []
    for claim in claims:
        if claim.state == ENDING or _is_alone(claim) or session.interrupts >= _MOST_INTERRUPTS:
            continue
        session.interrupts += 1
        entries = claim.every_entry
        for entry in entries:
            entry.resumed = True
        _put_back(session, entries)
        change.ended_groups.append(claim.group)
        if claim.state == RUNNING:
            interrupted.append(claim.id)
            change.events.append(("interrupted", entries, claim.attempt))
        _close(change, claim)
    return interrupted


def _close(change: Change, claim: Claim) -> None:
    """The claim can do nothing from now on; a running one lasts until its handler has ended."""
    change.is_changed = True
    if claim.state == RUNNING:
        claim.state = ENDING
        claim.entries, claim.skipped, claim.taken = [], [], []
        change.notify = True
    else:
        change.session.claims.remove(claim)


# -- turns begin -------------------------------------------------------------------------------


def begin(change: Change, claimant: Claimant) -> Claim | None:
    """Begin the turn that is due, if there is one that `claimant` may run."""
    session, policy, now_ms = change.session, change.policy, change.now_ms
    _mature(change)
    _expire(change)
    for claim in session.claims:
        if claim.urgent and claim.state == RETRYING and _is_due(claim, now_ms):
            return _run_again(change, claim, claimant)
    if session.waiting and session.waiting[0].urgent:
        return _run(change, [session.waiting.pop(0)], [], claimant)
    if not claimant.is_free:
        return None
    ordinary = [claim for claim in session.claims if not claim.urgent]
    is_concurrent = policy.while_busy == "concurrent"
    if ordinary and not is_concurrent and any(claim.state != RETRYING for claim in ordinary):
        return None
    for claim in ordinary:
        if claim.state == RETRYING and _is_due(claim, now_ms):
            if claim.deaths >= 2 and not claimant.takes_suspects:
                continue
            return _run_again(change, claim, claimant)
    if ordinary and not (is_concurrent and not any(_is_alone(claim) for claim in ordinary)):
        return None
    ready_at = _ready_at(session, policy, now_ms)
    if ready_at is None or ready_at > now_ms:
        return None
    group, skipped = _next_group(session.waiting, policy)
    if ordinary and group[0].alone:
        return None
    del session.waiting[: len(group) + len(skipped)]
    return _run(change, group, skipped, claimant)


def due_at(session: Session, policy: TurnPolicy, now_ms: int) -> int | None:
    """When `begin` should be tried next; 0 for an urgent item, `None` for not before an event."""
    waiting = session.waiting
    if waiting and waiting[0].urgent:
        return 0
    due = [entry.arrived_at_ms for entry in session.delayed if entry.urgent]
    is_concurrent = policy.while_busy == "concurrent"
    ordinary: list[Claim] = []
    is_busy = False
    for claim in session.claims:
        if not claim.urgent:
            ordinary.append(claim)
            is_busy = is_busy or claim.state != RETRYING
        elif claim.state == RETRYING:
            due.append(claim.due_at_ms)
    if is_concurrent or not is_busy:
        due += [claim.due_at_ms for claim in ordinary if claim.state == RETRYING]
        if not ordinary or (is_concurrent and not any(map(_is_alone, ordinary))):
            ready = _ready_at(session, policy, now_ms)
            if ready is not None and not (ordinary and waiting[0].alone):
                due.append(ready)
            due += [entry.arrived_at_ms for entry in session.delayed]
    return min(due, default=None)


def _ready_at(session: Session, policy: TurnPolicy, now_ms: int) -> int | None:
    """When the next turn of what waits may begin, if none runs."""
    waiting = session.waiting
    if not waiting:
        return None
    first = waiting[0]
    if first.alone or not policy.quiet_ms:
        return min(first.arrived_at_ms, now_ms)
    fresh: list[Entry] = []
    for entry in waiting:
        if entry.alone:
            return min(first.arrived_at_ms, now_ms)  # a barrier ends the wait
        if not entry.begun:
            fresh.append(entry)
    if not fresh:
        return min(first.arrived_at_ms, now_ms)
    quiet_at = fresh[-1].arrived_at_ms + policy.quiet_ms
    latest_at = fresh[0].arrived_at_ms + policy.max_quiet_ms
    ready_at = min(quiet_at, latest_at)
    # A clock that was set back must not prolong the wait.
    return ready_at if ready_at <= now_ms + 2 * policy.quiet_ms else now_ms


def _next_group(waiting: Sequence[Entry], policy: TurnPolicy) -> tuple[list[Entry], list[Entry]]:
    """The items of the next turn, and those that it skips: those that have waited longest."""
    if waiting[0].alone or policy.while_busy in ("queue", "concurrent"):
        return [waiting[0]], []
    group: list[Entry] = []
    for entry in waiting:
        if entry.alone:
            break
        group.append(entry)
    if policy.while_busy == "latest":
        return group[-1:], group[:-1]
    return group, []


def _mature(change: Change) -> None:
    """Let those join whose delay is over, in the order of their arrival."""
    session, now_ms = change.session, change.now_ms
    if not session.delayed:
        return
    due = [
        entry
        for entry in session.delayed
        # A clock that was set back must not prolong the delay.
        if entry.arrived_at_ms <= now_ms or entry.accepted_at_ms > now_ms + entry.delay_ms
    ]
    if due:
        session.delayed = [entry for entry in session.delayed if entry not in due]
        change.is_changed = True
    for entry in due:
        later = (
            index
            for index, other in enumerate(session.waiting)
            if entry.urgent >= other.urgent and other.arrived_at_ms > entry.arrived_at_ms
        )
        place = _first_ordinary(session.waiting) if entry.urgent else len(session.waiting)
        session.waiting.insert(next(later, place), entry)


def _expire(change: Change) -> None:
    expired = _expired(change)
    if expired:
        session = change.session
        session.waiting = [entry for entry in session.waiting if entry not in expired]
        change.is_changed = True
        change.remove(expired)
        change.events.append(("expired", expired, 0))


def _expired(change: Change) -> list[Entry]:
    """What has waited too long for its first turn."""
    expire_after_ms = change.policy.expire_after_ms
    if expire_after_ms is None:
        return []
    latest = change.now_ms - expire_after_ms
    return [
        entry
        for entry in change.session.waiting
        if not entry.begun and entry.arrived_at_ms <= latest
    ]


def _is_due(claim: Claim, now_ms: int) -> bool:
    # A clock that was set back must not prolong the wait.
    return claim.due_at_ms <= now_ms or claim.due_at_ms > now_ms + 2 * LONGEST_RETRY_DELAY_MS


def _is_alone(claim: Claim) -> bool:
    return bool(claim.entries) and claim.entries[0].alone


def _run(change: Change, entries: list[Entry], skipped: list[Entry], claimant: Claimant) -> Claim:
    turn_id = str(uuid7())
    for entry in entries:
        entry.begun = True
    claim = Claim(
        turn_id, claimant.owner, entries, turn_id, urgent=entries[0].urgent, skipped=skipped
    )
    change.session.claims.append(claim)
    change.claim(claim)
    return claim


def _run_again(change: Change, claim: Claim, claimant: Claimant) -> Claim:
    claim.id = str(uuid7())
    claim.owner = claimant.owner
    claim.state = RUNNING
    claim.attempt += 1
    change.claim(claim)
    return claim


# -- turns run and end -------------------------------------------------------------------------


def find_claim(session: Session, turn_id: str, state: str = RUNNING) -> Claim:
    """The claim of a turn that may still do something.

    Raises:
        TurnLost: it may not: it was cancelled, interrupted or taken over.
    """
    for claim in session.claims:
        if claim.id == turn_id and claim.state == state:
            return claim
    raise TurnLost(f"turn {turn_id} was cancelled, interrupted or taken over")


def finish(change: Change, turn_id: str, item_ids: Collection[str]) -> None:
    """The handler of a turn returned: its items are done.

    Args:
        change: the session.
        turn_id: the turn.
        item_ids: what its handler had. Those that only an earlier attempt took wait again.
    """
    claim = find_claim(change.session, turn_id)
    left = [entry for entry in claim.taken if entry.id not in item_ids]
    if left:
        claim.taken = [entry for entry in claim.taken if entry.id in item_ids]
        for entry in left:
            entry.begun = True
        _put_back(change.session, left)
    change.remove(claim.every_entry)
    if not claim.urgent:
        change.session.interrupts = 0
    _remove_claim(change, claim)


def is_finished(change: Change, turn_id: str, item_ids: Iterable[str]) -> bool:
    """Whether a turn whose reply to `finish` was lost has finished: nothing of it is left."""
    session = change.session
    if any(claim.id == turn_id for claim in session.claims):
        return False
    stored = {entry.id for entry in (*session.waiting, *session.delayed)}
    for claim in session.claims:
        stored.update(entry.id for entry in claim.every_entry)
    return stored.isdisjoint(item_ids)


def fail(change: Change, turn_id: str, error: str, *, is_final: bool, jitter: float) -> bool:
    """The handler of a turn raised; whether its items have failed for good.

    Args:
        change: the session.
        turn_id: the turn.
        error: what the handler raised, as text.
        is_final: whether another attempt is of no use.
        jitter: a factor for the delay, around 1.
    """
    session, policy = change.session, change.policy
    claim = find_claim(session, turn_id)
    if is_final or claim.attempt >= policy.max_attempts:
        change.failed += [(entry, claim.attempt, error) for entry in claim.every_entry]
        if not claim.urgent:
            session.interrupts = 0
        _remove_claim(change, claim)
        return True
    delay_ms = min(policy.retry_delay_ms << min(claim.attempt - 1, 20), LONGEST_RETRY_DELAY_MS)
    claim.error = error
    _rest(change, claim, change.now_ms + int(delay_ms * jitter))
    return False


def is_retrying(change: Change, turn_id: str) -> bool:
    """Whether a turn waits for another attempt than this one."""
    return any(one.id == turn_id and one.state == RETRYING for one in change.session.claims)


def stop(change: Change, turn_id: str) -> None:
    """A turn is given back by its owner: it begins anew, and this attempt does not count."""
    claim = find_claim(change.session, turn_id)
    claim.attempt -= 1
    change.notify = True
    _rest(change, claim, change.now_ms)


def end(change: Change, turn_id: str) -> None:
    """The handler of a turn that was cancelled or interrupted has ended."""
    for claim in change.session.claims:
        if claim.id == turn_id and claim.state == ENDING:
            _remove_claim(change, claim)
            return


def abandon(change: Change, owner: str) -> list[Claim]:
    """A process has died: its turns begin anew elsewhere; those turns."""
    abandoned = []
    for claim in [*change.session.claims]:
        if claim.owner != owner:
            continue
        if claim.state == ENDING:
            _remove_claim(change, claim)
        elif claim.state == RUNNING:
            claim.deaths += 1
            claim.error = "the process that ran it has died"
            _rest(change, claim, change.now_ms)
            abandoned.append(claim)
    return abandoned


def cancel(change: Change, *, waiting: bool) -> tuple[int, list[str]]:
    """End what runs and discard what waits, but for urgent items.

    Returns:
        How many items that were, and the turns that ran.
    """
    session = change.session
    cancelled: list[Entry] = []
    ended = []
    for claim in [*session.claims]:
        if claim.urgent or claim.state == ENDING:
            continue
        cancelled += claim.every_entry
        change.ended_groups.append(claim.group)
        if claim.state == RUNNING:
            ended.append(claim.id)
        _close(change, claim)
    if waiting:
        cancelled += [entry for entry in session.waiting if not entry.urgent]
        cancelled += [entry for entry in session.delayed if not entry.urgent]
        session.waiting = [entry for entry in session.waiting if entry.urgent]
        session.delayed = [entry for entry in session.delayed if entry.urgent]
    if cancelled:
        session.interrupts = 0
        change.is_changed = True
        change.remove(cancelled)
        change.events.append(("cancelled", cancelled, 0))
    return len(cancelled), ended


def joinable(session: Session, turn_id: str) -> list[Entry]:
    """The items that may join a running turn: those before the first that stands alone.

    Raises:
        TurnLost: the turn may do nothing any more.
    """
    claim = find_claim(session, turn_id)
    if claim.urgent or _is_alone(claim):
        return []
    found = []
    for entry in session.waiting:
        if entry.urgent:
            continue
        if entry.alone:
            break
        found.append(entry)
    return found


def take(change: Change, turn_id: str, item_ids: Iterable[str]) -> None:
    """Items that wait have joined a running turn. One that has already is left as it is."""
    claim = find_claim(change.session, turn_id)
    wanted = set(item_ids)
    if not wanted:
        return
    taken = [entry for entry in change.session.waiting if entry.id in wanted]
    if taken:
        change.is_changed = True
        change.session.waiting = [one for one in change.session.waiting if one not in taken]
        claim.taken.extend(taken)


def revive(change: Change, entry: Entry) -> None:
    """A failed item is tried again, behind what waits."""
    entry.begun = True
    _line_up(change.session, entry)
    change.revived.append(entry.id)
    change.is_changed = True
    change.notify = True


def discard(change: Change, item_id: str) -> Entry | None:
    """Remove an item that waits, also for another attempt; `None` if it does not."""
    session = change.session
    retrying = [claim for claim in session.claims if claim.state == RETRYING]
    lists = [session.waiting, session.delayed]
    for claim in retrying:
        lists += [claim.entries, claim.skipped, claim.taken]
    for entries in lists:
        for entry in entries:
            if entry.id == item_id:
                entries.remove(entry)
                change.remove([entry])
                change.is_changed = True
                _close_empty(change, retrying)
                return entry
    return None


def _close_empty(change: Change, claims: Iterable[Claim]) -> None:
    """A turn without an item of its own is not tried again; what joined it waits."""
    for claim in claims:
        if not claim.entries:
            _put_back(change.session, [*claim.skipped, *claim.taken])
            change.ended_groups.append(claim.group)
            change.session.claims.remove(claim)


def _rest(change: Change, claim: Claim, due_at_ms: int) -> None:
    """Let a turn wait for its next attempt."""
    change.release(claim)
    claim.state = RETRYING
    claim.owner = ""
    claim.due_at_ms = due_at_ms


def _remove_claim(change: Change, claim: Claim) -> None:
    change.session.claims.remove(claim)
    change.release(claim)
    if claim.has_steps:
        change.ended_groups.append(claim.group)
