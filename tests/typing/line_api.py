"""A line: its constructor, a message in, an answer out."""

from __future__ import annotations

from typing import assert_type

from trunkline import (
    FSMStore,
    Inbox,
    PersistenceStore,
    Route,
    SessionRouter,
    SignalStore,
    Trunkline,
    TurnPolicy,
)
from trunkline.line import Arrival, LineTurn, LineTurns
from trunkline.persistence import Message
from trunkline.persistence.memory import MemoryPersistenceAdapter
from trunkline.turns import Receipt


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
    assert_type(line.inbox, Inbox)


async def messages(line: Trunkline) -> None:
    arrival = await line.ingest(
        channel="telegram", bridge_id="bot", external_room_id=42, content="hello"
    )
    assert_type(arrival, Arrival)
    await line.ingest("telegram", "bot", 42, "hello")  # error: call-arg, misc
    receipt = await line.accept(
        channel="telegram", bridge_id="bot", external_room_id=42, content="/stop", urgent=True
    )
    assert_type(receipt, Receipt)
    await line.accept(channel="telegram", bridge_id="bot", content="x")  # error: call-arg


async def send(route: Route, content: str, *, nonce: str) -> int:
    return 7


async def answer(turn: LineTurn) -> None:
    assert_type(turn.messages, tuple[Message, ...])
    assert_type(turn.arrivals, tuple[Arrival, ...])
    assert_type(await turn.reply("hi", metadata={"a": 1}), Message)
    await turn.reply("hi", nonce="1")  # error: call-arg


def turns(line: Trunkline) -> None:
    assert_type(line.turns(answer, TurnPolicy(quiet_ms=1), send=send), LineTurns)
    line.turns(answer, send=answer)  # error: arg-type
    line.turns(answer, max_runing=3)  # error: call-arg
    line.turns(send)  # error: arg-type
