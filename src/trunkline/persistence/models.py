"""What persistence keeps: rooms, participants, threads, messages, and what binds them together.

The fields are those of Jido.Chat and Jido.Messaging. Maps and lists hold what JSON holds, nested up
to 500 deep; a tuple, a date or the like becomes at once what JSON makes of it. A model is frozen;
`msgspec.structs.replace` makes a changed one. `X.new(**fields)` fills id and times, and checks
every field; a store checks again what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from msgspec import Meta, field
from msgspec.structs import replace
from uuid_utils import uuid7

from trunkline.persistence.validation import Model

__all__ = (
    "BridgeConfig",
    "ExternalId",
    "IngressSubscription",
    "Message",
    "OnboardingFlow",
    "Participant",
    "Room",
    "RoomBinding",
    "RoutingPolicy",
    "Thread",
    "new_id",
    "now",
)

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


class Room(Model, frozen=True, kw_only=True):
    """A conversation, on one platform or bound to rooms of several."""

    id: Id = field(default_factory=new_id)
    type: Literal["direct", "group", "channel", "thread"] = "direct"
    name: str | None = None
    #: channel → bridge id → the room's id there.
    external_bindings: dict[str, dict[str, ExternalId]] = field(default_factory=dict)
    metadata: JsonMap = field(default_factory=dict)
    inserted_at: Instant = field(default_factory=now)


class Participant(Model, frozen=True, kw_only=True):
    """Somebody who speaks: a human, an agent, or the system."""

    id: Id = field(default_factory=new_id)
    type: Literal["human", "agent", "system"] = "human"
    #: What is known of them; `identity["name"]` is their name.
    identity: JsonMap = field(default_factory=dict)
    #: channel → the participant's id there.
    external_ids: dict[str, ExternalId] = field(default_factory=dict)
    presence: Literal["online", "away", "busy", "offline"] = "offline"
    capabilities: list[Any] = field(default_factory=list)
    metadata: JsonMap = field(default_factory=dict)

    def nested_ids(self) -> Iterable[tuple[str, str | int]]:
        return [("external_ids", one) for pair in self.external_ids.items() for one in pair]


class Thread(Model, frozen=True, kw_only=True):
    """A thread of a room."""

    id: Id = field(default_factory=new_id)
    room_id: Id
    external_thread_id: ExternalId | None = None
    #: Where answers in this thread are delivered, if not to the room's own external room.
    delivery_external_room_id: ExternalId | None = None
    root_message_id: str | None = None
    root_external_message_id: ExternalId | None = None
    assigned_agent_id: str | None = None
    status: Literal["active", "archived", "closed"] = "active"
    metadata: JsonMap = field(default_factory=dict)
    inserted_at: Instant = field(default_factory=now)
    updated_at: Instant = field(default_factory=now)


class Message(Model, frozen=True, kw_only=True):
    """What was said. `metadata["channel"]` and `metadata["bridge_id"]` scope its external id."""

    id: Id = field(default_factory=new_id)
    room_id: Id
    sender_id: str | None = None
    role: Literal["user", "assistant", "system", "tool"] = "user"
    #: Blocks of content, or whatever JSON the bot makes of it.
    content: Any = field(default_factory=list)
    reply_to_id: str | None = None
    external_id: ExternalId | None = None
    external_reply_to_id: ExternalId | None = None
    thread_id: str | None = None
    external_thread_id: ExternalId | None = None
    delivery_external_room_id: ExternalId | None = None
    status: Literal["sending", "sent", "delivered", "read", "failed"] = "sending"
    #: reaction → who reacted so.
    reactions: JsonMap = field(default_factory=dict)
    #: participant id → when it was delivered to them and read.
    receipts: JsonMap = field(default_factory=dict)
    metadata: JsonMap = field(default_factory=dict)
    inserted_at: Instant = field(default_factory=now)
    updated_at: Instant = field(default_factory=now)

    @property
    def external_scope(self) -> tuple[str, str] | None:
        """The channel and the bridge id of the metadata; `None` unless both are non-empty texts."""
        channel, bridge_id = self.metadata.get("channel"), self.metadata.get("bridge_id")
        if isinstance(channel, str) and isinstance(bridge_id, str) and channel and bridge_id:
            return channel, bridge_id
        return None

    def nested_ids(self) -> Iterable[tuple[str, str | int]]:
        scope = (self.metadata.get(name) for name in ("channel", "bridge_id"))
        return [("metadata", value) for value in scope if isinstance(value, str)]


class RoomBinding(Model, frozen=True, kw_only=True):
    """Ties a room to one external room; (channel, bridge id, external id) is tied but once."""

    id: Id = field(default_factory=new_id)
    room_id: Id
    channel: Id
    bridge_id: Id
    external_room_id: Id | int
    direction: Literal["both", "inbound", "outbound"] = "both"
    enabled: bool = True
    inserted_at: Instant = field(default_factory=now)


class _Hidden:
    def __repr__(self) -> str:
        return "***"


_HIDDEN = _Hidden()


class BridgeConfig(Model, frozen=True, kw_only=True):
    """How a bridge to a platform is set up. Its credentials never appear in a repr."""

    secret_fields: ClassVar = frozenset({"credentials", "unknown_fields"})

    id: Id = field(default_factory=new_id)
    adapter_module: str | None = None
    credentials: JsonMap = field(default_factory=dict)
    opts: JsonMap = field(default_factory=dict)
    enabled: bool = True
    capabilities: list[Any] = field(default_factory=list)
    delivery_policy: JsonMap = field(default_factory=dict)
    #: Counts the changes, from 0.
    revision: Annotated[int, Meta(ge=0)] = 0
    inserted_at: Instant = field(default_factory=now)
    updated_at: Instant = field(default_factory=now)

    def bump_revision(self) -> Self:
        """The next revision, updated now."""
        return replace(self, revision=self.revision + 1, updated_at=now())

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [
            (name, _HIDDEN if name in self.secret_fields else getattr(self, name))
            for name in self.__struct_fields__
        ]


class RoutingPolicy(Model, frozen=True, kw_only=True):
    """How messages of a room are delivered over its bindings. A room has at most one."""

    id: Id = field(default_factory=new_id)
    room_id: Id
    delivery_mode: Literal["best_effort", "primary", "broadcast"] = "best_effort"
    failover_policy: Literal["none", "next_available", "broadcast"] = "next_available"
    dedupe_scope: Literal["message_id", "thread", "room"] = "message_id"
    #: Bridge ids in the order in which they are tried.
    fallback_order: list[str] = field(default_factory=list)
    metadata: JsonMap = field(default_factory=dict)
    #: Counts the changes, from 0.
    revision: Annotated[int, Meta(ge=0)] = 0
    inserted_at: Instant = field(default_factory=now)
    updated_at: Instant = field(default_factory=now)

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
    metadata: JsonMap = field(default_factory=dict)
    #: What the platform said, as it said it.
    raw: Any = None
