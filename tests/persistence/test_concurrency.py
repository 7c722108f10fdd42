"""Several stores on one database, and a room that is deleted while others work in it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import cycle

import anyio
import pytest
from sqlalchemy import event

from trunkline.backends import Conflict
from trunkline.errors import NotFound
from trunkline.persistence import (
    Message,
    Participant,
    PersistenceStore,
    Room,
    RoomBinding,
    RoutingPolicy,
    Thread,
)
from trunkline.persistence.inbound import new_inbound
from trunkline.persistence.sql import SQLPersistenceAdapter

#: Stores that work at once, each as a process of its own would.
STORES = 4


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'bot.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
async def stores(url):
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(PersistenceStore(url, call_timeout_ms=30_000))
            for _ in range(STORES)
        ]


def arriving(number: int, **fields: object):
    return new_inbound(
        channel="telegram", bridge_id="bot", external_room_id=42, content=number, **fields
    )


async def holders(url: str) -> dict[tuple[str, str], int]:
    """(channel, external id) → how many participants hold it."""
    adapter = SQLPersistenceAdapter(url)
    with adapter.transaction(read_only=True):
        rows = adapter.database.connection.exec_driver_sql(
            "SELECT channel, external_id, sum(coalesce(holder, 0))"
            " FROM trunkline_participant_external_ids GROUP BY channel, external_id"
        ).all()
    adapter.close()
    return {(channel, external_id): held for channel, external_id, held in rows}


async def test_a_participant_gets_every_external_id_that_stores_give_them_at_once(url, stores):
    for turn in range(3):
        await stores[0].save_participant(Participant.new(id="p"))
        async with anyio.create_task_group() as callers:
            for number, store in zip(range(12), cycle(stores), strict=False):
                callers.start_soon(
                    store.get_or_create_participant_by_external_id,
                    f"ch{number}",
                    turn,
                    {"id": "p"},
                )
        found = await stores[0].get_participant("p")
        assert found.external_ids == {f"ch{number}": turn for number in range(12)}
    assert set((await holders(url)).values()) == {1}


async def test_an_external_id_that_someone_has_is_held_by_one_whatever_stores_do_at_once(
    url, stores
):
    """Who holds it depends on rows of others: two stores may not decide at once."""

    async def come_and_go(store, number):
        for _ in range(4):
            await store.save_participant(
                Participant.new(id=f"p{number}", external_ids={"sms": 1, "irc": number % 2})
            )
            await store.delete_participant(f"p{number}")
        await store.save_participant(Participant.new(id=f"p{number}", external_ids={"sms": 1}))

    async with anyio.create_task_group() as callers:
        for number, store in zip(range(8), cycle(stores), strict=False):
            callers.start_soon(come_and_go, store, number)
    assert await holders(url) == {("sms", "1"): 1}
    found = await stores[0].get_or_create_participant_by_external_id("sms", 1)
    assert found.id in {f"p{number}" for number in range(8)}


async def test_an_external_id_is_recorded_beside_others_that_change_the_message(stores):
    room = await stores[0].save_room(Room.new())
    message = await stores[0].save_message(Message.new(room_id=room.id))
    async with anyio.create_task_group() as callers:
        for number, store in enumerate(stores):
            callers.start_soon(store.update_message_external_id, message.id, number)
    assert (await stores[0].get_message(message.id)).external_id in range(STORES)


async def test_a_message_that_comes_in_at_several_stores_is_stored_once(stores):
    arrived = []

    async def take_in(store, number):
        inbound = arriving(
            number, external_message_id=number % 8, external_user_id=1, external_thread_id=5
        )
        arrived.append(await store.save_new_inbound(inbound))

    async with anyio.create_task_group() as callers:
        for number, store in zip(range(64), cycle(stores), strict=False):
            callers.start_soon(take_in, store, number // STORES)
    assert len([one for one in arrived if not one.duplicate]) == 8
    assert len({one.message.id for one in arrived}) == 8
    assert len({one.message.thread_id for one in arrived}) == 1
    assert {kind: count for kind, count in (await stores[0].counts()).items() if count} == {
        "rooms": 1,
        "participants": 1,
        "threads": 1,
        "messages": 8,
        "room_bindings": 1,
    }


# -- rooms that are deleted -----------------------------------------------------------------------


async def test_messages_come_into_a_room_that_is_deleted_at_the_same_time(stores):
    last = []

    async def take_in(store, number):
        for step in range(10):
            inbound = await store.save_new_inbound(arriving(number * 100 + step))
            last.append(inbound)

    async def delete(store):
        for _ in range(10):
            for room in await store.list_rooms():
                await store.delete_room(room.id)

    async with anyio.create_task_group() as callers:
        for number, store in enumerate(stores[:3]):
            callers.start_soon(take_in, store, number)
        callers.start_soon(delete, stores[3])
    assert len(last) == 30
    inbound = await stores[0].save_new_inbound(arriving(999))
    assert (await stores[1].get_room(inbound.room.id)) == inbound.room


async def test_a_room_that_is_deleted_at_the_same_time_is_not_found(stores):
    """No other error, whatever is saved into it."""
    outcomes = set()

    async def work_in(store, number, save):
        for _ in range(8):
            try:
                await save(store, f"{number}")
            except NotFound:
                outcomes.add("not found")
            else:
                outcomes.add("saved")

    async def bind(store, number):
        await store.create_room_binding("r", "irc", "b", number)

    async def say(store, _number):
        await store.save_message(Message.new(room_id="r"))

    async def set_policy(store, _number):
        await store.save_routing_policy(RoutingPolicy.new(room_id="r"))

    async def make_and_delete(store):
        for _ in range(16):
            await store.save_room(Room.new(id="r"))
            await store.delete_room("r")

    async with anyio.create_task_group() as callers:
        for number, (store, save) in enumerate(
            zip(cycle(stores[:3]), [bind, say, set_policy] * 2, strict=False)
        ):
            callers.start_soon(work_in, store, number, save)
        callers.start_soon(make_and_delete, stores[3])
    assert outcomes <= {"saved", "not found"}


class Slow(SQLPersistenceAdapter):
    """Notes what it does."""

    log: list[str] = []  # noqa: RUF012

    def delete_room_part(self, room_id, limit):
        self.log.append("part")
        return super().delete_room_part(room_id, limit)

    def save_message(self, message):
        self.log.append("save")
        return super().save_message(message)


async def test_others_write_between_the_parts_of_a_large_room_that_is_deleted(url):
    adapter = Slow(url)
    adapter.log = []
    adapter.writers = 1
    async with PersistenceStore(adapter=adapter, call_timeout_ms=60_000) as store:
        large, other = await store.save_room(Room.new()), await store.save_room(Room.new())
        async with anyio.create_task_group() as callers:
            for _ in range(5_000):
                callers.start_soon(store.save_message, Message.new(room_id=large.id))
        adapter.log.clear()
        async with anyio.create_task_group() as callers:
            callers.start_soon(store.delete_room, large.id)
            for _ in range(3):
                await store.save_message(Message.new(room_id=other.id))
        assert adapter.log.count("part") == 5
        last_part = len(adapter.log) - 1 - adapter.log[::-1].index("part")
        assert adapter.log[:last_part].count("save") == 3
        counts = await store.counts()
        assert (counts["rooms"], counts["messages"]) == (1, 3)


# -- what a call that fails does to those beside it --------------------------------------------


def test_what_is_not_found_fails_no_statement(url):
    """On PostgreSQL a statement that fails ends the transaction of a whole batch."""
    adapter = SQLPersistenceAdapter(url)
    adapter.open()
    with adapter.transaction():
        adapter.save_room(Room.new(id="r"))
        for method, *args in (
            ("save_message", Message.new(room_id="nowhere")),
            ("save_routing_policy", RoutingPolicy.new(room_id="nowhere")),
            ("get_message", "nothing"),
            ("update_message_external_id", "nothing", 1),
            ("delete_room_binding", "nothing"),
        ):
            with pytest.raises(NotFound):
                getattr(adapter, method)(*args)
        results = adapter.save_messages(
            [Message.new(id=room_id, room_id=room_id) for room_id in ("r", "nowhere", "r")]
        )
        assert [isinstance(one, NotFound) for one in results] == [False, True, False]
        assert adapter.get_message("r").id == "r"
    adapter.close()


BINDING = RoomBinding.new(room_id="r", channel="irc", bridge_id="b", external_room_id=1)

#: What stores something in the room `r`, and the statement before which the room is deleted.
IN_A_ROOM = {
    "INSERT INTO trunkline_messages": [
        ("save_message", Message.new(room_id="r")),
        ("save_messages", [Message.new(room_id="r")] * 2),
        ("save_inbound", arriving(1)),
    ],
    "INSERT INTO trunkline_threads": [("save_thread", Thread.new(room_id="r"))],
    "INSERT INTO trunkline_routing_policies": [
        ("save_routing_policy", RoutingPolicy.new(room_id="r"))
    ],
    "INSERT INTO trunkline_room_bindings": [
        ("create_room_binding", BINDING),
        ("get_or_create_room_by_external_binding", Room.new(id="r"), BINDING),
    ],
}


@pytest.mark.parametrize(
    ("statement", "call"),
    [(one, call) for one, calls in IN_A_ROOM.items() for call in calls],  # type: ignore[attr-defined]
)
def test_a_room_cannot_be_deleted_before_what_is_stored_in_it_is_committed(
    postgres_url, statement, call
):
    """Else the insert would fail by its foreign key."""
    adapter = SQLPersistenceAdapter(postgres_url)
    other = SQLPersistenceAdapter(postgres_url, timeout_ms=200)
    adapter.open()
    with adapter.transaction():
        adapter.save_room(Room.new(id="r"))
        binding = RoomBinding.new(
            room_id="r", channel="telegram", bridge_id="bot", external_room_id=42
        )
        adapter.create_room_binding(binding)
    attempts = []

    def delete(_connection, _cursor, text, _parameters, _context, _many):
        if text.startswith(statement) and not attempts:
            attempts.append(text)
            with pytest.raises(Conflict), other.transaction():
                other.delete_room_part("r", 10)

    event.listen(adapter.database._engine, "before_cursor_execute", delete)
    method, *args = call
    with adapter.transaction():
        getattr(adapter, method)(*args)
    assert len(attempts) == 1
    with other.transaction():
        assert other.delete_room_part("r", 10)
    adapter.close()
    other.close()
