"""The contract between the persistence store and its adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from heapq import nlargest
from typing import ClassVar, Literal, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace
from uuid_utils import NAMESPACE_URL, uuid5

from trunkline.backends import Adapter
from trunkline.errors import AlreadyBound, NotFound, StoreUnavailable, TrunklineError
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
from trunkline.persistence.validation import Model

__all__ = (
    "KINDS",
    "DirectoryQuery",
    "DirectoryTarget",
    "Inbound",
    "PersistenceAdapter",
    "hashed_key",
    "inbound_key",
    "not_found",
)

M = TypeVar("M", bound=Model)
R = TypeVar("R")
T = TypeVar("T")

#: Bytes of a key that an index takes, beside those of a namespace.
_LONGEST_KEY = 800

#: What a store holds, by the name under which it is counted; those that others refer to first.
KINDS = {
    "rooms": Room,
    "participants": Participant,
    "threads": Thread,
    "messages": Message,
    "room_bindings": RoomBinding,
    "onboarding_flows": OnboardingFlow,
    "bridge_configs": BridgeConfig,
    "routing_policies": RoutingPolicy,
    "ingress_subscriptions": IngressSubscription,
}

DirectoryTarget: TypeAlias = Literal["participant", "room"]


class DirectoryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to search the directory for; all fields that are set must match."""

    id: str | None = None
    #: A part of the name, in any case.
    name: str | None = None
    #: Goes with `external_id`; for rooms also with `bridge_id`.
    channel: str | None = None
    bridge_id: str | None = None
    external_id: str | None = None


class Inbound(msgspec.Struct, frozen=True, gc=False):
    """A message that came in, with what it came from."""

    room: Room
    #: The sender; `external_ids` has an id on the binding's channel.
    participant: Participant | None
    message: Message
    #: The external room that it came from.
    binding: RoomBinding
    #: The thread that it came from; has an `external_thread_id`.
    thread: Thread | None = None
    #: Whether the same message came in before.
    duplicate: bool = False

    @property
    def key(self) -> str | None:
        """What tells the same message of the same external room; `None` without an external id."""
        if self.message.external_id is None:
            return None
        binding = self.binding
        return inbound_key(
            binding.channel,
            binding.bridge_id,
            str(binding.external_room_id),
            str(self.message.external_id),
        )


def inbound_key(*parts: str) -> str:
    """One text of channel, bridge id, external room id and external id.

    Messages that follow each other in a room have keys that stand together in an index. A text
    that is too long for an index becomes a hash; trunkline 0.1 gave that hash to the message as
    its id.
    """
    key = ":".join(parts)
    if "%" in key or key.count(":") != len(parts) - 1:
        key = ":".join(part.replace("%", "%25").replace(":", "%3A") for part in parts)
    return key if len(key.encode()) <= _LONGEST_KEY else hashed_key(key)


def hashed_key(key: str) -> str:
    return str(uuid5(NAMESPACE_URL, f"trunkline:{key}"))


class PersistenceAdapter(Adapter, ABC):
    """The contract of persistence. Subclass it and run `trunkline.testing.PersistenceContract`.

    A method without a docstring does what the store's method of the same name does. It is made of
    `save`, `find`, `page` and `remove`, which serve models of every kind. Override it where a
    database can do better.

    The store has checked every argument: models are valid; ids are strings that are not empty, have
    no NUL and at most 800 bytes; external ids are strings; limits are in range. A method that
    raises one of the errors that it names has not changed anything.

    Models are returned equal to what was saved. Saving under the same id replaces the whole model,
    and every index with it: an external id, a room, a thread or a root message that a model no
    longer has does not find it.
    """

    store: ClassVar = "persistence"

    # -- models of every kind --------------------------------------------------------------------

    @abstractmethod
    def save(self, model: M) -> M:
        """Insert a model, or replace the one with the same key.

        The key is the id; of a routing policy `room_id`; of a subscription `bridge_id` and
        `subscription_id`, which is an empty string for one without an id.
        """

    @abstractmethod
    def find(self, kind: type[M], *, for_update: bool = False, **by: str | None) -> M | None:
        """The model with a key or with other values, the newest of several by `(inserted_at, id)`.

        Args:
            kind: the class of the model.
            for_update: nobody else may change it until the transaction ends.
            by: values by the names of their fields; `None` is any. External ids are texts, and
                `channel` and `bridge_id` of a message are those of its metadata.
        """

    @abstractmethod
    def page(
        self, kind: type[M], limit: int, after: str | None, **by: str | bool | None
    ) -> list[M]:
        """The first `limit` models with the values `by`, after the id `after`.

        Threads and bindings of a room are sorted by `(inserted_at, id)`, subscriptions of a bridge
        by `subscription_id`, others by id. Raises `NotFound` if `after` is not a thread or binding
        of the room.
        """

    @abstractmethod
    def remove(self, kind: type[Model], **key: str) -> bool:
        """Delete the model with a key; whether there was one."""

    def get(self, kind: type[M], *, for_update: bool = False, **by: str | None) -> M:
        """As `find`. Raises `NotFound`."""
        found = self.find(kind, for_update=for_update, **by)
        if found is None:
            raise not_found(kind, **by)
        return found

    def _delete(self, kind: type[Model], **key: str) -> None:
        if not self.remove(kind, **key):
            raise not_found(kind, **key)

    def _require_room(self, room_id: str) -> None:
        """Refuse an unknown room; a known one must stay until the transaction ends."""
        self.get(Room, id=room_id)

    # -- rooms -----------------------------------------------------------------------------------

    def save_room(self, room: Room) -> Room:
        return self.save(room)

    def get_room(self, room_id: str) -> Room:
        return self.get(Room, id=room_id)

    @abstractmethod
    def delete_room_part(self, room_id: str, limit: int) -> bool:
        """Delete a part of a room with what belongs to it.

        The store calls it until the room is deleted, with other calls in between. The first call
        deletes the bindings and the policy, each call up to `limit` messages and threads, oldest
        first, and the last call the room. Until then the room can be read with what is left.

        Returns:
            Whether the room does not exist any more.
        """

    def list_rooms(self, limit: int, room_type: str | None, after: str | None) -> list[Room]:
        return self.page(Room, limit, after, type=room_type)

    # -- participants ----------------------------------------------------------------------------

    @abstractmethod
    def save_participant(self, participant: Participant) -> Participant:
        """Insert or update, with the external ids."""

    def get_participant(self, participant_id: str) -> Participant:
        return self.get(Participant, id=participant_id)

    @abstractmethod
    def delete_participant(self, participant_id: str) -> None:
        """Their messages stay. Does nothing if it does not exist."""

    @abstractmethod
    def get_or_create_participant_by_external_id(
        self, channel: str, external_id: str, candidate: Participant
    ) -> Participant:
        """The participant with this id on this channel; else `candidate`, saved.

        If there is a participant with the candidate's id, that one gets the external id, and stays
        as it is otherwise. One row however many callers race, in one process or several. Of several
        saved with the same external id, the one that was saved with it first; when that one has
        lost it, the one with the least id.
        """

    # -- messages --------------------------------------------------------------------------------

    def save_message(self, message: Message) -> Message:
        self._require_room(message.room_id)
        return self.save(message)

    def save_messages(self, messages: Sequence[Message]) -> list[Message | TrunklineError]:
        """`save_message` for each, in their order; an error fails its own message alone."""
        return [_result(self.save_message, message) for message in messages]

    def get_message(self, message_id: str) -> Message:
        return self.get(Message, id=message_id)

    @abstractmethod
    def get_messages(
        self,
        room_id: str,
        limit: int,
        before: str | None,
        after: str | None,
        thread_id: str | None,
    ) -> list[Message]:
        """The newest `limit` messages between `after` and `before` (message ids), oldest first.

        The order is that of `(inserted_at, id)`. Raises `NotFound` if `before` or `after` is not a
        message of this room.
        """

    def delete_message(self, message_id: str) -> None:
        self.remove(Message, id=message_id)

    def get_message_by_external_id(
        self, channel: str, bridge_id: str, external_id: str, room_id: str | None
    ) -> Message:
        return self.get(
            Message, channel=channel, bridge_id=bridge_id, external_id=external_id, room_id=room_id
        )

    def update_message_external_id(self, message_id: str, external_id: ExternalId) -> Message:
        message = self.get(Message, for_update=True, id=message_id)
        return self.save(replace(message, external_id=external_id, updated_at=now()))

    # -- threads ---------------------------------------------------------------------------------

    def save_thread(self, thread: Thread) -> Thread:
        self._require_room(thread.room_id)
        return self.save(thread)

    def get_thread(self, thread_id: str) -> Thread:
        return self.get(Thread, id=thread_id)

    def get_thread_by_external_id(self, room_id: str, external_thread_id: str) -> Thread:
        return self.get(Thread, room_id=room_id, external_thread_id=external_thread_id)

    def get_thread_by_root_message(self, room_id: str, root_message_id: str) -> Thread:
        return self.get(Thread, room_id=room_id, root_message_id=root_message_id)

    def list_threads(
        self, room_id: str, limit: int, after: str | None, status: str | None
    ) -> list[Thread]:
        return self.page(Thread, limit, after, room_id=room_id, status=status)

    # -- bindings --------------------------------------------------------------------------------

    @abstractmethod
    def get_or_create_room_by_external_binding(self, candidate: Room, binding: RoomBinding) -> Room:
        """The room to which `binding`'s external room is bound; else `candidate`, saved and bound.

        A room with the candidate's id that is there already is bound as it is.
        One row however many callers race, in one process or several.
        """

    def get_room_by_external_binding(self, channel: str, bridge_id: str, external_id: str) -> Room:
        binding = self.get(
            RoomBinding, channel=channel, bridge_id=bridge_id, external_room_id=external_id
        )
        return self.get_room(binding.room_id)

    @abstractmethod
    def create_room_binding(self, binding: RoomBinding) -> RoomBinding:
        """Bind, or return the binding if the same room is bound to the same external room already.

        Raises `NotFound` for an unknown room, `AlreadyBound` if the external room is bound to
        another room, or if there is a binding with this id.
        """

    def _require_new_binding(self, binding: RoomBinding) -> None:
        other = self.find(RoomBinding, id=binding.id)
        if other is not None:
            raise AlreadyBound(
                f"binding {binding.id!r} binds room {other.room_id!r} already", other.room_id
            )

    def list_room_bindings(self, room_id: str, limit: int, after: str | None) -> list[RoomBinding]:
        return self.page(RoomBinding, limit, after, room_id=room_id)

    def delete_room_binding(self, binding_id: str) -> None:
        self._delete(RoomBinding, id=binding_id)

    # -- directory -------------------------------------------------------------------------------

    @abstractmethod
    def directory_search(
        self, target: DirectoryTarget, query: DirectoryQuery, limit: int, after: str | None
    ) -> list[Participant] | list[Room]:
        """The first `limit` matches by id, after the id `after`."""

    # -- onboarding, bridges, policies, subscriptions ----------------------------------------------

    @abstractmethod
    def save_onboarding(self, onboarding_id: str, flow: OnboardingFlow) -> OnboardingFlow:
        """Insert or update."""

    @abstractmethod
    def get_onboarding(self, onboarding_id: str) -> OnboardingFlow:
        """Raises `NotFound`."""

    def save_bridge_config(self, config: BridgeConfig) -> BridgeConfig:
        return self.save(config)

    def get_bridge_config(self, bridge_id: str) -> BridgeConfig:
        return self.get(BridgeConfig, id=bridge_id)

    def list_bridge_configs(
        self, limit: int, after: str | None, enabled: bool | None
    ) -> list[BridgeConfig]:
        return self.page(BridgeConfig, limit, after, enabled=enabled)

    def delete_bridge_config(self, bridge_id: str) -> None:
        self._delete(BridgeConfig, id=bridge_id)

    def save_routing_policy(self, policy: RoutingPolicy) -> RoutingPolicy:
        self._require_room(policy.room_id)
        return self.save(policy)

    def get_routing_policy(self, room_id: str) -> RoutingPolicy:
        return self.get(RoutingPolicy, room_id=room_id)

    def delete_routing_policy(self, room_id: str) -> None:
        self._delete(RoutingPolicy, room_id=room_id)

    def save_ingress_subscription(self, subscription: IngressSubscription) -> IngressSubscription:
        return self.save(subscription)

    def list_ingress_subscriptions(
        self, bridge_id: str, limit: int, after: str | None, status: str | None
    ) -> list[IngressSubscription]:
        return self.page(IngressSubscription, limit, after, bridge_id=bridge_id, status=status)

    def delete_ingress_subscription(self, bridge_id: str, subscription_id: str | None) -> None:
        key = {"bridge_id": bridge_id, "subscription_id": subscription_id or ""}
        self._delete(IngressSubscription, **key)

    # -- as a whole ------------------------------------------------------------------------------

    @abstractmethod
    def save_inbound(self, inbound: Inbound) -> Inbound:
        """Store a message with its room, participant and thread, together or not at all.

        The room is the one that the binding's external room is bound to, else `inbound.room`,
        bound; the participant likewise by their external id on the binding's channel, the thread by
        its external id in the room. The message that it replies to is looked up in the room by
        `external_reply_to_id`. A message that is there already, under its id or its `key`, is left
        as it is, and returned with `duplicate`: one message however many callers race, in one
        process or several. Saving or moving the message later does not change its key.

        Raises `AlreadyBound` if the binding has the id of one of another external room.
        """

    def save_inbounds(self, inbounds: Sequence[Inbound]) -> list[Inbound | TrunklineError]:
        """`save_inbound` for each, in their order; an error fails its own message alone."""
        return [_result(self.save_inbound, inbound) for inbound in inbounds]

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How many there are of each of `KINDS`."""

    @abstractmethod
    def scan(
        self, kind: str, limit: int, after: str | None, newest_first: bool
    ) -> list[tuple[str, Model | OnboardingFlow]]:
        """Up to `limit` of one of `KINDS`, each with its id, in the order of ids.

        Args:
            kind: a name in `KINDS`.
            limit: how many at most.
            after: only those after this id, in the order of the scan. The id of a policy is its
                room's; of a subscription, `bridge_id` and `subscription_id` with a NUL between.
            newest_first: backwards.
        """

    def newest_messages(self, limit: int) -> list[Message]:
        """The messages of all rooms with the latest `inserted_at`, newest first, then by id."""
        newest: list[Message] = []
        after = None
        while page := self.scan("messages", 1_000, after, newest_first=False):
            newest += [one for _, one in page if isinstance(one, Message)]
            newest = nlargest(limit, newest, key=lambda one: (one.inserted_at, one.id))
            after = page[-1][0]
        return newest

    bulk: ClassVar = {save_message: save_messages, save_inbound: save_inbounds}


def not_found(kind: type[Model], **by: str | None) -> NotFound:
    """The error for a model that is not there."""
    values = ", ".join(f"{name} {value!r}" for name, value in by.items() if value is not None)
    return NotFound(f"no {kind.__name__} with {values}")


def _result(method: Callable[[T], R], argument: T) -> R | TrunklineError:
    """What `method` returns, or the error that is the answer to this call alone."""
    try:
        return method(argument)
    except StoreUnavailable:
        raise
    except TrunklineError as error:
        return error
