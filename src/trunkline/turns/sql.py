"""The inbox in a SQL database: a document a session, and a row for each item and claim."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from time import monotonic
from typing import Any, ClassVar, Self

import msgspec
import sqlalchemy as sa
from uuid_utils import uuid7

from trunkline.actors.clock import wall_clock_ms
from trunkline.backends import AdapterOptions
from trunkline.backends.sql import Database, SQLAdapter
from trunkline.errors import UnreadableRecord
from trunkline.turns.adapter import Applied, Beat, InboxAdapter, ItemRow, Loaded, Owner, is_running
from trunkline.turns.item import InboxCounts
from trunkline.turns.policy import TurnPolicy
from trunkline.turns.session import Change, Session

__all__ = ("SQLInboxAdapter",)

_metadata = sa.MetaData()

#: Sorted by code points everywhere, whatever the locale of a PostgreSQL database.
_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

#: How long the server's clock is known by what it said and the time since, in seconds.
_CLOCK_SECONDS = 1.0

#: How long a process that was found dead is remembered, in milliseconds.
_GRAVE_MS = 3_600_000

_ALONE, _URGENT = 1, 2


def _table(name: str, *columns: sa.Column[Any] | sa.Index) -> sa.Table:
    namespace = sa.Column("namespace", _TEXT, primary_key=True)
    return sa.Table(f"trunkline_inbox_{name}", _metadata, namespace, *columns)


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, _TEXT, primary_key=True)


def _instant(name: str, *, nullable: bool = False) -> sa.Column[int]:
    """Milliseconds since 1970, by the clock of the server."""
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _bytes(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


#: What waits and what runs; a row only while there is something.
sessions = _table(
    "sessions",
    _key("session"),
    #: When its next turn may begin; NULL for not before an event.
    _instant("due_at_ms", nullable=True),
    #: When that was determined.
    _instant("set_at_ms"),
    _number("waiting"),
    _number("running"),
    #: `trunkline.turns.session.Session` as msgpack.
    _bytes("document"),
)
_due = sessions.c.due_at_ms
sa.Index(
    "trunkline_inbox_sessions_by_due",
    sessions.c.namespace,
    _due,
    sqlite_where=_due.is_not(None),
    postgresql_where=_due.is_not(None),
)

#: Every item that is not done.
items = _table(
    "items",
    _key("id"),
    sa.Column("session", _TEXT, nullable=False),
    sa.Column("external_id", _TEXT),
    _instant("accepted_at_ms"),
    #: 1 if it is alone, plus 2 if it is urgent.
    _number("flags"),
    #: Of one that has failed; the error is NULL for all others.
    _number("attempts"),
    sa.Column("error", _TEXT),
    _bytes("payload"),
)
_error = items.c.error
sa.Index(
    "trunkline_inbox_items_failed",
    items.c.namespace,
    items.c.id,
    sqlite_where=_error.is_not(None),
    postgresql_where=_error.is_not(None),
)

#: What was accepted, for as long as it may come again.
marks = _table(
    "marks",
    #: The 16 bytes in base64, without padding.
    _key("mark"),
    sa.Column("item_id", _TEXT, nullable=False),
    _instant("expires_at_ms"),
)
sa.Index("trunkline_inbox_marks_by_end", marks.c.namespace, marks.c.expires_at_ms)

#: Turns by their owners.
claims = _table("claims", _key("owner"), _key("turn"), sa.Column("session", _TEXT, nullable=False))

#: Processes that run turns.
owners = _table(
    "owners",
    _key("owner"),
    sa.Column("beat", sa.BigInteger, nullable=False),
    sa.Column("lease_ms", sa.BigInteger, nullable=False),
    sa.Column("process", _TEXT, nullable=False),
    _instant("buried_at_ms", nullable=True),
)

#: What the steps of turns returned.
steps = _table(
    "steps",
    _key("turn_group"),
    _key("name"),
    sa.Column("session", _TEXT, nullable=False),
    _bytes("value"),
)

#: The policy that was stored last, as JSON.
policies = _table("policy", sa.Column("policy", _TEXT, nullable=False))

MIGRATIONS = (_metadata.create_all,)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Session).decode


class SQLInboxAdapter(SQLAdapter, InboxAdapter):
    """Sessions in a table, locked from `load` to the commit.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory), or `postgresql://…`.
        clock: milliseconds since 1970. A server's own clock takes its place.
        namespace: leads every key.
        timeout_ms: how long one statement, or waiting for a lock, may take.
    """

    sql_tables: ClassVar = (sessions, items, marks, claims, owners, steps, policies)
    migrations: ClassVar = MIGRATIONS

    def __init__(
        self,
        url: str,
        clock: Callable[[], int] = wall_clock_ms,
        *,
        namespace: str = "default",
        timeout_ms: int = 5_000,
    ) -> None:
        self._clock = clock
        #: Names this object and its siblings in notices.
        self._sender = str(uuid7())
        super().__init__(url, namespace=namespace, timeout_ms=timeout_ms)

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls(url, options.clock, namespace=options.namespace, timeout_ms=options.timeout_ms)

    def _adopt(self, database: Database) -> None:
        super()._adopt(database)
        # What the server's clock is ahead of the monotonic clock, and until when that counts.
        self._ahead_ms, self._ahead_until = 0, 0.0

    # -- sessions ----------------------------------------------------------------------------------

    def load(self, keys: Collection[str], marks_: Mapping[bytes, str]) -> Loaded:
        database = self.database
        database.lock_keys([f"{self.namespace}/{key}" for key in keys])
        now_ms = self._now_ms()
        found = database.find(sessions, self._keys(keys), (sessions.c.session, sessions.c.document))
        seen = {}
        if marks_:
            texts = {_mark_text(mark): mark for mark in marks_}
            for row in database.find(marks, self._keys(texts)):
                if row[3] > now_ms:
                    seen[texts[row[1]]] = row[2]
        return Loaded(now_ms, {key: _session(key, document) for key, document in found}, seen)

    def apply(
        self, changes: Sequence[Change], item_ids: Collection[str], groups: Collection[str]
    ) -> Applied:
        self._write_items(changes)
        self._write_claims(changes)
        self._write_steps(changes)
        self._write_sessions(changes)
        if any(change.notify for change in changes):
            self.database.notify(self._channel, self._sender)
        rows = self.database.find(items, self._keys(item_ids)) if item_ids else ()
        return Applied(rows={row[1]: _item(row) for row in rows}, steps=self._read_steps(groups))

    def peek(self, keys: Collection[str]) -> Mapping[str, Session]:
        found = self.database.find(
            sessions, self._keys(keys), (sessions.c.session, sessions.c.document)
        )
        decoded = {key: _session(key, document) for key, document in found}
        return {key: one for key, one in decoded.items() if isinstance(one, Session)}

    def due(self, limit: int, *, urgent_only: bool) -> tuple[list[str], int | None]:
        now_ms = self._now_ms()
        latest = {"namespace": self.namespace, "last": 0 if urgent_only else now_ms}
        keys = [row[0] for row in self.database.execute(_DUE, {**latest, "limit": limit}).rows]
        ((later,),) = self.database.execute(_NEXT_DUE, latest).rows
        return keys, None if later is None else max(later - now_ms, 0)

    def recover(self) -> int:
        parameters = {"in_namespace": self.namespace, "now": self._now_ms()}
        return self.database.execute(_RECOVER, parameters).rowcount

    def _write_items(self, changes: Sequence[Change]) -> None:
        database = self.database
        added = [
            self._row(
                id=entry.id,
                session=change.key,
                external_id=item.external_id,
                accepted_at_ms=entry.accepted_at_ms,
                flags=_ALONE * entry.alone + _URGENT * entry.urgent,
                attempts=0,
                error=None,
                payload=item.payload,
            )
            for change in changes
            for entry, item in change.added
        ]
        database.upsert(items, added)
        known = [
            self._row(
                mark=_mark_text(mark),
                item_id=item_id,
                expires_at_ms=self.mark_expiry_ms(change, item_id, mark),
            )
            for change in changes
            for mark, item_id in change.marks.items()
        ]
        database.upsert(marks, known)
        for change in changes:
            for item_id, payload in change.replaced.items():
                self._update_item(item_id, payload=payload)
            for entry, attempts, error in change.failed:
                self._update_item(entry.id, attempts=attempts, error=error.replace("\0", ""))
            for item_id in change.revived:
                self._update_item(item_id, attempts=0, error=None)
        removed = [item_id for change in changes for item_id in change.removed]
        database.delete(items, self._keys(removed))

    def _update_item(self, item_id: str, **values: object) -> None:
        is_it = (items.c.namespace == self.namespace) & (items.c.id == item_id)
        self.database.connection.execute(sa.update(items).where(is_it).values(values))

    def _write_claims(self, changes: Sequence[Change]) -> None:
        released = [
            (self.namespace, owner, turn_id)
            for change in changes
            for turn_id, owner in change.released.items()
        ]
        self.database.delete(claims, released)
        claimed = [
            self._row(owner=owner, turn=turn_id, session=change.key)
            for change in changes
            for turn_id, owner in change.claimed.items()
        ]
        self.database.upsert(claims, claimed)

    def _write_steps(self, changes: Sequence[Change]) -> None:
        stored = [
            self._row(turn_group=group, name=name, session=change.key, value=value)
            for change in changes
            for (group, name), value in change.steps.items()
        ]
        self.database.upsert(steps, stored)
        groups = [group for change in changes for group in change.ended_groups]
        self.database.delete(steps, self._keys(groups), by=(steps.c.namespace, steps.c.turn_group))

    def _read_steps(self, groups: Collection[str]) -> dict[str, dict[str, bytes]]:
        found: dict[str, dict[str, bytes]] = {}
        if groups:
            by = (steps.c.namespace, steps.c.turn_group)
            for row in self.database.find(steps, self._keys(groups), by=by):
                found.setdefault(row[1], {})[row[2]] = bytes(row[4])
        return found

    def _write_sessions(self, changes: Sequence[Change]) -> None:
        stored = [
            self._row(
                session=change.key,
                due_at_ms=change.due_at_ms,
                set_at_ms=change.now_ms,
                waiting=change.session.waiting_count,
                running=change.session.running_count,
                document=_encode(change.session),
            )
            for change in changes
            if not change.session.is_empty
        ]
        self.database.upsert(sessions, stored)
        empty = [change.key for change in changes if change.session.is_empty]
        self.database.delete(sessions, self._keys(empty))

    # -- items -------------------------------------------------------------------------------------

    def rows(self, after: str | None, limit: int, *, failed: bool) -> Sequence[ItemRow]:
        statement = _ROWS[failed]
        parameters = {"namespace": self.namespace, "after": after or "", "limit": limit}
        return [_item(row) for row in self.database.execute(statement, parameters).rows]

    def row(self, item_id: str) -> ItemRow | None:
        found = self.database.find(items, self._keys([item_id]))
        return _item(found[0]) if found else None

    def remove_failed(self, item_id: str) -> bool:
        row = self.row(item_id)
        if row is None or row.error is None:
            return False
        self.database.delete(items, self._keys([item_id]))
        return True

    def counts(self) -> InboxCounts:
        parameters = {"namespace": self.namespace}
        ((count, waiting, running),) = self.database.execute(_COUNTS, parameters).rows
        ((failed,),) = self.database.execute(_FAILED, parameters).rows
        return InboxCounts(count, int(waiting), int(running), failed)

    def load_policy(self) -> TurnPolicy | None:
        found = self.database.find(policies, [(self.namespace,)])
        return msgspec.json.decode(found[0][1], type=TurnPolicy) if found else None

    def save_policy(self, policy: TurnPolicy) -> None:
        self.database.upsert(policies, [self._row(policy=msgspec.json.encode(policy).decode())])

    def sweep(self, limit: int) -> int:
        parameters = {"namespace": self.namespace, "now": self._now_ms(), "limit": limit}
        expired = [row[0] for row in self.database.execute(_EXPIRED_MARKS, parameters).rows]
        self.database.delete(marks, self._keys(expired))
        return len(expired)

    # -- processes ---------------------------------------------------------------------------------

    def register(self, owner: Owner) -> None:
        row = self._row(
            owner=owner.id,
            beat=owner.beat,
            lease_ms=owner.lease_ms,
            process=owner.process,
            buried_at_ms=None,
        )
        self.database.upsert(owners, [row])
        # Others should watch it from now on.
        self.database.notify(self._channel, self._sender)

    def unregister(self, owner_id: str) -> None:
        self.database.delete(owners, self._keys([owner_id]))

    def beat(self, owner_id: str) -> Beat:
        parameters = {"in_namespace": self.namespace, "of_owner": owner_id}
        is_alive = self.database.execute(_BEAT, parameters).rowcount > 0
        known = self.database.execute(_OWNERS, {"namespace": self.namespace}).rows
        held = self.database.execute(_CLAIMS, parameters).rows
        documents = self.peek({session for _, session in held})
        return Beat(
            is_alive,
            {
                turn: (key, key in documents and is_running(documents[key], turn))
                for turn, key in held
            },
            tuple(
                Owner(owner, beat, lease_ms, process, is_buried=buried_at_ms is not None)
                for owner, beat, lease_ms, process, buried_at_ms in known
            ),
        )

    def mark_buried(self, owner_id: str) -> None:
        now_ms = self._now_ms()
        mine = owners.c.namespace == self.namespace
        self.database.connection.execute(
            sa.update(owners)
            .where(mine, owners.c.owner == owner_id, owners.c.buried_at_ms.is_(None))
            .values(buried_at_ms=now_ms)
        )
        self.database.connection.execute(
            sa.delete(owners).where(mine, owners.c.buried_at_ms < now_ms - _GRAVE_MS)
        )

    def sessions_of(self, owner_id: str, limit: int) -> list[str]:
        parameters = {"in_namespace": self.namespace, "of_owner": owner_id}
        held = self.database.execute(_CLAIMS, parameters).rows
        return [*dict.fromkeys(session for _, session in held)][:limit]

    def wait(self, timeout_ms: int) -> bool:
        return self.database.wait_notice(self._channel, self._sender, timeout_ms)

    # -- inside ------------------------------------------------------------------------------------

    @property
    def _channel(self) -> str:
        return f"trunkline_inbox:{self.namespace}"

    def _keys(self, parts: Collection[str]) -> list[tuple[str, str]]:
        return [(self.namespace, part) for part in parts]

    def _row(self, **values: object) -> dict[str, Any]:
        return {"namespace": self.namespace, **values}

    def _now_ms(self) -> int:
        """The server's clock if it has one, else this machine's."""
        now = monotonic()
        if now >= self._ahead_until:
            server_ms = self.database.clock_ms()
            if server_ms is None:
                return self._clock()
            self._ahead_ms = server_ms - int(monotonic() * 1000)
            self._ahead_until = now + _CLOCK_SECONDS
        return int(now * 1000) + self._ahead_ms


def _mark_text(mark: bytes) -> str:
    return urlsafe_b64encode(mark).rstrip(b"=").decode()


def _session(key: str, document: bytes) -> Session | UnreadableRecord:
    try:
        return _decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return UnreadableRecord(
            f"session {key!r} of trunkline_inbox_sessions cannot be decoded: {error}"
        )


def _item(row: Any) -> ItemRow:
    _, item_id, session, external_id, accepted_at_ms, flags, attempts, error, payload = row
    return ItemRow(
        item_id,
        session,
        external_id,
        accepted_at_ms,
        bytes(payload),
        bool(flags & _ALONE),
        bool(flags & _URGENT),
        attempts,
        error,
    )


def _mine(table: sa.Table) -> sa.ColumnElement[bool]:
    return table.c.namespace == sa.bindparam("namespace")


_DUE = (
    sa.select(sessions.c.session)
    .where(_mine(sessions), _due <= sa.bindparam("last"))
    .order_by(_due)
    .limit(sa.bindparam("limit"))
)
_NEXT_DUE = sa.select(sa.func.min(_due)).where(_mine(sessions), _due > sa.bindparam("last"))
_RECOVER = (
    sa.update(sessions)
    .where(
        sessions.c.namespace == sa.bindparam("in_namespace"),
        _due > sa.bindparam("now"),
        sessions.c.set_at_ms > sa.bindparam("now"),
    )
    .values(due_at_ms=sa.bindparam("now"))
)
_ROWS = [
    sa.select(items)
    .where(
        _mine(items),
        items.c.id > sa.bindparam("after"),
        _error.is_not(None) if failed else _error.is_(None),
    )
    .order_by(items.c.id)
    .limit(sa.bindparam("limit"))
    for failed in (False, True)
]
_COUNTS = sa.select(
    sa.func.count(),
    sa.func.coalesce(sa.func.sum(sessions.c.waiting), 0),
    sa.func.coalesce(sa.func.sum(sessions.c.running), 0),
).where(_mine(sessions))
_FAILED = sa.select(sa.func.count()).select_from(items).where(_mine(items), _error.is_not(None))
_EXPIRED_MARKS = (
    sa.select(marks.c.mark)
    .where(_mine(marks), marks.c.expires_at_ms <= sa.bindparam("now"))
    .limit(sa.bindparam("limit"))
)
_BEAT = (
    sa.update(owners)
    .where(
        owners.c.namespace == sa.bindparam("in_namespace"),
        owners.c.owner == sa.bindparam("of_owner"),
        owners.c.buried_at_ms.is_(None),
    )
    .values(beat=owners.c.beat + 1)
)
_OWNERS = sa.select(
    owners.c.owner, owners.c.beat, owners.c.lease_ms, owners.c.process, owners.c.buried_at_ms
).where(_mine(owners))
_CLAIMS = sa.select(claims.c.turn, claims.c.session).where(
    claims.c.namespace == sa.bindparam("in_namespace"),
    claims.c.owner == sa.bindparam("of_owner"),
)
