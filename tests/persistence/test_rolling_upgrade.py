"""A file of trunkline 0.1.0 under this version, and this version's documents under 0.1.0."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from trunkline import Trunkline
from trunkline.errors import NotFound, UnreadableRecord
from trunkline.persistence import Message, PersistenceStore

OLD_FILE = Path(__file__).parent / "fixtures" / "trunkline-0.1.0.sql"

AT = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)

KINDS = {
    "rooms": 2,
    "participants": 3,
    "threads": 1,
    "messages": 5,
    "room_bindings": 2,
    "onboarding_flows": 1,
    "bridge_configs": 1,
    "routing_policies": 1,
    "ingress_subscriptions": 2,
}


@pytest.fixture
def path(tmp_path) -> Path:
    """A database as 0.1.0 has left it."""
    path = tmp_path / "bot.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLD_FILE.read_text())
    return path


@pytest.fixture
async def store(path):
    async with PersistenceStore(f"sqlite:///{path}") as store:
        yield store


def documents(path: Path, kind: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(f"SELECT document FROM trunkline_{kind}").fetchall()
    return [msgspec.json.decode(document) for (document,) in rows]


def change_documents(path: Path, expression: str, *kinds: str) -> None:
    """Set the documents of these kinds to an expression of SQL."""
    with closing(sqlite3.connect(path)) as connection:
        for kind in kinds:
            connection.execute(f"UPDATE trunkline_{kind} SET document = {expression}")
        connection.commit()


async def save_all(store: PersistenceStore) -> None:
    """Read everything, change what can be changed, and save it."""
    saves = {
        "rooms": store.save_room,
        "participants": store.save_participant,
        "threads": store.save_thread,
        "messages": store.save_message,
        "bridge_configs": store.save_bridge_config,
        "routing_policies": store.save_routing_policy,
        "ingress_subscriptions": store.save_ingress_subscription,
    }
    for kind, save in saves.items():
        for _, model in await store.scan(kind):
            name = _A_MAP.get(kind, "metadata")
            changed = replace(model, **{name: {**getattr(model, name), "changed": "here"}})
            assert await save(changed) == changed
    for onboarding_id, flow in await store.scan("onboarding_flows"):
        await store.save_onboarding(flow | {"step": 2})
        assert (await store.get_onboarding(onboarding_id))["step"] == 2


_A_MAP = {"bridge_configs": "opts"}


async def test_rows_of_0_1_0_are_read(store):
    assert await store.counts() == KINDS
    room = await store.get_room_by_external_binding("telegram", "bot", 42)
    assert (room.id, room.external_bindings) == ("lobby", {"telegram": {"bot": 42}})
    assert (await store.get_room("empty")).inserted_at == AT
    *said, answer = await store.get_messages(room.id)
    assert [message.content for message in said] == [
        "plain",
        *([{"type": "text", "text": f"number {number}"}] for number in (1, 2, 3)),
    ]
    assert (answer.content, answer.status, answer.external_id) == ("hi", "sent", 99)
    assert said[0].reactions == {"👍": ["ada"]}
    found = await store.get_message_by_external_id("telegram", "bot", 99, room_id=room.id)
    assert found == answer
    ada = await store.get_or_create_participant_by_external_id("telegram", "7")
    bob = await store.get_or_create_participant_by_external_id("sms", "+1")
    assert (ada.id, bob.id, bob.capabilities) == ("ada", "bob", ["a", 1])
    assert (await store.get_thread_by_external_id("lobby", 5)).id == "t"
    assert (await store.get_thread_by_root_message("lobby", "m")).id == "t"
    (binding,) = await store.list_room_bindings("empty")
    assert (binding.id, binding.direction) == ("binding", "inbound")
    assert (await store.get_onboarding("o"))["step"] == 1
    (config,) = await store.list_bridge_configs()
    assert config.credentials == {"token": "t"}
    assert (await store.get_routing_policy("lobby")).fallback_order == ["bot"]
    without_id, with_id = await store.list_ingress_subscriptions("bot")
    assert (without_id.subscription_id, with_id.expires_at) == (None, AT)


async def test_names_of_0_1_0_are_found_composed_and_decomposed(store):
    for name in ("łódź café", "CAFE\u0301"):
        assert (await store.directory_lookup("room", {"name": name})).id == "lobby"
    assert (await store.directory_lookup("participant", {"name": "Zoë"})).id == "ada"


async def test_what_came_in_under_0_1_0_is_a_duplicate(path):
    async with Trunkline(f"sqlite:///{path}") as line:
        for number in (1, 2, 3):
            arrival = await line.ingest(
                channel="telegram",
                bridge_id="bot",
                external_room_id=42,
                external_user_id=7,
                external_message_id=number,
                external_reply_to_id=99,
                content="again",
            )
            assert arrival.duplicate
            assert arrival.message.content == [{"type": "text", "text": f"number {number}"}]
            assert (arrival.room.id, arrival.participant.id) == ("lobby", "ada")
        assert await line.persistence.counts() == KINDS


async def test_a_row_that_cannot_be_read_stops_no_upgrade(path):
    change_documents(path, "'{' || document", "messages")
    async with PersistenceStore(f"sqlite:///{path}") as store:
        assert await store.counts() == KINDS


async def test_rows_of_0_1_0_are_written_as_0_1_0_can_read_them(path, store):
    await save_all(store)
    await store.save_message(Message.new(room_id="lobby", metadata={"changed": "here"}))
    for kind, model in OLD_MODELS.items():
        for document in documents(path, kind):
            old = msgspec.json.decode(msgspec.json.encode(document), type=model)
            if kind != "room_bindings":
                assert getattr(old, _A_MAP.get(kind, "metadata"))["changed"] == "here"


async def test_a_field_of_a_newer_version_outlives_every_change_of_this_one(path):
    newer = """json_set(document, '$."colour"', json('{"of":["its"]}'))"""
    async with PersistenceStore(f"sqlite:///{path}") as store:
        change_documents(path, newer, *KINDS)
        await save_all(store)
        message = await store.get_message_by_external_id("telegram", "bot", 99)
        await store.update_message_external_id(message.id, 100)
        attrs = {"id": "bob"}
        bob = await store.get_or_create_participant_by_external_id("irc", "b", attrs)
        assert bob.external_ids == {"sms": "+1", "telegram": 8, "irc": "b"}
        await store.save_bridge_config((await store.get_bridge_config("bot")).bump_revision())
    for kind in KINDS:
        assert len(documents(path, kind)) == KINDS[kind]
        for document in documents(path, kind):
            assert document["colour"] == {"of": ["its"]}, kind


async def test_a_row_that_cannot_be_read_fails_its_own_call_and_no_other(path, log):
    async with PersistenceStore(f"sqlite:///{path}") as store:
        change_documents(path, "'{' || document", "messages", "participants", "bridge_configs")
        for _ in range(20):
            for call, table, key in (
                (store.get_message("m"), "trunkline_messages", "m"),
                (store.get_messages("lobby"), "trunkline_messages", ""),
                (store.get_participant("ada"), "trunkline_participants", "ada"),
                (store.update_message_external_id("m", 5), "trunkline_messages", "m"),
                (store.list_bridge_configs(), "trunkline_bridge_configs", "bot"),
                (store.scan("messages"), "trunkline_messages", ""),
                (store.directory_search("participant", {}), "trunkline_participants", ""),
            ):
                with pytest.raises(UnreadableRecord, match=f"{key}.* {table} cannot be decoded"):
                    await call
        assert (await store.get_room("lobby")).id == "lobby"
        assert store.stats().restarts == 0
        await store.delete_message("m")
        with pytest.raises(NotFound):
            await store.get_message("m")
        await store.delete_participant("ada")
        with pytest.raises(NotFound):
            await store.get_participant("ada")


# -- the reader of 0.1.0 -------------------------------------------------------------------------


class Old(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model as 0.1.0 read it: strictly."""


class OldRoom(Old, frozen=True, kw_only=True):
    id: str
    type: str
    name: str | None
    external_bindings: dict[str, dict[str, str | int]]
    metadata: dict[str, Any]
    inserted_at: datetime


class OldParticipant(Old, frozen=True, kw_only=True):
    id: str
    type: str
    identity: dict[str, Any]
    external_ids: dict[str, str | int]
    presence: str
    capabilities: list[Any]
    metadata: dict[str, Any]


class OldThread(Old, frozen=True, kw_only=True):
    id: str
    room_id: str
    external_thread_id: str | int | None
    delivery_external_room_id: str | int | None
    root_message_id: str | None
    root_external_message_id: str | int | None
    assigned_agent_id: str | None
    status: str
    metadata: dict[str, Any]
    inserted_at: datetime
    updated_at: datetime


class OldMessage(Old, frozen=True, kw_only=True):
    id: str
    room_id: str
    sender_id: str | None
    role: str
    content: Any
    reply_to_id: str | None
    external_id: str | int | None
    external_reply_to_id: str | int | None
    thread_id: str | None
    external_thread_id: str | int | None
    delivery_external_room_id: str | int | None
    status: str
    reactions: dict[str, Any]
    receipts: dict[str, Any]
    metadata: dict[str, Any]
    inserted_at: datetime
    updated_at: datetime


class OldRoomBinding(Old, frozen=True, kw_only=True):
    id: str
    room_id: str
    channel: str
    bridge_id: str
    external_room_id: str | int
    direction: str
    enabled: bool
    inserted_at: datetime


class OldBridgeConfig(Old, frozen=True, kw_only=True):
    id: str
    adapter_module: str | None
    credentials: dict[str, Any]
    opts: dict[str, Any]
    enabled: bool
    capabilities: list[Any]
    delivery_policy: dict[str, Any]
    revision: int
    inserted_at: datetime
    updated_at: datetime


class OldRoutingPolicy(Old, frozen=True, kw_only=True):
    id: str
    room_id: str
    delivery_mode: str
    failover_policy: str
    dedupe_scope: str
    fallback_order: list[str]
    metadata: dict[str, Any]
    revision: int
    inserted_at: datetime
    updated_at: datetime


class OldIngressSubscription(Old, frozen=True, kw_only=True):
    bridge_id: str
    adapter_name: str | None
    status: str
    external_id: str | int | None
    subscription_id: str | None
    target_url: str | None
    expires_at: datetime | None
    metadata: dict[str, Any]
    raw: Any


OLD_MODELS = {
    "rooms": OldRoom,
    "participants": OldParticipant,
    "threads": OldThread,
    "messages": OldMessage,
    "room_bindings": OldRoomBinding,
    "bridge_configs": OldBridgeConfig,
    "routing_policies": OldRoutingPolicy,
    "ingress_subscriptions": OldIngressSubscription,
}
