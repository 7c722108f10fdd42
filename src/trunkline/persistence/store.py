"""The persistence store: who is this, and what was said?"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Literal, TypeVar, get_args, overload

from msgspec.structs import replace

from trunkline.actors import RestartPolicy
from trunkline.backends import AdapterOptions, Store, resolve_adapter
from trunkline.backends.cipher import EncryptionKey
from trunkline.errors import AmbiguousMatch, ConfigurationError, InvalidModel, NotFound
from trunkline.persistence.adapter import (
    KINDS,
    DirectoryQuery,
    DirectoryTarget,
    Inbound,
    PersistenceAdapter,
)
from trunkline.persistence.credentials import CredentialsCipher, LockedCredentials
from trunkline.persistence.documents import kind_of
from trunkline.persistence.inbound import new_participant, new_room
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
)
from trunkline.persistence.validation import (
    Model,
    checked,
    checked_flow,
    choices,
    external_key,
    folded,
    optional_id,
    require_external_id,
    require_id,
    require_mapping,
    shown,
)
from trunkline.validation import text_problem

__all__ = ("PersistenceStore",)

M = TypeVar("M", bound=Model)

#: Messages of a room that are deleted in one call of the adapter; others are served in between.
_ROWS_A_PART = 1_000


class PersistenceStore(Store[PersistenceAdapter]):
    """Rooms, participants, threads, messages and their bindings. A write that returned is on disk.

    Args:
        url: `sqlite:///bot.db`, `postgresql://user:password@host/db` or `memory://`.
        adapter: an adapter of your own, instead of a URL.
        namespace: stores of two namespaces never see each other's data.
        encryption_key: a Fernet key, or several, with which credentials of bridges are encrypted
            at rest: the first encrypts, all decrypt.
        name: stands in events, logs and errors.
        call_timeout_ms: how long a call may take, waiting included.
        mailbox_size: calls that may wait for one worker; more make their callers wait for room.
        max_batch: calls that are committed together at most.
        restart_policy: how many crashes are tolerated, and the delay after each.

    Raises:
        ConfigurationError: a URL, key or option that can never work.
        StoreUnavailable: out of `async with`, when the database cannot be reached.

    Every method raises `StoreUnavailable` within `call_timeout_ms` while the database is away, and
    works again when it is back. It raises `InvalidModel` for models and ids that cannot be stored,
    and `UnreadableRecord` if a row that it needs cannot be decoded; other calls go on.

    Lists come in pages: `limit` is 1 to 1,000, and `after` is the id of the last one of the page
    before. It is `NotFound` where a list is in the order of time and that one is not in it.

    Fields that a newer version has stored are kept when a model is read, changed with
    `msgspec.structs.replace` and saved again.

    Source: Jido.Messaging.Persistence.

    Example:
        >>> import anyio
        >>> from trunkline.persistence import Message, PersistenceStore, Room
        >>> async def main() -> list[str]:
        ...     async with PersistenceStore("memory://") as store:
        ...         room = await store.get_or_create_room_by_external_binding(
        ...             "telegram", "support_bot", 42, {"type": "group", "name": "Lobby"}
        ...         )
        ...         await store.save_message(Message.new(room_id=room.id, content="hello"))
        ...         return [message.content for message in await store.get_messages(room.id)]
        >>> anyio.run(main)
        ['hello']
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        adapter: PersistenceAdapter | None = None,
        namespace: str = "default",
        encryption_key: EncryptionKey | None = None,
        name: str = "persistence",
        call_timeout_ms: int = 5_000,
        mailbox_size: int = 1_024,
        max_batch: int = 256,
        restart_policy: RestartPolicy | None = None,
    ) -> None:
        self._credentials = CredentialsCipher(encryption_key)
        options = AdapterOptions(namespace=namespace, timeout_ms=call_timeout_ms)
        super().__init__(
            resolve_adapter(PersistenceAdapter, url, adapter, options),
            name=name,
            call_timeout_ms=call_timeout_ms,
            mailbox_size=mailbox_size,
            max_batch=max_batch,
            restart_policy=restart_policy,
        )

    # -- rooms -----------------------------------------------------------------------------------

    async def save_room(self, room: Room) -> Room:
        """Insert or update a room. Returns it as it is stored."""
        room = _model(Room, room)
        return await self._write(room.id, PersistenceAdapter.save_room, room)

    async def get_room(self, room_id: str) -> Room:
        """The room with this id. Raises `NotFound`."""
        return await self._read(PersistenceAdapter.get_room, require_id("room_id", room_id))

    async def delete_room(self, room_id: str) -> None:
        """Delete a room with its messages, threads, bindings and policy, if it is there.

        A large room is deleted in parts, between other calls: at first its bindings and its policy,
        then its messages and threads, oldest first, and then the room. It can be read meanwhile.
        When deleting was interrupted, call it again.
        """
        require_id("room_id", room_id)
        while not await self._write(
            room_id, PersistenceAdapter.delete_room_part, room_id, _ROWS_A_PART
        ):
            pass

    async def list_rooms(
        self,
        *,
        limit: int = 100,
        type: str | None = None,  # noqa: A002
        after: str | None = None,
    ) -> list[Room]:
        """Rooms sorted by id, only those of a `type` if it is given."""
        return await self._read(
            PersistenceAdapter.list_rooms,
            _limit(limit),
            _choice(Room, "type", type),
            optional_id("after", after),
        )

    # -- participants ----------------------------------------------------------------------------

    async def save_participant(self, participant: Participant) -> Participant:
        """Insert or update a participant. Returns it as it is stored."""
        participant = _model(Participant, participant)
        return await self._write(participant.id, PersistenceAdapter.save_participant, participant)

    async def get_participant(self, participant_id: str) -> Participant:
        """The participant with this id. Raises `NotFound`."""
        return await self._read(
            PersistenceAdapter.get_participant, require_id("participant_id", participant_id)
        )

    async def delete_participant(self, participant_id: str) -> None:
        """Delete a participant, if there is one. Their messages stay."""
        await self._write(
            participant_id,
            PersistenceAdapter.delete_participant,
            require_id("participant_id", participant_id),
        )

    async def get_or_create_participant_by_external_id(
        self, channel: str, external_id: ExternalId, attrs: Mapping[str, Any] | None = None
    ) -> Participant:
        """The participant with this id on this channel, or a new one with the fields `attrs`.

        Concurrent callers, in one process or several, get one participant. If `attrs` has the id of
        a participant who is stored, that one gets the external id and is otherwise unchanged.
        """
        channel = require_id("channel", channel)
        external_id = require_external_id("external_id", external_id)
        return await self._write(
            (channel, str(external_id)),
            PersistenceAdapter.get_or_create_participant_by_external_id,
            channel,
            str(external_id),
            new_participant(channel, external_id, attrs),
        )

    # -- messages --------------------------------------------------------------------------------

    async def save_message(self, message: Message) -> Message:
        """Insert or update a message; returns it as it is stored.

        Raises `NotFound` for an unknown room.
        """
        message = _model(Message, message)
        return await self._write(message.room_id, PersistenceAdapter.save_message, message)

    async def get_message(self, message_id: str) -> Message:
        """The message with this id. Raises `NotFound`."""
        return await self._read(
            PersistenceAdapter.get_message, require_id("message_id", message_id)
        )

    async def get_messages(
        self,
        room_id: str,
        limit: int = 50,
        before: str | None = None,
        after: str | None = None,
        thread_id: str | None = None,
    ) -> list[Message]:
        """The newest messages of a room, oldest first.

        Args:
            room_id: the room.
            limit: how many at most, 1 to 1,000.
            before: only messages before this message id; the first id of a page gives the page
                before it.
            after: only messages after this message id.
            thread_id: only messages of this thread.

        Raises:
            NotFound: `before` or `after` is no message of this room.
        """
        return await self._read(
            PersistenceAdapter.get_messages,
            require_id("room_id", room_id),
            _limit(limit),
            optional_id("before", before),
            optional_id("after", after),
            optional_id("thread_id", thread_id),
        )

    async def delete_message(self, message_id: str) -> None:
        """Delete a message, if there is one."""
        await self._write(
            message_id, PersistenceAdapter.delete_message, require_id("message_id", message_id)
        )

    async def get_message_by_external_id(
        self,
        channel: str,
        bridge_id: str,
        external_id: ExternalId,
        room_id: str | None = None,
    ) -> Message:
        """The newest message with this id on this bridge, by its metadata. Raises `NotFound`.

        Give `room_id` where a platform counts the messages of each room, as Telegram does.
        """
        return await self._read(
            PersistenceAdapter.get_message_by_external_id,
            require_id("channel", channel),
            require_id("bridge_id", bridge_id),
            external_key("external_id", external_id),
            optional_id("room_id", room_id),
        )

    async def update_message_external_id(self, message_id: str, external_id: ExternalId) -> Message:
        """Record the id that a platform gave to a message. Raises `NotFound`."""
        external_key("external_id", external_id)
        return await self._write(
            message_id,
            PersistenceAdapter.update_message_external_id,
            require_id("message_id", message_id),
            external_id,
        )

    # -- threads ---------------------------------------------------------------------------------

    async def save_thread(self, thread: Thread) -> Thread:
        """Insert or update a thread; returns it as it is stored.

        Raises `NotFound` for an unknown room.
        """
        thread = _model(Thread, thread)
        return await self._write(thread.room_id, PersistenceAdapter.save_thread, thread)

    async def get_thread(self, thread_id: str) -> Thread:
        """The thread with this id. Raises `NotFound`."""
        return await self._read(PersistenceAdapter.get_thread, require_id("thread_id", thread_id))

    async def get_thread_by_external_id(
        self, room_id: str, external_thread_id: ExternalId
    ) -> Thread:
        """The thread of a room with this id on its platform. Raises `NotFound`."""
        return await self._read(
            PersistenceAdapter.get_thread_by_external_id,
            require_id("room_id", room_id),
            external_key("external_thread_id", external_thread_id),
        )

    async def get_thread_by_root_message(self, room_id: str, root_message_id: str) -> Thread:
        """The thread of a room that begins with this message. Raises `NotFound`."""
        return await self._read(
            PersistenceAdapter.get_thread_by_root_message,
            require_id("room_id", room_id),
            require_id("root_message_id", root_message_id),
        )

    async def list_threads(
        self,
        room_id: str,
        *,
        limit: int = 100,
        after: str | None = None,
        status: str | None = None,
    ) -> list[Thread]:
        """Threads of a room, oldest first, only those of a `status` if it is given."""
        return await self._read(
            PersistenceAdapter.list_threads,
            require_id("room_id", room_id),
            _limit(limit),
            optional_id("after", after),
            _choice(Thread, "status", status),
        )

    # -- bindings --------------------------------------------------------------------------------

    async def get_or_create_room_by_external_binding(
        self,
        channel: str,
        bridge_id: str,
        external_id: ExternalId,
        attrs: Mapping[str, Any] | None = None,
    ) -> Room:
        """The room that is bound to this external room, or a new one with the fields `attrs`.

        Concurrent callers, in one process or several, get one room. If `attrs` has the id of a room
        that is stored, that room is bound and is otherwise unchanged.
        """
        channel, bridge_id = require_id("channel", channel), require_id("bridge_id", bridge_id)
        external_id = require_external_id("external_id", external_id)
        candidate = new_room(channel, bridge_id, external_id, attrs)
        binding = RoomBinding(
            room_id=candidate.id,
            channel=channel,
            bridge_id=bridge_id,
            external_room_id=external_id,
        )
        return await self._write(
            (channel, bridge_id, str(external_id)),
            PersistenceAdapter.get_or_create_room_by_external_binding,
            candidate,
            binding,
        )

    async def get_room_by_external_binding(
        self, channel: str, bridge_id: str, external_id: ExternalId
    ) -> Room:
        """The room that is bound to this external room. Raises `NotFound`."""
        return await self._read(
            PersistenceAdapter.get_room_by_external_binding,
            *_binding_key(channel, bridge_id, external_id),
        )

    async def create_room_binding(
        self,
        room_id: str,
        channel: str,
        bridge_id: str,
        external_id: ExternalId,
        attrs: Mapping[str, Any] | None = None,
    ) -> RoomBinding:
        """Bind a room to an external room, with the fields `attrs` of a `RoomBinding`.

        Binding the same two again returns the binding that stands.

        Raises:
            AlreadyBound: the external room is bound to another room, `error.room_id`; or `attrs`
                has the id of a binding of another external room.
            NotFound: there is no such room.
        """
        require_id("room_id", room_id)
        _binding_key(channel, bridge_id, external_id)
        binding = RoomBinding.new(
            **{
                **require_mapping("attrs", attrs),
                "room_id": room_id,
                "channel": channel,
                "bridge_id": bridge_id,
                "external_room_id": external_id,
            }
        )
        return await self._write(room_id, PersistenceAdapter.create_room_binding, binding)

    async def list_room_bindings(
        self, room_id: str, *, limit: int = 1_000, after: str | None = None
    ) -> list[RoomBinding]:
        """The bindings of a room, oldest first."""
        return await self._read(
            PersistenceAdapter.list_room_bindings,
            require_id("room_id", room_id),
            _limit(limit),
            optional_id("after", after),
        )

    async def delete_room_binding(self, binding_id: str) -> None:
        """Delete a binding. Raises `NotFound`."""
        await self._write(
            binding_id, PersistenceAdapter.delete_room_binding, require_id("binding_id", binding_id)
        )

    # -- directory -------------------------------------------------------------------------------

    @overload
    async def directory_search(
        self,
        target: Literal["participant"],
        query: Mapping[str, Any],
        *,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Participant]: ...

    @overload
    async def directory_search(
        self,
        target: Literal["room"],
        query: Mapping[str, Any],
        *,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Room]: ...

    async def directory_search(
        self,
        target: DirectoryTarget,
        query: Mapping[str, Any],
        *,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Participant] | list[Room]:
        """Participants or rooms, sorted by id, that match all of `query`.

        Args:
            target: `"participant"` or `"room"`.
            query: `id`; `name`, a part of it in any case; `channel` with `external_id`, for rooms
                also with `bridge_id`.
            limit: how many at most.
            after: only with an id behind this one.

        Raises:
            ConfigurationError: another target, another field, or an incomplete external id.
        """
        return await self._read(
            PersistenceAdapter.directory_search,
            target,
            _directory_query(target, query),
            _limit(limit),
            optional_id("after", after),
        )

    @overload
    async def directory_lookup(
        self, target: Literal["participant"], query: Mapping[str, Any]
    ) -> Participant: ...

    @overload
    async def directory_lookup(self, target: Literal["room"], query: Mapping[str, Any]) -> Room: ...

    async def directory_lookup(
        self, target: DirectoryTarget, query: Mapping[str, Any]
    ) -> Participant | Room:
        """The one match of `directory_search`.

        Raises:
            NotFound: nothing matches.
            AmbiguousMatch: there are several: `error.matches` has the first hundred.
            ConfigurationError: as `directory_search`.
        """
        matches = await self._read(
            PersistenceAdapter.directory_search, target, _directory_query(target, query), 100, None
        )
        if not matches:
            raise NotFound(f"no {target} matches {dict(query)!r}")
        if len(matches) > 1:
            raise AmbiguousMatch(f"{len(matches)} {target}s match {dict(query)!r}", matches)
        return matches[0]

    # -- onboarding, bridges, policies, subscriptions ----------------------------------------------

    async def save_onboarding(self, flow: Mapping[str, Any]) -> OnboardingFlow:
        """Insert or update an onboarding flow, a mapping with an `onboarding_id`.

        Raises:
            InvalidModel: it has no id, or a value that JSON does not have.
        """
        onboarding_id = flow.get("onboarding_id") if isinstance(flow, Mapping) else None
        if not isinstance(onboarding_id, str) or not onboarding_id:
            raise InvalidModel(
                f"an onboarding flow has a non-empty str onboarding_id, not {onboarding_id!r}"
            )
        require_id("onboarding_id", onboarding_id)
        return await self._write(
            onboarding_id,
            PersistenceAdapter.save_onboarding,
            onboarding_id,
            checked_flow(dict(flow)),
        )

    async def get_onboarding(self, onboarding_id: str) -> OnboardingFlow:
        """The onboarding flow with this id. Raises `NotFound`."""
        return await self._read(
            PersistenceAdapter.get_onboarding, require_id("onboarding_id", onboarding_id)
        )

    async def save_bridge_config(self, config: BridgeConfig) -> BridgeConfig:
        """Insert or update a bridge's configuration. Returns it as it is stored."""
        valid = _model(BridgeConfig, config)
        is_locked = isinstance(config.credentials, LockedCredentials)
        saved = await self._write(
            valid.id,
            PersistenceAdapter.save_bridge_config,
            valid if is_locked else self._credentials.encrypt(valid),
        )
        return self._credentials.decrypt_or_lock(saved)

    async def get_bridge_config(self, bridge_id: str) -> BridgeConfig:
        """The configuration of a bridge.

        Raises `NotFound`, or `ConfigurationError` if its credentials cannot be decrypted.
        """
        return self._credentials.decrypt(
            await self._read(
                PersistenceAdapter.get_bridge_config, require_id("bridge_id", bridge_id)
            )
        )

    async def list_bridge_configs(
        self, *, limit: int = 1_000, after: str | None = None, enabled: bool | None = None
    ) -> list[BridgeConfig]:
        """Configurations sorted by id, only those that are `enabled` or not if that is given.

        If the credentials of one cannot be decrypted, reading these credentials raises
        `ConfigurationError`; the list and the rest of it can be read.
        """
        if enabled is not None and not isinstance(enabled, bool):
            raise ConfigurationError(f"enabled is True, False or None, not {shown(enabled)}")
        configs = await self._read(
            PersistenceAdapter.list_bridge_configs,
            _limit(limit),
            optional_id("after", after),
            enabled,
        )
        return [self._credentials.decrypt_or_lock(config) for config in configs]

    async def delete_bridge_config(self, bridge_id: str) -> None:
        """Delete a bridge's configuration. Raises `NotFound`."""
        await self._write(
            bridge_id, PersistenceAdapter.delete_bridge_config, require_id("bridge_id", bridge_id)
        )

    async def save_routing_policy(self, policy: RoutingPolicy) -> RoutingPolicy:
        """Insert or replace the policy of a room. Raises `NotFound` for an unknown room."""
        policy = _model(RoutingPolicy, policy)
        return await self._write(policy.room_id, PersistenceAdapter.save_routing_policy, policy)

    async def get_routing_policy(self, room_id: str) -> RoutingPolicy:
        """The routing policy of a room. Raises `NotFound`."""
        return await self._read(
            PersistenceAdapter.get_routing_policy, require_id("room_id", room_id)
        )

    async def delete_routing_policy(self, room_id: str) -> None:
        """Delete the routing policy of a room. Raises `NotFound`."""
        await self._write(
            room_id, PersistenceAdapter.delete_routing_policy, require_id("room_id", room_id)
        )

    async def save_ingress_subscription(
        self, subscription: IngressSubscription
    ) -> IngressSubscription:
        """Insert or replace the subscription of a bridge with this subscription id."""
        subscription = _model(IngressSubscription, subscription)
        return await self._write(
            subscription.bridge_id, PersistenceAdapter.save_ingress_subscription, subscription
        )

    async def list_ingress_subscriptions(
        self,
        bridge_id: str,
        *,
        limit: int = 1_000,
        after: str | None = None,
        status: str | None = None,
    ) -> list[IngressSubscription]:
        """Subscriptions of a bridge sorted by subscription id, only those of a `status` if given.

        One without an id stands first; `after` is `""` for it.
        """
        return await self._read(
            PersistenceAdapter.list_ingress_subscriptions,
            require_id("bridge_id", bridge_id),
            _limit(limit),
            after if after == "" else optional_id("after", after),
            _choice(IngressSubscription, "status", status),
        )

    async def delete_ingress_subscription(
        self, bridge_id: str, subscription_id: str | None
    ) -> None:
        """Delete a subscription. Raises `NotFound`."""
        await self._write(
            bridge_id,
            PersistenceAdapter.delete_ingress_subscription,
            require_id("bridge_id", bridge_id),
            optional_id("subscription_id", subscription_id),
        )

    # -- as a whole ------------------------------------------------------------------------------

    async def save_inbound(
        self,
        room: Room,
        participant: Participant | None,
        message: Message,
        binding: RoomBinding,
        thread: Thread | None = None,
    ) -> Inbound:
        """Store an inbound message with its room, sender and thread, all or nothing.

        Args:
            room: made and bound by `binding`, unless that external room is bound already.
            participant: made, unless one with its external id on the binding's channel is there.
            message: stored unless it came in before; its room, sender and thread are set, and the
                message of this room that it replies to.
            binding: the external room that the message came from.
            thread: made, unless the room has one with its `external_thread_id`.

        Returns:
            What is stored; with `duplicate` if the message was stored before.

        Raises:
            InvalidModel: among others, a participant without an external id on that channel.
        """
        room = _model(Room, room)
        binding = replace(_model(RoomBinding, binding), room_id=room.id)
        inbound = Inbound(
            room,
            None if participant is None else _model(Participant, participant),
            _model(Message, message),
            binding,
            None if thread is None else _model(Thread, thread),
        )
        channel = binding.channel
        if participant is not None and channel not in participant.external_ids:
            raise InvalidModel(f"participant {participant.id!r} has no external id on {channel!r}")
        if thread is not None and thread.external_thread_id is None:
            raise InvalidModel(f"thread {thread.id!r} has no external_thread_id")
        return await self.save_new_inbound(inbound)

    def save_new_inbound(self, inbound: Inbound) -> Awaitable[Inbound]:
        """As `save_inbound`, for the result of `new_inbound`, which is not checked again."""
        binding = inbound.binding
        return self._write(
            (binding.channel, binding.bridge_id, str(binding.external_room_id)),
            PersistenceAdapter.save_inbound,
            inbound,
        )

    async def counts(self) -> dict[str, int]:
        """How many rooms, participants, threads, messages and so on the store holds."""
        return await self._read(PersistenceAdapter.counts)

    async def scan(
        self, kind: str, *, limit: int = 1_000, after: str | None = None, newest_first: bool = False
    ) -> list[tuple[str, Model | OnboardingFlow]]:
        """Everything of one kind, a page at a time, in the order of ids.

        Args:
            kind: a name that `counts` gives.
            limit: 1 to 1,000.
            after: the last id of the page before.
            newest_first: backwards.
        """
        if not isinstance(kind, str) or kind not in KINDS:
            raise ConfigurationError(f"kind is one of {', '.join(KINDS)}, not {shown(kind)}")
        if kind == "ingress_subscriptions" and after is not None:
            _require_subscription_key("after", after)
        else:
            optional_id("after", after)
        page = await self._read(PersistenceAdapter.scan, kind, _limit(limit), after, newest_first)
        decrypt = self._credentials.decrypt_or_lock
        return [
            (one, decrypt(model) if isinstance(model, BridgeConfig) else model)
            for one, model in page
        ]


def _model(kind: type[M], model: M) -> M:
    # A subclass of the program's own has fields that would not come back.
    if kind_of(model) is not kind:
        raise InvalidModel(f"expected a {kind.__name__}, not {type(model).__name__}")
    return checked(model)


def _binding_key(channel: str, bridge_id: str, external_id: ExternalId) -> tuple[str, str, str]:
    return (
        require_id("channel", channel),
        require_id("bridge_id", bridge_id),
        external_key("external_id", external_id),
    )


def _require_subscription_key(name: str, value: object) -> None:
    """The id of a bridge and that of its subscription, if it has one, with a NUL between."""
    parts = value.split("\0") if isinstance(value, str) else []
    if len(parts) != 2:
        raise InvalidModel(
            f"{name} is the id of a subscription as scan returns it, not {shown(value)}"
        )
    require_id(name, parts[0])
    if parts[1]:
        require_id(name, parts[1])


def _limit(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 1_000:
        raise ConfigurationError(f"limit is an int from 1 to 1,000, not {shown(value)}")
    return value


def _choice(kind: type[Model], field: str, value: object) -> str | None:
    """`value` if it is `None` or one of the values that a field may have."""
    known = choices(kind, field)
    if value is not None and (not isinstance(value, str) or value not in known):
        raise ConfigurationError(f"{field} is one of {', '.join(known)}, not {shown(value)}")
    return value


def _directory_query(target: str, query: Mapping[str, Any]) -> DirectoryQuery:
    if target not in get_args(DirectoryTarget):
        raise ConfigurationError(f"the directory knows participant and room, not {shown(target)}")
    if not isinstance(query, Mapping):
        raise ConfigurationError(f"a directory query is a mapping, not {shown(query)}")
    given = {name: value for name, value in query.items() if value is not None}
    unknown = given.keys() - set(DirectoryQuery.__struct_fields__)
    if unknown:
        known = ", ".join(DirectoryQuery.__struct_fields__)
        raise ConfigurationError(
            f"the directory is searched by {known}, not by {min(map(repr, unknown))}"
        )
    for name, value in given.items():
        if name == "external_id":
            given[name] = external_key(name, value)
        elif name != "name":
            require_id(name, value)
        elif not isinstance(value, str) or text_problem(folded(value)) is not None:
            raise InvalidModel(f"name is a str that is valid Unicode, not {shown(value)}")
    parts = {"channel", "external_id"} | ({"bridge_id"} if target == "room" else set())
    some = given.keys() & {"channel", "bridge_id", "external_id"}
    if some and some != parts:
        raise ConfigurationError(
            f"a {target} is found by {', '.join(sorted(parts))} together, not by"
            f" {', '.join(sorted(some))}"
        )
    return DirectoryQuery(**given)
