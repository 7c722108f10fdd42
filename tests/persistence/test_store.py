"""What the store adds to an adapter: it checks what it is given, and says what is wrong."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import anyio
import pytest
from msgspec.structs import replace

from trunkline.actors import RestartPolicy
from trunkline.errors import (
    ActorCrashed,
    ConfigurationError,
    InvalidModel,
    NotFound,
    StoreUnavailable,
)
from trunkline.persistence import (
    BridgeConfig,
    IngressSubscription,
    Message,
    Participant,
    PersistenceStore,
    Room,
    RoomBinding,
    RoutingPolicy,
    Thread,
)
from trunkline.persistence.memory import MemoryPersistenceAdapter


@pytest.fixture(params=["memory://", "sqlite://"])
async def store(request):
    async with PersistenceStore(request.param) as store:
        await store.save_room(Room.new(id="room", name="Lobby"))
        await store.create_room_binding("room", "telegram", "bot", 42)
        await store.save_message(Message.new(id="m", room_id="room"))
        yield store


async def contents(store: PersistenceStore) -> dict[str, list]:
    return {kind: await store.scan(kind) for kind in await store.counts()}


# -- wrong models --------------------------------------------------------------------------------

SAVES = {
    "save_room": Room,
    "save_participant": Participant,
    "save_message": Message,
    "save_thread": Thread,
    "save_bridge_config": BridgeConfig,
    "save_routing_policy": RoutingPolicy,
    "save_ingress_subscription": IngressSubscription,
}


class MyRoom(Room, frozen=True, kw_only=True):
    colour: str = "red"


@pytest.mark.parametrize("save", SAVES)
async def test_a_store_saves_models_of_the_right_class_only(store, save):
    before = await contents(store)
    kind = SAVES[save]
    other = Participant.new() if kind is Room else Room.new()
    for wrong in (other, {"id": "x"}, None, "x", kind, object()):
        with pytest.raises(InvalidModel) as refused:
            await getattr(store, save)(wrong)
        assert str(refused.value) == f"expected a {kind.__name__}, not {type(wrong).__name__}"
    assert await contents(store) == before


async def test_a_model_of_a_class_of_ones_own_is_refused_since_it_would_not_come_back(store):
    with pytest.raises(InvalidModel, match="expected a Room, not MyRoom"):
        await store.save_room(MyRoom.new())


@pytest.mark.parametrize(
    ("save", "model"),
    [
        ("save_room", Room(type="lobby")),
        ("save_room", Room(id=5)),
        ("save_room", Room(id="a\0b")),
        ("save_room", Room(metadata={"a": math.nan})),
        ("save_participant", Participant(external_ids={"telegram": None})),
        ("save_message", Message(room_id="")),
        ("save_message", Message(room_id="room", external_id=1.5)),
        ("save_message", Message(room_id="room", thread_id="x" * 801)),
        ("save_thread", Thread(room_id="room", status="open")),
        ("save_bridge_config", BridgeConfig(revision=-1)),
        ("save_routing_policy", RoutingPolicy(room_id="room", fallback_order=[5])),
        ("save_ingress_subscription", IngressSubscription(bridge_id="bot", expires_at="soon")),
    ],
)
async def test_a_model_that_was_not_made_by_new_is_checked_when_it_is_saved(store, save, model):
    before = await contents(store)
    with pytest.raises(InvalidModel, match=rf"^{type(model).__name__}\.\w+ is "):
        await getattr(store, save)(model)
    assert await contents(store) == before


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ({}, "non-empty str onboarding_id, not None"),
        ({"onboarding_id": ""}, "non-empty str onboarding_id, not ''"),
        ({"onboarding_id": 5}, "non-empty str onboarding_id, not 5"),
        ({"onboarding_id": "a\0"}, "has a NUL"),
        ({"onboarding_id": "x" * 801}, "longer than 800 bytes"),
        ({"onboarding_id": "o", "x": math.inf}, "'o': JSON has no NaN and no infinity"),
        ({"onboarding_id": "o", "x": object()}, "'o': .*object"),
        ({"onboarding_id": "o", "x": "\ud800"}, "'o': .*surrogates"),
        ([("onboarding_id", "o")], "non-empty str onboarding_id"),
        (None, "non-empty str onboarding_id"),
    ],
)
async def test_an_onboarding_flow_is_a_mapping_with_an_id(store, flow, message):
    before = await contents(store)
    with pytest.raises(InvalidModel, match=message):
        await store.save_onboarding(flow)
    assert await contents(store) == before


async def test_an_onboarding_flow_is_not_nested_without_end(store):
    flow: dict = {"onboarding_id": "o"}
    for _ in range(501):
        flow = {"onboarding_id": "o", "inner": flow}
    with pytest.raises(InvalidModel, match="500 deep"):
        await store.save_onboarding(flow)
    assert await store.save_onboarding(flow["inner"]["inner"])


# -- wrong ids -----------------------------------------------------------------------------------

NO_IDS = [
    (None, "is a non-empty str, not None"),
    ("", "is a non-empty str, not ''"),
    (5, "is a non-empty str, not 5"),
    (b"x", "is a non-empty str, not b'x'"),
    (["x"], r"is a non-empty str, not \['x'\]"),
    ("a\0b", "has a NUL"),
    ("a\ud800b", "is not valid Unicode"),
    ("x" * 801, "is longer than 800 bytes"),
    ("x" * 1_000_000, "is longer than 800 bytes"),
]

#: The same for an external id, which may be an int.
NO_EXTERNAL_IDS = [
    *(one for one in NO_IDS if one[0] != 5),
    (True, "is a non-empty str, not True"),
    (1.5, "is a non-empty str, not 1.5"),
    (10**800, "is longer than 800 bytes"),
]

#: What each call names the id by, and the call.
CALLS = {
    "get_room": ("room_id", lambda store, one: store.get_room(one)),
    "delete_room": ("room_id", lambda store, one: store.delete_room(one)),
    "get_participant": ("participant_id", lambda store, one: store.get_participant(one)),
    "delete_participant": ("participant_id", lambda store, one: store.delete_participant(one)),
    "get_message": ("message_id", lambda store, one: store.get_message(one)),
    "delete_message": ("message_id", lambda store, one: store.delete_message(one)),
    "update_message": ("message_id", lambda store, one: store.update_message_external_id(one, 1)),
    "get_messages": ("room_id", lambda store, one: store.get_messages(one)),
    "get_thread": ("thread_id", lambda store, one: store.get_thread(one)),
    "get_thread_by_external": ("room_id", lambda s, one: s.get_thread_by_external_id(one, 1)),
    "get_thread_by_root room": ("room_id", lambda s, one: s.get_thread_by_root_message(one, "m")),
    "get_thread_by_root": ("root_message_id", lambda s, x: s.get_thread_by_root_message("room", x)),
    "list_threads": ("room_id", lambda store, one: store.list_threads(one)),
    "list_room_bindings": ("room_id", lambda store, one: store.list_room_bindings(one)),
    "delete_room_binding": ("binding_id", lambda store, one: store.delete_room_binding(one)),
    "bind room": ("room_id", lambda s, one: s.create_room_binding(one, "irc", "b", 1)),
    "bind channel": ("channel", lambda s, one: s.create_room_binding("room", one, "b", 1)),
    "bind bridge": ("bridge_id", lambda s, one: s.create_room_binding("room", "irc", one, 1)),
    "make room channel": (
        "channel",
        lambda s, one: s.get_or_create_room_by_external_binding(one, "b", 1),
    ),
    "make room bridge": (
        "bridge_id",
        lambda s, one: s.get_or_create_room_by_external_binding("irc", one, 1),
    ),
    "bound channel": ("channel", lambda s, one: s.get_room_by_external_binding(one, "b", 1)),
    "bound bridge": ("bridge_id", lambda s, one: s.get_room_by_external_binding("irc", one, 1)),
    "make participant": (
        "channel",
        lambda s, one: s.get_or_create_participant_by_external_id(one, 1),
    ),
    "message channel": ("channel", lambda s, one: s.get_message_by_external_id(one, "b", 1)),
    "message bridge": ("bridge_id", lambda s, one: s.get_message_by_external_id("irc", one, 1)),
    "get_onboarding": ("onboarding_id", lambda store, one: store.get_onboarding(one)),
    "get_bridge_config": ("bridge_id", lambda store, one: store.get_bridge_config(one)),
    "delete_bridge_config": ("bridge_id", lambda store, one: store.delete_bridge_config(one)),
    "get_routing_policy": ("room_id", lambda store, one: store.get_routing_policy(one)),
    "delete_routing_policy": ("room_id", lambda store, one: store.delete_routing_policy(one)),
    "list_subscriptions": ("bridge_id", lambda s, one: s.list_ingress_subscriptions(one)),
    "delete_subscription": ("bridge_id", lambda s, one: s.delete_ingress_subscription(one, "s")),
}

#: Ids that may also be left out.
OPTIONAL_CALLS = {
    "before": ("before", lambda store, one: store.get_messages("room", before=one)),
    "after": ("after", lambda store, one: store.get_messages("room", after=one)),
    "thread": ("thread_id", lambda store, one: store.get_messages("room", thread_id=one)),
    "list_rooms": ("after", lambda store, one: store.list_rooms(after=one)),
    "list_threads": ("after", lambda store, one: store.list_threads("room", after=one)),
    "list_bindings": ("after", lambda store, one: store.list_room_bindings("room", after=one)),
    "list_configs": ("after", lambda store, one: store.list_bridge_configs(after=one)),
    "directory": ("after", lambda store, one: store.directory_search("room", {}, after=one)),
    "message room": ("room_id", lambda s, x: s.get_message_by_external_id("irc", "b", 1, x)),
    "scan": ("after", lambda store, one: store.scan("rooms", after=one)),
    "subscription": ("subscription_id", lambda s, x: s.delete_ingress_subscription("bot", x)),
}

EXTERNAL_CALLS = {
    "bind": ("external_id", lambda s, one: s.create_room_binding("room", "irc", "b", one)),
    "make room": (
        "external_id",
        lambda s, one: s.get_or_create_room_by_external_binding("irc", "b", one),
    ),
    "bound": ("external_id", lambda s, one: s.get_room_by_external_binding("irc", "b", one)),
    "participant": (
        "external_id",
        lambda s, one: s.get_or_create_participant_by_external_id("irc", one),
    ),
    "message": ("external_id", lambda s, one: s.get_message_by_external_id("irc", "b", one)),
    "update": ("external_id", lambda s, one: s.update_message_external_id("m", one)),
    "thread": ("external_thread_id", lambda s, one: s.get_thread_by_external_id("room", one)),
}


@pytest.mark.parametrize(
    ("name", "call", "values"),
    [
        *((*CALLS[call], NO_IDS) for call in CALLS),
        *((*OPTIONAL_CALLS[call], NO_IDS[1:]) for call in OPTIONAL_CALLS),
        *((*EXTERNAL_CALLS[call], NO_EXTERNAL_IDS) for call in EXTERNAL_CALLS),
    ],
    ids=[*CALLS, *OPTIONAL_CALLS, *(f"external {call}" for call in EXTERNAL_CALLS)],
)
async def test_what_cannot_be_an_id_is_refused_by_its_name(store, name, call, values):
    before = await contents(store)
    for value, message in values:
        with pytest.raises(InvalidModel, match=f"^{name} .*{message}") as refused:
            await call(store, value)
        assert len(str(refused.value)) < 400
    assert await contents(store) == before


@pytest.mark.parametrize(
    "after",
    ["", "bot", 5, b"bot\0s", "\0s", "bot\0s\0t", "bot\0\ud800", "x" * 801 + "\0s", ["bot", "s"]],
)
async def test_a_scan_of_subscriptions_goes_on_after_an_id_that_it_gave(store, after):
    await store.save_ingress_subscription(IngressSubscription.new(bridge_id="bot"))
    with pytest.raises(InvalidModel, match="after "):
        await store.scan("ingress_subscriptions", after=after)
    ((last, _),) = await store.scan("ingress_subscriptions")
    assert await store.scan("ingress_subscriptions", after=last) == []


# -- wrong settings of a call --------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, -1, 1_001, 2**70, 1.0, "10", None, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda store, limit: store.get_messages("room", limit=limit),
        lambda store, limit: store.list_rooms(limit=limit),
        lambda store, limit: store.list_threads("room", limit=limit),
        lambda store, limit: store.list_room_bindings("room", limit=limit),
        lambda store, limit: store.list_bridge_configs(limit=limit),
        lambda store, limit: store.list_ingress_subscriptions("bot", limit=limit),
        lambda store, limit: store.directory_search("room", {}, limit=limit),
        lambda store, limit: store.scan("rooms", limit=limit),
    ],
    ids=[
        "get_messages",
        "list_rooms",
        "list_threads",
        "bindings",
        "configs",
        "subscriptions",
        "directory",
        "scan",
    ],
)
async def test_a_limit_is_an_int_from_1_to_1000(store, call, limit):
    with pytest.raises(ConfigurationError) as refused:
        await call(store, limit)
    assert str(refused.value) == f"limit is an int from 1 to 1,000, not {limit!r}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.list_rooms(type="lobby"), "type is one of direct, .*, not 'lobby'"),
        (lambda s: s.list_rooms(type=["group"]), r"type is one of .*, not \['group'\]"),
        (lambda s: s.list_threads("room", status="open"), "status is one of active, .* not 'open'"),
        (
            lambda s: s.list_ingress_subscriptions("b", status=1),
            "status is one of active, .* not 1",
        ),
        (lambda s: s.list_bridge_configs(enabled="yes"), "enabled is True, False or None"),
        (lambda s: s.list_bridge_configs(enabled=1), "enabled is True, False or None, not 1"),
        (lambda s: s.scan("planets"), "kind is one of rooms, .*, not 'planets'"),
        (lambda s: s.scan(["rooms"]), r"kind is one of rooms, .*, not \['rooms'\]"),
        (lambda s: s.directory_search("planet", {}), "participant and room, not 'planet'"),
        (lambda s: s.directory_lookup(None, {}), "participant and room, not None"),
        (lambda s: s.directory_search("room", "Lobby"), "query is a mapping, not 'Lobby'"),
        (lambda s: s.directory_search("room", {"nick": "x"}), "not by 'nick'"),
        (lambda s: s.directory_search("room", {"nick": 1, 5: 2}), "not by 'nick'"),
        (
            lambda s: s.directory_search("room", {"channel": "irc", "external_id": 1}),
            "by bridge_id, channel, external_id together, not by channel, external_id",
        ),
        (
            lambda s: s.directory_search("participant", {"channel": "irc"}),
            "by channel, external_id together, not by channel",
        ),
        (
            lambda s: s.directory_search(
                "participant", {"channel": "irc", "bridge_id": "b", "external_id": 1}
            ),
            "a participant is found by channel, external_id together",
        ),
    ],
)
async def test_what_a_call_cannot_be_asked_for_is_a_configuration_error(store, call, message):
    with pytest.raises(ConfigurationError, match=message):
        await call(store)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"name": 5}, "name is a str"),
        ({"name": "\ud800"}, "name is a str that is valid Unicode"),
        ({"id": ""}, "id is a non-empty str"),
        ({"id": "a\0"}, "id .* has a NUL"),
        ({"channel": "irc", "bridge_id": "b", "external_id": ""}, "external_id is a non-empty"),
        ({"channel": 5, "bridge_id": "b", "external_id": 1}, "channel is a non-empty str"),
    ],
)
async def test_what_nobody_can_be_called_is_refused_by_the_directory(store, query, message):
    with pytest.raises(InvalidModel, match=message):
        await store.directory_search("room", query)
    with pytest.raises(InvalidModel, match=message):
        await store.directory_lookup("room", query)


async def test_a_query_field_that_is_none_is_not_asked_for(store):
    query = {"id": "room", "name": None, "channel": None, "bridge_id": None, "external_id": None}
    assert await store.directory_lookup("room", query) == await store.get_room("room")


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"colour": "red"}, "has no field 'colour'"),
        ({"id": ""}, "id is ''"),
        ({"type": "lobby"}, "type is 'lobby'"),
        ("group", "attrs is a mapping .* not 'group'"),
        ([("type", "group")], "attrs is a mapping"),
        ({5: 6}, "attrs is a mapping with keys of type str"),
    ],
)
async def test_wrong_attributes_make_neither_a_room_nor_a_participant(store, attrs, message):
    before = await contents(store)
    with pytest.raises(InvalidModel, match=message):
        await store.get_or_create_room_by_external_binding("irc", "b", 1, attrs)
    with pytest.raises(InvalidModel, match=message):
        await store.get_or_create_participant_by_external_id("irc", 1, attrs)
    assert await contents(store) == before


@pytest.mark.parametrize(
    "attrs",
    [
        {"external_bindings": 5},
        {"external_bindings": [("irc", 1)]},
        {"external_bindings": {"irc": 5}},
        {"external_bindings": {"irc": {"b2": None}}},
        {"external_bindings": {"irc": {5: 1}}},
    ],
)
async def test_wrong_bindings_among_the_attributes_make_no_room(store, attrs):
    before = await contents(store)
    with pytest.raises(InvalidModel, match="external_bindings"):
        await store.get_or_create_room_by_external_binding("irc", "b", 1, attrs)
    assert await contents(store) == before


@pytest.mark.parametrize("ids", [5, "x", {"sms": None}, {5: 1}, {"sms": "a\0"}])
async def test_wrong_external_ids_among_the_attributes_make_no_participant(store, ids):
    before = await contents(store)
    with pytest.raises(InvalidModel, match="external_ids"):
        await store.get_or_create_participant_by_external_id("irc", 1, {"external_ids": ids})
    assert await contents(store) == before


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"direction": "up"}, r"RoomBinding\.direction is 'up'"),
        ({"enabled": 1}, r"RoomBinding\.enabled is 1"),
        ({"id": "a\0"}, r"RoomBinding\.id is 'a\\x00'"),
        ({"colour": "red"}, "RoomBinding has no field 'colour'"),
        ("both", "attrs is a mapping"),
    ],
)
async def test_wrong_attributes_make_no_binding(store, attrs, message):
    before = await contents(store)
    with pytest.raises(InvalidModel, match=message):
        await store.create_room_binding("room", "irc", "b", 1, attrs)
    assert await contents(store) == before


async def test_attributes_of_a_binding_do_not_stand_above_its_arguments(store):
    attrs = {"room_id": "x", "channel": "x", "bridge_id": "x", "external_room_id": "x"}
    binding = await store.create_room_binding("room", "irc", "b", 1, attrs)
    assert (binding.room_id, binding.channel, binding.bridge_id, binding.external_room_id) == (
        "room",
        "irc",
        "b",
        1,
    )


async def test_attributes_of_a_room_do_not_stand_above_its_arguments(store):
    attrs = {"external_bindings": {"irc": {"b": "other"}}}
    room = await store.get_or_create_room_by_external_binding("irc", "b", 1, attrs)
    assert room.external_bindings == {"irc": {"b": 1}}
    attrs = {"external_ids": {"irc": "other"}}
    participant = await store.get_or_create_participant_by_external_id("irc", 1, attrs)
    assert participant.external_ids == {"irc": 1}


# -- what came in --------------------------------------------------------------------------------


async def test_a_participant_who_came_in_has_an_external_id_on_the_channel(store):
    before = await contents(store)
    room, message = Room.new(), Message.new(room_id="room")
    binding = RoomBinding.new(room_id=room.id, channel="irc", bridge_id="b", external_room_id=1)
    with pytest.raises(InvalidModel, match="participant 'p' has no external id on 'irc'"):
        await store.save_inbound(
            room, Participant.new(id="p", external_ids={"sms": 1}), message, binding
        )
    assert await contents(store) == before


async def test_what_came_in_is_bound_to_its_own_room_whatever_the_binding_says(store):
    room, message = Room.new(), Message.new(room_id="elsewhere")
    binding = RoomBinding.new(room_id="elsewhere", channel="irc", bridge_id="b", external_room_id=1)
    inbound = await store.save_inbound(room, None, message, binding)
    assert inbound.message == replace(message, room_id=room.id)
    assert await store.get_room_by_external_binding("irc", "b", 1) == room


@pytest.mark.parametrize("place", range(4))
async def test_what_came_in_is_of_the_right_classes(store, place):
    room = Room.new()
    binding = RoomBinding.new(room_id=room.id, channel="irc", bridge_id="b", external_room_id=1)
    given = [room, Participant.new(external_ids={"irc": 1}), Message.new(room_id="r"), binding]
    given[place] = {}
    with pytest.raises(InvalidModel, match="not dict"):
        await store.save_inbound(*given)


# -- the store itself ----------------------------------------------------------------------------


async def test_a_store_that_was_not_entered_says_so():
    store = PersistenceStore("memory://")
    with pytest.raises(StoreUnavailable, match="persistence does not run: enter it"):
        await store.get_room("room")
    with pytest.raises(StoreUnavailable, match="persistence does not run: enter it"):
        await store.save_room(Room.new())


async def test_everything_is_there_when_a_file_is_opened_again(tmp_path):
    url = f"sqlite:///{tmp_path}/bot.db"
    async with PersistenceStore(url) as store:
        room = await store.get_or_create_room_by_external_binding("sms", "b", 1, {"name": "Łódź"})
        await store.get_or_create_participant_by_external_id("sms", 1)
        await store.save_message(Message.new(room_id=room.id, content="hello"))
        await store.save_thread(Thread.new(room_id=room.id))
        await store.save_onboarding({"onboarding_id": "o"})
        await store.save_bridge_config(BridgeConfig.new(id="b", credentials={"token": "t"}))
        await store.save_routing_policy(RoutingPolicy.new(room_id=room.id))
        await store.save_ingress_subscription(IngressSubscription.new(bridge_id="b"))
        before = await contents(store)
    assert all(len(found) == 1 for found in before.values())
    async with PersistenceStore(url) as store:
        assert await contents(store) == before
        assert await store.get_or_create_room_by_external_binding("sms", "b", "1") == room
        assert await store.directory_lookup("room", {"name": "łódź"}) == room


async def test_two_stores_on_one_file_see_each_others_writes(tmp_path):
    url = f"sqlite:///{tmp_path}/bot.db"
    async with PersistenceStore(url, name="one") as one, PersistenceStore(url, name="two") as two:
        room = await one.save_room(Room.new())
        assert await two.get_room(room.id) == room
        message = await two.save_message(Message.new(room_id=room.id))
        assert await one.get_messages(room.id) == [message]
        await one.delete_room(room.id)
        with pytest.raises(NotFound):
            await two.get_message(message.id)


async def test_thirty_two_callers_of_two_stores_get_one_room_and_one_participant(tmp_path):
    url = f"sqlite:///{tmp_path}/bot.db"
    rooms: set[str] = set()
    people: set[str] = set()
    async with PersistenceStore(url, name="one") as one, PersistenceStore(url, name="two") as two:

        async def call(store: PersistenceStore) -> None:
            rooms.add((await store.get_or_create_room_by_external_binding("sms", "b", 1)).id)
            people.add((await store.get_or_create_participant_by_external_id("sms", 1)).id)

        async with anyio.create_task_group() as task_group:
            for number in range(32):
                task_group.start_soon(call, (one, two)[number % 2])
        assert len(rooms) == len(people) == 1
        counts = await two.counts()
        assert counts["rooms"] == counts["room_bindings"] == counts["participants"] == 1


class Buggy(MemoryPersistenceAdapter):
    def get_message(self, message_id):
        raise ZeroDivisionError("a bug")


async def test_what_is_in_memory_outlives_a_crash():
    policy = RestartPolicy(min_backoff_ms=1, max_backoff_ms=1)
    async with PersistenceStore(adapter=Buggy(), restart_policy=policy) as store:
        room = await store.save_room(Room.new())
        with pytest.raises(ActorCrashed) as crashed:
            await store.get_message("m")
        assert isinstance(crashed.value.__cause__, ZeroDivisionError)
        assert await store.get_room(room.id) == room


async def test_what_is_in_memory_is_of_one_store():
    async with PersistenceStore("memory://") as one, PersistenceStore("memory://") as other:
        room = await one.save_room(Room.new())
        with pytest.raises(NotFound):
            await other.get_room(room.id)


# -- the contract, for others --------------------------------------------------------------------

#: A project that knows of trunkline what its documentation says: no conftest, no anyio_mode.
SOMEBODYS_TESTS = """
    import pytest
    from trunkline.errors import NotFound
    from trunkline.persistence import Room
    from trunkline.persistence.memory import MemoryPersistenceAdapter
    from trunkline.testing import PersistenceContract

    class Forgetful(MemoryPersistenceAdapter):
        def delete_room_part(self, room_id, limit):
            self.remove(Room, id=room_id)
            return True

    class TestGood(PersistenceContract):
        @pytest.fixture
        def adapter(self):
            return MemoryPersistenceAdapter()

    class TestBad(PersistenceContract):
        @pytest.fixture
        def adapter(self):
            return Forgetful()

    class TestNothing(PersistenceContract):
        pass
"""


def run_somebodys_tests(folder, *arguments: str) -> str:
    folder.joinpath("test_mine.py").write_text(textwrap.dedent(SOMEBODYS_TESTS))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_anybody_can_run_the_contract_with_one_fixture(tmp_path):
    # Its tables are for adapters that can be copied.
    chosen = "TestGood and not table and not loading_rows"
    output = run_somebodys_tests(tmp_path, "-k", chosen, "-W", "error")
    assert " passed, " in output, output
    assert "failed" not in output, output
    assert "skipped" not in output, output


@pytest.fixture(scope="module")
def what_fails(tmp_path_factory) -> str:
    """What pytest says of a broken adapter, and of a suite that was given none."""
    chosen = "TestBad and deleting_a_room_takes or TestBad and made_again or TestNothing and a_new"
    return run_somebodys_tests(tmp_path_factory.mktemp("somebody"), "-k", chosen)


def test_an_adapter_that_breaks_the_contract_fails_it(what_fails):
    assert "FAILED test_mine.py::TestBad::test_deleting_a_room_takes_its_messages" in what_fails
    assert "DID NOT RAISE" in what_fails


def test_an_adapter_that_breaks_the_contract_is_shown_what_was_compared(what_fails):
    # Pytest shows both sides, since it has rewritten the suite's assertions.
    assert "Left contains one more item: Message(id='m'" in what_fails


def test_a_contract_without_its_fixture_says_what_is_missing(what_fails):
    assert "NotImplementedError: TestNothing needs a fixture 'adapter'" in what_fails


def test_the_clock_and_the_faults_of_testing_need_no_pytest():
    script = """
        import sys
        from trunkline.testing import ManualClock, crash
        assert "pytest" not in sys.modules and "hypothesis" not in sys.modules
        from trunkline.testing import PersistenceContract
        assert "pytest" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=300)


def test_testing_has_no_other_names():
    import trunkline.testing

    assert set(trunkline.testing.__all__) <= set(dir(trunkline.testing))
    with pytest.raises(AttributeError, match="no attribute 'Contract'"):
        trunkline.testing.Contract  # noqa: B018
