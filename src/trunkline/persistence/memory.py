"""Persistence in memory: for tests, and for bots whose data may be lost when they end."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable
from typing import Any, ClassVar, Generic, Self, TypeVar

from msgspec.structs import replace

from trunkline.backends import AdapterOptions
from trunkline.errors import AlreadyBound, NotFound
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
    OnboardingFlow,
    Participant,
    Room,
    RoomBinding,
    RoutingPolicy,
    Thread,
    now,
)
from trunkline.persistence.validation import Model, checked, checked_flow, folded

__all__ = ("MemoryPersistenceAdapter",)

M = TypeVar("M", bound=Model)
V = TypeVar("V")
K = TypeVar("K", bound=Hashable)


class MemoryPersistenceAdapter(PersistenceAdapter):
    """Everything in dictionaries of this process. Every model that is returned is a copy."""

    blocking: ClassVar = False

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        adapter = cls()
        adapter.namespace = options.namespace
        return adapter

    def __init__(self) -> None:
        self._rooms = _Models(Room)
        self._participants = _Models(Participant)
        self._messages = _Models(Message)
        self._threads = _Models(Thread)
        self._bindings = _Models(RoomBinding)
        self._bridges = _Models(BridgeConfig)
        self._onboardings: dict[str, OnboardingFlow] = {}
        self._policies: dict[str, RoutingPolicy] = {}
        self._subscriptions: dict[tuple[str, str], IngressSubscription] = {}

        self._messages_of_room = _Index[str, Message](_room_of, _time_of, self._messages)
        self._messages_of_external = _Index[tuple[str, str, str], Message](
            _external_of_message, _time_of, self._messages
        )
        self._threads_of_room = _Index[str, Thread](_room_of, _time_of, self._threads)
        self._threads_of_external = _Index[tuple[str, str], Thread](
            _external_of_thread, _time_of, self._threads
        )
        self._threads_of_root = _Index[tuple[str, str], Thread](
            _root_of_thread, _time_of, self._threads
        )
        self._bindings_of_room = _Index[str, RoomBinding](_room_of, _time_of, self._bindings)
        #: (channel, bridge id, external id) → binding id.
        self._binding_of_external: dict[tuple[str, str, str], str] = {}
        #: The key of a message that came in → its id, and back.
        self._message_of_key: dict[str, str] = {}
        self._key_of_message: dict[str, str] = {}
        #: (channel, external id) → participant ids; first the one that the external id finds.
        self._participants_of_external: dict[tuple[str, str], list[str]] = {}

    # -- rooms -----------------------------------------------------------------------------------

    def save_room(self, room: Room) -> Room:
        return self._rooms.put(room)

    def get_room(self, room_id: str) -> Room:
        return self._rooms.get(room_id)

    def delete_room_part(self, room_id: str, limit: int) -> bool:
        for binding in self._bindings_of_room.of(room_id):
            self.delete_room_binding(binding.id)
        self._policies.pop(room_id, None)
        messages = self._messages_of_room.of(room_id, last=limit)
        threads = self._threads_of_room.of(room_id, last=limit - len(messages))
        for message in messages:
            self.delete_message(message.id)
        for thread in threads:
            self._threads.remove(thread.id)
        if self._messages_of_room.of(room_id) or self._threads_of_room.of(room_id):
            return False
        self._rooms.remove(room_id)
        return True

    def list_rooms(self, limit: int, room_type: str | None, after: str | None) -> list[Room]:
        rooms = (room for room in self._rooms.sorted(after) if room_type in (None, room.type))
        return _copies(_first(limit, rooms))

    # -- participants ----------------------------------------------------------------------------

    def save_participant(self, participant: Participant) -> Participant:
        old = self._participants.peek(participant.id)
        new_keys = _external_keys(participant)
        for key in _external_keys(old) - new_keys if old is not None else ():
            self._forget_external(key, participant.id)
        for key in new_keys:
            holders = self._participants_of_external.setdefault(key, [])
            if participant.id not in holders:
                holders.append(participant.id)
        return self._participants.put(participant)

    def get_participant(self, participant_id: str) -> Participant:
        return self._participants.get(participant_id)

    def delete_participant(self, participant_id: str) -> None:
        participant = self._participants.remove(participant_id)
        for key in _external_keys(participant) if participant is not None else ():
            self._forget_external(key, participant_id)

    def get_or_create_participant_by_external_id(
        self, channel: str, external_id: str, candidate: Participant
    ) -> Participant:
        holders = self._participants_of_external.get((channel, external_id))
        if holders:
            return self._participants.get(holders[0])
        known = self._participants.peek(candidate.id)
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

    def save_message(self, message: Message) -> Message:
        self._require_room(message.room_id)
        return self._messages.put(message)

    def get_message(self, message_id: str) -> Message:
        return self._messages.get(message_id)

    def get_messages(
        self,
        room_id: str,
        limit: int,
        before: str | None,
        after: str | None,
        thread_id: str | None,
    ) -> list[Message]:
        first = self._messages_of_room.position(room_id, after, beyond=True)
        last = self._messages_of_room.position(room_id, before, beyond=False)
        window = self._messages_of_room.of(room_id, first, last)
        if thread_id is not None:
            window = [message for message in window if message.thread_id == thread_id]
        return _copies(window[-limit:])

    def delete_message(self, message_id: str) -> None:
        self._messages.remove(message_id)
        key = self._key_of_message.pop(message_id, None)
        if key is not None:
            del self._message_of_key[key]

    def get_message_by_external_id(
        self, channel: str, bridge_id: str, external_id: str, room_id: str | None
    ) -> Message:
        found = [
            message
            for message in self._messages_of_external.of((channel, bridge_id, external_id))
            if room_id in (None, message.room_id)
        ]
        if not found:
            raise NotFound(f"no message {external_id!r} of {channel}:{bridge_id}")
        return checked(found[-1])

    def update_message_external_id(self, message_id: str, external_id: ExternalId) -> Message:
        message = self._messages.get(message_id)
        return self._messages.put(replace(message, external_id=external_id, updated_at=now()))

    # -- threads ---------------------------------------------------------------------------------

    def save_thread(self, thread: Thread) -> Thread:
        self._require_room(thread.room_id)
        return self._threads.put(thread)

    def get_thread(self, thread_id: str) -> Thread:
        return self._threads.get(thread_id)

    def get_thread_by_external_id(self, room_id: str, external_thread_id: str) -> Thread:
        found = self._threads_of_external.of((room_id, external_thread_id))
        if not found:
            raise NotFound(f"room {room_id!r} has no thread {external_thread_id!r}")
        return checked(found[-1])

    def get_thread_by_root_message(self, room_id: str, root_message_id: str) -> Thread:
        found = self._threads_of_root.of((room_id, root_message_id))
        if not found:
            raise NotFound(f"room {room_id!r} has no thread that begins with {root_message_id!r}")
        return checked(found[-1])

    def list_threads(
        self, room_id: str, limit: int, after: str | None, status: str | None
    ) -> list[Thread]:
        first = self._threads_of_room.position(room_id, after, beyond=True)
        threads = self._threads_of_room.of(room_id, first)
        return _copies(_first(limit, (t for t in threads if status in (None, t.status))))

    # -- bindings --------------------------------------------------------------------------------

    def get_or_create_room_by_external_binding(self, candidate: Room, binding: RoomBinding) -> Room:
        bound = self._binding_of_external.get(_external_of_binding(binding))
        if bound is not None:
            return self._rooms.get(self._bindings.get(bound).room_id)
        self._require_new_binding(binding)
        room = self._rooms.peek(candidate.id) or self.save_room(candidate)
        self.create_room_binding(binding)
        return checked(room)

    def get_room_by_external_binding(self, channel: str, bridge_id: str, external_id: str) -> Room:
        bound = self._binding_of_external.get((channel, bridge_id, external_id))
        if bound is None:
            raise NotFound(f"no room is bound to {channel}:{bridge_id}:{external_id}")
        return self._rooms.get(self._bindings.get(bound).room_id)

    def create_room_binding(self, binding: RoomBinding) -> RoomBinding:
        self._require_room(binding.room_id)
        key = _external_of_binding(binding)
        bound = self._binding_of_external.get(key)
        if bound is not None:
            standing = self._bindings.get(bound)
            if standing.room_id == binding.room_id:
                return standing
            raise AlreadyBound(
                f"{':'.join(key)} is bound to room {standing.room_id!r} already", standing.room_id
            )
        self._require_new_binding(binding)
        self._binding_of_external[key] = binding.id
        return self._bindings.put(binding)

    def list_room_bindings(self, room_id: str, limit: int, after: str | None) -> list[RoomBinding]:
        first = self._bindings_of_room.position(room_id, after, beyond=True)
        return _copies(self._bindings_of_room.of(room_id, first)[:limit])

    def delete_room_binding(self, binding_id: str) -> None:
        binding = self._bindings.get(binding_id)
        del self._binding_of_external[_external_of_binding(binding)]
        self._bindings.remove(binding_id)

    def _require_new_binding(self, binding: RoomBinding) -> None:
        other = self._bindings.peek(binding.id)
        if other is not None:
            raise AlreadyBound(
                f"binding {binding.id!r} binds room {other.room_id!r} already", other.room_id
            )

    # -- directory -------------------------------------------------------------------------------

    def directory_search(
        self, target: DirectoryTarget, query: DirectoryQuery, limit: int, after: str | None
    ) -> list[Participant] | list[Room]:
        if target == "participant":
            people = (
                p for p in self._participants.sorted(after) if self._matches_participant(p, query)
            )
            return _copies(_first(limit, people))
        rooms = (room for room in self._rooms.sorted(after) if self._matches_room(room, query))
        return _copies(_first(limit, rooms))

    def _matches_participant(self, participant: Participant, query: DirectoryQuery) -> bool:
        return (
            query.id in (None, participant.id)
            and _has_name(participant.identity.get("name"), query)
            and (
                query.external_id is None
                or (query.channel, query.external_id) in _external_keys(participant)
            )
        )

    def _matches_room(self, room: Room, query: DirectoryQuery) -> bool:
        return (
            query.id in (None, room.id)
            and _has_name(room.name, query)
            and (
                query.external_id is None
                or any(
                    _external_of_binding(binding)
                    == (query.channel, query.bridge_id, query.external_id)
                    for binding in self._bindings_of_room.of(room.id)
                )
            )
        )

    # -- onboarding, bridges, policies, subscriptions ----------------------------------------------

    def save_onboarding(self, onboarding_id: str, flow: OnboardingFlow) -> OnboardingFlow:
        self._onboardings[onboarding_id] = flow
        return checked_flow(flow)

    def get_onboarding(self, onboarding_id: str) -> OnboardingFlow:
        return checked_flow(_get(self._onboardings, onboarding_id, "onboarding flow"))

    def save_bridge_config(self, config: BridgeConfig) -> BridgeConfig:
        return self._bridges.put(config)

    def get_bridge_config(self, bridge_id: str) -> BridgeConfig:
        return self._bridges.get(bridge_id)

    def list_bridge_configs(
        self, limit: int, after: str | None, enabled: bool | None
    ) -> list[BridgeConfig]:
        configs = (c for c in self._bridges.sorted(after) if enabled in (None, c.enabled))
        return _copies(_first(limit, configs))

    def delete_bridge_config(self, bridge_id: str) -> None:
        self._bridges.get(bridge_id)
        self._bridges.remove(bridge_id)

    def save_routing_policy(self, policy: RoutingPolicy) -> RoutingPolicy:
        self._require_room(policy.room_id)
        self._policies[policy.room_id] = policy
        return checked(policy)

    def get_routing_policy(self, room_id: str) -> RoutingPolicy:
        return checked(_get(self._policies, room_id, "routing policy of room"))

    def delete_routing_policy(self, room_id: str) -> None:
        _get(self._policies, room_id, "routing policy of room")
        del self._policies[room_id]

    def save_ingress_subscription(self, subscription: IngressSubscription) -> IngressSubscription:
        key = (subscription.bridge_id, subscription.subscription_id or "")
        self._subscriptions[key] = subscription
        return checked(subscription)

    def list_ingress_subscriptions(
        self, bridge_id: str, limit: int, after: str | None, status: str | None
    ) -> list[IngressSubscription]:
        subscriptions = (
            self._subscriptions[key]
            for key in sorted(self._subscriptions)
            if key[0] == bridge_id and (after is None or key[1] > after)
        )
        return _copies(_first(limit, (s for s in subscriptions if status in (None, s.status))))

    def delete_ingress_subscription(self, bridge_id: str, subscription_id: str | None) -> None:
        key = (bridge_id, subscription_id or "")
        _get(self._subscriptions, key, "ingress subscription")
        del self._subscriptions[key]

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
            found = self._threads_of_external.of((room.id, external_id))
            thread = (
                checked(found[-1]) if found else self.save_thread(replace(thread, room_id=room.id))
            )
        inbound = replace(inbound, room=room, participant=participant, thread=thread)
        message, key = inbound.message, inbound.key
        standing_id = message.id if key is None else self._message_of_key.get(key, message.id)
        standing = self._messages.peek(standing_id)
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
        return replace(inbound, message=self._messages.put(message))

    def _replied_to(self, inbound: Inbound) -> str | None:
        binding, external_id = inbound.binding, inbound.message.external_reply_to_id
        if external_id is None:
            return None
        found = self._messages_of_external.of(
            (binding.channel, binding.bridge_id, str(external_id))
        )
        ids = [message.id for message in found if message.room_id == inbound.room.id]
        return ids[-1] if ids else None

    def counts(self) -> dict[str, int]:
        return {kind: len(self._of_kind(kind)) for kind in KINDS}

    def scan(
        self, kind: str, limit: int, after: str | None, newest_first: bool
    ) -> list[tuple[str, Model | OnboardingFlow]]:
        found = self._of_kind(kind)
        ids = sorted(found, reverse=newest_first)
        if after is not None:
            ids = [one for one in ids if (one < after if newest_first else one > after)]
        return [(one, _copied(found[one])) for one in ids[:limit]]

    def _of_kind(self, kind: str) -> dict[str, Any]:
        collections: dict[str, _Models[Any]] = {
            "rooms": self._rooms,
            "participants": self._participants,
            "threads": self._threads,
            "messages": self._messages,
            "room_bindings": self._bindings,
            "bridge_configs": self._bridges,
        }
        if kind in collections:
            return {model.id: model for model in collections[kind].sorted()}
        if kind == "ingress_subscriptions":
            return {"\0".join(key): one for key, one in self._subscriptions.items()}
        return dict(self._onboardings if kind == "onboarding_flows" else self._policies)

    def _require_room(self, room_id: str) -> None:
        if self._rooms.peek(room_id) is None:
            raise NotFound(f"no Room {room_id!r}")


class _Models(Generic[M]):
    """Models of one kind by id, and the indexes that follow them."""

    def __init__(self, kind: type[M]) -> None:
        self.kind = kind
        self._models: dict[str, M] = {}
        self._indexes: list[_Index[Hashable, M]] = []

    def put(self, model: M) -> M:
        self.remove(model.id)  # type: ignore[attr-defined]
        self._models[model.id] = model  # type: ignore[attr-defined]
        for index in self._indexes:
            index.add(model)
        return checked(model)

    def peek(self, model_id: str) -> M | None:
        return self._models.get(model_id)

    def get(self, model_id: str) -> M:
        return checked(_get(self._models, model_id, self.kind.__name__))

    def remove(self, model_id: str) -> M | None:
        model = self._models.pop(model_id, None)
        if model is not None:
            for index in self._indexes:
                index.discard(model)
        return model

    def sorted(self, after: str | None = None) -> list[M]:
        """All of them, by id; only those after the id `after`."""
        ids = [one for one in self._models if after is None or one > after]
        return [self._models[model_id] for model_id in sorted(ids)]

    def add_index(self, index: _Index[Hashable, M]) -> None:
        self._indexes.append(index)


class _Index(Generic[K, M]):
    """Models grouped by a key, each group in the order of time and id."""

    def __init__(
        self,
        key: Callable[[M], K | None],
        order: Callable[[M], tuple[object, str]],
        models: _Models[M],
    ) -> None:
        self._key = key
        self._order = order
        self._models = models
        self._groups: dict[K, list[M]] = {}
        models.add_index(self)  # type: ignore[arg-type]

    def of(self, key: K, first: int | None = None, last: int | None = None) -> list[M]:
        return self._groups.get(key, [])[first:last]

    def position(self, key: K, model_id: str | None, *, beyond: bool) -> int | None:
        """The index of a model in its group, or the one after it; `None` without a model."""
        if model_id is None:
            return None
        model = self._models.peek(model_id)
        if model is None or self._key(model) != key:
            raise NotFound(f"no {self._models.kind.__name__} {model_id!r} in room {key!r}")
        return bisect_left(self._groups[key], self._order(model), key=self._order) + beyond

    def add(self, model: M) -> None:
        key = self._key(model)
        if key is not None:
            insort(self._groups.setdefault(key, []), model, key=self._order)

    def discard(self, model: M) -> None:
        key = self._key(model)
        if key is not None:
            group = self._groups[key]
            del group[bisect_left(group, self._order(model), key=self._order)]
            if not group:
                del self._groups[key]


def _room_of(model: Message | Thread | RoomBinding) -> str:
    return model.room_id


def _time_of(model: Message | Thread | RoomBinding) -> tuple[object, str]:
    return (model.inserted_at, model.id)


def _external_of_message(message: Message) -> tuple[str, str, str] | None:
    scope = message.external_scope
    if message.external_id is None or scope is None:
        return None
    return (*scope, str(message.external_id))


def _external_of_thread(thread: Thread) -> tuple[str, str] | None:
    external_id = thread.external_thread_id
    return None if external_id is None else (thread.room_id, str(external_id))


def _root_of_thread(thread: Thread) -> tuple[str, str] | None:
    root = thread.root_message_id
    return None if root is None else (thread.room_id, root)


def _external_of_binding(binding: RoomBinding) -> tuple[str, str, str]:
    return (binding.channel, binding.bridge_id, str(binding.external_room_id))


def _external_keys(participant: Participant) -> set[tuple[str, str]]:
    return {(channel, str(external)) for channel, external in participant.external_ids.items()}


def _has_name(name: object, query: DirectoryQuery) -> bool:
    if query.name is None:
        return True
    return isinstance(name, str) and folded(query.name) in folded(name)


def _copies(models: Iterable[M]) -> list[M]:
    return [checked(model) for model in models]


def _first(limit: int, models: Iterable[M]) -> list[M]:
    return [model for _, model in zip(range(limit), models, strict=False)]


def _copied(found: Model | OnboardingFlow) -> Model | OnboardingFlow:
    return checked(found) if isinstance(found, Model) else checked_flow(found)


def _get(mapping: dict[K, V], key: K, what: str) -> V:
    try:
        return mapping[key]
    except KeyError:
        raise NotFound(f"no {what} {key!r}") from None
