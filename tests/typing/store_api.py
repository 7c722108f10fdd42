"""The stores: their constructors and methods."""

from __future__ import annotations

from typing import Any, assert_type

from trunkline import FSMState, FSMStore, PersistenceStore, SignalStore
from trunkline.actors import RestartPolicy
from trunkline.fsm.memory import MemoryFSMAdapter
from trunkline.persistence import Message, Participant, Room
from trunkline.persistence.memory import MemoryPersistenceAdapter
from trunkline.signal import SignalTransaction
from trunkline.signal.memory import MemorySignalAdapter


def constructors() -> None:
    FSMStore("memory://", call_timeout_ms=1_000, mailbox_size=16, max_batch=8, name="dialogues")
    FSMStore(adapter=MemoryFSMAdapter(), restart_policy=RestartPolicy())
    PersistenceStore("sqlite:///bot.db", encryption_key=b"key", call_timeout_ms=1_000)
    PersistenceStore(adapter=MemoryPersistenceAdapter(), max_batch=8)
    PersistenceStore("memory://", namespace="shop", restart_policy=RestartPolicy())
    SignalStore("memory://", families=["notes"], encryption_key=["new", "old"], mailbox_size=16)
    SignalStore(adapter=MemorySignalAdapter())
    FSMStore("redis://localhost", namespace="shop", sweep_interval_ms=1_000)
    FSMStore(7)  # error: arg-type
    FSMStore(call_timeout=1)  # error: call-arg
    FSMStore(call_timeout_ms="1")  # error: arg-type
    FSMStore(namespace=7)  # error: arg-type
    FSMStore(adapter=MemorySignalAdapter())  # error: arg-type
    PersistenceStore(adapter="memory://")  # error: arg-type
    PersistenceStore(encryption_key=7)  # error: arg-type
    PersistenceStore(mailbox=16)  # error: call-arg
    PersistenceStore(max_batch="8")  # error: arg-type
    PersistenceStore(namespace=7)  # error: arg-type
    PersistenceStore("memory://", call_timeout=1)  # error: call-arg
    PersistenceStore("memory://", call_timeout_ms="soon")  # error: arg-type
    SignalStore(families=7)  # error: arg-type
    SignalStore(nmae="x")  # error: call-arg
    SignalStore(namespace=7)  # error: arg-type
    SignalStore(restart_policy=3)  # error: arg-type


async def dialogues(store: FSMStore) -> None:
    await store.init("bot", ttl_ms=60_000)
    assert_type(await store.get_state("bot", (42, 7)), FSMState | None)
    assert_type(await store.get_data("bot", 42), dict[Any, Any] | None)
    assert_type(await store.update_data("bot", "42", {"name": "Ada"}), dict[Any, Any])
    await store.set_state("bot", (42, 7), "get_name")
    await store.set_state("bot", (42, 7), FSMState("get_name", "register", {"a": 1}))
    await store.compare_and_set("bot", 42, FSMState("a"), FSMState("b"), keep_data=False)
    async with store.lock("bot", (42, 7)):
        await store.clear("bot", (42, 7))
    await store.init("bot", ttl="soon")  # error: call-arg
    await store.init("bot", ttl_ms="soon")  # error: arg-type
    await store.get_state("bot")  # error: call-arg
    await store.get_state("bot", [42, 7])  # error: arg-type
    await store.set_state("bot", 42, 7)  # error: arg-type
    await store.set_data("bot", 42, "name")  # error: arg-type
    await store.compare_and_set("bot", 42, "a", FSMState("b"))  # error: arg-type


async def conversations(store: PersistenceStore) -> None:
    room = await store.save_room(Room.new(type="group", name="Lobby"))
    assert_type(room, Room)
    assert_type(await store.get_room("room"), Room)
    assert_type(await store.list_rooms(limit=10), list[Room])
    assert_type(await store.get_messages("room", before="message"), list[Message])
    await store.get_or_create_participant_by_external_id("telegram", 42, {"identity": {}})
    await store.save_room(Participant.new())  # error: arg-type
    await store.get_room(room)  # error: arg-type
    await store.get_messages("room", limit="10")  # error: arg-type
    await store.list_rooms(10)  # error: call-arg, misc
    await store.get_or_create_participant_by_external_id("telegram", [42])  # error: arg-type


async def keys(store: SignalStore) -> None:
    assert_type(await store.get("session", ["ann"]), dict[str, Any])
    await store.set({"session": {"ann": b"1", "bob": None}})
    async with store.transaction("ann", timeout_ms=100) as transaction:
        assert_type(transaction, SignalTransaction)
        await transaction.set({"session": {"ann": b"2"}})

    async def count(transaction: SignalTransaction) -> int:
        return len(await transaction.get("session", ["ann"]))

    assert_type(await store.transact("ann", count, retries=3), int)
    await store.get("session", 7)  # error: arg-type
    await store.set({"session": b"1"})  # error: dict-item
    await store.transact("ann", count, retry=3)  # error: call-arg
    store.transaction(7)  # error: arg-type
    store.transaction("ann", timeout=100)  # error: call-arg
    SignalStore("memory://", call_timeout=1)  # error: call-arg
    SignalStore("memory://", namespace=7)  # error: arg-type
