"""A database with a little of everything, for the tests of `inspect` and `copy`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from time import time_ns

import anyio
import msgspec
from uuid_utils import uuid7

from trunkline.admin.endpoint import DEFAULT_NAMESPACE, Endpoint
from trunkline.fsm import FSMState, FSMStore
from trunkline.persistence import (
    BridgeConfig,
    IngressSubscription,
    Message,
    Participant,
    PersistenceStore,
    Room,
    RoutingPolicy,
    Thread,
)
from trunkline.signal import SignalStore
from trunkline.turns import Inbox, InboxAdapter, TurnPolicy, Turns
from trunkline.turns.adapter import Owner
from trunkline.turns.process import this_process
from trunkline.turns.session import Claimant

#: All stores that a SQL database can hold.
STORES = ("persistence", "fsm", "signal", "inbox")

#: Fernet keys; what is stored with them must not be readable without.
KEY = "m1Qn1NwPvcA9WPXcWsPOvT9Qx2bnz2GnzVPW8lSDhAI="
SECRETS = ("hunter2-the-token", "hunter2-the-ratchet")

HOUR_MS = 3_600_000
MESSAGES = 450
CONVERSATIONS = 12
SENT_AT = datetime(2024, 5, 1, 12, tzinfo=UTC)

#: Conversations of bot "shop", by key, and of bot "café".
SHOP = {
    (number, 7): FSMState("get_name" if number % 3 else "get_email", "register", {"n": number})
    for number in range(CONVERSATIONS)
}
CAFE = {
    "one": FSMState(None, None, {"at": SENT_AT, "raw": b"\x00\xff", "sum": Decimal("1.10")}),
    ("", None): FSMState("waiting", None, {}),
}

#: The sessions of the inbox: one with a turn of a process that has ended, one with a failed item.
CHAT, OTHER_CHAT = ("telegram", "support", "-100"), ("telegram", "support", "ü:[*")


def fill(url: str, stores=STORES) -> None:
    """Put a little of everything into the database at `url`."""
    anyio.run(_fill, url, stores)


async def _fill(url, stores):
    if "persistence" in stores:
        async with PersistenceStore(url, encryption_key=KEY) as store:
            await _fill_persistence(store)
    if "fsm" in stores:
        async with FSMStore(url) as store:
            await _fill_fsm(store)
    if "signal" in stores:
        async with SignalStore(url, encryption_key=KEY) as store:
            await store.set({"pre-key": {str(n): {"public": b"\x01", "n": n} for n in range(20)}})
            await store.set({"session": {"älice.0": SECRETS[1], "bob.0": [b"\x00", "two"]}})
    if "inbox" in stores:
        async with Inbox(url, encryption_key=KEY) as inbox:
            await _fill_inbox(inbox)


async def _fill_persistence(store):
    lobby = await store.get_or_create_room_by_external_binding(
        "telegram", "support", -100, {"type": "group", "name": "Lobby"}
    )
    await store.create_room_binding(lobby.id, "matrix", "bridge", "!x:example.org")
    await store.save_room(Room.new(name="Пусто", metadata={"nul": "a\0b"}))
    # The one that was saved first is the one that is found, though its id is the greater.
    for one in ("z", "a"):
        await store.save_participant(
            Participant.new(id=one, identity={"name": f"Ada {one}"}, external_ids={"telegram": 7})
        )
    await store.save_thread(Thread.new(id="t1", room_id=lobby.id, external_thread_id="topic"))
    async with anyio.create_task_group() as task_group:
        for number in range(MESSAGES):
            message = Message.new(
                room_id=lobby.id,
                sender_id="z",
                content=f"{number}: żółw \x1b[31m🐢 \0" if number % 2 else [{"text": number}],
                thread_id="t1" if number % 5 == 0 else None,
                external_id=number,
                metadata={"channel": "telegram", "bridge_id": "support"},
                inserted_at=SENT_AT + timedelta(seconds=number),
            )
            task_group.start_soon(store.save_message, message)
    await store.save_onboarding({"onboarding_id": "o1", "step": 2})
    await store.save_bridge_config(BridgeConfig.new(id="b1", credentials={"token": SECRETS[0]}))
    await store.save_bridge_config(BridgeConfig.new(id="b2", enabled=False))
    await store.save_routing_policy(RoutingPolicy.new(room_id=lobby.id, revision=3))
    for subscription_id in (None, "s1"):
        await store.save_ingress_subscription(
            IngressSubscription.new(bridge_id="b1", subscription_id=subscription_id)
        )


async def _fill_fsm(store):
    await store.init("shop", ttl_ms=HOUR_MS)
    await store.init("café")
    for bot_name, conversations in (("shop", SHOP), ("café", CAFE)):
        for key, state in conversations.items():
            await store.set_state(bot_name, key, state)


async def _fill_inbox(inbox):
    async def refuse(turn):
        raise ValueError("no answer \x1b[31m")

    await inbox.accept(OTHER_CHAT, SECRETS[0], external_id=1)
    async with Turns(inbox, refuse, TurnPolicy(max_attempts=1)) as turns:
        await turns.idle()
    await inbox.accept(CHAT, "running", external_id="é1")
    await begin_turn(inbox, {"generate": SECRETS[1]})
    await inbox.accept(CHAT, "waits", external_id="é2")
    await inbox.accept(CHAT, "is alone", external_id="é3", alone=True)
    # The mark of an item without an external id is over in a minute, and Valkey does not copy it.
    await inbox.accept(CHAT, "later", external_id="é4", delay_ms=HOUR_MS)


async def begin_turn(inbox, steps):
    """Begin a turn in a process that has ended since, and store these steps of it."""
    machine, pid, _ = this_process().split("/")
    owner = Owner(str(uuid7()), 0, 10_000, f"{machine}/{pid}/earlier")
    await inbox.ask(None, InboxAdapter.register, owner)
    (begun,) = (await inbox.ask(None, InboxAdapter.claim, Claimant(owner.id), 1)).begun
    for name, result in steps.items():
        value = inbox.encode(name, result)
        await inbox.ask(begun.session, InboxAdapter.step, begun.session, begun.id, [], name, value)


def end_conversations(url: str, count: int) -> None:
    """Put conversations of bot "gone" into a SQL database that ended an hour ago."""

    async def put():
        async with FSMStore(url, clock=lambda: time_ns() // 1_000_000 - 2 * HOUR_MS) as store:
            await store.init("gone", ttl_ms=HOUR_MS)
            for number in range(count):
                await store.set_state("gone", number, "over")

    anyio.run(put)


def rows(url: str, stores=STORES, namespace: str = DEFAULT_NAMESPACE) -> dict[str, dict]:
    """Every row of every store in a namespace, as it is stored, by kind and key."""
    found = {}
    with Endpoint(url) as endpoint, endpoint.snapshot():
        for store in endpoint.schemas():
            for table in endpoint.adapter(store, namespace).tables if store in stores else ():
                found[table.name] = {
                    row[: table.key_width]: _readable(table.name, row)
                    for page in table.dump()
                    for row in page
                }
    return found


def _readable(name, row):
    return [*row[:4], msgspec.msgpack.decode(row[4]), row[5]] if name == "fsm" else row
