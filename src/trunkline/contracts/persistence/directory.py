"""The directory of rooms and participants."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from trunkline.contracts.persistence.samples import (
    NAMES,
    OTHER_NAMES,
    a_room,
    ids_of,
)
from trunkline.errors import AmbiguousMatch, ConfigurationError, NotFound
from trunkline.persistence import (
    Participant,
    PersistenceStore,
)

__all__ = ("DirectoryTests",)


class DirectoryTests:
    """A part of `PersistenceContract`."""

    async def test_a_part_of_the_name_in_any_case_finds_it(self, store: PersistenceStore) -> None:
        for number, (name, query) in enumerate(NAMES):
            person = Participant.new(id=str(number), identity={"name": name})
            await store.save_participant(person)
            room = await a_room(store, str(number), name=name)
            for asked in (query, query.upper(), query.lower(), query.swapcase(), name, name[1:-1]):
                people = await store.directory_search("participant", {"name": asked})
                assert person in people, (name, asked)
                assert room in await store.directory_search("room", {"name": asked}), (name, asked)

    async def test_what_is_no_part_of_the_name_does_not_find_it(
        self, store: PersistenceStore
    ) -> None:
        for number, (query, name) in enumerate(OTHER_NAMES):
            person = Participant.new(id=str(number), identity={"name": name})
            await store.save_participant(person)
            room = await a_room(store, str(number), name=name)
            people = await store.directory_search("participant", {"name": query})
            assert person not in people, (query, name)
            assert room not in await store.directory_search("room", {"name": query}), (query, name)

    async def test_whoever_has_no_name_is_not_found_by_one(self, store: PersistenceStore) -> None:
        for identity in ({}, {"name": None}, {"name": 5}, {"name": ["Ada"]}):
            await store.save_participant(Participant.new(identity=identity))
        await a_room(store)
        for asked in ("None", "5", "Ada", ""):
            assert await store.directory_search("participant", {"name": asked}) == []
            assert await store.directory_search("room", {"name": asked}) == []

    async def test_an_empty_name_is_a_part_of_every_name(self, store: PersistenceStore) -> None:
        people = [
            await store.save_participant(Participant.new(identity={"name": name}))
            for name in ("", "Ada", "Łódź")
        ]
        assert await store.directory_search("participant", {"name": ""}) == people

    async def test_a_name_may_be_as_long_as_a_book(self, store: PersistenceStore) -> None:
        name = "Ünïcode " * 10_000
        room = await a_room(store, name=name)
        assert await store.directory_search("room", {"name": name.upper()}) == [room]
        assert await store.directory_search("room", {"name": name + "x"}) == []

    async def test_the_directory_follows_a_change_of_name(self, store: PersistenceStore) -> None:
        room = await a_room(store, name="old")
        person = await store.save_participant(Participant.new(identity={"name": "old"}))
        await store.save_room(replace(room, name="new"))
        await store.save_participant(replace(person, identity={"name": "new"}))
        assert await store.directory_search("room", {"name": "old"}) == []
        assert await store.directory_search("participant", {"name": "old"}) == []
        assert ids_of(await store.directory_search("room", {"name": "new"})) == [room.id]
        assert ids_of(await store.directory_search("participant", {"name": "new"})) == [person.id]

    async def test_matches_are_sorted_by_id(self, store: PersistenceStore) -> None:
        ids = ["b", "a", "B", "é", "10", "9"]
        for one in ids:
            await store.save_participant(Participant.new(id=one, identity={"name": "Ada"}))
            await a_room(store, one, name="Lobby")
        for query in ({"name": "a"}, {}):
            assert ids_of(await store.directory_search("participant", query)) == sorted(ids)
        for query in ({"name": "o"}, {}):
            assert ids_of(await store.directory_search("room", query)) == sorted(ids)

    async def test_the_directory_is_read_in_pages(self, store: PersistenceStore) -> None:
        for one in ("b", "a", "d", "c", "e"):
            await store.save_participant(Participant.new(id=one, identity={"name": "Ada"}))
            await a_room(store, one, name="Lobby")
        pages: list[tuple[str | None, list[str]]]
        pages = [(None, ["a", "b"]), ("b", ["c", "d"]), ("d", ["e"]), ("e", [])]
        for after, ids in pages:
            query = {"name": "ada"}
            people = await store.directory_search("participant", query, limit=2, after=after)
            assert ids_of(people) == ids
            rooms = await store.directory_search("room", {"name": "lob"}, limit=2, after=after)
            assert ids_of(rooms) == ids

    async def test_the_directory_finds_an_id_as_a_whole(self, store: PersistenceStore) -> None:
        person = await store.save_participant(Participant.new(id="Ada"))
        room = await a_room(store, "Lobby")
        assert await store.directory_search("participant", {"id": "Ada"}) == [person]
        assert await store.directory_search("room", {"id": "Lobby"}) == [room]
        for other in ("ada", "Ad", "Ada ", "%"):
            assert await store.directory_search("participant", {"id": other}) == []
        for other in ("lobby", "Lob", "_obby"):
            assert await store.directory_search("room", {"id": other}) == []

    async def test_a_participant_is_found_by_channel_and_external_id(
        self, store: PersistenceStore
    ) -> None:
        person = await store.save_participant(Participant.new(external_ids={"sms": 1, "irc": "a"}))
        await store.save_participant(Participant.new(external_ids={"sms": 2, "irc": "b"}))
        for channel, external_id in (("sms", 1), ("irc", "a")):
            query = {"channel": channel, "external_id": external_id}
            assert await store.directory_search("participant", query) == [person]
        for channel, external_id in (("irc", 1), ("sms", "a"), ("sms", 11)):
            query = {"channel": channel, "external_id": external_id}
            assert await store.directory_search("participant", query) == []

    async def test_all_participants_with_an_external_id_are_found(
        self, store: PersistenceStore
    ) -> None:
        for one in ("b", "a"):
            await store.save_participant(Participant.new(id=one, external_ids={"sms": 1}))
        query = {"channel": "sms", "external_id": 1}
        assert ids_of(await store.directory_search("participant", query)) == ["a", "b"]

    async def test_a_room_is_found_by_channel_bridge_and_external_id(
        self, store: PersistenceStore
    ) -> None:
        room = await store.get_or_create_room_by_external_binding("telegram", "bot", 42)
        await store.get_or_create_room_by_external_binding("telegram", "bot", 43)
        query = {"channel": "telegram", "bridge_id": "bot", "external_id": 42}
        assert await store.directory_search("room", query) == [room]
        for wrong in ({"channel": "slack"}, {"bridge_id": "b2"}, {"external_id": 44}):
            assert await store.directory_search("room", query | wrong) == []

    async def test_all_that_is_asked_must_match(self, store: PersistenceStore) -> None:
        person = await store.save_participant(
            Participant.new(id="p", identity={"name": "Ada"}, external_ids={"sms": 1})
        )
        asked: dict[str, Any] = {"id": "p", "name": "ada", "channel": "sms", "external_id": 1}
        assert await store.directory_search("participant", asked) == [person]
        for wrong in ({"id": "q"}, {"name": "bob"}, {"channel": "irc"}, {"external_id": 2}):
            assert await store.directory_search("participant", asked | wrong) == []

        room = await store.get_or_create_room_by_external_binding(
            "sms", "b", 1, {"id": "r", "name": "Lobby"}
        )
        asked = {"id": "r", "name": "lob", "channel": "sms", "bridge_id": "b", "external_id": 1}
        assert await store.directory_search("room", asked) == [room]
        for wrong in ({"id": "s"}, {"name": "bar"}, {"channel": "irc"}, {"bridge_id": "c"}):
            assert await store.directory_search("room", asked | wrong) == []

    async def test_whoever_was_deleted_is_not_in_the_directory(
        self, store: PersistenceStore
    ) -> None:
        await store.save_participant(
            Participant.new(id="p", identity={"name": "Ada"}, external_ids={"sms": 1})
        )
        await store.delete_participant("p")
        for query in ({"id": "p"}, {"name": "Ada"}, {"channel": "sms", "external_id": 1}, {}):
            assert await store.directory_search("participant", query) == []

    async def test_a_lookup_gives_the_one_match(self, store: PersistenceStore) -> None:
        person = await store.save_participant(Participant.new(identity={"name": "Ada"}))
        room = await a_room(store, name="Lobby")
        assert await store.directory_lookup("participant", {"name": "ada"}) == person
        assert await store.directory_lookup("room", {"name": "lobby"}) == room

    async def test_a_lookup_without_a_match_is_not_found(self, store: PersistenceStore) -> None:
        with pytest.raises(NotFound, match="Ada"):
            await store.directory_lookup("participant", {"name": "Ada"})
        with pytest.raises(NotFound, match="Lobby"):
            await store.directory_lookup("room", {"name": "Lobby"})

    async def test_a_lookup_with_several_matches_gives_them_all(
        self, store: PersistenceStore
    ) -> None:
        people = [
            await store.save_participant(Participant.new(id=one, identity={"name": "Ada"}))
            for one in ("a", "b")
        ]
        rooms = [await a_room(store, one, name="Lobby") for one in ("a", "b")]
        with pytest.raises(AmbiguousMatch, match="2 participants") as ambiguous:
            await store.directory_lookup("participant", {"name": "Ada"})
        assert list(ambiguous.value.matches) == people
        with pytest.raises(AmbiguousMatch, match="2 rooms") as ambiguous:
            await store.directory_lookup("room", {"name": "Lobby"})
        assert list(ambiguous.value.matches) == rooms

    async def test_the_directory_knows_no_other_target(self, store: PersistenceStore) -> None:
        with pytest.raises(ConfigurationError, match="'planet'"):
            await store.directory_search("planet", {"name": "Mars"})  # type: ignore[call-overload]
        with pytest.raises(ConfigurationError, match="'planet'"):
            await store.directory_lookup("planet", {"name": "Mars"})  # type: ignore[call-overload]
