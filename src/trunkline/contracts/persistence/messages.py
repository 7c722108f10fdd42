"""Messages, and the windows in which they are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from msgspec.structs import replace

from trunkline.contracts.persistence.samples import (
    CONTENTS,
    SCOPE,
    START,
    TEN,
    a_room,
    ids_of,
    not_found,
    say,
    ten_messages,
    together,
)
from trunkline.errors import NotFound
from trunkline.persistence import (
    Message,
    PersistenceStore,
)

__all__ = ("MessageTests",)


class MessageTests:
    """A part of `PersistenceContract`."""

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

    async def test_a_message_is_found_by_its_external_id_within_its_room(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        here = await say(store, room, "here", external_id=42, metadata=SCOPE)
        await say(store, other, "there", second=1, external_id=42, metadata=SCOPE)
        found = await store.get_message_by_external_id("telegram", "bot", 42, room.id)
        assert found == here
        await not_found(store.get_message_by_external_id("telegram", "bot", 42, "nowhere"))

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
