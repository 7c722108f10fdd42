"""Persistence in memory: for tests, and for bots whose data may be lost when they end."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from itertools import islice
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar

from msgspec.structs import replace

from trunkline.backends import AdapterOptions
from trunkline.errors import AlreadyBound, NotFound
from trunkline.persistence.adapter import (
    KINDS,
    DirectoryQuery,
    DirectoryTarget,
    Inbound,
    PersistenceAdapter,
    not_found,
)
from trunkline.persistence.documents import kind_of
from trunkline.persistence.models import (
    IngressSubscription,
    Message,
    OnboardingFlow,
    Participant,
    Room,
    RoomBinding,
    RoutingPolicy,
    Thread,
)
from trunkline.persistence.validation import Model, checked, checked_flow, folded

__all__ = ("MemoryPersistenceAdapter",)

M = TypeVar("M", bound=Model)

#: The values of the fields of an index.
_Key: TypeAlias = tuple[str, ...]


class MemoryPersistenceAdapter(PersistenceAdapter):
    """Everything in dictionaries of this process. Every model that is returned is a copy."""

    blocking: ClassVar = False

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        adapter = cls()
        adapter.namespace = options.namespace
        return adapter

    def __init__(self) -> None:
        self._models: dict[Any, _Models[Any]] = {kind: _Models(kind) for kind in KINDS.values()}
        #: The key of a message that came in → its id, and back.
        self._message_of_key: dict[str, str] = {}
        self._key_of_message: dict[str, str] = {}
        #: (channel, external id) → participant ids; first the one that the external id finds.
        self._participants_of_external: dict[tuple[str, str], list[str]] = {}

    # -- models of every kind --------------------------------------------------------------------

    def save(self, model: M) -> M:
        models = self._models[kind_of(model)]
        models.put("\0".join([getattr(model, name) or "" for name in models.key]), model)
        return checked(model)

    def find(self, kind: type[M], *, for_update: bool = False, **by: str | None) -> M | None:
        found: M | None = self._models[kind].newest(by)
        return None if found is None else checked(found)

    def page(
        self, kind: type[M], limit: int, after: str | None, **by: str | bool | None
    ) -> list[M]:
        models = self._models[kind]
        if "room_id" in by:
            found = models.between(str(by["room_id"]), after, None)
        else:
            # The key of a subscription begins with its bridge.
            start = [str(by[name]) for name in models.key[:-1]]
            found = models.sorted(None if after is None else "\0".join([*start, after]))
        return _copies(_having(by, found)[:limit])

    def remove(self, kind: type[Model], **key: str) -> bool:
        return self._models[kind].remove("\0".join(key.values())) is not None

    # -- rooms -----------------------------------------------------------------------------------

    def delete_room_part(self, room_id: str, limit: int) -> bool:
        bindings, messages, threads = (
            self._models[kind].of_room(room_id) for kind in (RoomBinding, Message, Thread)
        )
        for binding in bindings[:]:
            self.remove(RoomBinding, id=binding.id)
        self.remove(RoutingPolicy, room_id=room_id)
        oldest = messages[:limit]
        for thread in threads[: limit - len(oldest)]:
            self.remove(Thread, id=thread.id)
        for message in oldest:
            self.delete_message(message.id)
        if messages or threads:
            return False
        self.remove(Room, id=room_id)
        return True

    def _require_room(self, room_id: str) -> None:
        if room_id not in self._models[Room].by_key:
            raise not_found(Room, id=room_id)

    # -- participants ----------------------------------------------------------------------------

    def save_participant(self, participant: Participant) -> Participant:
        old = self._models[Participant].by_key.get(participant.id)
        new_keys = _external_keys(participant)
        for key in _external_keys(old) - new_keys if old is not None else ():
            self._forget_external(key, participant.id)
        for key in new_keys:
            holders = self._participants_of_external.setdefault(key, [])
            if participant.id not in holders:
                holders.append(participant.id)
        return self.save(participant)

    def delete_participant(self, participant_id: str) -> None:
        participant = self._models[Participant].remove(participant_id)
        for key in _external_keys(participant) if participant is not None else ():
            self._forget_external(key, participant_id)

    def get_or_create_participant_by_external_id(
        self, channel: str, external_id: str, candidate: Participant
    ) -> Participant:
        holders = self._participants_of_external.get((channel, external_id))
        if holders:
            return self.get_participant(holders[0])
        known = self._models[Participant].by_key.get(candidate.id)
        if known is not None:
            ids = {**known.external_ids, channel: candidate.external_ids[channel]}
            candidate = replace(known, external_ids=ids)
        return self.save_participant(candidate)

    def _forget_external(self, key: tuple[str, str], participant_id: str) -> None:
        holders = self._participants_of_external[key]
        was_first = holders[0] == participant_id
        holders.remove(participant_id)
        if was_first:
            holders.sort()
        if not holders:
            del self._participants_of_external[key]

    # -- messages --------------------------------------------------------------------------------

    # These two are called most often, and are spared what serves every kind.

    def save_message(self, message: Message) -> Message:
        self._require_room(message.room_id)
        self._models[Message].put(message.id, message)
        return checked(message)

    def get_message(self, message_id: str) -> Message:
        message: Message | None = self._models[Message].by_key.get(message_id)
        if message is None:
            raise not_found(Message, id=message_id)
        return checked(message)

    def get_messages(
        self,
        room_id: str,
        limit: int,
        before: str | None,
        after: str | None,
        thread_id: str | None,
    ) -> list[Message]:
        found = self._models[Message].between(room_id, after, before)
        return _copies(_having({"thread_id": thread_id}, found)[-limit:])

    def delete_message(self, message_id: str) -> None:
        super().delete_message(message_id)
        key = self._key_of_message.pop(message_id, None)
        if key is not None:
            del self._message_of_key[key]

    # -- bindings --------------------------------------------------------------------------------

    def get_or_create_room_by_external_binding(self, candidate: Room, binding: RoomBinding) -> Room:
        bound = self._bound(binding)
        if bound is not None:
            return self.get_room(bound.room_id)
        self._require_new_binding(binding)
        room = self.find(Room, id=candidate.id) or self.save(candidate)
        self.save(binding)
        return room

    def create_room_binding(self, binding: RoomBinding) -> RoomBinding:
        self._require_room(binding.room_id)
        standing = self._bound(binding)
        if standing is None:
            self._require_new_binding(binding)
            return self.save(binding)
        if standing.room_id == binding.room_id:
            return checked(standing)
        raise AlreadyBound(
            f"{':'.join(_source_of(binding))} is bound to room {standing.room_id!r} already",
            standing.room_id,
        )

    def _bound(self, binding: RoomBinding) -> RoomBinding | None:
        """The binding that stands for the same external room."""
        found = self._models[RoomBinding].indexes[_SOURCE].get(_source_of(binding))
        return found[-1] if found else None

    # -- directory -------------------------------------------------------------------------------

    def directory_search(
        self, target: DirectoryTarget, query: DirectoryQuery, limit: int, after: str | None
    ) -> list[Participant] | list[Room]:
        if target == "participant":
            people = self._models[Participant].sorted(after)
            return _copies(islice((p for p in people if _matches_participant(p, query)), limit))
        rooms = self._models[Room].sorted(after)
        return _copies(islice((room for room in rooms if self._matches_room(room, query)), limit))

    def _matches_room(self, room: Room, query: DirectoryQuery) -> bool:
        return (
            query.id in (None, room.id)
            and _has_name(room.name, query)
            and (
                query.external_id is None
                or any(
                    _source_of(binding) == (query.channel, query.bridge_id, query.external_id)
                    for binding in self._models[RoomBinding].of_room(room.id)
                )
            )
        )

    # -- onboarding ------------------------------------------------------------------------------

    def save_onboarding(self, onboarding_id: str, flow: OnboardingFlow) -> OnboardingFlow:
        self._models[OnboardingFlow].put(onboarding_id, flow)
        return checked_flow(flow)

    def get_onboarding(self, onboarding_id: str) -> OnboardingFlow:
        flow = self._models[OnboardingFlow].by_key.get(onboarding_id)
        if flow is None:
            raise NotFound(f"no onboarding flow {onboarding_id!r}")
        return checked_flow(flow)

    # -- as a whole ------------------------------------------------------------------------------

    def save_inbound(self, inbound: Inbound) -> Inbound:
        binding, participant, thread = inbound.binding, inbound.participant, inbound.thread
        room = self.get_or_create_room_by_external_binding(inbound.room, binding)
        if participant is not None:
            external_id = str(participant.external_ids[binding.channel])
            participant = self.get_or_create_participant_by_external_id(
                binding.channel, external_id, participant
            )
        if thread is not None:
            external_id = str(thread.external_thread_id)
            found = self.find(Thread, room_id=room.id, external_thread_id=external_id)
            thread = found or self.save(replace(thread, room_id=room.id))
        inbound = replace(inbound, room=room, participant=participant, thread=thread)
        message, key = inbound.message, inbound.key
        standing_id = message.id if key is None else self._message_of_key.get(key, message.id)
        standing = self._models[Message].by_key.get(standing_id)
        if standing is not None:
            return replace(inbound, message=checked(standing), duplicate=True)
        message = replace(
            message,
            room_id=room.id,
            sender_id=None if participant is None else participant.id,
            thread_id=message.thread_id if thread is None else thread.id,
            reply_to_id=message.reply_to_id or self._replied_to(inbound),
        )
        if key is not None:
            self._message_of_key[key], self._key_of_message[message.id] = message.id, key
        return replace(inbound, message=self.save(message))

    def _replied_to(self, inbound: Inbound) -> str | None:
        binding, external_id = inbound.binding, inbound.message.external_reply_to_id
        if external_id is None:
            return None
        by = {
            "channel": binding.channel,
            "bridge_id": binding.bridge_id,
            "external_id": str(external_id),
            "room_id": inbound.room.id,
        }
        found = self._models[Message].newest(by)
        return None if found is None else found.id

    def counts(self) -> dict[str, int]:
        return {kind: len(self._models[of].by_key) for kind, of in KINDS.items()}

    def scan(
        self, kind: str, limit: int, after: str | None, newest_first: bool
    ) -> list[tuple[str, Model | OnboardingFlow]]:
        found = self._models[KINDS[kind]].by_key
        ids = sorted(found, reverse=newest_first)
        if after is not None:
            ids = [one for one in ids if (one < after if newest_first else one > after)]
        return [(one, _copied(found[one])) for one in ids[:limit]]


class _Models(Generic[M]):
    """Models of one kind by key, and the indexes that follow them."""

    def __init__(self, kind: type[M]) -> None:
        self._kind = kind
        #: The fields of the key, and the models by what stands there, with a NUL between.
        self.key = _KEYS.get(kind, ("id",))
        self.by_key: dict[str, M] = {}
        self.indexes = {fields: _Index(key_of) for fields, key_of in _INDEXES.get(kind, {}).items()}

    def put(self, key: str, model: M) -> None:
        self.remove(key)
        self.by_key[key] = model
        for index in self.indexes.values():
            index.add(model)

    def remove(self, key: str) -> M | None:
        model = self.by_key.pop(key, None)
        if model is not None:
            for index in self.indexes.values():
                index.discard(model)
        return model

    def sorted(self, after: str | None) -> list[M]:
        """All of them, by key; only those after the key `after`."""
        keys = [key for key in self.by_key if after is None or key > after]
        return [self.by_key[key] for key in sorted(keys)]

    def newest(self, by: Mapping[str, Any]) -> M | None:
        """The model with a key, or the newest with the fields of an index and others."""
        if (*by,) == self.key:
            return self.by_key.get("\0".join(by.values()))
        fields = _index_for(self._kind, (*by,))
        found = self.indexes[fields].get(tuple([by[name] for name in fields]))
        found = _having({name: by[name] for name in by if name not in fields}, found)
        return found[-1] if found else None

    def of_room(self, room_id: str) -> list[M]:
        return self.indexes[_ROOM].get((room_id,))

    def between(self, room_id: str, after: str | None, before: str | None) -> list[M]:
        """Those of a room between the ids of two of them."""
        found = self.of_room(room_id)
        first = None if after is None else self._position(found, room_id, after) + 1
        last = None if before is None else self._position(found, room_id, before)
        return found[first:last]

    def _position(self, found: list[M], room_id: str, model_id: str) -> int:
        model: Any = self.by_key.get(model_id)
        if model is None or model.room_id != room_id:
            raise not_found(self._kind, room_id=room_id, id=model_id)
        return bisect_left(found, _time_of(model), key=_time_of)


class _Index(Generic[M]):
    """Models grouped by a key, each group in the order of time and id."""

    def __init__(self, key_of: Callable[[M], _Key | None]) -> None:
        self._key_of = key_of
        self._groups: dict[_Key, list[M]] = {}

    def get(self, key: _Key) -> list[M]:
        return self._groups.get(key, [])

    def add(self, model: M) -> None:
        key = self._key_of(model)
        if key is not None:
            insort(self._groups.setdefault(key, []), model, key=_time_of)

    def discard(self, model: M) -> None:
        key = self._key_of(model)
        if key is not None:
            group = self._groups[key]
            del group[bisect_left(group, _time_of(model), key=_time_of)]
            if not group:
                del self._groups[key]


def _time_of(model: Any) -> tuple[datetime, str]:
    return model.inserted_at, model.id


def _room_of(model: Message | Thread | RoomBinding) -> _Key:
    return (model.room_id,)


def _external_of(message: Message) -> _Key | None:
    scope = message.external_scope
    if message.external_id is None or scope is None:
        return None
    return (*scope, str(message.external_id))


def _external_thread_of(thread: Thread) -> _Key | None:
    external_id = thread.external_thread_id
    return None if external_id is None else (thread.room_id, str(external_id))


def _root_of(thread: Thread) -> _Key | None:
    root = thread.root_message_id
    return None if root is None else (thread.room_id, root)


def _source_of(binding: RoomBinding) -> _Key:
    return binding.channel, binding.bridge_id, str(binding.external_room_id)


_ROOM = ("room_id",)
_SOURCE = ("channel", "bridge_id", "external_room_id")

#: The fields of the keys that are not an id.
_KEYS: dict[Any, tuple[str, ...]] = {
    RoutingPolicy: _ROOM,
    IngressSubscription: ("bridge_id", "subscription_id"),
}

#: The fields by which a kind is found, and what an index makes of a model for them.
_INDEXES: dict[Any, dict[tuple[str, ...], Callable[[Any], _Key | None]]] = {
    Message: {("channel", "bridge_id", "external_id"): _external_of, _ROOM: _room_of},
    Thread: {
        ("room_id", "external_thread_id"): _external_thread_of,
        ("room_id", "root_message_id"): _root_of,
        _ROOM: _room_of,
    },
    RoomBinding: {_SOURCE: _source_of, _ROOM: _room_of},
}


@cache
def _index_for(kind: type[Model], names: tuple[str, ...]) -> tuple[str, ...]:
    """The fields of an index that finds models by these fields and others."""
    return next(fields for fields in _INDEXES[kind] if {*fields} <= {*names})


def _having(by: Mapping[str, object], models: list[M]) -> list[M]:
    """Those of `models` with these values; `None` is any."""
    wanted = [(name, value) for name, value in by.items() if value is not None]
    if not wanted:
        return models
    return [one for one in models if all(getattr(one, name) == value for name, value in wanted)]


def _external_keys(participant: Participant) -> set[tuple[str, str]]:
    return {(channel, str(external)) for channel, external in participant.external_ids.items()}


def _matches_participant(participant: Participant, query: DirectoryQuery) -> bool:
    return (
        query.id in (None, participant.id)
        and _has_name(participant.identity.get("name"), query)
        and (
            query.external_id is None
            or (query.channel, query.external_id) in _external_keys(participant)
        )
    )


def _has_name(name: object, query: DirectoryQuery) -> bool:
    if query.name is None:
        return True
    return isinstance(name, str) and folded(query.name) in folded(name)


def _copies(models: Iterable[M]) -> list[M]:
    return [checked(model) for model in models]


def _copied(found: Model | OnboardingFlow) -> Model | OnboardingFlow:
    return checked(found) if isinstance(found, Model) else checked_flow(found)
