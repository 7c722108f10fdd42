"""What persistence keeps: rooms, participants, threads, messages, and what binds them together.

The fields are those of Jido.Chat and Jido.Messaging. Maps and lists hold what JSON holds. A model
is frozen; `msgspec.structs.replace` makes a changed one. `X.new(**fields)` fills id and times, and
checks every field; a store checks again what it is given.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import replace
from uuid_utils import uuid7

from trunkline.errors import InvalidModel

__all__ = (
    "BridgeConfig",
    "ExternalId",
    "IngressSubscription",
    "Message",
    "Model",
    "OnboardingFlow",
    "Participant",
    "Room",
    "RoomBinding",
    "RoutingPolicy",
    "Thread",
    "checked",
    "new_id",
    "now",
)

M = TypeVar("M", bound="Model")

#: An id that is not empty.
Id: TypeAlias = Annotated[str, Meta(min_length=1)]

#: An aware instant; stored and read in UTC with microseconds.
Instant: TypeAlias = Annotated[datetime, Meta(tz=True)]

#: A platform's own id of something. `42` and `"42"` are the same id.
ExternalId: TypeAlias = str | int

JsonMap: TypeAlias = dict[str, Any]

#: Where a user stands in an onboarding: any mapping with a non-empty `onboarding_id`.
OnboardingFlow: TypeAlias = dict[str, Any]


def new_id() -> str:
    """A time-ordered UUID (version 7). Of two made in one process the later sorts behind."""
    return str(uuid7())


def now() -> datetime:
    """This instant, aware, in UTC."""
    return datetime.now(UTC)


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the models."""

    @classmethod
    def new(cls, **fields: Any) -> Self:
        """A checked model with its id and times filled in where `fields` lacks them.

        Raises:
            InvalidModel: a wrong type or value, a missing or an unknown field; the message names
                the model, the field and the value.
        """
        unknown = fields.keys() - set(cls.__struct_fields__)
        if unknown:
            name = min(unknown)
            raise InvalidModel(
                f"{cls.__name__} has no field {name!r} (given {_shown(cls, name, fields[name])});"
                f" its fields are {', '.join(cls.__struct_fields__)}"
            )
        try:
            model = cls(**fields)
        except TypeError as error:
            raise InvalidModel(f"{cls.__name__}: {error}") from None
        return checked(model)


class Room(Model, frozen=True, kw_only=True):
    """A conversation, on one platform or bound to rooms of several."""

    id: Id = msgspec.field(default_factory=new_id)
    type: Literal["direct", "group", "channel", "thread"] = "direct"
    name: str | None = None
    #: channel → bridge id → the room's id there.
    external_bindings: dict[str, dict[str, ExternalId]] = {}
    metadata: JsonMap = {}
    inserted_at: Instant = msgspec.field(default_factory=now)


class Participant(Model, frozen=True, kw_only=True):
    """Somebody who speaks: a human, an agent, or the system."""

    id: Id = msgspec.field(default_factory=new_id)
    type: Literal["human", "agent", "system"] = "human"
    #: What is known of them; `identity["name"]` is their name.
    identity: JsonMap = {}
    #: channel → the participant's id there.
    external_ids: dict[str, ExternalId] = {}
    presence: Literal["online", "away", "busy", "offline"] = "offline"
    capabilities: list[Any] = []
    metadata: JsonMap = {}


class Thread(Model, frozen=True, kw_only=True):
    """A thread of a room."""

    id: Id = msgspec.field(default_factory=new_id)
    room_id: Id
    external_thread_id: ExternalId | None = None
    #: Where answers in this thread are delivered, if not to the room's own external room.
    delivery_external_room_id: ExternalId | None = None
    root_message_id: str | None = None
    root_external_message_id: ExternalId | None = None
    assigned_agent_id: str | None = None
    status: Literal["active", "archived", "closed"] = "active"
    metadata: JsonMap = {}
    inserted_at: Instant = msgspec.field(default_factory=now)
    updated_at: Instant = msgspec.field(default_factory=now)


class Message(Model, frozen=True, kw_only=True):
    """What was said. `metadata["channel"]` and `metadata["bridge_id"]` scope its external id."""

    id: Id = msgspec.field(default_factory=new_id)
    room_id: Id
    sender_id: str | None = None
    role: Literal["user", "assistant", "system", "tool"] = "user"
    #: Blocks of content, or whatever JSON the bot makes of it.
    content: Any = []
    reply_to_id: str | None = None
    external_id: ExternalId | None = None
    external_reply_to_id: ExternalId | None = None
    thread_id: str | None = None
    external_thread_id: ExternalId | None = None
    delivery_external_room_id: ExternalId | None = None
    status: Literal["sending", "sent", "delivered", "read", "failed"] = "sending"
    #: reaction → who reacted so.
    reactions: JsonMap = {}
    #: participant id → when it was delivered to them and read.
    receipts: JsonMap = {}
    metadata: JsonMap = {}
    inserted_at: Instant = msgspec.field(default_factory=now)
    updated_at: Instant = msgspec.field(default_factory=now)


class RoomBinding(Model, frozen=True, kw_only=True):
    """Ties a room to one external room; (channel, bridge id, external id) is tied but once."""

    id: Id = msgspec.field(default_factory=new_id)
    room_id: Id
    channel: Id
    bridge_id: Id
    external_room_id: ExternalId
    direction: Literal["both", "inbound", "outbound"] = "both"
    enabled: bool = True
    inserted_at: Instant = msgspec.field(default_factory=now)


class BridgeConfig(Model, frozen=True, kw_only=True):
    """How a bridge to a platform is set up. Its credentials never appear in a repr."""

    id: Id = msgspec.field(default_factory=new_id)
    adapter_module: str | None = None
    credentials: JsonMap = {}
    opts: JsonMap = {}
    enabled: bool = True
    capabilities: list[Any] = []
    delivery_policy: JsonMap = {}
    #: Counts the changes, from 0.
    revision: Annotated[int, Meta(ge=0)] = 0
    inserted_at: Instant = msgspec.field(default_factory=now)
    updated_at: Instant = msgspec.field(default_factory=now)

    def bump_revision(self) -> Self:
        """The next revision, updated now."""
        return replace(self, revision=self.revision + 1, updated_at=now())

    def __repr__(self) -> str:
        fields = ", ".join(
            f"{name}={'***' if name == 'credentials' else repr(getattr(self, name))}"
            for name in self.__struct_fields__
        )
        return f"{type(self).__name__}({fields})"


class RoutingPolicy(Model, frozen=True, kw_only=True):
    """How messages of a room are delivered over its bindings. A room has at most one."""

    id: Id = msgspec.field(default_factory=new_id)
    room_id: Id
    delivery_mode: Literal["best_effort", "primary", "broadcast"] = "best_effort"
    failover_policy: Literal["none", "next_available", "broadcast"] = "next_available"
    dedupe_scope: Literal["message_id", "thread", "room"] = "message_id"
    #: Bridge ids in the order in which they are tried.
    fallback_order: list[str] = []
    metadata: JsonMap = {}
    #: Counts the changes, from 0.
    revision: Annotated[int, Meta(ge=0)] = 0
    inserted_at: Instant = msgspec.field(default_factory=now)
    updated_at: Instant = msgspec.field(default_factory=now)

    def bump_revision(self) -> Self:
        """The next revision, updated now."""
        return replace(self, revision=self.revision + 1, updated_at=now())


class IngressSubscription(Model, frozen=True, kw_only=True):
    """A platform's promise to send a bridge its updates, by bridge and subscription id."""

    bridge_id: Id
    adapter_name: str | None = None
    status: Literal[
        "active", "deleted", "disabled", "expired", "manual_action_required", "pending", "unknown"
    ] = "unknown"
    external_id: ExternalId | None = None
    subscription_id: str | None = None
    target_url: str | None = None
    expires_at: Instant | None = None
    metadata: JsonMap = {}
    #: What the platform said, as it said it.
    raw: Any = None


def checked(model: M) -> M:
    """`model` with every field checked, and its maps copied: what JSON makes of it.

    Raises:
        InvalidModel: a field is of a wrong type or value, or holds what JSON does not.
    """
    kind = type(model)
    try:
        encoded = msgspec.json.encode(model)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidModel(f"{kind.__name__}: {_culprit(model)}: {error}") from None
    try:
        return msgspec.json.decode(encoded, type=kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").partition(".")[0].partition("[")[0]
        value = _shown(kind, name, getattr(model, name, None)) if name else ""
        raise InvalidModel(f"{kind.__name__}.{name} is {value}: {reason}") from None


def _culprit(model: Model) -> str:
    """The field of `model` that JSON cannot hold."""
    for name in model.__struct_fields__:
        try:
            msgspec.json.encode(getattr(model, name))
        except (TypeError, ValueError, OverflowError, RecursionError):
            return f"{name} is {_shown(type(model), name, getattr(model, name))}"
    return "a field"


def _shown(kind: type[Model], name: str, value: object) -> str:
    if name == "credentials" or (kind is BridgeConfig and name not in kind.__struct_fields__):
        return "***"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
