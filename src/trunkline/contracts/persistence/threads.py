"""Threads and what finds them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec.structs import replace

from trunkline.contracts.persistence.samples import (
    START,
    a_room,
    ids_of,
    not_found,
)
from trunkline.errors import NotFound
from trunkline.persistence import (
    PersistenceStore,
    Thread,
)

__all__ = ("ThreadTests",)


class ThreadTests:
    """A part of `PersistenceContract`."""

    async def test_a_thread_comes_back_as_it_was_saved(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        thread = Thread.new(
            room_id=room.id,
            external_thread_id=7,
            delivery_external_room_id="-100",
            root_message_id="m0",
            root_external_message_id=41,
            assigned_agent_id="agent",
            status="archived",
            metadata={"title": "weather"},
            inserted_at=START,
            updated_at=START + timedelta(microseconds=1),
        )
        assert await store.save_thread(thread) == thread
        assert await store.get_thread(thread.id) == thread
        assert await store.list_threads(room.id) == [thread]
        assert await store.get_thread_by_external_id(room.id, 7) == thread
        assert await store.get_thread_by_root_message(room.id, "m0") == thread

    async def test_a_thread_for_a_room_that_is_not_there_is_refused(
        self, store: PersistenceStore
    ) -> None:
        with pytest.raises(NotFound, match="nowhere"):
            await store.save_thread(Thread.new(id="t", room_id="nowhere"))
        await not_found(store.get_thread("t"))

    async def test_a_thread_that_is_not_there_is_not_found(self, store: PersistenceStore) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        thread = Thread.new(room_id=other.id, external_thread_id=7, root_message_id="m0")
        await store.save_thread(thread)
        await not_found(store.get_thread("nothing"))
        await not_found(store.get_thread_by_external_id(room.id, 7))
        await not_found(store.get_thread_by_external_id(other.id, 8))
        await not_found(store.get_thread_by_root_message(room.id, "m0"))
        await not_found(store.get_thread_by_root_message(other.id, "m1"))

    async def test_a_thread_without_an_external_id_is_not_found_by_one(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await store.save_thread(Thread.new(room_id=room.id))
        await not_found(store.get_thread_by_external_id(room.id, "None"))
        await not_found(store.get_thread_by_root_message(room.id, "None"))

    async def test_a_thread_saved_again_is_found_by_what_it_has_now(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        old = await store.save_thread(
            Thread.new(id="t", room_id=room.id, external_thread_id=7, root_message_id="m0")
        )
        new = await store.save_thread(replace(old, external_thread_id=8, root_message_id="m1"))
        await not_found(store.get_thread_by_external_id(room.id, 7))
        await not_found(store.get_thread_by_root_message(room.id, "m0"))
        assert await store.get_thread_by_external_id(room.id, 8) == new
        assert await store.get_thread_by_root_message(room.id, "m1") == new
        assert await store.list_threads(room.id) == [new]

        moved = await store.save_thread(replace(new, room_id=other.id))
        await not_found(store.get_thread_by_external_id(room.id, 8))
        await not_found(store.get_thread_by_root_message(room.id, "m1"))
        assert await store.list_threads(room.id) == []
        assert await store.get_thread_by_external_id(other.id, 8) == moved
        assert await store.get_thread_by_root_message(other.id, "m1") == moved
        assert await store.list_threads(other.id) == [moved]

    async def test_of_threads_with_one_external_id_or_root_the_newest_is_found(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        for one, second in (("b", 2), ("c", 2), ("d", 1)):
            await store.save_thread(
                Thread.new(
                    id=one,
                    room_id=room.id,
                    external_thread_id=7,
                    root_message_id="m0",
                    inserted_at=START + timedelta(seconds=second),
                )
            )
        assert (await store.get_thread_by_external_id(room.id, 7)).id == "c"
        assert (await store.get_thread_by_root_message(room.id, "m0")).id == "c"

    async def test_threads_are_listed_oldest_first_and_by_id_within_an_instant(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        for one, second in (("d", 3), ("b", 2), ("c", 1), ("a", 2)):
            inserted_at = START + timedelta(seconds=second)
            await store.save_thread(Thread.new(id=one, room_id=room.id, inserted_at=inserted_at))
        await store.save_thread(Thread.new(id="e", room_id=other.id))
        assert ids_of(await store.list_threads(room.id)) == ["c", "a", "b", "d"]
        assert ids_of(await store.list_threads(room.id, limit=2)) == ["c", "a"]
        assert await store.list_threads("nowhere") == []

    async def test_threads_are_listed_in_pages(self, store: PersistenceStore) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        for one, second in (("d", 3), ("b", 2), ("c", 1), ("a", 2)):
            inserted_at = START + timedelta(seconds=second)
            await store.save_thread(Thread.new(id=one, room_id=room.id, inserted_at=inserted_at))
        assert ids_of(await store.list_threads(room.id, limit=2, after="c")) == ["a", "b"]
        assert ids_of(await store.list_threads(room.id, limit=2, after="b")) == ["d"]
        assert await store.list_threads(room.id, after="d") == []
        await not_found(store.list_threads(room.id, after="nothing"))
        await not_found(store.list_threads(other.id, after="a"))

    async def test_threads_are_listed_by_status_and_the_limit_counts_only_those(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        statuses = ["active", "archived", "closed", "active", "archived", "active"]
        for number, status in enumerate(statuses):
            inserted_at = START + timedelta(seconds=number)
            await store.save_thread(
                Thread.new(id=f"t{number}", room_id=room.id, status=status, inserted_at=inserted_at)
            )
        assert ids_of(await store.list_threads(room.id, status="active")) == ["t0", "t3", "t5"]
        active = await store.list_threads(room.id, status="active", limit=2)
        assert ids_of(active) == ["t0", "t3"]
        assert ids_of(await store.list_threads(room.id, status="closed")) == ["t2"]
