"""Rooms: saved, found, listed, deleted with all that is in them."""

from __future__ import annotations

from functools import partial

import pytest
from msgspec.structs import replace

from trunkline.contracts.persistence.samples import (
    SCOPE,
    START,
    a_room,
    ids_of,
    not_found,
    say,
    together,
)
from trunkline.errors import NotFound
from trunkline.persistence import (
    PersistenceAdapter,
    PersistenceStore,
    Room,
    RoutingPolicy,
    Thread,
)

__all__ = ("RoomTests",)


class RoomTests:
    """A part of `PersistenceContract`."""

    async def test_a_room_comes_back_as_it_was_saved(self, store: PersistenceStore) -> None:
        room = Room.new(
            type="channel",
            name="Lobby",
            external_bindings={"telegram": {"bot": 42}, "slack": {"ws": "C1"}},
            metadata={"topic": "all of it", "nested": {"deep": [1, 2]}},
            inserted_at=START,
        )
        assert await store.save_room(room) == room
        assert await store.get_room(room.id) == room

    async def test_a_room_may_be_of_each_type(self, store: PersistenceStore) -> None:
        for kind in ("direct", "group", "channel", "thread"):
            room = await store.save_room(Room.new(type=kind))
            assert (await store.get_room(room.id)).type == kind

    async def test_a_room_saved_again_is_replaced_whole(self, store: PersistenceStore) -> None:
        await store.save_room(Room.new(id="r", name="old", metadata={"a": 1}, type="group"))
        new = await store.save_room(Room.new(id="r", inserted_at=START))
        assert await store.get_room("r") == new
        assert (new.name, new.metadata, new.type) == (None, {}, "direct")
        assert await store.list_rooms() == [new]

    async def test_a_room_saved_again_keeps_what_is_in_it(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        message = await say(store, room, "m")
        thread = await store.save_thread(Thread.new(room_id=room.id))
        binding = await store.create_room_binding(room.id, "telegram", "bot", 42)
        policy = await store.save_routing_policy(RoutingPolicy.new(room_id=room.id))
        await store.save_room(replace(room, name="renamed"))
        assert await store.get_messages(room.id) == [message]
        assert await store.list_threads(room.id) == [thread]
        assert await store.list_room_bindings(room.id) == [binding]
        assert await store.get_routing_policy(room.id) == policy

    async def test_a_room_that_was_never_saved_is_not_found(self, store: PersistenceStore) -> None:
        await a_room(store, "other")
        with pytest.raises(NotFound, match="nowhere"):
            await store.get_room("nowhere")

    async def test_rooms_are_listed_by_id(self, store: PersistenceStore) -> None:
        ids = ["b", "a", "B", "é", "10", "9", "Z", "_", "😀", "\uffff", "a a"]
        await together(store.save_room(Room.new(id=one)) for one in ids)
        assert ids_of(await store.list_rooms()) == sorted(ids)

    async def test_a_page_of_rooms_goes_on_behind_the_last_id(
        self, store: PersistenceStore
    ) -> None:
        ids = ["b", "a", "B", "é", "10", "9", "Z", "_", "😀", "\uffff"]
        await together(store.save_room(Room.new(id=one)) for one in ids)
        pages: list[list[str]] = []
        last: str | None = None
        while (page := await store.list_rooms(limit=3, after=last)) and len(pages) < 10:
            pages.append(ids_of(page))
            last = page[-1].id
        assert [len(page) for page in pages] == [3, 3, 3, 1]
        assert [one for page in pages for one in page] == sorted(ids)

    async def test_rooms_are_listed_behind_an_id_that_is_no_room(
        self, store: PersistenceStore
    ) -> None:
        await together(store.save_room(Room.new(id=one)) for one in ("a", "c"))
        assert ids_of(await store.list_rooms(after="b")) == ["c"]

    async def test_rooms_are_listed_by_type_and_the_limit_counts_only_those(
        self, store: PersistenceStore
    ) -> None:
        for number in range(6):
            await store.save_room(
                Room.new(id=f"r{number}", type="group" if number % 2 else "direct")
            )
        assert ids_of(await store.list_rooms(type="group")) == ["r1", "r3", "r5"]
        assert ids_of(await store.list_rooms(type="group", limit=2)) == ["r1", "r3"]
        assert ids_of(await store.list_rooms(type="group", after="r1", limit=2)) == ["r3", "r5"]
        assert await store.list_rooms(type="channel") == []

    async def test_a_room_that_changed_its_type_is_listed_by_the_new_one(
        self, store: PersistenceStore
    ) -> None:
        room = await store.save_room(Room.new(type="group"))
        room = await store.save_room(replace(room, type="channel"))
        assert await store.list_rooms(type="group") == []
        assert await store.list_rooms(type="channel") == [room]

    async def test_a_hundred_rooms_are_listed_if_nothing_else_is_said(
        self, store: PersistenceStore
    ) -> None:
        await together(store.save_room(Room.new(id=f"{n:03}")) for n in range(101))
        assert ids_of(await store.list_rooms()) == [f"{n:03}" for n in range(100)]

    async def test_deleting_a_room_takes_its_messages_threads_bindings_and_policy(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await say(store, room, "m", external_id=7, metadata=SCOPE)
        thread = await store.save_thread(
            Thread.new(room_id=room.id, external_thread_id=8, root_message_id="m")
        )
        binding = await store.create_room_binding(room.id, "telegram", "bot", 42)
        await store.save_routing_policy(RoutingPolicy.new(room_id=room.id))

        await store.delete_room(room.id)

        await not_found(store.get_room(room.id))
        await not_found(store.get_message("m"))
        await not_found(store.get_message_by_external_id("telegram", "bot", 7))
        await not_found(store.get_thread(thread.id))
        await not_found(store.get_thread_by_external_id(room.id, 8))
        await not_found(store.get_thread_by_root_message(room.id, "m"))
        await not_found(store.get_room_by_external_binding("telegram", "bot", 42))
        await not_found(store.delete_room_binding(binding.id))
        await not_found(store.get_routing_policy(room.id))
        assert await store.get_messages(room.id) == []
        assert await store.list_threads(room.id) == []
        assert await store.list_room_bindings(room.id) == []
        assert await store.directory_search("room", {"id": room.id}) == []
        assert not any((await store.counts()).values())

    async def test_deleting_a_room_leaves_other_rooms_alone(self, store: PersistenceStore) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        await say(store, room, "m1")
        message = await say(store, other, "m2", external_id=7, metadata=SCOPE)
        thread = await store.save_thread(Thread.new(room_id=other.id))
        binding = await store.create_room_binding(other.id, "telegram", "bot", 42)
        policy = await store.save_routing_policy(RoutingPolicy.new(room_id=other.id))
        await store.delete_room(room.id)
        assert await store.list_rooms() == [other]
        assert await store.get_messages(other.id) == [message]
        assert await store.get_message_by_external_id("telegram", "bot", 7) == message
        assert await store.list_threads(other.id) == [thread]
        assert await store.list_room_bindings(other.id) == [binding]
        assert await store.get_routing_policy(other.id) == policy

    async def test_a_room_made_again_after_it_was_deleted_is_empty(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await say(store, room, "m")
        await store.delete_room(room.id)
        await store.save_room(room)
        assert await store.get_messages(room.id) == []
        assert ids_of([await say(store, room, "m")]) == ["m"]

    async def test_a_large_room_is_deleted_in_parts(
        self, store: PersistenceStore, adapter: PersistenceAdapter
    ) -> None:
        room, small = await a_room(store), await a_room(store, "small")
        await together(say(store, room, f"m{n}", second=n) for n in range(5))
        kept = await say(store, small, "kept")
        for n in range(3):
            await store.save_thread(Thread.new(id=f"t{n}", room_id=room.id))
        await store.create_room_binding(room.id, "telegram", "bot", 42)
        await store.save_routing_policy(RoutingPolicy.new(room_id=room.id))
        part = partial(store._write, room.id, PersistenceAdapter.delete_room_part, room.id, 2)

        assert not await part()
        await not_found(store.get_room_by_external_binding("telegram", "bot", 42))
        await not_found(store.get_routing_policy(room.id))
        assert await store.get_room(room.id) == room
        assert ids_of(await store.get_messages(room.id)) == ["m2", "m3", "m4"]
        assert ids_of([await say(store, room, "late", second=9)]) == ["late"]
        parts = 1
        while not await part():
            parts += 1
            assert parts < 10
        await not_found(store.get_room(room.id))
        await not_found(store.get_message("late"))
        await not_found(store.get_thread("t2"))
        assert await part()
        assert await store.get_messages(small.id) == [kept]

    async def test_deleting_a_room_that_is_not_there_succeeds(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await store.delete_room("nowhere")
        await store.delete_room(room.id)
        await store.delete_room(room.id)
        assert await store.list_rooms() == []
