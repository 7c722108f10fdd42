"""What every persistence adapter must do, as tests that run over any of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, TypeVar

import anyio
import pytest
from msgspec.structs import replace

from trunkline.errors import AlreadyBound, AmbiguousMatch, ConfigurationError, NotFound
from trunkline.persistence import (
    BridgeConfig,
    IngressSubscription,
    Message,
    Participant,
    PersistenceAdapter,
    PersistenceStore,
    Room,
    RoomBinding,
    RoutingPolicy,
    Thread,
)

__all__ = ("PersistenceContract",)

R = TypeVar("R")

START = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)

#: What people call themselves and their rooms, and what somebody would type to find them.
NAMES = [
    ("Ada Lovelace", "love"),
    ("ada lovelace", "ADA L"),
    ("Łódź", "łódź"),
    ("łódź", "ŁÓDŹ"),
    ("straße", "STRASSE"),
    ("STRASSE", "straße"),
    ("İstanbul", "istanbul"),
    ("İstanbul", "İSTANBUL"),
    ("ISPARTA \u0131l\u0131ca", "\u0131sparta ILI"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ("ДОМ", "дом"),
    ("🦊 den", "🦊"),
    ("100% sure", "0% s"),
    ("snake_case", "e_c"),
    ('it\'s "quoted"', "'s \"q"),
    ("back\\slash", "k\\s"),
    ("semi; DROP TABLE", "; drop"),
    ("[brackets]*?", "]*?"),
    ("nul\0byte", "l\0b"),
    ("  spaces  ", "  "),
    ("two\nlines", "o\nl"),
]

#: What was typed, and a name that it is no part of.
OTHER_NAMES = [
    ("%", "percent"),
    ("_", "underscore"),
    ("a%b", "a--b"),
    ("a_b", "a-b"),
    ("\\", "slash"),
    ("'", "quote"),
    ("*", "star"),
    ("lovelacy", "Ada Lovelace"),
    ("é", "e"),
]

#: What bots store and databases trip over. Each is what JSON holds.
CONTENTS: dict[str, Any] = {
    "text": "hello",
    "nothing": None,
    "an empty string": "",
    "an empty list": [],
    "blocks": [{"type": "text", "text": "hello"}, {"type": "image", "width": 640}],
    "emoji": "👩‍👩‍👧‍👦 🇵🇱 ❤️",
    "every plane": "a\u00e9\u4e2d\U0001f98a\U0010ffff",
    "a NUL": "a\0b\0",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028\u2029",
    "quotes and escapes": "' \" \\ \\u0000 % _ $1 :name ? {}",
    "numbers": [0, -1, 2**53 + 1, -(2**63), 2**64 - 1, 0.1, -1e300, 5e-324],
    "truth": [True, False, None],
    "odd keys": {"": {"\0": 1, "ключ": 2, " ": 3, "a.b": 4, "$": 5}},
    "400 deep": None,
    "a megabyte": "äß🦊\n" * 100_000,
}
for _ in range(400):
    CONTENTS["400 deep"] = [CONTENTS["400 deep"]]


class PersistenceContract:
    """What a `PersistenceAdapter` must do. Subclass it with a fixture `adapter`, and run pytest.

    The fixture returns a new adapter on an empty database, not yet open; the suite opens a
    `PersistenceStore` over it. The tests are async and run by anyio's pytest plugin, on whatever
    event loops your fixture `anyio_backend` names. For failures that show what was compared,
    import the suite from `trunkline.testing`.

    Example:
        >>> import pytest
        >>> from trunkline.testing import PersistenceContract
        >>> from trunkline.persistence.memory import MemoryPersistenceAdapter
        >>> class TestMyAdapter(PersistenceContract):
        ...     @pytest.fixture
        ...     def adapter(self):
        ...         return MemoryPersistenceAdapter()
    """

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def adapter(self) -> PersistenceAdapter:
        """A new adapter on an empty database."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture 'adapter'")

    @pytest.fixture
    async def store(self, adapter: PersistenceAdapter) -> AsyncIterator[PersistenceStore]:
        """A store over the adapter."""
        async with PersistenceStore(adapter=adapter, call_timeout_ms=30_000) as store:
            yield store

    # -- rooms -----------------------------------------------------------------------------------

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

    async def test_deleting_a_room_that_is_not_there_succeeds(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await store.delete_room("nowhere")
        await store.delete_room(room.id)
        await store.delete_room(room.id)
        assert await store.list_rooms() == []

    # -- participants ----------------------------------------------------------------------------

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

    # -- messages --------------------------------------------------------------------------------

    async def test_a_message_comes_back_as_it_was_saved(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        message = Message.new(
            room_id=room.id,
            sender_id="p",
            role="assistant",
            content=[{"type": "text", "text": "hello"}],
            reply_to_id="m0",
            external_id=42,
            external_reply_to_id="41",
            thread_id="t",
            external_thread_id=7,
            delivery_external_room_id=-100,
            status="delivered",
            reactions={"👍": ["p", "q"]},
            receipts={"q": {"read": "2026-03-01T12:00:00Z"}},
            metadata={**SCOPE, "edited": True},
            inserted_at=START,
            updated_at=START + timedelta(microseconds=1),
        )
        assert await store.save_message(message) == message
        assert await store.get_message(message.id) == message
        assert await store.get_messages(room.id) == [message]

    async def test_content_comes_back_as_it_was_saved(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        for what, content in CONTENTS.items():
            maps: dict[str, Any] = {"metadata": {"again": content}, "reactions": {"again": content}}
            saved = await say(store, room, "m", content=content, **maps)
            assert await store.get_message("m") == saved, what
            assert await store.get_messages(room.id) == [saved], what
            assert repr(saved.content) == repr(content), what

    async def test_a_message_for_a_room_that_is_not_there_is_refused(
        self, store: PersistenceStore
    ) -> None:
        with pytest.raises(NotFound, match="nowhere"):
            await store.save_message(Message.new(id="m", room_id="nowhere"))
        await not_found(store.get_message("m"))

    async def test_a_message_that_was_never_saved_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        with pytest.raises(NotFound, match="nothing"):
            await store.get_message("nothing")

    async def test_a_message_saved_again_is_replaced_whole(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        await say(store, room, "m", content="old", metadata={"a": 1}, status="sent")
        new = await say(store, room, "m")
        assert (new.content, new.metadata, new.status) == ([], {}, "sending")
        assert await store.get_message("m") == new
        assert await store.get_messages(room.id) == [new]

    async def test_a_message_that_moved_to_another_room_is_only_there(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        message = await say(store, room, "m")
        moved = await store.save_message(replace(message, room_id=other.id))
        assert await store.get_messages(room.id) == []
        assert await store.get_messages(other.id) == [moved]
        await not_found(store.get_messages(room.id, before="m"))
        await store.delete_room(room.id)
        assert await store.get_message("m") == moved

    async def test_a_message_that_cannot_move_stays_where_it_was(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        message = await say(store, room, "m")
        await not_found(store.save_message(replace(message, room_id="nowhere")))
        assert await store.get_messages(room.id) == [message]

    async def test_a_message_that_moved_to_another_thread_is_only_there(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        message = await say(store, room, "m", thread_id="t1")
        moved = await store.save_message(replace(message, thread_id="t2"))
        assert await store.get_messages(room.id, thread_id="t1") == []
        assert await store.get_messages(room.id, thread_id="t2") == [moved]

    async def test_a_message_that_moved_in_time_is_listed_at_its_new_place(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        first = await say(store, room, "a", second=1)
        await say(store, room, "b", second=2)
        await store.save_message(replace(first, inserted_at=START + timedelta(seconds=3)))
        assert ids_of(await store.get_messages(room.id)) == ["b", "a"]
        assert ids_of(await store.get_messages(room.id, before="a")) == ["b"]

    async def test_a_message_is_found_by_its_external_id(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        message = await say(store, room, "m", external_id="X-1", metadata=SCOPE)
        assert await store.get_message_by_external_id("telegram", "bot", "X-1") == message
        for wrong in (("slack", "bot", "X-1"), ("telegram", "b2", "X-1"), ("telegram", "bot", "X")):
            await not_found(store.get_message_by_external_id(*wrong))

    async def test_a_message_without_channel_or_bridge_has_no_external_scope(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        half = [{}, {"channel": "telegram"}, {"bridge_id": "bot"}, SCOPE | {"channel": None}]
        for number, metadata in enumerate(half):
            await say(store, room, f"m{number}", external_id=42, metadata=metadata)
        await not_found(store.get_message_by_external_id("telegram", "bot", 42))
        await not_found(store.get_message_by_external_id("telegram", "None", 42))
        await not_found(store.get_message_by_external_id("None", "bot", 42))

    async def test_a_message_without_an_external_id_is_not_found_by_one(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await say(store, room, "m", metadata=SCOPE)
        await not_found(store.get_message_by_external_id("telegram", "bot", "None"))

    async def test_a_message_is_not_found_by_an_external_id_it_no_longer_has(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        changes: list[dict[str, Any]] = [
            {"external_id": 43},
            {"external_id": None},
            {"metadata": SCOPE | {"channel": "slack"}},
            {"metadata": SCOPE | {"bridge_id": "other"}},
            {"metadata": {}},
        ]
        for changed in changes:
            message = await say(store, room, "m", external_id=42, metadata=SCOPE)
            assert await store.get_message_by_external_id("telegram", "bot", 42) == message
            await store.save_message(replace(message, **changed))
            await not_found(store.get_message_by_external_id("telegram", "bot", 42))

    async def test_of_messages_with_one_external_id_the_newest_is_found(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        scoped: dict[str, Any] = {"external_id": 42, "metadata": SCOPE}
        await say(store, room, "b", second=2, **scoped)
        await say(store, other, "c", second=2, **scoped)
        await say(store, room, "d", second=1, **scoped)
        found = await store.get_message_by_external_id("telegram", "bot", 42)
        assert found.id == "c"
        await store.delete_message("c")
        found = await store.get_message_by_external_id("telegram", "bot", 42)
        assert found.id == "b"

    async def test_an_external_id_can_be_given_to_a_message_that_was_sent(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        message = await say(store, room, "m", metadata=SCOPE)
        updated = await store.update_message_external_id("m", 42)
        assert updated == replace(message, external_id=42, updated_at=updated.updated_at)
        assert updated.updated_at > message.updated_at
        assert await store.get_message("m") == updated
        assert await store.get_messages(room.id) == [updated]
        assert await store.get_message_by_external_id("telegram", "bot", 42) == updated

    async def test_an_external_id_that_was_changed_is_not_found_any_more(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await say(store, room, "m", external_id=42, metadata=SCOPE)
        updated = await store.update_message_external_id("m", "43")
        await not_found(store.get_message_by_external_id("telegram", "bot", 42))
        assert await store.get_message_by_external_id("telegram", "bot", 43) == updated

    async def test_no_external_id_can_be_given_to_a_message_that_is_not_there(
        self, store: PersistenceStore
    ) -> None:
        await not_found(store.update_message_external_id("nothing", 42))

    async def test_a_deleted_message_is_found_nowhere(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        other = await say(store, room, "other", second=1)
        await say(store, room, "m", external_id=42, metadata=SCOPE, thread_id="t")
        await store.delete_message("m")
        await not_found(store.get_message("m"))
        await not_found(store.get_message_by_external_id("telegram", "bot", 42))
        await not_found(store.get_messages(room.id, before="m"))
        assert await store.get_messages(room.id) == [other]
        assert await store.get_messages(room.id, thread_id="t") == []

    async def test_deleting_a_message_that_is_not_there_succeeds(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await say(store, room, "m")
        await store.delete_message("nothing")
        await store.delete_message("m")
        await store.delete_message("m")
        assert await store.get_messages(room.id) == []

    async def test_sixty_four_tasks_save_messages_into_one_room(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        saved = await together(
            say(store, room, f"{n:02}", second=n, content=f"number {n}") for n in range(64)
        )
        assert await store.get_messages(room.id, limit=100) == saved

    async def test_a_caller_reads_what_it_wrote(self, store: PersistenceStore) -> None:
        room = await a_room(store)

        async def write_and_read(number: int) -> None:
            for step in range(4):
                written = await say(store, room, f"m{number}", content=[number, step])
                assert await store.get_message(written.id) == written

        await together(write_and_read(number) for number in range(16))

    async def test_a_call_that_fails_does_not_trouble_those_beside_it(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        refused = 0

        async def say_or_fail(number: int) -> None:
            nonlocal refused
            message = Message.new(
                id=f"{number:02}",
                room_id="nowhere" if number % 8 == 3 else room.id,
                inserted_at=START + timedelta(seconds=number),
            )
            try:
                await store.save_message(message)
            except NotFound:
                refused += 1

        await together(say_or_fail(number) for number in range(64))
        assert refused == 8
        there = [f"{number:02}" for number in range(64) if number % 8 != 3]
        assert ids_of(await store.get_messages(room.id, limit=100)) == there

    # -- windows of messages ---------------------------------------------------------------------

    async def test_the_newest_messages_are_listed_oldest_first(
        self, store: PersistenceStore
    ) -> None:
        room = await ten_messages(store)
        assert ids_of(await store.get_messages(room.id)) == TEN
        assert ids_of(await store.get_messages(room.id, limit=3)) == TEN[-3:]
        assert ids_of(await store.get_messages(room.id, limit=1)) == TEN[-1:]
        assert ids_of(await store.get_messages(room.id, limit=1_000)) == TEN

    async def test_fifty_messages_are_listed_if_nothing_else_is_said(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await together(say(store, room, f"{n:02}", second=n) for n in range(51))
        assert ids_of(await store.get_messages(room.id)) == [f"{n:02}" for n in range(1, 51)]

    async def test_a_thousand_messages_are_listed_at_once(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        await together(say(store, room, f"{n:04}", second=n) for n in range(1_001))
        found = await store.get_messages(room.id, limit=1_000)
        assert ids_of(found) == [f"{n:04}" for n in range(1, 1_001)]

    async def test_messages_before_one_end_just_before_it(self, store: PersistenceStore) -> None:
        room = await ten_messages(store)
        assert ids_of(await store.get_messages(room.id, before="m6")) == TEN[:6]
        assert ids_of(await store.get_messages(room.id, before="m6", limit=2)) == ["m4", "m5"]
        assert await store.get_messages(room.id, before="m0") == []

    async def test_messages_after_one_begin_just_after_it(self, store: PersistenceStore) -> None:
        room = await ten_messages(store)
        assert ids_of(await store.get_messages(room.id, after="m6")) == TEN[7:]
        assert await store.get_messages(room.id, after="m9") == []

    async def test_of_the_messages_after_one_the_newest_are_listed(
        self, store: PersistenceStore
    ) -> None:
        room = await ten_messages(store)
        assert ids_of(await store.get_messages(room.id, after="m2", limit=2)) == ["m8", "m9"]

    async def test_messages_between_two_are_listed(self, store: PersistenceStore) -> None:
        room = await ten_messages(store)
        between = await store.get_messages(room.id, after="m2", before="m6")
        assert ids_of(between) == ["m3", "m4", "m5"]
        between = await store.get_messages(room.id, after="m2", before="m6", limit=2)
        assert ids_of(between) == ["m4", "m5"]
        assert await store.get_messages(room.id, after="m6", before="m2") == []
        assert await store.get_messages(room.id, after="m6", before="m6") == []

    async def test_a_thread_narrows_the_window(self, store: PersistenceStore) -> None:
        room = await ten_messages(store, threads=3)
        assert ids_of(await store.get_messages(room.id, thread_id="t0")) == ["m0", "m3", "m6", "m9"]
        window = await store.get_messages(room.id, thread_id="t0", limit=2)
        assert ids_of(window) == ["m6", "m9"]
        window = await store.get_messages(room.id, thread_id="t0", before="m8", after="m1")
        assert ids_of(window) == ["m3", "m6"]
        assert await store.get_messages(room.id, thread_id="t9") == []

    async def test_a_thread_of_another_room_does_not_count(self, store: PersistenceStore) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        await say(store, room, "m1", thread_id="t")
        await say(store, other, "m2", thread_id="t")
        assert ids_of(await store.get_messages(room.id, thread_id="t")) == ["m1"]

    async def test_a_window_at_a_message_that_is_not_there_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        room = await ten_messages(store)
        with pytest.raises(NotFound, match="nothing"):
            await store.get_messages(room.id, before="nothing")
        with pytest.raises(NotFound, match="nothing"):
            await store.get_messages(room.id, after="nothing")
        with pytest.raises(NotFound, match="nothing"):
            await store.get_messages(room.id, before="m8", after="nothing")

    async def test_a_window_at_a_message_of_another_room_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        room, other = await ten_messages(store), await a_room(store, "other")
        await say(store, other, "elsewhere")
        with pytest.raises(NotFound, match="elsewhere"):
            await store.get_messages(room.id, before="elsewhere")
        with pytest.raises(NotFound, match="elsewhere"):
            await store.get_messages(room.id, after="elsewhere")

    async def test_a_room_that_is_not_there_has_no_messages(self, store: PersistenceStore) -> None:
        await ten_messages(store)
        assert await store.get_messages("nowhere") == []

    async def test_messages_of_one_instant_are_in_the_order_of_their_ids(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        ids = ["b", "a", "B", "é", "10", "9", "Z", "_", "😀"]
        await together(say(store, room, one) for one in ids)
        ordered = sorted(ids)
        assert ids_of(await store.get_messages(room.id)) == ordered
        for place, one in enumerate(ordered):
            assert ids_of(await store.get_messages(room.id, before=one)) == ordered[:place]
            assert ids_of(await store.get_messages(room.id, after=one)) == ordered[place + 1 :]

    async def test_a_microsecond_decides_the_order(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        await say(store, room, "a", second=0.000_002)
        await say(store, room, "b", second=0.000_001)
        await say(store, room, "c", second=0.000_003)
        assert ids_of(await store.get_messages(room.id)) == ["b", "a", "c"]

    async def test_messages_of_all_ages_are_in_order(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        times = {
            "a": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
            "b": datetime(1970, 1, 1, tzinfo=UTC),
            "c": datetime(1, 1, 1, tzinfo=UTC),
            "d": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        }
        for one, instant in times.items():
            message = Message.new(id=one, room_id=room.id, inserted_at=instant, updated_at=instant)
            await store.save_message(message)
            assert await store.get_message(one) == message
        assert ids_of(await store.get_messages(room.id)) == ["c", "d", "b", "a"]
        assert ids_of(await store.get_messages(room.id, before="b")) == ["c", "d"]

    async def test_pages_going_back_neither_overlap_nor_miss(self, store: PersistenceStore) -> None:
        room = await a_room(store)
        # Five at each instant, and ids that are in no order.
        await together(
            say(store, room, f"{n * 7 % 40:02}", second=n // 5, thread_id=f"t{n % 2}")
            for n in range(40)
        )
        everything = await store.get_messages(room.id)
        assert len(everything) == 40
        for size, thread_id in product((1, 2, 7, 40), (None, "t0", "t1")):
            there = [m for m in everything if thread_id in (None, m.thread_id)]
            pages: list[Message] = []
            page = await store.get_messages(room.id, limit=size, thread_id=thread_id)
            while page and len(pages) < 80:
                pages = page + pages
                page = await store.get_messages(
                    room.id, limit=size, before=page[0].id, thread_id=thread_id
                )
            assert pages == there

    # -- threads ---------------------------------------------------------------------------------

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

    # -- directory -------------------------------------------------------------------------------

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

    # -- onboarding, bridges, policies, subscriptions ----------------------------------------------

    async def test_an_onboarding_flow_comes_back_as_it_was_saved(
        self, store: PersistenceStore
    ) -> None:
        flow = {"onboarding_id": "o", "step": 2, "answers": {"name": "Ada\0", "tags": ["a", None]}}
        assert await store.save_onboarding(flow) == flow
        assert await store.get_onboarding("o") == flow

    async def test_an_onboarding_flow_saved_again_is_replaced_whole(
        self, store: PersistenceStore
    ) -> None:
        await store.save_onboarding({"onboarding_id": "o", "step": 1, "old": True})
        await store.save_onboarding({"onboarding_id": "other", "step": 9})
        await store.save_onboarding({"onboarding_id": "o", "step": 2})
        assert await store.get_onboarding("o") == {"onboarding_id": "o", "step": 2}

    async def test_an_onboarding_flow_that_is_not_there_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        await not_found(store.get_onboarding("nothing"))

    async def test_a_bridge_config_comes_back_as_it_was_saved(
        self, store: PersistenceStore
    ) -> None:
        config = BridgeConfig.new(
            id="bot",
            adapter_module="bots.telegram",
            credentials={"token": "12:ab", "nested": {"key": "k"}},
            opts={"poll": True},
            enabled=False,
            capabilities=["text", {"voice": 1}],
            delivery_policy={"retries": 3},
            revision=7,
            inserted_at=START,
            updated_at=START + timedelta(microseconds=1),
        )
        assert await store.save_bridge_config(config) == config
        assert await store.get_bridge_config("bot") == config
        assert await store.list_bridge_configs() == [config]

    async def test_a_bridge_config_that_was_bumped_is_saved_with_its_revision(
        self, store: PersistenceStore
    ) -> None:
        config = await store.save_bridge_config(BridgeConfig.new(id="bot", inserted_at=START))
        for revision in (1, 2, 3):
            config = await store.save_bridge_config(config.bump_revision())
            assert await store.get_bridge_config("bot") == config
            assert (config.revision, config.inserted_at) == (revision, START)
        assert await store.list_bridge_configs() == [config]

    async def test_bridge_configs_are_listed_by_id_and_by_whether_they_are_enabled(
        self, store: PersistenceStore
    ) -> None:
        for one, enabled in (("c", True), ("a", False), ("b", True), ("B", False)):
            await store.save_bridge_config(BridgeConfig.new(id=one, enabled=enabled))
        assert ids_of(await store.list_bridge_configs()) == ["B", "a", "b", "c"]
        assert ids_of(await store.list_bridge_configs(enabled=True)) == ["b", "c"]
        assert ids_of(await store.list_bridge_configs(enabled=False)) == ["B", "a"]
        config = await store.get_bridge_config("b")
        await store.save_bridge_config(replace(config, enabled=False))
        assert ids_of(await store.list_bridge_configs(enabled=True)) == ["c"]

    async def test_a_bridge_config_that_is_not_there_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        await store.save_bridge_config(BridgeConfig.new(id="bot"))
        await not_found(store.get_bridge_config("nothing"))
        await not_found(store.delete_bridge_config("nothing"))
        await store.delete_bridge_config("bot")
        await not_found(store.get_bridge_config("bot"))
        await not_found(store.delete_bridge_config("bot"))
        assert await store.list_bridge_configs() == []

    async def test_a_routing_policy_comes_back_as_it_was_saved(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        policy = RoutingPolicy.new(
            room_id=room.id,
            delivery_mode="primary",
            failover_policy="broadcast",
            dedupe_scope="thread",
            fallback_order=["b2", "b1"],
            metadata={"why": "cheap"},
            revision=3,
            inserted_at=START,
            updated_at=START + timedelta(microseconds=1),
        )
        assert await store.save_routing_policy(policy) == policy
        assert await store.get_routing_policy(room.id) == policy

    async def test_a_room_has_one_routing_policy_the_last_that_was_saved(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        first = await store.save_routing_policy(RoutingPolicy.new(room_id=room.id))
        kept = await store.save_routing_policy(RoutingPolicy.new(room_id=other.id))
        bumped = await store.save_routing_policy(first.bump_revision())
        assert await store.get_routing_policy(room.id) == bumped
        new = await store.save_routing_policy(RoutingPolicy.new(room_id=room.id))
        assert await store.get_routing_policy(room.id) == new
        assert await store.get_routing_policy(other.id) == kept
        assert (await store.counts())["routing_policies"] == 2

    async def test_a_routing_policy_that_is_not_there_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await not_found(store.get_routing_policy(room.id))
        await not_found(store.delete_routing_policy(room.id))
        await store.save_routing_policy(RoutingPolicy.new(room_id=room.id))
        await store.delete_routing_policy(room.id)
        await not_found(store.get_routing_policy(room.id))
        await not_found(store.delete_routing_policy(room.id))

    async def test_a_routing_policy_for_a_room_that_is_not_there_is_refused(
        self, store: PersistenceStore
    ) -> None:
        with pytest.raises(NotFound, match="nowhere"):
            await store.save_routing_policy(RoutingPolicy.new(room_id="nowhere"))
        await not_found(store.get_routing_policy("nowhere"))

    async def test_an_ingress_subscription_comes_back_as_it_was_saved(
        self, store: PersistenceStore
    ) -> None:
        subscription = IngressSubscription.new(
            bridge_id="bot",
            adapter_name="telegram",
            status="manual_action_required",
            external_id=42,
            subscription_id="s1",
            target_url="https://example.org/hook?x=1",
            expires_at=START,
            metadata={"tries": 2},
            raw={"ok": True, "result": [1, None, "\0"]},
        )
        assert await store.save_ingress_subscription(subscription) == subscription
        assert await store.list_ingress_subscriptions("bot") == [subscription]

    async def test_a_subscription_saved_again_is_replaced(self, store: PersistenceStore) -> None:
        old = subscribed("bot", "s1", status="pending", metadata={"a": 1})
        await store.save_ingress_subscription(old)
        new = await store.save_ingress_subscription(subscribed("bot", "s1", status="active"))
        assert await store.list_ingress_subscriptions("bot") == [new]

    async def test_a_subscription_of_another_bridge_is_another_one(
        self, store: PersistenceStore
    ) -> None:
        one = await store.save_ingress_subscription(subscribed("b1", "s"))
        other = await store.save_ingress_subscription(subscribed("b2", "s"))
        assert await store.list_ingress_subscriptions("b1") == [one]
        assert await store.list_ingress_subscriptions("b2") == [other]
        assert await store.list_ingress_subscriptions("b3") == []

    async def test_a_bridge_may_have_one_subscription_without_an_id(
        self, store: PersistenceStore
    ) -> None:
        await store.save_ingress_subscription(subscribed("bot", None, status="pending"))
        await store.save_ingress_subscription(subscribed("bot", "s1"))
        new = await store.save_ingress_subscription(subscribed("bot", None, status="active"))
        listed = await store.list_ingress_subscriptions("bot")
        assert listed == [new, subscribed("bot", "s1")]
        await store.delete_ingress_subscription("bot", None)
        assert await store.list_ingress_subscriptions("bot") == [subscribed("bot", "s1")]

    async def test_subscriptions_are_listed_by_their_id_and_by_status(
        self, store: PersistenceStore
    ) -> None:
        statuses = {"c": "active", "a": "expired", "B": "active", "b": "disabled"}
        for one, status in statuses.items():
            await store.save_ingress_subscription(subscribed("bot", one, status=status))

        async def listed(status: str | None = None) -> list[str | None]:
            found = await store.list_ingress_subscriptions("bot", status=status)
            return [one.subscription_id for one in found]

        assert await listed() == ["B", "a", "b", "c"]
        assert await listed("active") == ["B", "c"]
        assert await listed("deleted") == []
        await store.save_ingress_subscription(subscribed("bot", "c", status="deleted"))
        assert await listed("active") == ["B"]
        assert await listed("deleted") == ["c"]

    async def test_a_subscription_that_is_not_there_cannot_be_deleted(
        self, store: PersistenceStore
    ) -> None:
        await store.save_ingress_subscription(subscribed("bot", "s1"))
        await not_found(store.delete_ingress_subscription("bot", "s2"))
        await not_found(store.delete_ingress_subscription("b2", "s1"))
        await not_found(store.delete_ingress_subscription("bot", None))
        await store.delete_ingress_subscription("bot", "s1")
        await not_found(store.delete_ingress_subscription("bot", "s1"))
        assert await store.list_ingress_subscriptions("bot") == []

    # -- what came in ----------------------------------------------------------------------------

    async def test_a_message_that_came_in_brings_its_room_and_participant(
        self, store: PersistenceStore
    ) -> None:
        inbound = await store.save_inbound(*came_in("m1"))
        assert not inbound.duplicate
        assert inbound.participant is not None
        assert inbound.message.room_id == inbound.room.id
        assert inbound.message.sender_id == inbound.participant.id
        assert await store.get_room_by_external_binding("telegram", "bot", 42) == inbound.room
        assert await store.get_participant(inbound.participant.id) == inbound.participant
        assert await store.get_messages(inbound.room.id) == [inbound.message]

    async def test_the_next_message_that_came_in_finds_its_room_and_participant(
        self, store: PersistenceStore
    ) -> None:
        first = await store.save_inbound(*came_in("m1"))
        second = await store.save_inbound(*came_in("m2"))
        assert (second.room, second.participant) == (first.room, first.participant)
        assert ids_of(await store.get_messages(first.room.id)) == ["m1", "m2"]
        counts = await store.counts()
        assert (counts["rooms"], counts["participants"], counts["room_bindings"]) == (1, 1, 1)

    async def test_a_message_that_came_in_twice_stays_as_it_was(
        self, store: PersistenceStore
    ) -> None:
        first = await store.save_inbound(*came_in("m1", content="first"))
        second = await store.save_inbound(*came_in("m1", content="second"))
        assert second.duplicate
        assert second.message == first.message
        assert await store.get_messages(first.room.id) == [first.message]

    async def test_of_sixty_four_callers_one_brings_a_message_in(
        self, store: PersistenceStore
    ) -> None:
        brought = await together(store.save_inbound(*came_in("m1")) for _ in range(64))
        assert [one.duplicate for one in brought].count(False) == 1
        assert all(one.message == brought[0].message for one in brought)
        counts = await store.counts()
        assert counts["rooms"] == counts["participants"] == counts["messages"] == 1

    async def test_a_message_may_come_in_without_a_participant(
        self, store: PersistenceStore
    ) -> None:
        room, _, message, binding = came_in("m1")
        inbound = await store.save_inbound(room, None, message, binding)
        assert inbound.participant is None
        assert inbound.message.sender_id is None
        assert (await store.counts())["participants"] == 0

    async def test_what_came_in_and_cannot_be_bound_leaves_nothing_behind(
        self, store: PersistenceStore
    ) -> None:
        standing = await a_room(store, "standing")
        await store.create_room_binding(standing.id, "slack", "ws", "C1", {"id": "taken"})
        before = await store.counts()
        room, participant, message, binding = came_in("m1")
        with pytest.raises(AlreadyBound, match="'taken'"):
            await store.save_inbound(room, participant, message, replace(binding, id="taken"))
        assert await store.counts() == before

    # -- as a whole ------------------------------------------------------------------------------

    async def test_a_new_store_is_empty(self, store: PersistenceStore) -> None:
        counts = await store.counts()
        assert set(counts) == KINDS
        assert not any(counts.values())
        for kind in KINDS:
            assert await store.scan(kind) == []

    async def test_everything_is_counted_by_its_kind(self, store: PersistenceStore) -> None:
        everything = await one_of_each(store)
        assert await store.counts() == dict.fromkeys(KINDS, 1)
        assert {kind: await store.scan(kind) for kind in KINDS} == {
            kind: [(one, model)] for kind, (one, model) in everything.items()
        }

    async def test_everything_of_a_kind_is_scanned_in_pages_forth_and_back(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        ids = ["b", "a", "B", "é", "10", "9", "Z"]
        await together(say(store, room, one) for one in ids)
        await together(
            store.save_ingress_subscription(subscribed(bridge, one))
            for bridge in ("x", "X", "xy")
            for one in (None, "a", "B")
        )
        for kind in ("messages", "ingress_subscriptions"):
            forth = await scanned(store, kind, newest_first=False)
            back = await scanned(store, kind, newest_first=True)
            assert [one for one, _ in forth] == sorted(one for one, _ in forth)
            assert back == forth[::-1]
        assert [one for one, _ in await scanned(store, "messages", newest_first=False)] == sorted(
            ids
        )
        assert (await store.counts())["ingress_subscriptions"] == 9

    async def test_an_id_has_up_to_800_bytes_of_whatever_letters(
        self, store: PersistenceStore
    ) -> None:
        # Random ones, or a database would press them together.
        long = "".join(chr(0x4E00 + n * 7_919 % 20_000) for n in range(266))
        assert 795 < len(long.encode()) <= 800
        room = await a_room(store, long)
        bound = await store.get_or_create_room_by_external_binding(long, long, long)
        assert await store.get_room_by_external_binding(long, long, long) == bound
        person = await store.get_or_create_participant_by_external_id(long, long, {"id": long})
        assert await store.get_participant(long) == person
        assert await store.get_or_create_participant_by_external_id(long, long) == person
        scope = {"channel": long, "bridge_id": long}
        message = await say(store, room, long, thread_id=long, external_id=long, metadata=scope)
        assert await store.get_messages(long, thread_id=long) == [message]
        assert await store.get_message_by_external_id(long, long, long) == message
        thread = await store.save_thread(
            Thread.new(id=long, room_id=long, external_thread_id=long, root_message_id=long)
        )
        assert await store.get_thread_by_external_id(long, long) == thread
        assert await store.get_thread_by_root_message(long, long) == thread
        subscription = await store.save_ingress_subscription(subscribed(long, long))
        assert await store.list_ingress_subscriptions(long) == [subscription]

    async def test_what_a_caller_does_to_its_models_does_not_change_the_store(
        self, store: PersistenceStore
    ) -> None:
        room, given = await a_room(store), ["given"]
        models = {
            "save_room": Room.new(id="r", metadata={"given": given}),
            "save_participant": Participant.new(
                id="p", metadata={"given": given}, external_ids={"sms": 1}
            ),
            "save_message": Message.new(
                id="m", room_id=room.id, metadata={"given": given, **SCOPE}, external_id=1
            ),
            "save_thread": Thread.new(
                id="t",
                room_id=room.id,
                metadata={"given": given},
                external_thread_id=1,
                root_message_id="m",
            ),
            "save_routing_policy": RoutingPolicy.new(room_id=room.id, metadata={"given": given}),
            "save_ingress_subscription": subscribed("bot", "s", metadata={"given": given}),
            "save_bridge_config": BridgeConfig.new(id="b", opts={"given": given}),
            "save_onboarding": {"onboarding_id": "o", "given": given},
        }
        binding = {"id": "rb", "inserted_at": START}
        await store.create_room_binding("room", "sms", "b", 1, binding)

        async def read() -> list[Any]:
            return [
                await store.get_room("r"),
                *await store.list_rooms(after="q"),
                *await store.directory_search("room", {"id": "r"}),
                await store.get_participant("p"),
                await store.get_or_create_participant_by_external_id("sms", 1),
                *await store.directory_search("participant", {}),
                await store.get_message("m"),
                *await store.get_messages(room.id),
                await store.get_message_by_external_id("telegram", "bot", 1),
                await store.get_thread("t"),
                await store.get_thread_by_external_id(room.id, 1),
                await store.get_thread_by_root_message(room.id, "m"),
                *await store.list_threads(room.id),
                await store.get_routing_policy(room.id),
                *await store.list_ingress_subscriptions("bot"),
                await store.get_bridge_config("b"),
                *await store.list_bridge_configs(),
                await store.get_onboarding("o"),
                *[model for kind in sorted(KINDS) for _, model in await store.scan(kind)],
            ]

        returned = [await getattr(store, save)(model) for save, model in models.items()]
        as_saved = [repr(one) for one in await read()]
        for one in (*models.values(), *returned, *await read()):
            spoil(one)
        assert [repr(one) for one in await read()] == as_saved

    async def test_a_room_that_was_found_can_be_spoilt_by_nobody(
        self, store: PersistenceStore
    ) -> None:
        attrs = {"metadata": {"given": ["given"]}}
        made = await store.get_or_create_room_by_external_binding("sms", "b", 1, attrs)
        for _ in range(3):
            found = await store.get_or_create_room_by_external_binding("sms", "b", 1)
            looked_up = await store.get_room_by_external_binding("sms", "b", 1)
            assert found.metadata == looked_up.metadata == {"given": ["given"]}
            for one in (made, found, looked_up):
                spoil(one)
        assert attrs == {"metadata": {"given": ["given"]}}


SCOPE = {"channel": "telegram", "bridge_id": "bot"}

KINDS = {
    "rooms",
    "participants",
    "threads",
    "messages",
    "room_bindings",
    "onboarding_flows",
    "bridge_configs",
    "routing_policies",
    "ingress_subscriptions",
}

TEN = [f"m{number}" for number in range(10)]


async def together(calls: Iterable[Awaitable[R]]) -> list[R]:
    """What the calls return, in their order, all of them under way at once."""
    results: dict[int, R] = {}

    async def run(place: int, call: Awaitable[R]) -> None:
        results[place] = await call

    async with anyio.create_task_group() as task_group:
        for place, call in enumerate(calls):
            task_group.start_soon(run, place, call)
    return [results[place] for place in sorted(results)]


async def not_found(call: Awaitable[object]) -> None:
    with pytest.raises(NotFound):
        await call


def ids_of(models: Iterable[Any]) -> list[str]:
    return [model.id for model in models]


async def a_room(store: PersistenceStore, room_id: str = "room", **fields: Any) -> Room:
    return await store.save_room(Room.new(id=room_id, **fields))


async def say(
    store: PersistenceStore, room: Room, message_id: str, second: float = 0, **fields: Any
) -> Message:
    """Save a message that was said so many seconds after the start."""
    instant = START + timedelta(seconds=second)
    return await store.save_message(
        Message.new(
            id=message_id, room_id=room.id, inserted_at=instant, updated_at=instant, **fields
        )
    )


async def ten_messages(store: PersistenceStore, threads: int = 1) -> Room:
    """A room with the messages m0 to m9, spread over so many threads."""
    room = await a_room(store)
    await together(
        say(store, room, f"m{n}", second=n, thread_id=f"t{n % threads}") for n in range(10)
    )
    return room


def subscribed(bridge_id: str, subscription_id: str | None, **fields: Any) -> IngressSubscription:
    return IngressSubscription.new(bridge_id=bridge_id, subscription_id=subscription_id, **fields)


def came_in(message_id: str, **fields: Any) -> tuple[Room, Participant, Message, RoomBinding]:
    """A message from the external room 42, with what it would make if it were the first."""
    room = Room.new(external_bindings={"telegram": {"bot": 42}})
    participant = Participant.new(external_ids={"telegram": 7})
    message = Message.new(id=message_id, room_id=room.id, **fields)
    binding = RoomBinding.new(
        room_id=room.id, channel="telegram", bridge_id="bot", external_room_id=42
    )
    return room, participant, message, binding


async def one_of_each(store: PersistenceStore) -> dict[str, tuple[str, Any]]:
    """Save one model of each kind: the id it is scanned by, and the model."""
    room = await a_room(store, "r")
    flow = {"onboarding_id": "o", "step": 1}
    return {
        "rooms": ("r", room),
        "participants": ("p", await store.save_participant(Participant.new(id="p"))),
        "threads": ("t", await store.save_thread(Thread.new(id="t", room_id="r"))),
        "messages": ("m", await say(store, room, "m")),
        "room_bindings": ("b", await store.create_room_binding("r", "sms", "x", 1, {"id": "b"})),
        "onboarding_flows": ("o", await store.save_onboarding(flow)),
        "bridge_configs": ("c", await store.save_bridge_config(BridgeConfig.new(id="c"))),
        "routing_policies": (
            "r",
            await store.save_routing_policy(RoutingPolicy.new(room_id="r")),
        ),
        "ingress_subscriptions": (
            "x\0s",
            await store.save_ingress_subscription(subscribed("x", "s")),
        ),
    }


async def scanned(
    store: PersistenceStore, kind: str, *, newest_first: bool
) -> list[tuple[str, Any]]:
    """Everything of a kind, in pages of two."""
    found: list[tuple[str, Any]] = []
    page = await store.scan(kind, limit=2, newest_first=newest_first)
    while page and len(found) < 20:
        found += page
        page = await store.scan(kind, limit=2, after=page[-1][0], newest_first=newest_first)
    return found


def spoil(model: Any) -> None:
    """Change every map and list of a model, down to the last."""
    if isinstance(model, dict):
        inner = list(model.values())
        model["spoilt"] = True
    elif isinstance(model, list):
        inner = list(model)
        model.append("spoilt")
    elif hasattr(model, "__struct_fields__"):
        inner = [getattr(model, name) for name in model.__struct_fields__]
    else:
        return
    for one in inner:
        spoil(one)
