"""What came in at once, and the store as a whole."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from trunkline.contracts.persistence.samples import (
    KINDS,
    SCOPE,
    START,
    a_room,
    came_in,
    ids_of,
    one_of_each,
    say,
    scanned,
    spoil,
    subscribed,
    together,
)
from trunkline.errors import AlreadyBound
from trunkline.persistence import (
    BridgeConfig,
    Message,
    Participant,
    PersistenceStore,
    Room,
    RoutingPolicy,
    Thread,
)

__all__ = ("WholeTests",)


class WholeTests:
    """A part of `PersistenceContract`."""

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

    async def test_a_message_that_came_in_is_known_by_its_external_id(
        self, store: PersistenceStore
    ) -> None:
        first = await store.save_inbound(*came_in("m1", external_id=1))
        again = await store.save_inbound(*came_in("m2", external_id="1"))
        assert (again.message, again.duplicate) == (first.message, True)
        room, participant, message, binding = came_in("m3", external_id=1)
        elsewhere = replace(binding, external_room_id=43)
        other = await store.save_inbound(room, participant, message, elsewhere)
        assert not other.duplicate
        assert (await store.counts())["messages"] == 2

    async def test_a_message_that_came_in_is_known_after_it_was_changed(
        self, store: PersistenceStore
    ) -> None:
        first = await store.save_inbound(*came_in("m1", external_id=1))
        changed = await store.save_message(
            replace(first.message, content="edited", external_id=2, metadata={})
        )
        again = await store.save_inbound(*came_in("m2", external_id=1))
        assert (again.message, again.duplicate) == (changed, True)
        await store.delete_message("m1")
        anew = await store.save_inbound(*came_in("m3", external_id=1))
        assert (anew.message.id, anew.duplicate) == ("m3", False)

    async def test_what_was_said_in_a_deleted_room_may_come_in_again(
        self, store: PersistenceStore
    ) -> None:
        first = await store.save_inbound(*came_in("m1", external_id=1))
        await store.delete_room(first.room.id)
        again = await store.save_inbound(*came_in("m2", external_id=1))
        assert not again.duplicate
        assert again.room.id != first.room.id

    async def test_a_message_that_was_saved_did_not_come_in(self, store: PersistenceStore) -> None:
        first = await store.save_inbound(*came_in("m1"))
        await say(store, first.room, "said", external_id=1, metadata=SCOPE)
        assert not (await store.save_inbound(*came_in("m2", external_id=1))).duplicate

    async def test_of_sixty_four_messages_with_one_external_id_one_comes_in(
        self, store: PersistenceStore
    ) -> None:
        brought = await together(
            store.save_inbound(*came_in(f"m{n}", external_id=1)) for n in range(64)
        )
        assert [one.duplicate for one in brought].count(False) == 1
        assert all(one.message == brought[0].message for one in brought)
        assert (await store.counts())["messages"] == 1

    async def test_a_message_that_came_in_brings_its_thread(self, store: PersistenceStore) -> None:
        thread = Thread.new(room_id="any", external_thread_id=5)
        first = await store.save_inbound(*came_in("m1", external_thread_id=5), thread)
        assert first.thread == replace(thread, room_id=first.room.id)
        assert await store.list_threads(first.room.id) == [first.thread]
        again = Thread.new(room_id="any", external_thread_id="5")
        second = await store.save_inbound(*came_in("m2", external_thread_id=5), again)
        assert second.thread == first.thread
        messages = await store.get_messages(first.room.id, thread_id=thread.id)
        assert messages == [first.message, second.message]
        assert await store.list_threads(first.room.id) == [first.thread]

    async def test_of_sixty_four_callers_one_brings_a_thread_in(
        self, store: PersistenceStore
    ) -> None:
        brought = await together(
            store.save_inbound(*came_in(f"m{n}"), Thread.new(room_id="any", external_thread_id="t"))
            for n in range(64)
        )
        assert len({one.message.thread_id for one in brought}) == 1
        assert (await store.counts())["threads"] == 1

    async def test_a_message_that_came_in_replies_to_one_of_its_room(
        self, store: PersistenceStore
    ) -> None:
        other = await a_room(store, "other")
        await say(store, other, "elsewhere", second=9, external_id=1, metadata=SCOPE)
        first = await store.save_inbound(*came_in("m1", external_id=1, metadata=SCOPE))
        assert first.message.reply_to_id is None
        fields: list[dict[str, Any]] = [
            {"external_id": 2, "external_reply_to_id": 1, "metadata": SCOPE},
            {"external_id": 3, "external_reply_to_id": "2", "metadata": SCOPE},
            {"external_reply_to_id": 4},
            {"external_reply_to_id": 1, "reply_to_id": "given"},
        ]
        replies = [
            await store.save_inbound(*came_in(f"m{number}", **one))
            for number, one in enumerate(fields, 2)
        ]
        found = [reply.message.reply_to_id for reply in replies]
        assert found == ["m1", "m2", None, "given"]
        assert await store.get_messages(first.room.id, limit=1) == [replies[3].message]

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
