"""Persistence in a SQL database: SQLite by default, PostgreSQL for several processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from operator import itemgetter
from typing import Any, ClassVar, TypeAlias, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.exc import IntegrityError

from trunkline.backends import Conflict
from trunkline.backends.sql import Database, Result, SQLAdapter
from trunkline.errors import AlreadyBound, NotFound, TrunklineError
from trunkline.persistence.adapter import (
    KINDS,
    DirectoryQuery,
    DirectoryTarget,
    Inbound,
    PersistenceAdapter,
    not_found,
)
from trunkline.persistence.documents import (
    UNREADABLE,
    decode_document,
    dump_model,
    encode_document,
    kind_of,
    load_model,
)
from trunkline.persistence.models import (
    Message,
    OnboardingFlow,
    Participant,
    Room,
    RoomBinding,
    Thread,
)
from trunkline.persistence.schema import (
    MIGRATIONS,
    messages,
    onboarding_flows,
    participant_external_ids,
    participants,
    room_bindings,
    rooms,
    routing_policies,
    tables,
    threads,
)
from trunkline.persistence.validation import Model, folded

__all__ = ("SQLPersistenceAdapter",)

M = TypeVar("M", bound=Model)

#: An external room, by channel, bridge id and external id; or another key of several texts.
_Key: TypeAlias = tuple[str, ...]

#: How many rooms, and how many senders, are remembered at most.
_MOST_ORIGINS = 10_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class SQLPersistenceAdapter(SQLAdapter, PersistenceAdapter):
    """Models in tables, through SQLAlchemy Core."""

    sql_tables: ClassVar = tables
    migrations: ClassVar = MIGRATIONS

    def _adopt(self, database: Database) -> None:
        super()._adopt(database)
        if database.writes_concurrently:
            self.writers, self.readers = 4, 2
        #: By kind and key, the documents of rooms and senders that `_origins_version` of the
        #: database has.
        self._origins: dict[type[Model], dict[_Key, bytes]] = {}
        self._origins_version: object | None = None

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[None]:
        try:
            with super().transaction(read_only=read_only):
                yield
        except BaseException:
            self._origins_version = None  # some of them may have been rolled back
            raise

    # -- models of every kind --------------------------------------------------------------------

    def save(self, model: M) -> M:
        self._upsert(_TABLE_OF[kind_of(model)], _row_of(model))
        return model

    def find(self, kind: type[M], *, for_update: bool = False, **by: str | None) -> M | None:
        rows = self._rows_with(kind, by, for_update=for_update)
        return _load(kind, rows[0]) if rows else None

    def page(
        self, kind: type[M], limit: int, after: str | None, **by: str | bool | None
    ) -> list[M]:
        table = _TABLE_OF[kind]
        order = _key_columns(table)[-1:]
        last: list[Any] = [after]
        if "inserted_at_us" in table.c:
            order = [table.c.inserted_at_us, *order]
            if after is not None:
                last = [self._instant(kind, str(by["room_id"]), after), after]
        given = [table.c[name] == value for name, value in by.items() if value is not None]
        statement = _documents(table).where(*given).order_by(*order).limit(limit)
        if after is not None:
            statement = statement.where(sa.tuple_(*order) > sa.tuple_(*map(sa.literal, last)))
        return self._all_of_new(kind, statement)

    def remove(self, kind: type[Model], **key: str) -> bool:
        return self._execute(_delete_by(_TABLE_OF[kind], *key), key).rowcount > 0

    def _require_room(self, room_id: str) -> None:
        if not self._known_rooms([room_id]):
            raise not_found(Room, id=room_id)

    # -- rooms -----------------------------------------------------------------------------------

    def delete_room_part(self, room_id: str, limit: int) -> bool:
        key = {"room_id": room_id, "limit": limit}
        for table in (room_bindings, routing_policies):
            self._execute(_delete_by(table, "room_id"), key)
        for table in (messages, threads):
            self._execute(_delete_oldest(table), key)
            if self._execute(_any_of_room(table), key).rows:
                return False
        self._execute(_delete_by(rooms, "id"), {"id": room_id})
        return True

    # -- participants ----------------------------------------------------------------------------

    def save_participant(self, participant: Participant) -> Participant:
        # This locks the participant's row, and with it their external ids.
        self.save(participant)
        ids = {(channel, str(value)) for channel, value in participant.external_ids.items()}
        self._replace_external_ids(participant.id, ids)
        return participant

    def delete_participant(self, participant_id: str) -> None:
        if self._rows_with(Participant, {"id": participant_id}, for_update=True):
            self._replace_external_ids(participant_id, set())
            self.remove(Participant, id=participant_id)

    def get_or_create_participant_by_external_id(
        self, channel: str, external_id: str, candidate: Participant
    ) -> Participant:
        sender = (channel, external_id)
        found = self._known_participants([sender]).get(sender)
        if found is not None:
            return found
        ids = {one: str(value) for one, value in candidate.external_ids.items()}
        if self._insert(participants, _row_of(candidate)):
            self._replace_external_ids(candidate.id, set(ids.items()))
            found = _require_found(self._known_participants([sender]).get(sender))
            if found.id != candidate.id:
                # Another process was faster.
                self.delete_participant(candidate.id)
            return found
        known = _require_found(self.find(Participant, for_update=True, id=candidate.id))
        external_ids = {**known.external_ids, channel: candidate.external_ids[channel]}
        self.save_participant(replace(known, external_ids=external_ids))
        return _require_found(self._known_participants([sender]).get(sender))

    def _known_participants(self, senders: Collection[_Key]) -> dict[_Key, Participant]:
        """Who holds external ids, by channel and external id."""
        by = ("channel", "external_id")
        rows = self._find(participant_external_ids, senders, ("participant_id", *by, "holder"), by)
        return self._referred(Participant, [row[:-1] for row in rows if row[-1] == 1])

    def _replace_external_ids(self, participant_id: str, ids: set[tuple[str, str]]) -> None:
        """Replace the external ids, by channel, of a participant whose row is locked."""
        columns = ("channel", "external_id")
        keys = [(participant_id,)]
        held = set(
            map(tuple, self._find(participant_external_ids, keys, columns, ("participant_id",)))
        )
        for channel, external_id in sorted(held ^ ids):
            # Who holds an external id depends on others who have it: one process at a time decides.
            self._lock("external_id", channel, external_id)
        for channel, external_id in sorted(held - ids):
            self._execute(
                _delete_by(participant_external_ids, "participant_id", "channel"),
                {"participant_id": participant_id, "channel": channel},
            )
            self.database.execute(
                _PROMOTE_FIRST,
                {"of_namespace": self.namespace, "of_channel": channel, "of_id": external_id},
            )
        for channel, external_id in sorted(ids - held):
            row: dict[str, Any] = {
                "participant_id": participant_id,
                "channel": channel,
                "external_id": external_id,
                "holder": 1,
            }
            if not self._insert(participant_external_ids, row):
                self._insert(participant_external_ids, {**row, "holder": None})

    # -- messages --------------------------------------------------------------------------------

    def save_message(self, message: Message) -> Message:
        (saved,) = self.save_messages([message])
        if isinstance(saved, TrunklineError):
            raise saved
        return saved

    def save_messages(self, messages_: Sequence[Message]) -> list[Message | TrunklineError]:
        with self._origins_kept():
            if not self.database.writes_concurrently:
                # No other transaction can delete a room now, and a statement that fails undoes no
                # more than itself: it is cheaper to let the foreign key find an unknown room.
                try:
                    self._upsert(messages, *map(_message_row, messages_))
                    return list(messages_)
                except IntegrityError:
                    pass
            known = self._known_rooms({message.room_id for message in messages_})
            rows = [_message_row(one) for one in messages_ if one.room_id in known]
            self._upsert(messages, *rows)
        return [
            message if message.room_id in known else not_found(Room, id=message.room_id)
            for message in messages_
        ]

    def get_messages(
        self,
        room_id: str,
        limit: int,
        before: str | None,
        after: str | None,
        thread_id: str | None,
    ) -> list[Message]:
        parameters: dict[str, Any] = {"room_id": room_id, "limit": limit}
        if before is not None:
            parameters["before_us"] = self._instant(Message, room_id, before)
            parameters["before"] = before
        if after is not None:
            parameters["after_us"] = self._instant(Message, room_id, after)
            parameters["after"] = after
        if thread_id is not None:
            parameters["thread_id"] = thread_id
        statement = _window(before is not None, after is not None, thread_id is not None)
        return [_load(Message, row) for row in self._execute(statement, parameters).rows][::-1]

    # -- bindings --------------------------------------------------------------------------------

    def get_or_create_room_by_external_binding(self, candidate: Room, binding: RoomBinding) -> Room:
        source = _source(binding)
        found = self._bound_rooms([source], key_share=True).get(source)
        if found is not None:
            return found
        self._require_new_binding(binding)
        room, is_new = candidate, self._insert(rooms, _row_of(candidate))
        if not is_new:
            self._known_rooms([room.id])
            room = _require_found(self.find(Room, id=room.id))
        if self._insert(room_bindings, _row_of(binding)):
            return room
        # Another process was faster; its row is committed, since the insert waited for it.
        if is_new:
            self.remove(Room, id=candidate.id)
        return _require_found(self._bound_rooms([source], key_share=True).get(source))

    def create_room_binding(self, binding: RoomBinding) -> RoomBinding:
        self._require_room(binding.room_id)
        source = _source(binding)
        by: dict[str, Any] = dict(zip(_SOURCE, source, strict=True))
        standing = self.find(RoomBinding, **by)
        if standing is None:
            self._require_new_binding(binding)
            if self._insert(room_bindings, _row_of(binding)):
                return binding
            # Another process was faster; its row is committed, since the insert waited for it.
            standing = _require_found(self.find(RoomBinding, **by))
        if standing.room_id == binding.room_id:
            return standing
        raise AlreadyBound(
            f"{':'.join(source)} is bound to room {standing.room_id!r} already",
            standing.room_id,
        )

    def _bound_rooms(
        self, sources: Collection[_Key], *, key_share: bool = False
    ) -> dict[_Key, Room]:
        """The rooms to which external rooms are bound."""
        rows = self._find(room_bindings, sources, ("room_id", *_SOURCE), _SOURCE)
        return self._referred(Room, rows, key_share=key_share)

    # -- directory -------------------------------------------------------------------------------

    def directory_search(
        self, target: DirectoryTarget, query: DirectoryQuery, limit: int, after: str | None
    ) -> list[Participant] | list[Room]:
        kind: type[Any] = Participant if target == "participant" else Room
        table = _TABLE_OF[kind]
        statement = _documents(table).order_by(table.c.id).limit(limit)
        if after is not None:
            statement = statement.where(table.c.id > after)
        if query.id is not None:
            statement = statement.where(table.c.id == query.id)
        if query.name is not None:
            # Not LIKE: its patterns have an end on SQLite.
            position = self.database.position(table.c.folded_name, folded(query.name))
            statement = statement.where(position > 0)
        if query.external_id is not None:
            referring, id_column = _EXTERNAL[kind]
            statement = statement.join(referring).where(
                referring.c.channel == query.channel,
                referring.c[id_column] == query.external_id,
            )
            if query.bridge_id is not None:
                statement = statement.where(referring.c.bridge_id == query.bridge_id)
        return self._all_of_new(kind, statement)

    # -- onboarding ------------------------------------------------------------------------------

    def save_onboarding(self, onboarding_id: str, flow: OnboardingFlow) -> OnboardingFlow:
        self._upsert(onboarding_flows, {"id": onboarding_id, "document": dump_model(flow)})
        return flow

    def get_onboarding(self, onboarding_id: str) -> OnboardingFlow:
        rows = self._find(onboarding_flows, [(onboarding_id,)], ("document",))
        if not rows:
            raise NotFound(f"no onboarding flow {onboarding_id!r}")
        return load_model(dict, onboarding_flows.name, onboarding_id, rows[0][0])

    # -- as a whole ------------------------------------------------------------------------------

    def save_inbound(self, inbound: Inbound) -> Inbound:
        [result] = self.save_inbounds([inbound])
        if isinstance(result, TrunklineError):
            raise result
        return result

    def save_inbounds(self, inbounds: Sequence[Inbound]) -> list[Inbound | TrunklineError]:
        results: list[Inbound | TrunklineError] = []
        start = 0
        came_in: set[tuple[str, ...]] = set()
        for index, inbound in enumerate(inbounds):
            message, source = inbound.message, _source(inbound.binding)
            reply_to = message.external_reply_to_id
            if reply_to is not None and (*source, str(reply_to)) in came_in:
                # What it replies to is stored first.
                results += self._save_inbounds(inbounds[start:index])
                start = index
                came_in.clear()
            if message.external_id is not None:
                came_in.add((*source, str(message.external_id)))
        return results + self._save_inbounds(inbounds[start:])

    def _save_inbounds(self, inbounds: Sequence[Inbound]) -> list[Inbound | TrunklineError]:
        """A statement for each kind of what they need; what is not there yet is made singly."""
        room_of = self._rooms_of(inbounds)
        participant_of = self._participants_of(inbounds)
        thread_of = self._threads_of(inbounds, room_of)
        reply_of = self._replies_of(inbounds, room_of)
        results: list[Inbound | TrunklineError] = []
        rows = []
        for one in inbounds:
            message, participant, thread = one.message, one.participant, one.thread
            room = room_of[_source(one.binding)]
            if isinstance(room, AlreadyBound):
                results.append(room)
                continue
            if participant is not None:
                participant = participant_of[_sender(one)]
            if thread is not None:
                thread = thread_of[room.id, str(thread.external_thread_id)]
            reply_to_id = message.reply_to_id
            if reply_to_id is None and message.external_reply_to_id is not None:
                reply_to_id = reply_of.get((room.id, str(message.external_reply_to_id)))
            message = replace(
                message,
                room_id=room.id,
                sender_id=None if participant is None else participant.id,
                thread_id=message.thread_id if thread is None else thread.id,
                reply_to_id=reply_to_id,
            )
            results.append(Inbound(room, participant, message, one.binding, thread))
            row = _message_row(message)
            row["inbound_key"] = one.key
            rows.append(row)
        with self._origins_kept():
            inserted = self._insert(messages, *rows)
        for index, result in enumerate(results):
            if isinstance(result, Inbound):
                if result.message.id in inserted:
                    inserted.remove(result.message.id)  # the next with this id is a duplicate
                else:
                    standing = self._standing(result)
                    results[index] = replace(result, message=standing, duplicate=True)
        return results

    def _rooms_of(self, inbounds: Sequence[Inbound]) -> dict[_Key, Room | AlreadyBound]:
        """The rooms that messages came from; they stay until the transaction ends."""
        sources = {_source(one.binding): one for one in reversed(inbounds)}
        room_of: dict[_Key, Room | AlreadyBound] = {}
        room_of |= self._remembered(Room, sources, partial(self._bound_rooms, key_share=True))
        for source, inbound in sources.items():
            if source in room_of:
                continue
            try:
                room_of[source] = self.get_or_create_room_by_external_binding(
                    inbound.room, inbound.binding
                )
            except AlreadyBound as error:
                room_of[source] = error
        return room_of

    def _participants_of(self, inbounds: Sequence[Inbound]) -> dict[_Key, Participant]:
        """The senders, by channel and external id."""
        senders = {
            _sender(one): one.participant
            for one in reversed(inbounds)
            if one.participant is not None
        }
        participant_of = self._remembered(Participant, senders, self._known_participants)
        for sender, candidate in senders.items():
            if sender not in participant_of:
                participant_of[sender] = self.get_or_create_participant_by_external_id(
                    *sender, candidate
                )
        return participant_of

    def _remembered(
        self, kind: type[M], keys: Collection[_Key], look_up: Callable[[list[_Key]], dict[_Key, M]]
    ) -> dict[_Key, M]:
        """Rooms or senders by key, in a transaction that may write.

        Most messages come from those that were looked up a moment ago: where the database tells
        that nothing has changed since, they are not looked up again.
        """
        version = self.database.data_version()
        known = self._origins.setdefault(kind, {})
        if version is None or version != self._origins_version or len(known) > _MOST_ORIGINS:
            known = {}
            self._origins, self._origins_version = {kind: known}, version
        found = look_up([key for key in keys if key not in known])
        remembered = {key: decode_document(kind, known[key]) for key in keys if key in known}
        if version is not None:
            known |= {key: encode_document(model) for key, model in found.items()}
        return found | remembered

    @contextmanager
    def _origins_kept(self) -> Iterator[None]:
        """What is done inside changes messages alone, and so nothing that is remembered."""
        is_current = self._origins and self._origins_version == self.database.data_version()
        yield
        self._origins_version = self.database.data_version() if is_current else None

    def _threads_of(
        self, inbounds: Sequence[Inbound], room_of: Mapping[_Key, Room | AlreadyBound]
    ) -> dict[_Key, Thread]:
        """The threads that messages came from, by room and external id."""
        candidates = {
            (room.id, str(one.thread.external_thread_id)): one.thread
            for one in inbounds
            if one.thread is not None and isinstance(room := room_of[_source(one.binding)], Room)
        }
        by = ("room_id", "external_thread_id")
        rows = self._find(threads, candidates, ("document", "id", *by, "inserted_at_us"), by)
        # Of several, the newest.
        rows = sorted(rows, key=itemgetter(4, 1))
        thread_of = {tuple(row[2:4]): _load(Thread, row) for row in rows}
        for key in candidates.keys() - thread_of.keys():
            thread_of[key] = self._get_or_create_thread(*key, candidates[key])
        return thread_of

    def _replies_of(
        self, inbounds: Sequence[Inbound], room_of: Mapping[_Key, Room | AlreadyBound]
    ) -> dict[_Key, str]:
        """The ids of messages that others reply to, by room and external id."""
        keys = {
            (room.id, str(one.message.external_reply_to_id), *_source(one.binding)[:2])
            for one in inbounds
            if one.message.external_reply_to_id is not None
            and isinstance(room := room_of[_source(one.binding)], Room)
        }
        by = ("room_id", "external_id", "channel", "bridge_id")
        rows = self._find(messages, keys, (*by[:2], "inserted_at_us", "id"), by)
        # Of several, the newest.
        return {tuple(row[:2]): row[3] for row in sorted(rows, key=itemgetter(2, 3))}

    def _get_or_create_thread(self, room_id: str, external_id: str, candidate: Thread) -> Thread:
        self._lock("thread", room_id, external_id)
        thread = self.find(Thread, room_id=room_id, external_thread_id=external_id)
        return thread or self.save(replace(candidate, room_id=room_id))

    def _standing(self, inbound: Inbound) -> Message:
        """The message that an insert has met."""
        found = None
        if inbound.key is not None:
            found = self.find(Message, inbound_key=inbound.key)
        return found or _require_found(self.find(Message, id=inbound.message.id))

    def counts(self) -> dict[str, int]:
        counted = {table.name: table.count() for table in self.tables}
        return {kind: counted[kind] for kind in KINDS}

    def scan(
        self, kind: str, limit: int, after: str | None, newest_first: bool
    ) -> list[tuple[str, Model | OnboardingFlow]]:
        table = _TABLES[kind]
        columns = _key_columns(table)
        order = [column.desc() if newest_first else column for column in columns]
        statement = _documents(table).order_by(*order).limit(limit)
        if after is not None:
            position = sa.tuple_(*columns)
            last = sa.tuple_(*(sa.literal(part) for part in after.split("\0")))
            statement = statement.where(position < last if newest_first else position > last)
        rows = self._execute_new(statement)
        return [("\0".join(row[1:]), _load(KINDS[kind], row)) for row in rows]

    def newest_messages(self, limit: int) -> list[Message]:
        order = (messages.c.inserted_at_us.desc(), messages.c.id.desc())
        # The ids come from an index, so that only few documents are read.
        newest = sa.select(messages.c.id).where(*_is_given(messages)).order_by(*order).limit(limit)
        statement = _documents(messages).where(messages.c.id.in_(newest)).order_by(*order)
        return self._all_of_new(Message, statement)

    # -- inside ----------------------------------------------------------------------------------

    def _execute(self, statement: Any, parameters: Mapping[str, Any]) -> Result:
        """Execute a statement that is made once."""
        return self.database.execute(statement, {**parameters, "namespace": self.namespace})

    def _execute_new(self, statement: Any) -> Sequence[Any]:
        """Execute a statement that is made for this call."""
        parameters = {"namespace": self.namespace}
        return self.database.connection.execute(statement, parameters).all()

    def _rows_with(
        self, kind: type[Model], by: Mapping[str, str | None], *, for_update: bool
    ) -> Sequence[Any]:
        """The rows of models with these values, as `find` looks them up."""
        given = {name: value for name, value in by.items() if value is not None}
        statement = _select_by(_TABLE_OF[kind], *given)
        if for_update:
            statement = self.database.for_update(statement)
        return self._execute(statement, given).rows

    def _find(
        self,
        table: sa.Table,
        keys: Collection[Sequence[str]],
        columns: Sequence[str],
        by: Sequence[str] = ("id",),
        *,
        key_share: bool = False,
    ) -> Sequence[Any]:
        """Columns of the rows with many keys, in one statement."""
        if not keys:
            return ()
        return self.database.find(
            table,
            [(self.namespace, *key) for key in keys],
            [table.c[name] for name in columns],
            by=[table.c[name] for name in ("namespace", *by)],
            key_share=key_share,
        )

    def _referred(
        self, kind: type[M], rows: Sequence[Any], *, key_share: bool = False
    ) -> dict[_Key, M]:
        """Models by the keys of rows that refer to them, each an id and a key."""
        table = _TABLE_OF[kind]
        ids = {(row[0],) for row in rows}
        found = {
            row[1]: _load(kind, row)
            for row in self._find(table, ids, ("document", "id"), key_share=key_share)
        }
        return {tuple(key): found[model_id] for model_id, *key in rows if model_id in found}

    def _known_rooms(self, room_ids: Collection[str]) -> set[str]:
        """Those of some rooms that there are; they stay until the transaction ends."""
        keys = {(room_id,) for room_id in room_ids}
        return {row[0] for row in self._find(rooms, keys, ("id",), key_share=True)}

    def _all_of_new(self, kind: type[M], statement: Any) -> list[M]:
        return [_load(kind, row) for row in self._execute_new(statement)]

    def _instant(self, kind: type[Model], room_id: str, model_id: str) -> int:
        """When a message, thread or binding of a room was inserted, in microseconds."""
        key = [(room_id, model_id)]
        rows = self._find(_TABLE_OF[kind], key, ("inserted_at_us",), ("room_id", "id"))
        if not rows:
            raise not_found(kind, room_id=room_id, id=model_id)
        instant: int = rows[0][0]
        return instant

    def _lock(self, *key: str) -> None:
        """Hold a lock among all transactions until this one ends."""
        self.database.lock_key(msgspec.json.encode([self.namespace, *key]).decode())

    def _upsert(self, table: sa.Table, *rows: Mapping[str, Any]) -> None:
        if rows:
            self.database.upsert(table, [{**row, "namespace": self.namespace} for row in rows])

    def _insert(self, table: sa.Table, *rows: Mapping[str, Any]) -> set[str]:
        """Insert rows unless they meet a constraint; the ids of those that were inserted."""
        given = [{**row, "namespace": self.namespace} for row in rows]
        return {key[1] for key in self.database.insert_absent(table, given)}


def _require_found(found: M | None) -> M:
    """A model that an insert has just met, stored by another process.

    Raises:
        Conflict: it has been deleted meanwhile.
    """
    if found is None:
        raise Conflict("another process has deleted what it had just stored")
    return found


# Statements are made once: SQLAlchemy finds the compiled form of a statement that it has met.


_NAMESPACE = sa.bindparam("namespace", type_=sa.Text)


def _key_columns(table: sa.Table) -> list[sa.Column[Any]]:
    """The primary key without the namespace."""
    return list(table.primary_key)[1:]


def _documents(table: sa.Table) -> sa.Select[Any]:
    """Documents with their keys."""
    return sa.select(table.c.document, *_key_columns(table)).where(table.c.namespace == _NAMESPACE)


def _is_given(table: sa.Table, *names: str) -> list[Any]:
    return [table.c[name] == sa.bindparam(name) for name in ("namespace", *names)]


@cache
def _select_by(table: sa.Table, *names: str) -> sa.Select[Any]:
    """Selects a document by the values of columns: the newest of several."""
    statement = _documents(table).where(*_is_given(table, *names))
    if "inserted_at_us" in table.c and "id" not in names:
        return statement.order_by(table.c.inserted_at_us.desc(), table.c.id.desc()).limit(1)
    return statement


@cache
def _delete_by(table: sa.Table, *names: str) -> sa.Delete:
    return sa.delete(table).where(*_is_given(table, *names))


@cache
def _delete_oldest(table: sa.Table) -> sa.Delete:
    """Delete up to `limit` rows of a room, oldest first."""
    oldest = (
        sa.select(table.c.id)
        .where(*_is_given(table, "room_id"))
        .order_by(table.c.inserted_at_us, table.c.id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )
    return sa.delete(table).where(*_is_given(table), table.c.id.in_(oldest))


@cache
def _any_of_room(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table.c.id).where(*_is_given(table, "room_id")).limit(1)


_external = participant_external_ids.c
# SQLAlchemy takes a parameter with the name of a column for a new value of it.
_same_external_id = (
    (_external.namespace == sa.bindparam("of_namespace"))
    & (_external.channel == sa.bindparam("of_channel"))
    & (_external.external_id == sa.bindparam("of_id"))
)
#: If no participant holds an external id, the one with the least id does from now on.
_PROMOTE_FIRST = (
    sa.update(participant_external_ids)
    .where(
        _same_external_id,
        _external.participant_id
        == sa.select(sa.func.min(_external.participant_id))
        .where(_same_external_id)
        .having(sa.func.max(_external.holder).is_(None))
        .scalar_subquery(),
    )
    .values(holder=1)
)


@cache
def _window(before: bool, after: bool, in_thread: bool) -> sa.Select[Any]:
    """The newest messages of a room, newest first, with the bounds that are asked for."""
    position = sa.tuple_(messages.c.inserted_at_us, messages.c.id)

    def bound(name: str) -> Any:
        return sa.tuple_(
            sa.bindparam(f"{name}_us", type_=sa.BigInteger), sa.bindparam(name, type_=sa.Text)
        )

    statement = _select_by(messages, "room_id").limit(sa.bindparam("limit", type_=sa.Integer))
    if before:
        statement = statement.where(position < bound("before"))
    if after:
        statement = statement.where(position > bound("after"))
    if in_thread:
        statement = statement.where(messages.c.thread_id == sa.bindparam("thread_id"))
    return statement


_TABLES = {kind: rooms.metadata.tables[f"trunkline_{kind}"] for kind in KINDS}
_TABLE_OF = {KINDS[kind]: table for kind, table in _TABLES.items()}

#: What holds the external ids of a kind, and in which column.
_EXTERNAL: dict[type[Model], tuple[sa.Table, str]] = {
    Participant: (participant_external_ids, "external_id"),
    Room: (room_bindings, "external_room_id"),
}

#: The columns of an external room.
_SOURCE = ("channel", "bridge_id", "external_room_id")


def _row_of(model: Model) -> dict[str, Any]:
    """What is stored of a model, by column, but for the namespace."""
    if isinstance(model, Message):
        return _message_row(model)
    columns = _TABLE_OF[kind_of(model)].columns.keys()[1:]
    return {
        name: _VALUES[name](model) if name in _VALUES else getattr(model, name) for name in columns
    }


#: Of the columns that are not fields of a model, how their values are made.
_VALUES: dict[str, Callable[[Any], Any]] = {
    "document": dump_model,
    "inserted_at_us": lambda model: _microseconds(model.inserted_at),
    "folded_name": lambda model: _folded(
        model.name if isinstance(model, Room) else model.identity.get("name")
    ),
    "external_room_id": lambda binding: str(binding.external_room_id),
    "external_thread_id": lambda thread: (
        None if thread.external_thread_id is None else str(thread.external_thread_id)
    ),
    "subscription_id": lambda subscription: subscription.subscription_id or "",
}


def _message_row(message: Message) -> dict[str, Any]:
    scope = message.external_scope if message.external_id is not None else None
    return {
        "id": message.id,
        "room_id": message.room_id,
        "thread_id": message.thread_id,
        "channel": scope and scope[0],
        "bridge_id": scope and scope[1],
        "external_id": scope and str(message.external_id),
        "inbound_key": None,
        "inserted_at_us": _microseconds(message.inserted_at),
        "document": dump_model(message),
    }


def _folded(name: object) -> str | None:
    return folded(name) if isinstance(name, str) else None


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _load(kind: type[M], row: Sequence[Any]) -> M:
    """The model of a row that begins with a document and its key."""
    try:
        return decode_document(kind, row[0])
    except UNREADABLE:
        table = _TABLE_OF[kind]
        key = row[1 : len(table.primary_key)]
        return load_model(kind, table.name, key[0] if len(key) == 1 else tuple(key), row[0])


def _source(binding: RoomBinding) -> _Key:
    """The external room of a binding."""
    return binding.channel, binding.bridge_id, str(binding.external_room_id)


def _sender(inbound: Inbound) -> tuple[str, str]:
    """The channel, and the external id of the participant there."""
    assert inbound.participant is not None
    channel = inbound.binding.channel
    return channel, str(inbound.participant.external_ids[channel])
