"""A line: its constructor, a message in, an answer out."""

from __future__ import annotations

from typing import assert_type

from trunkline import FSMStore, PersistenceStore, SessionRouter, SignalStore, Trunkline
from trunkline.line import Arrival
from trunkline.persistence.memory import MemoryPersistenceAdapter


def constructors() -> None:
    Trunkline()
    Trunkline("memory://", name="shop", ttl_ms=60_000, partition_count=4)
    Trunkline(persistence=MemoryPersistenceAdapter(), fsm=None, signal="memory://")
    Trunkline(persistence=PersistenceStore("memory://"), fsm=FSMStore("memory://"))
    Trunkline(namespace="shop", clock=lambda: 0, restart_policy=None)
    Trunkline(ttl_ms="soon")  # error: arg-type
    Trunkline(tll_ms=60_000)  # error: call-arg
    Trunkline(clock=lambda: "now")  # error: arg-type
    Trunkline(persistence=FSMStore("memory://"))  # error: arg-type
    Trunkline(fsm=FSMStore("memory://"), signal=SignalStore("memory://"), clock=lambda: 0)
    Trunkline(7)  # error: arg-type
    Trunkline(ttl_ms="soon")  # error: arg-type
    Trunkline(partitions=4)  # error: call-arg
    Trunkline(clock=lambda: "now")  # error: arg-type
    Trunkline(persistence=FSMStore("memory://"))  # error: arg-type
    Trunkline(fsm=7)  # error: arg-type
    Trunkline(fsm=MemoryPersistenceAdapter())  # error: arg-type


def parts(line: Trunkline) -> None:
    assert_type(line.router, SessionRouter)
    assert_type(line.persistence, PersistenceStore)
    assert_type(line.fsm, FSMStore)
    assert_type(line.signal, SignalStore)


async def messages(line: Trunkline) -> None:
    arrival = await line.ingest(
        channel="telegram", bridge_id="bot", external_room_id=42, content="hello"
    )
    assert_type(arrival, Arrival)
    await line.ingest("telegram", "bot", 42, "hello")  # error: call-arg, misc
