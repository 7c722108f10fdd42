"""What persistence keeps: rooms, participants, threads, messages, and what binds them together.

The fields are those of Jido.Chat and Jido.Messaging. Maps and lists hold what JSON holds, nested up
to 500 deep; a tuple, a date or the like becomes at once what JSON makes of it. A model is frozen;
`msgspec.structs.replace` makes a changed one. `X.new(**fields)` fills id and times, and checks
every field; a store checks again what it is given.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta
from msgspec.structs import replace
from uuid_utils import uuid7

from trunkline.errors import InvalidModel
from trunkline.validation import text_problem

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
    "checked_flow",
    "choices",
    "folded",
    "id_problem",
    "new_id",
    "now",
    "shown",
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

#: An index of PostgreSQL holds no more than 2,704 bytes, and some are of three ids.
_LONGEST_ID = 800
_HUGE = 10 ** (_LONGEST_ID - 1)

#: Python reads and compares what is nested no deeper than its stack, of which others use a part.
_DEEPEST = 500


def new_id() -> str:
    """A time-ordered UUID (version 7). Of two made in one process the later sorts behind."""
    return str(uuid7())


def now() -> datetime:
    """This instant, aware, in UTC."""
    return datetime.now(UTC)


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the models."""

    @classmethod
    def new(cls, /, **fields: Any) -> Self:
        """A checked model with its id and times filled in where `fields` lacks them.

        Raises:
            InvalidModel: a wrong type or value, a missing or an unknown field; the message names
                the model, the field and the value.
        """
        unknown = fields.keys() - set(cls.__struct_fields__)
        if unknown:
            name = min(unknown)
            # What was meant for the credentials, misspelt, is as secret as they are.
            given = "***" if cls is BridgeConfig else shown(fields[name])
            raise InvalidModel(
                f"{cls.__name__} has no field {name!r} (given {given});"
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
    external_room_id: Id | int
    direction: Literal["both", "inbound", "outbound"] = "both"
    enabled: bool = True
    inserted_at: Instant = msgspec.field(default_factory=now)


class _Hidden:
    def __repr__(self) -> str:
        return "***"


_HIDDEN = _Hidden()


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
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [
            (name, _HIDDEN if name == "credentials" else getattr(self, name))
            for name in self.__struct_fields__
        ]


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
    """`model` with every field checked, times in UTC, and its maps copied: what JSON makes of it.

    Raises:
        InvalidModel: a field is of a wrong type or value, or holds what JSON does not.
    """
    kind = type(model)
    try:
        model = _in_utc(model)
        encoded = msgspec.json.encode(model)
        copy = msgspec.json.decode(encoded, type=kind)
        is_same = copy == model
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").partition(".")[0].partition("[")[0]
        if reason.startswith("Invalid enum value"):
            reason = f"Expected one of {', '.join(choices(kind, name))}"
        elif reason.startswith("Invalid RFC3339"):
            reason = f"Expected `datetime`, got `{type(getattr(model, name)).__name__}`"
        raise _invalid(model, name, reason) from None
    except _UNREADABLE as error:
        raise _invalid(model, _culprit(model), _reason(error)) from None
    if not is_same:
        _check_types(model, copy)
    if encoded.count(b"[") + encoded.count(b"{") > _DEEPEST:
        _check_depth(copy)
    if len(encoded) > _LONGEST_ID or b"\\u0000" in encoded:
        _check_ids(copy)
    return copy


def checked_flow(flow: OnboardingFlow) -> OnboardingFlow:
    """A copy of `flow`: what JSON makes of it.

    Raises:
        InvalidModel: it holds what JSON does not.
    """
    what = f"onboarding flow {shown(flow.get('onboarding_id'))}"
    try:
        copy = msgspec.json.decode(msgspec.json.encode(flow), type=OnboardingFlow)
        is_same = copy == flow
    except _UNREADABLE as error:
        raise InvalidModel(f"{what}: {_reason(error)}") from None
    if not is_same and _has_no_number(flow):
        raise InvalidModel(f"{what}: {_NO_NUMBER}")
    if _is_too_deep(copy):
        raise InvalidModel(f"{what}: {_TOO_DEEP}")
    return copy


def id_problem(value: str | int) -> str | None:
    """Why `value` cannot be stored as an id; `None` if it can."""
    if isinstance(value, int):
        is_long = not -_HUGE < value < _HUGE
    else:
        problem = text_problem(value)
        if problem is not None:
            return problem
        is_long = len(value.encode()) > _LONGEST_ID
    return f"is longer than {_LONGEST_ID} bytes" if is_long else None


def folded(name: str) -> str:
    """`name` as it is compared in the directory, the same for each way to write it in any case.

    Capital I is that of i and of Turkish dotless i, and capital dotted I is one letter where its
    small one is two: all of them are i here.
    """
    # A NUL is text like any other, but not to PostgreSQL.
    return name.casefold().replace("i\u0307", "i").replace("\u0131", "i").replace("\0", "\ufffd")


@cache
def choices(kind: type[Model], field: str) -> tuple[str, ...]:
    """The values that a field of few values may have."""
    return get_args(get_type_hints(kind)[field])


#: What encoding, decoding and comparing raise for what JSON does not hold.
_UNREADABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.DecodeError)

_NO_NUMBER = "JSON has no NaN and no infinity"
_TOO_DEEP = f"it is nested more than {_DEEPEST} deep"


def _reason(error: Exception) -> str:
    return _TOO_DEEP if isinstance(error, RecursionError) else str(error)


def _in_utc(model: M) -> M:
    for name in _fields_of_type(type(model), datetime):
        value = getattr(model, name)
        if isinstance(value, datetime) and value.tzinfo is not UTC and value.tzinfo is not None:
            try:
                model = replace(model, **{name: value.astimezone(UTC)})
            except OverflowError:
                raise _invalid(model, name, "Expected a time that UTC has, too") from None
    return model


def _check_types(model: Model, copy: Model) -> None:
    """Refuse what JSON made something else of: a date of a string, nothing of a NaN."""
    for name in model.__struct_fields__:
        value, copied = getattr(model, name), getattr(copy, name)
        if value == copied:
            continue
        if isinstance(copied, str | datetime) and name in _scalar_fields(type(model)):
            wanted = "datetime" if isinstance(copied, datetime) else "str"
            raise _invalid(model, name, f"Expected `{wanted}`, got `{type(value).__name__}`")
        if _has_no_number(value):
            raise _invalid(model, name, _NO_NUMBER)


def _check_depth(model: Model) -> None:
    for name in model.__struct_fields__:
        if _is_too_deep(getattr(model, name)):
            raise _invalid(model, name, _TOO_DEEP)


def _check_ids(model: Model) -> None:
    for name, value in _ids(model):
        problem = id_problem(value) if isinstance(value, str | int) else None
        if problem is not None:
            raise _invalid(model, name, f"an id that {problem} cannot be stored")


def _ids(model: Model) -> Iterator[tuple[str, object]]:
    """What of `model` is looked up as a whole, and the field it stands in."""
    for name in _scalar_fields(type(model)):
        if name in ("id", "channel") or name.endswith("_id"):
            yield name, getattr(model, name)
    if isinstance(model, Participant):
        for pair in model.external_ids.items():
            yield from (("external_ids", one) for one in pair)
    elif isinstance(model, Message):
        yield from (("metadata", model.metadata.get(key)) for key in ("channel", "bridge_id"))


@cache
def _scalar_fields(kind: type[Model]) -> tuple[str, ...]:
    return _fields_of_type(kind, str) + _fields_of_type(kind, datetime)


@cache
def _fields_of_type(kind: type[Model], wanted: type) -> tuple[str, ...]:
    return tuple(
        name for name, hint in get_type_hints(kind).items() if wanted in {hint, *get_args(hint)}
    )


def _has_no_number(value: object) -> bool:
    return any(isinstance(one, float) and not math.isfinite(one) for one in _walk(value))


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _walk(value: object) -> Iterator[object]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(_inside(one))


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value


def _culprit(model: Model) -> str:
    """The field of `model` that JSON cannot hold."""
    for name in model.__struct_fields__:
        try:
            msgspec.json.decode(msgspec.json.encode(getattr(model, name)))
        except _UNREADABLE:
            return name
    return model.__struct_fields__[0]


def _invalid(model: Model, name: str, reason: str) -> InvalidModel:
    kind = type(model)
    value = "***" if name == "credentials" else shown(getattr(model, name, None))
    return InvalidModel(f"{kind.__name__}.{name} is {value}: {reason}")


def shown(value: object) -> str:
    """`value` as an error shows it: short, whatever it is."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
