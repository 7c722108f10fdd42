"""Persistence in a SQL database: SQLite by default, PostgreSQL for several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.exc import IntegrityError

from trunkline.backends import AdapterOptions, Conflict
from trunkline.backends.sql import Database, Result, SQLAdapter
from trunkline.errors import AlreadyBound, NotFound, TrunklineError
from trunkline.persistence.adapter import (
    KINDS,
    DirectoryQuery,
    DirectoryTarget,
    Inbound,
    PersistenceAdapter,
)
from trunkline.persistence.models import (
    BridgeConfig,
    ExternalId,
    IngressSubscription,
    Message,
    Model,
    OnboardingFlow,
    Participant,
    Room,
    RoomBinding,
    RoutingPolicy,
    Thread,
    folded,
    now,
)
from trunkline.persistence.schema import (
    MIGRATIONS,
    bridge_configs,
    ingress_subscriptions,
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

__all__ = ("SQLPersistenceAdapter",)

M = TypeVar("M", bound=Model)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class SQLPersistenceAdapter(SQLAdapter, PersistenceAdapter):
    """Models in tables, through SQLAlchemy Core.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory), or `postgresql://…`.
        timeout_ms: how long one statement, or waiting for a lock, may take.
    """

    sql_tables: ClassVar = tables
    migrations: ClassVar = MIGRATIONS

    def __init__(self, url: str, *, namespace: str = "default", timeout_ms: int = 5_000) -> None:
        super().__init__(
            Database(url, component="persistence", migrations=MIGRATIONS, timeout_ms=timeout_ms),
            namespace,
        )

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls(url, namespace=options.namespace, timeout_ms=options.timeout_ms)

    def _adopt(self, database: Database) -> None:
        super()._adopt(database)
        if database.is_memory:
            self.writers, self.readers = 1, 0
        elif database.is_sqlite:
            self.writers, self.readers = 1, 1
        else:
            self.writers, self.readers = 4, 2

    # -- rooms -----------------------------------------------------------------------------------

    def save_room(self, room: Room) -> Room:
        self._upsert(rooms, _room_row(room))
        return room

    def get_room(self, room_id: str) -> Room:
        return self._one(Room, _by_id(rooms), {"id": room_id}, f"no Room {room_id!r}")

    def delete_room_part(self, room_id: str, limit: int) -> bool:
        key = {"room_id": room_id, "limit": limit}
        for table in (room_bindings, routing_policies):
            self._execute(_delete_of_room(table), key)
        for table in (messages, threads):
            self._execute(_delete_oldest(table), key)
            if self._value(_any_of_room(table), key) is not None:
                return False
        self._execute(_delete_by_id(rooms), {"id": room_id})
        return True

    def list_rooms(self, limit: int, room_type: str | None, after: str | None) -> list[Room]:
        statement = _page(rooms, rooms.c.id, limit, after)
        if room_type is not None:
            statement = statement.where(rooms.c.type == room_type)
        return self._all_of_new(Room, statement)

    # -- participants ----------------------------------------------------------------------------

    def save_participant(self, participant: Participant) -> Participant:
        self._upsert(participants, _participant_row(participant))
        held = self._take_external_ids(participant.id)
        ids = {(channel, str(value)) for channel, value in participant.external_ids.items()}
        for channel, external_id in sorted(held - ids):
            self._promote_holder(channel, external_id)
        for channel, external_id in sorted(ids):
            self._add_external_id(participant.id, channel, external_id)
        return participant

    def get_participant(self, participant_id: str) -> Participant:
        return self._one(
            Participant,
            _by_id(participants),
            {"id": participant_id},
            f"no Participant {participant_id!r}",
        )

    def delete_participant(self, participant_id: str) -> None:
        held = self._take_external_ids(participant_id)
        self._execute(_delete_by_id(participants), {"id": participant_id})
        for channel, external_id in sorted(held):
            self._promote_holder(channel, external_id)

    def get_or_create_participant_by_external_id(
        self, channel: str, external_id: str, candidate: Participant
    ) -> Participant:
        key = {"channel": channel, "external_id": external_id}
        found = self._first(Participant, _PARTICIPANT_BY_EXTERNAL_ID, key)
        if found is not None:
            return found
        if not self.database.insert_if_absent(participants, _participant_row(candidate)):
            known = self.get_participant(candidate.id)
            ids = {**known.external_ids, channel: candidate.external_ids[channel]}
            self.save_participant(replace(known, external_ids=ids))
            return self._met(Participant, _PARTICIPANT_BY_EXTERNAL_ID, key)
        row = {**key, "participant_id": candidate.id, "holder": 1}
        if self.database.insert_if_absent(participant_external_ids, row):
            for other, value in candidate.external_ids.items():
                if other != channel:
                    self._add_external_id(candidate.id, other, str(value))
            return candidate
        # Another process was faster; its row is committed, since the insert waited for it.
        self._execute(_delete_by_id(participants), {"id": candidate.id})
        return self._met(Participant, _PARTICIPANT_BY_EXTERNAL_ID, key)

    def _take_external_ids(self, participant_id: str) -> set[tuple[str, str]]:
        """Delete the external ids of a participant; which they were."""
        rows = self._execute(_TAKE_EXTERNAL_IDS, {"participant_id": participant_id}).rows
        return {(channel, external_id) for channel, external_id in rows}

    def _add_external_id(self, participant_id: str, channel: str, external_id: str) -> None:
        row: dict[str, Any] = {
            "participant_id": participant_id,
            "channel": channel,
            "external_id": external_id,
            "holder": 1,
        }
        if not self.database.insert_if_absent(participant_external_ids, row):
            self._execute(_ADD_EXTERNAL_ID, {**row, "holder": None})

    def _promote_holder(self, channel: str, external_id: str) -> None:
        """Let the next participant that was saved with this external id be the one it finds."""
        key = {"of_channel": channel, "of_id": external_id}
        if self._value(_HOLDER, key) is None:
            self._execute(_PROMOTE_FIRST, key)

    # -- messages --------------------------------------------------------------------------------

    def save_message(self, message: Message) -> Message:
        self._upsert_in_room(messages, _message_row(message))
        return message

    def save_messages(self, messages_: Sequence[Message]) -> list[Message | TrunklineError]:
        keys = {(message.room_id,) for message in messages_}
        known = {room_id for (room_id,) in self.database.find(rooms, keys, (rooms.c.id,))}
        rows = [_message_row(message) for message in messages_ if message.room_id in known]
        if rows:
            self._upsert(messages, *rows)
        return [
            message if message.room_id in known else NotFound(f"no Room {message.room_id!r}")
            for message in messages_
        ]

    def get_message(self, message_id: str) -> Message:
        return self._one(
            Message, _by_id(messages), {"id": message_id}, f"no Message {message_id!r}"
        )

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
            parameters["before_us"] = self._instant(messages, room_id, before)
            parameters["before"] = before
        if after is not None:
            parameters["after_us"] = self._instant(messages, room_id, after)
            parameters["after"] = after
        if thread_id is not None:
            parameters["thread_id"] = thread_id
        statement = _window(before is not None, after is not None, thread_id is not None)
        return self._all(Message, statement, parameters)[::-1]

    def delete_message(self, message_id: str) -> None:
        self._execute(_delete_by_id(messages), {"id": message_id})

    def get_message_by_external_id(
        self, channel: str, bridge_id: str, external_id: str, room_id: str | None
    ) -> Message:
        key = {"channel": channel, "bridge_id": bridge_id, "external_id": external_id}
        return self._one(
            Message,
            _MESSAGE_BY_EXTERNAL_ID if room_id is None else _MESSAGE_OF_ROOM_BY_EXTERNAL_ID,
            {**key, "room_id": room_id},
            f"no message {external_id!r} of {channel}:{bridge_id}",
        )

    def update_message_external_id(self, message_id: str, external_id: ExternalId) -> Message:
        statement = _by_id(messages)
        if not self.database.is_sqlite:
            statement = statement.with_for_update()
        message = self._one(Message, statement, {"id": message_id}, f"no Message {message_id!r}")
        return self.save_message(replace(message, external_id=external_id, updated_at=now()))

    # -- threads ---------------------------------------------------------------------------------

    def save_thread(self, thread: Thread) -> Thread:
        row = {
            "id": thread.id,
            "room_id": thread.room_id,
            "external_thread_id": _text(thread.external_thread_id),
            "root_message_id": thread.root_message_id,
            "status": thread.status,
            "inserted_at_us": _microseconds(thread.inserted_at),
            "document": _dump(thread),
        }
        self._upsert_in_room(threads, row)
        return thread

    def get_thread(self, thread_id: str) -> Thread:
        return self._one(Thread, _by_id(threads), {"id": thread_id}, f"no Thread {thread_id!r}")

    def get_thread_by_external_id(self, room_id: str, external_thread_id: str) -> Thread:
        return self._one(
            Thread,
            _THREAD_BY_EXTERNAL_ID,
            {"room_id": room_id, "external_thread_id": external_thread_id},
            f"room {room_id!r} has no thread {external_thread_id!r}",
        )

    def get_thread_by_root_message(self, room_id: str, root_message_id: str) -> Thread:
        return self._one(
            Thread,
            _THREAD_BY_ROOT,
            {"room_id": room_id, "root_message_id": root_message_id},
            f"room {room_id!r} has no thread that begins with {root_message_id!r}",
        )

    def list_threads(
        self, room_id: str, limit: int, after: str | None, status: str | None
    ) -> list[Thread]:
        statement = self._of_room(threads, room_id, limit, after)
        if status is not None:
            statement = statement.where(threads.c.status == status)
        return self._all_of_new(Thread, statement)

    # -- bindings --------------------------------------------------------------------------------

    def get_or_create_room_by_external_binding(self, candidate: Room, binding: RoomBinding) -> Room:
        row = _binding_row(binding)
        found = self._first(Room, _ROOM_BY_BINDING, row)
        if found is not None:
            return found
        made = self.database.insert_if_absent(rooms, _room_row(candidate))
        if self.database.insert_if_absent(room_bindings, row):
            return candidate if made else self.get_room(candidate.id)
        self._require_new_binding(binding)
        # Another process was faster; its row is committed, since the insert waited for it.
        if made:
            self._execute(_delete_by_id(rooms), {"id": candidate.id})
        return self._met(Room, _ROOM_BY_BINDING, row)

    def get_room_by_external_binding(self, channel: str, bridge_id: str, external_id: str) -> Room:
        return self._one(
            Room,
            _ROOM_BY_BINDING,
            {"channel": channel, "bridge_id": bridge_id, "external_room_id": external_id},
            f"no room is bound to {channel}:{bridge_id}:{external_id}",
        )

    def create_room_binding(self, binding: RoomBinding) -> RoomBinding:
        row = _binding_row(binding)
        try:
            if self.database.insert_if_absent(room_bindings, row):
                return binding
        except IntegrityError:
            raise NotFound(f"no Room {binding.room_id!r}") from None
        standing = self._first(RoomBinding, _BINDING_BY_EXTERNAL_ID, row)
        self.get_room(binding.room_id)
        if standing is None:
            self._require_new_binding(binding)
            raise Conflict("another process deletes a RoomBinding that it has just made")
        if standing.room_id == binding.room_id:
            return standing
        raise AlreadyBound(
            f"{binding.channel}:{binding.bridge_id}:{binding.external_room_id} is bound to room"
            f" {standing.room_id!r} already",
            standing.room_id,
        )

    def list_room_bindings(self, room_id: str, limit: int, after: str | None) -> list[RoomBinding]:
        statement = self._of_room(room_bindings, room_id, limit, after)
        return self._all_of_new(RoomBinding, statement)

    def delete_room_binding(self, binding_id: str) -> None:
        self._delete(room_bindings, {"id": binding_id}, f"no RoomBinding {binding_id!r}")

    def _require_new_binding(self, binding: RoomBinding) -> None:
        other = self._first(RoomBinding, _by_id(room_bindings), {"id": binding.id})
        if other is not None:
            raise AlreadyBound(
                f"binding {binding.id!r} binds room {other.room_id!r} already", other.room_id
            )

    # -- directory -------------------------------------------------------------------------------

    def directory_search(
        self, target: DirectoryTarget, query: DirectoryQuery, limit: int, after: str | None
    ) -> list[Participant] | list[Room]:
        if target == "participant":
            statement = self._directory(participants, query, limit, after)
            if query.external_id is not None:
                external = participant_external_ids.c
                statement = statement.join(participant_external_ids).where(
                    external.channel == query.channel, external.external_id == query.external_id
                )
            return self._all_of_new(Participant, statement)
        statement = self._directory(rooms, query, limit, after)
        if query.external_id is not None:
            statement = statement.join(room_bindings).where(
                room_bindings.c.channel == query.channel,
                room_bindings.c.bridge_id == query.bridge_id,
                room_bindings.c.external_room_id == query.external_id,
            )
        return self._all_of_new(Room, statement)

    def _directory(
        self, table: sa.Table, query: DirectoryQuery, limit: int, after: str | None
    ) -> sa.Select[Any]:
        statement = _page(table, table.c.id, limit, after)
        if query.id is not None:
            statement = statement.where(table.c.id == query.id)
        if query.name is not None:
            # Not LIKE: its patterns have an end on SQLite.
            position = sa.func.instr if self.database.is_sqlite else sa.func.strpos
            statement = statement.where(position(table.c.folded_name, folded(query.name)) > 0)
        return statement

    # -- onboarding, bridges, policies, subscriptions ----------------------------------------------

    def save_onboarding(self, onboarding_id: str, flow: OnboardingFlow) -> OnboardingFlow:
        self._upsert(onboarding_flows, {"id": onboarding_id, "document": _dump(flow)})
        return flow

    def get_onboarding(self, onboarding_id: str) -> OnboardingFlow:
        document = self._value(_by_id(onboarding_flows), {"id": onboarding_id})
        if document is None:
            raise NotFound(f"no onboarding flow {onboarding_id!r}")
        return msgspec.json.decode(document, type=OnboardingFlow)

    def save_bridge_config(self, config: BridgeConfig) -> BridgeConfig:
        row = {"id": config.id, "enabled": config.enabled, "document": _dump(config)}
        self._upsert(bridge_configs, row)
        return config

    def get_bridge_config(self, bridge_id: str) -> BridgeConfig:
        return self._one(
            BridgeConfig,
            _by_id(bridge_configs),
            {"id": bridge_id},
            f"no BridgeConfig {bridge_id!r}",
        )

    def list_bridge_configs(
        self, limit: int, after: str | None, enabled: bool | None
    ) -> list[BridgeConfig]:
        statement = _page(bridge_configs, bridge_configs.c.id, limit, after)
        if enabled is not None:
            statement = statement.where(bridge_configs.c.enabled == enabled)
        return self._all_of_new(BridgeConfig, statement)

    def delete_bridge_config(self, bridge_id: str) -> None:
        self._delete(bridge_configs, {"id": bridge_id}, f"no BridgeConfig {bridge_id!r}")

    def save_routing_policy(self, policy: RoutingPolicy) -> RoutingPolicy:
        row = {"room_id": policy.room_id, "document": _dump(policy)}
        self._upsert_in_room(routing_policies, row)
        return policy

    def get_routing_policy(self, room_id: str) -> RoutingPolicy:
        return self._one(
            RoutingPolicy,
            _POLICY_OF_ROOM,
            {"room_id": room_id},
            f"no routing policy of room {room_id!r}",
        )

    def delete_routing_policy(self, room_id: str) -> None:
        self._delete(
            routing_policies, {"room_id": room_id}, f"no routing policy of room {room_id!r}"
        )

    def save_ingress_subscription(self, subscription: IngressSubscription) -> IngressSubscription:
        row = {
            "bridge_id": subscription.bridge_id,
            "subscription_id": subscription.subscription_id or "",
            "status": subscription.status,
            "document": _dump(subscription),
        }
        self._upsert(ingress_subscriptions, row)
        return subscription

    def list_ingress_subscriptions(
        self, bridge_id: str, limit: int, after: str | None, status: str | None
    ) -> list[IngressSubscription]:
        column = ingress_subscriptions.c.subscription_id
        statement = _page(ingress_subscriptions, column, limit, after).where(
            ingress_subscriptions.c.bridge_id == bridge_id
        )
        if status is not None:
            statement = statement.where(ingress_subscriptions.c.status == status)
        return self._all_of_new(IngressSubscription, statement)

    def delete_ingress_subscription(self, bridge_id: str, subscription_id: str | None) -> None:
        self._delete(
            ingress_subscriptions,
            {"bridge_id": bridge_id, "subscription_id": subscription_id or ""},
            f"bridge {bridge_id!r} has no subscription {subscription_id!r}",
        )

    # -- as a whole ------------------------------------------------------------------------------

    def save_inbound(self, inbound: Inbound) -> Inbound:
        if not self.database.is_sqlite:
            # Two processes may be given the same message at once; the second waits for the first.
            self._execute(_LOCK_MESSAGE, {"id": inbound.message.id})
        return super().save_inbound(inbound)

    def counts(self) -> dict[str, int]:
        return {
            kind: self.database.connection.execute(_count(table)).scalar_one()
            for kind, table in _TABLES.items()
        }

    def scan(
        self, kind: str, limit: int, after: str | None, newest_first: bool
    ) -> list[tuple[str, Model | OnboardingFlow]]:
        table = _TABLES[kind]
        columns = list(table.primary_key)
        order = [column.desc() if newest_first else column for column in columns]
        statement = sa.select(*columns, table.c.document).order_by(*order).limit(limit)
        if after is not None:
            place = sa.tuple_(*columns)
            last = sa.tuple_(*(sa.literal(part) for part in after.split("\0")))
            statement = statement.where(place < last if newest_first else place > last)
        rows = self.database.connection.execute(statement).all()
        return [
            ("\0".join(row[:-1]), msgspec.json.decode(row[-1], type=KINDS[kind])) for row in rows
        ]

    def newest_messages(self, limit: int) -> list[Message]:
        order = (messages.c.inserted_at_us.desc(), messages.c.id.desc())
        # The ids come from an index, so that only few documents are read.
        newest = sa.select(messages.c.id).order_by(*order).limit(limit)
        statement = sa.select(messages.c.document).where(messages.c.id.in_(newest))
        return self._all_of_new(Message, statement.order_by(*order))

    # -- inside ----------------------------------------------------------------------------------

    def _execute(self, statement: Any, parameters: Mapping[str, Any]) -> Result:
        """Execute a statement that is made once."""
        return self.database.execute(statement, parameters)

    def _all(self, kind: type[M], statement: Any, parameters: Mapping[str, Any]) -> list[M]:
        return [_load(kind, row[0]) for row in self._execute(statement, parameters).rows]

    def _all_of_new(self, kind: type[M], statement: Any) -> list[M]:
        """The models that a statement finds which was made for this call."""
        rows = self.database.connection.execute(statement)
        return [_load(kind, document) for document in rows.scalars()]

    def _value(self, statement: Any, parameters: Mapping[str, Any]) -> Any:
        """The first column of the first row; `None` if there is no row."""
        rows = self._execute(statement, parameters).rows
        return rows[0][0] if rows else None

    def _first(self, kind: type[M], statement: Any, parameters: Mapping[str, Any]) -> M | None:
        document = self._value(statement, parameters)
        return None if document is None else _load(kind, document)

    def _one(self, kind: type[M], statement: Any, parameters: Mapping[str, Any], missing: str) -> M:
        found = self._first(kind, statement, parameters)
        if found is None:
            raise NotFound(missing)
        return found

    def _met(self, kind: type[M], statement: Any, parameters: Mapping[str, Any]) -> M:
        """The row of another process that an insert has just met."""
        found = self._first(kind, statement, parameters)
        if found is None:
            raise Conflict(f"another process deletes a {kind.__name__} that it has just made")
        return found

    def _instant(self, table: sa.Table, room_id: str, model_id: str) -> int:
        """When a message, thread or binding of a room was inserted, in microseconds."""
        key = {"room_id": room_id, "id": model_id}
        instant: int | None = self._value(_instant_of(table), key)
        if instant is None:
            raise NotFound(f"room {room_id!r} has no {_KINDS[table.name].__name__} {model_id!r}")
        return instant

    def _of_room(
        self, table: sa.Table, room_id: str, limit: int, after: str | None
    ) -> sa.Select[Any]:
        """The first of a room by time and id."""
        order = (table.c.inserted_at_us, table.c.id)
        statement = (
            sa.select(table.c.document)
            .where(table.c.room_id == room_id)
            .order_by(*order)
            .limit(limit)
        )
        if after is not None:
            last = (self._instant(table, room_id, after), after)
            statement = statement.where(sa.tuple_(*order) > sa.tuple_(*map(sa.literal, last)))
        return statement

    def _upsert(self, table: sa.Table, *rows: Mapping[str, Any]) -> None:
        self.database.upsert(table, rows)

    def _upsert_in_room(self, table: sa.Table, row: Mapping[str, Any]) -> None:
        try:
            self._upsert(table, row)
        except IntegrityError:
            raise NotFound(f"no Room {row['room_id']!r}") from None

    def _delete(self, table: sa.Table, key: Mapping[str, Any], missing: str) -> None:
        if self._execute(_delete_by_key(table), key).rowcount == 0:
            raise NotFound(missing)


# Statements are made once: SQLAlchemy finds the compiled form of a statement that it has met.


@cache
def _by_id(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table.c.document).where(table.c.id == sa.bindparam("id"))


@cache
def _count(table: sa.Table) -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(table)


def _page(table: sa.Table, column: sa.Column[str], limit: int, after: str | None) -> sa.Select[Any]:
    """The first rows by `column`, behind `after`."""
    statement = sa.select(table.c.document).order_by(column).limit(limit)
    return statement if after is None else statement.where(column > after)


@cache
def _delete_of_room(table: sa.Table) -> sa.Delete:
    return sa.delete(table).where(table.c.room_id == sa.bindparam("room_id"))


@cache
def _delete_oldest(table: sa.Table) -> sa.Delete:
    """Delete up to `limit` rows of a room, oldest first."""
    oldest = (
        sa.select(table.c.id)
        .where(table.c.room_id == sa.bindparam("room_id"))
        .order_by(table.c.inserted_at_us, table.c.id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )
    return sa.delete(table).where(table.c.id.in_(oldest))


@cache
def _any_of_room(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table.c.id).where(table.c.room_id == sa.bindparam("room_id")).limit(1)


@cache
def _instant_of(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table.c.inserted_at_us).where(
        table.c.id == sa.bindparam("id"), table.c.room_id == sa.bindparam("room_id")
    )


@cache
def _delete_by_id(table: sa.Table) -> sa.Delete:
    return sa.delete(table).where(table.c.id == sa.bindparam("id"))


@cache
def _delete_by_key(table: sa.Table) -> sa.Delete:
    return sa.delete(table).where(*(c == sa.bindparam(c.name) for c in table.primary_key))


def _select_by(table: sa.Table, *names: str, newest: bool = False) -> sa.Select[Any]:
    statement = sa.select(table.c.document).where(
        *(table.c[name] == sa.bindparam(name) for name in names)
    )
    if newest:
        statement = statement.order_by(table.c.inserted_at_us.desc(), table.c.id.desc()).limit(1)
    return statement


_MESSAGE_BY_EXTERNAL_ID = _select_by(messages, "channel", "bridge_id", "external_id", newest=True)
_MESSAGE_OF_ROOM_BY_EXTERNAL_ID = _select_by(
    messages, "channel", "bridge_id", "external_id", "room_id", newest=True
)
_THREAD_BY_EXTERNAL_ID = _select_by(threads, "room_id", "external_thread_id", newest=True)
_THREAD_BY_ROOT = _select_by(threads, "room_id", "root_message_id", newest=True)
_BINDING_BY_EXTERNAL_ID = _select_by(room_bindings, "channel", "bridge_id", "external_room_id")
_POLICY_OF_ROOM = _select_by(routing_policies, "room_id")
_ROOM_BY_BINDING = (
    sa.select(rooms.c.document)
    .join(room_bindings)
    .where(
        *(
            room_bindings.c[name] == sa.bindparam(name)
            for name in ("channel", "bridge_id", "external_room_id")
        )
    )
)
_PARTICIPANT_BY_EXTERNAL_ID = (
    sa.select(participants.c.document)
    .join(participant_external_ids)
    .where(
        participant_external_ids.c.channel == sa.bindparam("channel"),
        participant_external_ids.c.external_id == sa.bindparam("external_id"),
        participant_external_ids.c.holder == 1,
    )
)

_external = participant_external_ids.c
_TAKE_EXTERNAL_IDS = (
    sa.delete(participant_external_ids)
    .where(_external.participant_id == sa.bindparam("participant_id"))
    .returning(_external.channel, _external.external_id)
)
_ADD_EXTERNAL_ID = sa.insert(participant_external_ids)
# SQLAlchemy takes a parameter with the name of a column for a new value of it.
_same_external_id = (_external.channel == sa.bindparam("of_channel")) & (
    _external.external_id == sa.bindparam("of_id")
)
_HOLDER = sa.select(_external.participant_id).where(_same_external_id, _external.holder == 1)
_PROMOTE_FIRST = (
    sa.update(participant_external_ids)
    .where(
        _same_external_id,
        _external.participant_id
        == sa.select(sa.func.min(_external.participant_id))
        .where(_same_external_id)
        .scalar_subquery(),
    )
    .values(holder=1)
)
_LOCK_MESSAGE = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:id, 0))")


@cache
def _window(before: bool, after: bool, in_thread: bool) -> sa.Select[Any]:
    """The newest messages of a room, newest first, with the bounds that are asked for."""
    place = sa.tuple_(messages.c.inserted_at_us, messages.c.id)

    def bound(name: str) -> Any:
        return sa.tuple_(
            sa.bindparam(f"{name}_us", type_=sa.BigInteger), sa.bindparam(name, type_=sa.Text)
        )

    statement = (
        sa.select(messages.c.document)
        .where(messages.c.room_id == sa.bindparam("room_id"))
        .order_by(messages.c.inserted_at_us.desc(), messages.c.id.desc())
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )
    if before:
        statement = statement.where(place < bound("before"))
    if after:
        statement = statement.where(place > bound("after"))
    if in_thread:
        statement = statement.where(messages.c.thread_id == sa.bindparam("thread_id"))
    return statement


_TABLES = {
    "rooms": rooms,
    "participants": participants,
    "threads": threads,
    "messages": messages,
    "room_bindings": room_bindings,
    "onboarding_flows": onboarding_flows,
    "bridge_configs": bridge_configs,
    "routing_policies": routing_policies,
    "ingress_subscriptions": ingress_subscriptions,
}


#: The model of each table, by the table's name.
_KINDS = {table.name: KINDS[kind] for kind, table in _TABLES.items()}


def _room_row(room: Room) -> dict[str, Any]:
    return {
        "id": room.id,
        "type": room.type,
        "folded_name": _folded(room.name),
        "document": _dump(room),
    }


def _participant_row(participant: Participant) -> dict[str, Any]:
    return {
        "id": participant.id,
        "folded_name": _folded(participant.identity.get("name")),
        "document": _dump(participant),
    }


def _message_row(message: Message) -> dict[str, Any]:
    has_external_id = message.external_id is not None
    channel, bridge_id = (has_external_id and message.external_scope) or (None, None)
    return {
        "id": message.id,
        "room_id": message.room_id,
        "thread_id": message.thread_id,
        "channel": channel,
        "bridge_id": bridge_id,
        "external_id": str(message.external_id) if channel else None,
        "inserted_at_us": _microseconds(message.inserted_at),
        "document": _dump(message),
    }


def _binding_row(binding: RoomBinding) -> dict[str, Any]:
    return {
        "id": binding.id,
        "room_id": binding.room_id,
        "channel": binding.channel,
        "bridge_id": binding.bridge_id,
        "external_room_id": str(binding.external_room_id),
        "inserted_at_us": _microseconds(binding.inserted_at),
        "document": _dump(binding),
    }


def _folded(name: object) -> str | None:
    return folded(name) if isinstance(name, str) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _dump(model: object) -> str:
    return msgspec.json.encode(model).decode()


def _load(kind: type[M], document: str) -> M:
    return msgspec.json.decode(document, type=kind)
