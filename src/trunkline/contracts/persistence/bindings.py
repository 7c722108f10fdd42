"""Bindings of rooms, and external ids that are strings or ints."""

from __future__ import annotations

from datetime import timedelta

import pytest

from trunkline.contracts.persistence.samples import (
    SCOPE,
    START,
    a_room,
    ids_of,
    not_found,
    say,
    together,
)
from trunkline.errors import AlreadyBound, NotFound
from trunkline.persistence import (
    PersistenceStore,
    Room,
    RoomBinding,
    Thread,
)

__all__ = ("BindingTests",)


class BindingTests:
    """A part of `PersistenceContract`."""

    # -- bindings --------------------------------------------------------------------------------

    async def test_a_room_is_made_with_the_attributes_that_were_given(
        self, store: PersistenceStore
    ) -> None:
        made = await store.get_or_create_room_by_external_binding(
            "telegram",
            "bot",
            -100,
            {
                "id": "r",
                "type": "group",
                "name": "Lobby",
                "inserted_at": START,
                "external_bindings": {"telegram": {"b2": 1}, "slack": {"ws": "C1"}},
            },
        )
        assert made == Room.new(
            id="r",
            type="group",
            name="Lobby",
            inserted_at=START,
            external_bindings={"telegram": {"b2": 1, "bot": -100}, "slack": {"ws": "C1"}},
        )
        assert await store.get_room("r") == made
        [binding] = await store.list_room_bindings("r")
        assert binding == RoomBinding(
            id=binding.id,
            room_id="r",
            channel="telegram",
            bridge_id="bot",
            external_room_id=-100,
            direction="both",
            enabled=True,
            inserted_at=binding.inserted_at,
        )

    async def test_a_room_that_is_bound_is_found_as_it_is(self, store: PersistenceStore) -> None:
        made = await store.get_or_create_room_by_external_binding("telegram", "bot", 42)
        found = await store.get_or_create_room_by_external_binding(
            "telegram", "bot", 42, {"id": "other", "name": "Other", "type": "channel"}
        )
        assert found == made
        assert await store.get_room_by_external_binding("telegram", "bot", 42) == made
        assert await store.list_rooms() == [made]
        assert len(await store.list_room_bindings(made.id)) == 1

    async def test_channel_bridge_and_external_id_together_make_a_room(
        self, store: PersistenceStore
    ) -> None:
        keys = [("telegram", "bot", 42), ("slack", "bot", 42), ("telegram", "b2", 42)]
        keys += [("telegram", "bot", 43), ("telegram:bot", "42", 42), ("telegram", "bot:42", 42)]
        rooms = [await store.get_or_create_room_by_external_binding(*key) for key in keys]
        assert len({room.id for room in rooms}) == len(keys)
        for key, room in zip(keys, rooms, strict=True):
            assert await store.get_room_by_external_binding(*key) == room

    async def test_sixty_four_callers_get_one_room(self, store: PersistenceStore) -> None:
        found = await together(
            store.get_or_create_room_by_external_binding("telegram", "bot", 42, {"name": str(n)})
            for n in range(64)
        )
        assert all(one == found[0] for one in found)
        assert await store.list_rooms() == [found[0]]
        assert len(await store.list_room_bindings(found[0].id)) == 1

    async def test_a_binding_whose_room_was_deleted_is_replaced(
        self, store: PersistenceStore
    ) -> None:
        gone = await store.get_or_create_room_by_external_binding("telegram", "bot", 42)
        await store.delete_room(gone.id)
        new = await store.get_or_create_room_by_external_binding("telegram", "bot", 42)
        assert new.id != gone.id
        assert await store.get_room_by_external_binding("telegram", "bot", 42) == new
        assert await store.list_rooms() == [new]

    async def test_attributes_with_the_id_of_a_room_bind_it_as_it_is(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store, "r", name="Lobby")
        found = await store.get_or_create_room_by_external_binding(
            "telegram", "bot", 42, {"id": "r", "name": "Other"}
        )
        assert found == room
        assert await store.get_room("r") == room
        assert await store.get_room_by_external_binding("telegram", "bot", 42) == room

    async def test_an_external_room_that_is_not_bound_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        await a_room(store, external_bindings={"telegram": {"bot": 42}})
        await not_found(store.get_room_by_external_binding("telegram", "bot", 42))

    async def test_a_room_is_bound_with_the_attributes_that_were_given(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        attrs = {"id": "b", "direction": "inbound", "enabled": False, "inserted_at": START}
        binding = await store.create_room_binding(room.id, "telegram", "bot", "42", attrs)
        assert binding == RoomBinding(
            room_id=room.id,
            channel="telegram",
            bridge_id="bot",
            external_room_id="42",
            id="b",
            direction="inbound",
            enabled=False,
            inserted_at=START,
        )
        assert await store.list_room_bindings(room.id) == [binding]
        assert await store.get_room_by_external_binding("telegram", "bot", "42") == room

    async def test_binding_the_same_two_again_returns_the_binding_that_stands(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        binding = await store.create_room_binding(room.id, "telegram", "bot", 42)
        again = await store.create_room_binding(
            room.id, "telegram", "bot", "42", {"direction": "outbound"}
        )
        assert again == binding
        assert await store.list_room_bindings(room.id) == [binding]

    async def test_an_external_room_is_bound_to_one_room_only(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        await store.create_room_binding(room.id, "telegram", "bot", 42)
        with pytest.raises(AlreadyBound, match="telegram:bot:42") as refused:
            await store.create_room_binding(other.id, "telegram", "bot", 42)
        assert refused.value.room_id == room.id
        assert await store.list_room_bindings(other.id) == []
        assert await store.get_room_by_external_binding("telegram", "bot", 42) == room

    async def test_of_sixteen_rooms_that_want_one_external_room_one_gets_it(
        self, store: PersistenceStore
    ) -> None:
        rooms = await together(a_room(store, f"r{n:02}") for n in range(16))
        winners: list[str] = []
        bound_to: list[str | None] = []

        async def bind(room: Room) -> None:
            try:
                winners.append((await store.create_room_binding(room.id, "sms", "b", 1)).room_id)
            except AlreadyBound as error:
                bound_to.append(error.room_id)

        await together(bind(room) for room in rooms)
        assert len(winners) == 1
        assert bound_to == winners * 15
        assert (await store.get_room_by_external_binding("sms", "b", 1)).id == winners[0]

    @pytest.mark.parametrize("is_bound", [False, True])
    async def test_a_room_that_is_not_there_cannot_be_bound(
        self, store: PersistenceStore, is_bound: bool
    ) -> None:
        if is_bound:
            await store.get_or_create_room_by_external_binding("telegram", "bot", 42)
        with pytest.raises(NotFound, match="nowhere"):
            await store.create_room_binding("nowhere", "telegram", "bot", 42)
        assert await store.list_room_bindings("nowhere") == []

    async def test_a_binding_that_is_there_is_not_moved_to_another_external_room(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        binding = await store.create_room_binding(room.id, "telegram", "bot", 42, {"id": "x"})
        with pytest.raises(AlreadyBound, match="'x'") as refused:
            await store.create_room_binding(other.id, "telegram", "bot", 43, {"id": "x"})
        assert refused.value.room_id == room.id
        await not_found(store.get_room_by_external_binding("telegram", "bot", 43))
        assert await store.list_room_bindings(room.id) == [binding]
        assert await store.list_room_bindings(other.id) == []

    async def test_bindings_of_a_room_are_listed_oldest_first(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        for one, second in (("d", 3), ("b", 2), ("c", 1), ("a", 2)):
            attrs = {"id": one, "inserted_at": START + timedelta(seconds=second)}
            await store.create_room_binding(room.id, "telegram", one, 42, attrs)
        await store.create_room_binding(other.id, "telegram", "e", 42)
        assert ids_of(await store.list_room_bindings(room.id)) == ["c", "a", "b", "d"]
        assert await store.list_room_bindings("nowhere") == []

    async def test_bindings_of_a_room_are_listed_in_pages(self, store: PersistenceStore) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        for one, second in (("d", 3), ("b", 2), ("c", 1), ("a", 2)):
            attrs = {"id": one, "inserted_at": START + timedelta(seconds=second)}
            await store.create_room_binding(room.id, "telegram", one, 42, attrs)
        assert ids_of(await store.list_room_bindings(room.id, limit=2)) == ["c", "a"]
        assert ids_of(await store.list_room_bindings(room.id, limit=2, after="a")) == ["b", "d"]
        await not_found(store.list_room_bindings(room.id, after="nothing"))
        await not_found(store.list_room_bindings(other.id, after="a"))

    async def test_a_binding_that_was_deleted_is_free_for_another_room(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        binding = await store.create_room_binding(room.id, "telegram", "bot", 42)
        await store.delete_room_binding(binding.id)
        await not_found(store.get_room_by_external_binding("telegram", "bot", 42))
        assert await store.list_room_bindings(room.id) == []
        await store.create_room_binding(other.id, "telegram", "bot", 42)
        assert await store.get_room_by_external_binding("telegram", "bot", 42) == other

    async def test_deleting_a_binding_that_is_not_there_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        binding = await store.create_room_binding(room.id, "telegram", "bot", 42)
        await not_found(store.delete_room_binding("nothing"))
        await store.delete_room_binding(binding.id)
        await not_found(store.delete_room_binding(binding.id))

    # -- external ids ----------------------------------------------------------------------------

    async def test_an_external_id_keeps_the_type_it_was_saved_with(
        self, store: PersistenceStore
    ) -> None:
        for one in (42, "43", -1, 2**63 + 1, "0042", " 42", "é:/?#%\\"):
            room = await store.get_or_create_room_by_external_binding("telegram", "bot", one)
            assert room.external_bindings == {"telegram": {"bot": one}}
            assert (await store.get_room(room.id)).external_bindings == room.external_bindings
            [binding] = await store.list_room_bindings(room.id)
            assert binding.external_room_id == one
            person = await store.get_or_create_participant_by_external_id("telegram", one)
            assert (await store.get_participant(person.id)).external_ids == {"telegram": one}
            await say(store, room, "m", external_id=one, external_thread_id=one)
            found = await store.get_message("m")
            assert (found.external_id, found.external_thread_id) == (one, one)
            await store.update_message_external_id("m", one)
            assert (await store.get_message("m")).external_id == one

    @pytest.mark.parametrize(("saved", "asked"), [(42, "42"), ("42", 42), (-7, "-7"), ("-7", -7)])
    async def test_an_int_and_its_digits_are_the_same_external_id(
        self, store: PersistenceStore, saved: str | int, asked: str | int
    ) -> None:
        room = await store.get_or_create_room_by_external_binding("telegram", "bot", saved)
        again = await store.get_or_create_room_by_external_binding("telegram", "bot", asked)
        assert again == room
        assert await store.get_room_by_external_binding("telegram", "bot", asked) == room
        other = await a_room(store, "other")
        with pytest.raises(AlreadyBound):
            await store.create_room_binding(other.id, "telegram", "bot", asked)
        query = {"channel": "telegram", "bridge_id": "bot", "external_id": asked}
        assert await store.directory_search("room", query) == [room]

        person = await store.get_or_create_participant_by_external_id("telegram", saved)
        same = await store.get_or_create_participant_by_external_id("telegram", asked)
        assert same == person
        query = {"channel": "telegram", "external_id": asked}
        assert await store.directory_search("participant", query) == [person]

        message = await say(store, room, "m", external_id=saved, metadata=SCOPE)
        assert await store.get_message_by_external_id("telegram", "bot", asked) == message
        thread = await store.save_thread(Thread.new(room_id=room.id, external_thread_id=saved))
        assert await store.get_thread_by_external_id(room.id, asked) == thread

    async def test_digits_that_differ_are_different_external_ids(
        self, store: PersistenceStore
    ) -> None:
        rooms = [
            await store.get_or_create_room_by_external_binding("telegram", "bot", one)
            for one in (42, "042", "42.0", "+42", " 42", "42 ", "\uff14\uff12")
        ]
        assert len({room.id for room in rooms}) == 7
