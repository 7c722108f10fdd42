"""Participants and their external ids."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from trunkline.contracts.persistence.samples import (
    a_room,
    not_found,
    say,
    together,
)
from trunkline.errors import NotFound
from trunkline.persistence import (
    Participant,
    PersistenceStore,
)

__all__ = ("ParticipantTests",)


class ParticipantTests:
    """A part of `PersistenceContract`."""

    async def test_a_participant_comes_back_as_they_were_saved(
        self, store: PersistenceStore
    ) -> None:
        participant = Participant.new(
            type="agent",
            identity={"name": "Ada", "avatar": None},
            external_ids={"telegram": 42, "slack": "U1"},
            presence="busy",
            capabilities=["text", {"voice": True}],
            metadata={"since": 1843},
        )
        assert await store.save_participant(participant) == participant
        assert await store.get_participant(participant.id) == participant

    async def test_a_participant_saved_again_is_replaced_whole(
        self, store: PersistenceStore
    ) -> None:
        await store.save_participant(Participant.new(id="p", identity={"name": "old"}))
        new = await store.save_participant(Participant.new(id="p", presence="away"))
        assert await store.get_participant("p") == new
        assert await store.directory_search("participant", {}) == [new]

    async def test_a_participant_that_was_never_saved_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        with pytest.raises(NotFound, match="nobody"):
            await store.get_participant("nobody")

    async def test_deleting_a_participant_leaves_what_they_said(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await store.save_participant(Participant.new(id="p"))
        message = await say(store, room, "m", sender_id="p")
        await store.delete_participant("p")
        await not_found(store.get_participant("p"))
        assert await store.get_messages(room.id) == [message]

    async def test_deleting_a_participant_who_is_not_there_succeeds(
        self, store: PersistenceStore
    ) -> None:
        await store.save_participant(Participant.new(id="p"))
        await store.delete_participant("nobody")
        await store.delete_participant("p")
        await store.delete_participant("p")
        assert (await store.counts())["participants"] == 0

    async def test_a_participant_is_made_with_the_attributes_that_were_given(
        self, store: PersistenceStore
    ) -> None:
        made = await store.get_or_create_participant_by_external_id(
            "telegram",
            42,
            {"id": "p", "identity": {"name": "Ada"}, "external_ids": {"slack": "U1"}},
        )
        assert made == Participant.new(
            id="p", identity={"name": "Ada"}, external_ids={"slack": "U1", "telegram": 42}
        )
        assert await store.get_participant("p") == made

    async def test_a_participant_who_is_there_is_found_as_they_are(
        self, store: PersistenceStore
    ) -> None:
        made = await store.get_or_create_participant_by_external_id("telegram", 42)
        found = await store.get_or_create_participant_by_external_id(
            "telegram", 42, {"type": "agent", "identity": {"name": "Other"}}
        )
        assert found == made
        assert (await store.counts())["participants"] == 1

    async def test_an_external_id_of_another_channel_is_somebody_else(
        self, store: PersistenceStore
    ) -> None:
        one = await store.get_or_create_participant_by_external_id("telegram", 42)
        other = await store.get_or_create_participant_by_external_id("slack", 42)
        third = await store.get_or_create_participant_by_external_id("telegram", 43)
        assert len({one.id, other.id, third.id}) == 3

    async def test_sixty_four_callers_get_one_participant(self, store: PersistenceStore) -> None:
        found = await together(
            store.get_or_create_participant_by_external_id("telegram", 42, {"metadata": {"n": n}})
            for n in range(64)
        )
        assert all(one == found[0] for one in found)
        assert await store.directory_search("participant", {}) == [found[0]]

    async def test_a_participant_is_found_by_whatever_they_were_saved_with(
        self, store: PersistenceStore
    ) -> None:
        saved = await store.save_participant(
            Participant.new(external_ids={"telegram": 42, "slack": "U1"})
        )
        for channel, external_id in saved.external_ids.items():
            found = await store.get_or_create_participant_by_external_id(channel, external_id)
            assert found == saved

    async def test_a_participant_is_found_on_every_channel_they_were_made_with(
        self, store: PersistenceStore
    ) -> None:
        made = await store.get_or_create_participant_by_external_id(
            "telegram", 42, {"external_ids": {"slack": "U1"}}
        )
        assert await store.get_or_create_participant_by_external_id("slack", "U1") == made

    async def test_a_participant_is_not_found_by_an_id_they_no_longer_have(
        self, store: PersistenceStore
    ) -> None:
        saved = await store.save_participant(
            Participant.new(external_ids={"telegram": 42, "slack": "U1"})
        )
        saved = await store.save_participant(replace(saved, external_ids={"telegram": 43}))
        for channel, external_id in (("telegram", 42), ("slack", "U1")):
            query = {"channel": channel, "external_id": external_id}
            assert await store.directory_search("participant", query) == []
            new = await store.get_or_create_participant_by_external_id(channel, external_id)
            assert new.id != saved.id
        assert await store.get_or_create_participant_by_external_id("telegram", 43) == saved

    async def test_of_participants_with_one_external_id_the_first_is_found(
        self, store: PersistenceStore
    ) -> None:
        first = await store.save_participant(Participant.new(id="z", external_ids={"sms": 1}))
        await store.save_participant(Participant.new(id="y", external_ids={"sms": 1}))
        await store.save_participant(Participant.new(id="x", external_ids={"sms": 1}))
        await store.save_participant(first)
        assert await store.get_or_create_participant_by_external_id("sms", 1) == first
        await store.delete_participant("z")
        assert (await store.get_or_create_participant_by_external_id("sms", 1)).id == "x"
        await store.save_participant(Participant.new(id="x", external_ids={}))
        assert (await store.get_or_create_participant_by_external_id("sms", 1)).id == "y"

    async def test_a_participant_who_was_deleted_is_made_anew(
        self, store: PersistenceStore
    ) -> None:
        gone = await store.get_or_create_participant_by_external_id("telegram", 42)
        await store.delete_participant(gone.id)
        new = await store.get_or_create_participant_by_external_id("telegram", 42)
        assert new.id != gone.id
        assert await store.directory_search("participant", {}) == [new]

    async def test_attributes_with_the_id_of_a_participant_give_them_the_external_id(
        self, store: PersistenceStore
    ) -> None:
        await store.save_participant(
            Participant.new(
                id="p", identity={"name": "Ada"}, external_ids={"slack": "U1", "telegram": 41}
            )
        )
        found = await store.get_or_create_participant_by_external_id(
            "telegram", 42, {"id": "p", "type": "agent", "external_ids": {"sms": 1}}
        )
        assert (found.id, found.type, found.identity) == ("p", "human", {"name": "Ada"})
        assert found.external_ids == {"slack": "U1", "telegram": 42}
        assert await store.get_participant("p") == found
        query = {"channel": "telegram", "external_id": 41}
        assert await store.directory_search("participant", query) == []
