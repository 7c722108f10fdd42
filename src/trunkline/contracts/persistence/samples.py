"""What the tests of the suite store, and what they have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import anyio
import pytest

from trunkline.errors import NotFound
from trunkline.persistence import (
    BridgeConfig,
    IngressSubscription,
    Message,
    Participant,
    PersistenceStore,
    Room,
    RoomBinding,
    RoutingPolicy,
    Thread,
)

__all__ = (
    "CONTENTS",
    "KINDS",
    "NAMES",
    "OTHER_NAMES",
    "SCOPE",
    "START",
    "TEN",
    "a_room",
    "came_in",
    "ids_of",
    "not_found",
    "one_of_each",
    "say",
    "scanned",
    "spoil",
    "subscribed",
    "ten_messages",
    "together",
)

R = TypeVar("R")

START = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)

#: What people call themselves and their rooms, and what somebody would type to find them.
NAMES = [
    ("Ada Lovelace", "love"),
    ("ada lovelace", "ADA L"),
    ("Łódź", "łódź"),
    ("łódź", "ŁÓDŹ"),
    ("straße", "STRASSE"),
    ("STRASSE", "straße"),
    ("İstanbul", "istanbul"),
    ("İstanbul", "İSTANBUL"),
    ("ISPARTA \u0131l\u0131ca", "\u0131sparta ILI"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ("ДОМ", "дом"),
    ("🦊 den", "🦊"),
    ("100% sure", "0% s"),
    ("snake_case", "e_c"),
    ('it\'s "quoted"', "'s \"q"),
    ("back\\slash", "k\\s"),
    ("semi; DROP TABLE", "; drop"),
    ("[brackets]*?", "]*?"),
    ("nul\0byte", "l\0b"),
    ("  spaces  ", "  "),
    ("two\nlines", "o\nl"),
]

#: What was typed, and a name that it is no part of.
OTHER_NAMES = [
    ("%", "percent"),
    ("_", "underscore"),
    ("a%b", "a--b"),
    ("a_b", "a-b"),
    ("\\", "slash"),
    ("'", "quote"),
    ("*", "star"),
    ("lovelacy", "Ada Lovelace"),
    ("é", "e"),
]

#: What bots store and databases trip over. Each is what JSON holds.
CONTENTS: dict[str, Any] = {
    "text": "hello",
    "nothing": None,
    "an empty string": "",
    "an empty list": [],
    "blocks": [{"type": "text", "text": "hello"}, {"type": "image", "width": 640}],
    "emoji": "👩‍👩‍👧‍👦 🇵🇱 ❤️",
    "every plane": "a\u00e9\u4e2d\U0001f98a\U0010ffff",
    "a NUL": "a\0b\0",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028\u2029",
    "quotes and escapes": "' \" \\ \\u0000 % _ $1 :name ? {}",
    "numbers": [0, -1, 2**53 + 1, -(2**63), 2**64 - 1, 0.1, -1e300, 5e-324],
    "truth": [True, False, None],
    "odd keys": {"": {"\0": 1, "ключ": 2, " ": 3, "a.b": 4, "$": 5}},
    "400 deep": None,
    "a megabyte": "äß🦊\n" * 100_000,
}
for _ in range(400):
    CONTENTS["400 deep"] = [CONTENTS["400 deep"]]

SCOPE = {"channel": "telegram", "bridge_id": "bot"}

KINDS = {
    "rooms",
    "participants",
    "threads",
    "messages",
    "room_bindings",
    "onboarding_flows",
    "bridge_configs",
    "routing_policies",
    "ingress_subscriptions",
}

TEN = [f"m{number}" for number in range(10)]


async def together(calls: Iterable[Awaitable[R]]) -> list[R]:
    """What the calls return, in their order, all of them under way at once."""
    results: dict[int, R] = {}

    async def run(place: int, call: Awaitable[R]) -> None:
        results[place] = await call

    async with anyio.create_task_group() as task_group:
        for place, call in enumerate(calls):
            task_group.start_soon(run, place, call)
    return [results[place] for place in sorted(results)]


async def not_found(call: Awaitable[object]) -> None:
    with pytest.raises(NotFound):
        await call


def ids_of(models: Iterable[Any]) -> list[str]:
    return [model.id for model in models]


async def a_room(store: PersistenceStore, room_id: str = "room", **fields: Any) -> Room:
    return await store.save_room(Room.new(id=room_id, **fields))


async def say(
    store: PersistenceStore, room: Room, message_id: str, second: float = 0, **fields: Any
) -> Message:
    """Save a message that was said so many seconds after the start."""
    instant = START + timedelta(seconds=second)
    return await store.save_message(
        Message.new(
            id=message_id, room_id=room.id, inserted_at=instant, updated_at=instant, **fields
        )
    )


async def ten_messages(store: PersistenceStore, threads: int = 1) -> Room:
    """A room with the messages m0 to m9, spread over so many threads."""
    room = await a_room(store)
    await together(
        say(store, room, f"m{n}", second=n, thread_id=f"t{n % threads}") for n in range(10)
    )
    return room


def subscribed(bridge_id: str, subscription_id: str | None, **fields: Any) -> IngressSubscription:
    return IngressSubscription.new(bridge_id=bridge_id, subscription_id=subscription_id, **fields)


def came_in(message_id: str, **fields: Any) -> tuple[Room, Participant, Message, RoomBinding]:
    """A message from the external room 42, with what it would make if it were the first."""
    room = Room.new(external_bindings={"telegram": {"bot": 42}})
    participant = Participant.new(external_ids={"telegram": 7})
    message = Message.new(id=message_id, room_id=room.id, **fields)
    binding = RoomBinding.new(
        room_id=room.id, channel="telegram", bridge_id="bot", external_room_id=42
    )
    return room, participant, message, binding


async def one_of_each(store: PersistenceStore) -> dict[str, tuple[str, Any]]:
    """Save one model of each kind: the id it is scanned by, and the model."""
    room = await a_room(store, "r")
    flow = {"onboarding_id": "o", "step": 1}
    return {
        "rooms": ("r", room),
        "participants": ("p", await store.save_participant(Participant.new(id="p"))),
        "threads": ("t", await store.save_thread(Thread.new(id="t", room_id="r"))),
        "messages": ("m", await say(store, room, "m")),
        "room_bindings": ("b", await store.create_room_binding("r", "sms", "x", 1, {"id": "b"})),
        "onboarding_flows": ("o", await store.save_onboarding(flow)),
        "bridge_configs": ("c", await store.save_bridge_config(BridgeConfig.new(id="c"))),
        "routing_policies": (
            "r",
            await store.save_routing_policy(RoutingPolicy.new(room_id="r")),
        ),
        "ingress_subscriptions": (
            "x\0s",
            await store.save_ingress_subscription(subscribed("x", "s")),
        ),
    }


async def scanned(
    store: PersistenceStore, kind: str, *, newest_first: bool
) -> list[tuple[str, Any]]:
    """Everything of a kind, in pages of two."""
    found: list[tuple[str, Any]] = []
    page = await store.scan(kind, limit=2, newest_first=newest_first)
    while page and len(found) < 20:
        found += page
        page = await store.scan(kind, limit=2, after=page[-1][0], newest_first=newest_first)
    return found


def spoil(model: Any) -> None:
    """Change every map and list of a model, down to the last."""
    if isinstance(model, dict):
        inner = list(model.values())
        model["spoilt"] = True
    elif isinstance(model, list):
        inner = list(model)
        model.append("spoilt")
    elif hasattr(model, "__struct_fields__"):
        inner = [getattr(model, name) for name in model.__struct_fields__]
    else:
        return
    for one in inner:
        spoil(one)
