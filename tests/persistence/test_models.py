from __future__ import annotations

import math
import threading
import unicodedata
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from trunkline.errors import InvalidModel
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
from trunkline.persistence.models import new_id
from trunkline.persistence.validation import checked, folded

#: What each model cannot be made without.
REQUIRED: dict[type, dict[str, object]] = {
    Room: {},
    Participant: {},
    Thread: {"room_id": "r"},
    Message: {"room_id": "r"},
    RoomBinding: {
        "room_id": "r",
        "channel": "telegram",
        "bridge_id": "bot",
        "external_room_id": 42,
    },
    BridgeConfig: {},
    RoutingPolicy: {"room_id": "r"},
    IngressSubscription: {"bridge_id": "bot"},
}
MODELS = list(REQUIRED)

ENUMS = {
    (Room, "type"): ["direct", "group", "channel", "thread"],
    (Participant, "type"): ["human", "agent", "system"],
    (Participant, "presence"): ["online", "away", "busy", "offline"],
    (Thread, "status"): ["active", "archived", "closed"],
    (Message, "role"): ["user", "assistant", "system", "tool"],
    (Message, "status"): ["sending", "sent", "delivered", "read", "failed"],
    (RoomBinding, "direction"): ["both", "inbound", "outbound"],
    (RoutingPolicy, "delivery_mode"): ["best_effort", "primary", "broadcast"],
    (RoutingPolicy, "failover_policy"): ["none", "next_available", "broadcast"],
    (RoutingPolicy, "dedupe_scope"): ["message_id", "thread", "room"],
    (IngressSubscription, "status"): [
        "active",
        "deleted",
        "disabled",
        "expired",
        "manual_action_required",
        "pending",
        "unknown",
    ],
}

FIELDS = {
    Room: "id type name external_bindings metadata inserted_at",
    Participant: "id type identity external_ids presence capabilities metadata",
    Thread: "id room_id external_thread_id delivery_external_room_id root_message_id"
    " root_external_message_id assigned_agent_id status metadata inserted_at updated_at",
    Message: "id room_id sender_id role content reply_to_id external_id external_reply_to_id"
    " thread_id external_thread_id delivery_external_room_id status reactions receipts metadata"
    " inserted_at updated_at",
    RoomBinding: "id room_id channel bridge_id external_room_id direction enabled inserted_at",
    BridgeConfig: "id adapter_module credentials opts enabled capabilities delivery_policy revision"
    " inserted_at updated_at",
    RoutingPolicy: "id room_id delivery_mode failover_policy dedupe_scope fallback_order metadata"
    " revision inserted_at updated_at",
    IngressSubscription: "bridge_id adapter_name status external_id subscription_id target_url"
    " expires_at metadata raw",
}

AWARE = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)

#: Values of a wrong type, by the kind of field.
WRONG = {
    "str": [5, 1.5, True, ["x"], {}, b"x", UUID(int=7), AWARE, Decimal(1)],
    "external": [1.5, True, ["x"], {}, b"x", UUID(int=7), AWARE],
    "map": ["x", 5, [["a", 1]], True],
    "list": ["x", 5, {"a": 1}, True],
    "bool": [1, 0, "true", [], None],
    "count": [-1, 1.5, "1", True, None],
    "time": [5, "2026-03-01T12:00:00Z", datetime(2026, 3, 1), date(2026, 3, 1), True],
}


KINDS = {
    "map": "metadata identity external_ids external_bindings reactions receipts credentials opts"
    " delivery_policy",
    "list": "capabilities fallback_order",
    "time": "inserted_at updated_at expires_at",
    "external": "external_id external_thread_id external_reply_to_id external_room_id"
    " delivery_external_room_id root_external_message_id",
    "bool": "enabled",
    "count": "revision",
}


def kind_of(field: str) -> str:
    return next((kind for kind, fields in KINDS.items() if field in fields.split()), "str")


WRONG_TYPES = [
    pytest.param(model, field, value, id=f"{model.__name__}.{field}={value!r}")
    for model, fields in FIELDS.items()
    for field in fields.split()
    if field not in ("content", "raw")
    for value in WRONG[kind_of(field)]
]


# -- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_model_has_the_fields_of_its_ancestor(model):
    assert list(model.__struct_fields__) == FIELDS[model].split()


@pytest.mark.parametrize(("model", "field"), ENUMS)
def test_a_field_of_few_values_takes_each_of_them(model, field):
    for value in ENUMS[model, field]:
        made = model.new(**REQUIRED[model], **{field: value})
        assert getattr(made, field) == value


@pytest.mark.parametrize(("model", "field"), ENUMS)
@pytest.mark.parametrize("value", ["Direct", "", "nonsense", " active"])
def test_a_wrong_value_is_refused_by_model_field_and_value(model, field, value):
    with pytest.raises(InvalidModel) as refused:
        model.new(**REQUIRED[model], **{field: value})
    known = ", ".join(ENUMS[model, field])
    assert str(refused.value) == (f"{model.__name__}.{field} is {value!r}: Expected one of {known}")


@pytest.mark.parametrize(("model", "field", "value"), WRONG_TYPES)
def test_a_wrong_type_is_refused_by_model_field_and_value(model, field, value):
    with pytest.raises(InvalidModel) as refused:
        model.new(**REQUIRED[model] | {field: value})
    shown = "***" if field == "credentials" else repr(value)
    assert str(refused.value).startswith(f"{model.__name__}.{field} is {shown}: Expected ")


@pytest.mark.parametrize("model", MODELS)
def test_an_unknown_field_is_refused_by_model_field_and_value(model):
    with pytest.raises(InvalidModel) as refused:
        model.new(**REQUIRED[model], colour="red")
    shown = "***" if model is BridgeConfig else "'red'"
    assert str(refused.value) == (
        f"{model.__name__} has no field 'colour' (given {shown});"
        f" its fields are {', '.join(FIELDS[model].split())}"
    )


@pytest.mark.parametrize(
    ("model", "field"), [(model, field) for model, fields in REQUIRED.items() for field in fields]
)
def test_a_missing_field_is_refused_by_model_and_field(model, field):
    given = {name: value for name, value in REQUIRED[model].items() if name != field}
    with pytest.raises(InvalidModel, match=f"{model.__name__}.*'{field}'"):
        model.new(**given)


@pytest.mark.parametrize("model", MODELS)
def test_an_invalid_model_is_also_a_value_error(model):
    with pytest.raises(ValueError, match="colour"):
        model.new(**REQUIRED[model], colour="red")


@pytest.mark.parametrize("name", ["cls", "self", "model"])
def test_a_field_may_be_misnamed_in_any_way(name):
    with pytest.raises(InvalidModel, match=f"Room has no field '{name}'"):
        Room.new(**{name: 1})


# -- new -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [model for model in MODELS if model is not IngressSubscription])
def test_new_fills_the_id_with_a_time_ordered_uuid(model):
    before = datetime.now(UTC)
    made = model.new(**REQUIRED[model])
    after = datetime.now(UTC)
    uuid = UUID(made.id)
    assert str(uuid) == made.id
    assert uuid.version == 7
    milliseconds = uuid.int >> 80
    assert math.floor(before.timestamp() * 1000) <= milliseconds <= after.timestamp() * 1000


@pytest.mark.parametrize("model", MODELS)
def test_new_fills_the_times_with_this_instant_in_utc(model):
    before = datetime.now(UTC)
    made = model.new(**REQUIRED[model])
    for field in {"inserted_at", "updated_at"} & set(model.__struct_fields__):
        assert before <= getattr(made, field) <= datetime.now(UTC)
        assert getattr(made, field).tzinfo is UTC


def test_ids_are_sorted_by_the_time_they_were_made():
    ids = [new_id() for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_ids_made_in_several_threads_are_sorted_within_each():
    made: list[list[str]] = []

    def make() -> None:
        made.append([new_id() for _ in range(5_000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ids == sorted(ids) for ids in made)
    assert len({one for ids in made for one in ids}) == 20_000


def test_what_is_given_is_kept():
    room = Room.new(id="r", inserted_at=AWARE, name="Lobby", metadata={"a": 1})
    assert (room.id, room.inserted_at, room.name, room.metadata) == ("r", AWARE, "Lobby", {"a": 1})


def test_two_models_share_no_map():
    one, other = Room.new(), Room.new()
    one.metadata["a"] = 1
    one.external_bindings["telegram"] = {"bot": 1}
    assert (other.metadata, other.external_bindings) == ({}, {})


def test_a_model_does_not_change_with_the_map_it_was_made_from():
    metadata = {"tags": ["a"]}
    room = Room.new(metadata=metadata)
    metadata["tags"].append("b")
    assert room.metadata == {"tags": ["a"]}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_frozen(model):
    made = model.new(**REQUIRED[model])
    for field in model.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(made, field, getattr(made, field))


@pytest.mark.parametrize("model", [BridgeConfig, RoutingPolicy])
def test_bumping_makes_the_next_revision_updated_now(model):
    first = model.new(**REQUIRED[model], inserted_at=AWARE, updated_at=AWARE)
    before = datetime.now(UTC)
    second = first.bump_revision()
    assert (first.revision, second.revision, second.bump_revision().revision) == (0, 1, 2)
    assert before <= second.updated_at <= datetime.now(UTC)
    assert second == replace(first, revision=1, updated_at=second.updated_at)


# -- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offset", [timedelta(hours=2), timedelta(hours=-11, minutes=-30), timedelta(seconds=7)]
)
def test_a_time_of_another_zone_is_kept_in_utc(offset):
    there = AWARE.astimezone(timezone(offset))
    message = Message.new(room_id="r", inserted_at=there, updated_at=there)
    for instant in (message.inserted_at, message.updated_at):
        assert instant == AWARE
        assert instant.tzinfo is UTC


@pytest.mark.parametrize("instant", [datetime.min, datetime.max])
def test_a_time_that_utc_does_not_have_is_refused(instant):
    hours = 2 if instant is datetime.min else -2
    there = instant.replace(tzinfo=timezone(timedelta(hours=hours)))
    with pytest.raises(InvalidModel, match=r"Room\.inserted_at is .* Expected a time that UTC has"):
        Room.new(inserted_at=there)


# -- what JSON holds -----------------------------------------------------------------------------


def nested(depth: int) -> object:
    inner: object = "core"
    for level in range(depth):
        inner = [inner] if level % 2 else {"a": inner}
    return inner


MAPS = [
    (model, field)
    for model, fields in FIELDS.items()
    for field in fields.split()
    if kind_of(field) == "map" and field not in ("external_ids", "external_bindings")
] + [(Message, "content"), (IngressSubscription, "raw"), (Participant, "capabilities")]


@pytest.mark.parametrize(("model", "field"), MAPS)
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, "NaN"),
        (math.inf, "infinity"),
        (-math.inf, "infinity"),
        (object(), "object"),
        (lambda: None, "function"),
        ("half of a pair: \ud83e", "surrogates"),
        ({"\udd8a": 1}, "surrogates"),
        ({("a", "b"): 1}, "keys"),
        ({None: 1}, "keys"),
        (nested(499), "500 deep"),
        (nested(100_000), "500 deep"),
        (1 + 2j, "complex"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_json_does_not_hold_is_refused_by_model_and_field(model, field, value, why):
    wrapped = [1, [value]] if field in ("capabilities", "content") else {"a": [1, {"b": value}]}
    with pytest.raises(InvalidModel) as refused:
        model.new(**REQUIRED[model], **{field: wrapped})
    assert str(refused.value).startswith(f"{model.__name__}.{field} is ")
    assert why in str(refused.value)
    assert len(str(refused.value)) < 1_000


def test_up_to_500_levels_are_held():
    message = Message.new(room_id="r", content=nested(500))
    assert checked(message) == message
    with pytest.raises(InvalidModel, match=r"Message\.content .* nested more than 500 deep"):
        Message.new(room_id="r", content=nested(501))


def test_many_brackets_are_not_many_levels():
    content = [[{"a": [n]}] for n in range(2_000)]
    assert Message.new(room_id="r", content=content).content == content


def test_what_json_writes_otherwise_is_so_at_once():
    content = {"tuple": (1, 2), 5: "int key", "when": AWARE, "bytes": b"\x00", "id": UUID(int=7)}
    message = Message.new(room_id="r", content=content)
    assert message.content == {
        "tuple": [1, 2],
        "5": "int key",
        "when": "2026-03-01T12:00:00.123456Z",
        "bytes": "AA==",
        "id": "00000000-0000-0000-0000-000000000007",
    }
    assert checked(message) == message


def test_a_huge_value_is_shown_in_short():
    with pytest.raises(InvalidModel) as refused:
        Message.new(room_id="r", metadata=["x" * 1_000_000])
    assert len(str(refused.value)) < 1_000


# -- ids -----------------------------------------------------------------------------------------

IDS = [
    (model, field)
    for model, fields in FIELDS.items()
    for field in fields.split()
    if field == "id" or field.endswith("_id") or field == "channel"
]


@pytest.mark.parametrize(("model", "field"), IDS)
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("a\0b", "has a NUL"),
        ("a\ud800b", "surrogates"),
        ("x" * 801, "longer than 800 bytes"),
        ("é" * 401, "longer than 800 bytes"),
    ],
    ids=["a NUL", "a lone surrogate", "801 bytes", "802 bytes"],
)
def test_an_id_that_cannot_be_stored_is_refused(model, field, value, why):
    with pytest.raises(InvalidModel) as refused:
        model.new(**REQUIRED[model] | {field: value})
    assert str(refused.value).startswith(f"{model.__name__}.{field} is ")
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        *((model, "id") for model in MODELS if model is not IngressSubscription),
        *((model, field) for model, fields in REQUIRED.items() for field in fields),
    ],
)
def test_an_id_that_others_refer_to_is_not_empty(model, field):
    with pytest.raises(InvalidModel, match=rf"{model.__name__}\.{field} is ''"):
        model.new(**REQUIRED[model] | {field: ""})


@pytest.mark.parametrize(
    "fields",
    [
        {"external_ids": {"tele\0gram": 1}},
        {"external_ids": {"telegram": "4\0"}},
        {"external_ids": {"x" * 801: 1}},
        {"external_ids": {"telegram": "x" * 801}},
        {"external_ids": {"telegram": 10**800}},
        {"external_ids": {"telegram": -(10**800)}},
    ],
)
def test_an_external_id_of_a_participant_can_be_stored_too(fields):
    with pytest.raises(InvalidModel, match=r"Participant\.external_ids is .* cannot be stored"):
        Participant.new(**fields)


@pytest.mark.parametrize("key", ["channel", "bridge_id"])
def test_the_scope_of_an_external_id_can_be_stored_too(key):
    with pytest.raises(InvalidModel, match=r"Message\.metadata is .* cannot be stored"):
        Message.new(room_id="r", external_id=1, metadata={key: "a\0b"})


def test_a_nul_is_text_where_nothing_is_looked_up_by_it():
    message = Message.new(room_id="r", content="\0", metadata={"\0": "\0"}, reactions={"\0": 1})
    assert checked(message) == message
    assert Room.new(name="\0").name == "\0"


@pytest.mark.parametrize("external_id", [0, -1, 2**63, 2**64 - 1, "", "0", "é" * 400])
def test_an_external_id_is_a_str_or_an_int_and_stays_what_it_is(external_id):
    message = Message.new(room_id="r", external_id=external_id)
    assert message.external_id == external_id
    assert type(message.external_id) is type(external_id)


# -- names ---------------------------------------------------------------------------------------


def test_each_letter_in_each_case_is_folded_alike():
    for letter in map(chr, range(0x20000)):
        if not "\ud800" <= letter <= "\udfff":
            for change in (str.upper, str.lower, str.title, str.swapcase, str.casefold):
                assert folded(change(letter)) == folded(letter), hex(ord(letter))


@pytest.mark.parametrize("name", ["Łódź", "Zoë", "İstanbul", "Ǆ", "ỌṢUN", "한국", "ΐ", "Å"])
def test_a_name_is_folded_alike_composed_and_decomposed(name):
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    assert folded(composed) == folded(decomposed)
    assert folded(composed.swapcase()) == folded(decomposed.upper())


def test_a_letter_with_an_accent_is_not_the_letter():
    assert folded("e") not in folded("é")


#: Text without what composes with the letter before it: marks, and the vowels and finals of Hangul.
LETTERS = st.text(
    st.characters(
        exclude_categories=["Cs", "Mn", "Mc", "Me"],
        exclude_characters="".join(map(chr, range(0x1160, 0x1200))),
    )
)


@given(LETTERS, st.integers(0, 20), st.integers(0, 20))
@example("İstanbul", 0, 3)
@example("straße", 4, 5)
def test_each_part_of_a_name_is_a_part_of_it_folded(name, start, length):
    part = name[start : start + length]
    assert folded(part) in folded(name)
    assert folded(part.swapcase()) in folded(name.upper())


# -- there and back ------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ID = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda text: len(text.encode()) <= 800
)
EXTERNAL = ID | st.integers(-(2**63), 2**64 - 1)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
MAP = st.dictionaries(TEXT, JSON, max_size=4)
LIST = st.lists(JSON, max_size=4)
TIME = st.datetimes(timezones=st.just(UTC))


def optional(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


def one_of(model: type, field: str) -> st.SearchStrategy:
    return st.sampled_from(ENUMS[model, field])


ANY_MODEL = st.one_of(
    st.builds(
        Room.new,
        id=ID,
        type=one_of(Room, "type"),
        name=optional(TEXT),
        external_bindings=st.dictionaries(
            TEXT, st.dictionaries(TEXT, EXTERNAL, max_size=2), max_size=2
        ),
        metadata=MAP,
        inserted_at=TIME,
    ),
    st.builds(
        Participant.new,
        id=ID,
        type=one_of(Participant, "type"),
        identity=MAP | st.fixed_dictionaries({"name": JSON}),
        external_ids=st.dictionaries(ID, EXTERNAL, max_size=3),
        presence=one_of(Participant, "presence"),
        capabilities=LIST,
        metadata=MAP,
    ),
    st.builds(
        Thread.new,
        id=ID,
        room_id=st.just("room"),
        external_thread_id=optional(EXTERNAL),
        delivery_external_room_id=optional(EXTERNAL),
        root_message_id=optional(ID),
        root_external_message_id=optional(EXTERNAL),
        assigned_agent_id=optional(ID),
        status=one_of(Thread, "status"),
        metadata=MAP,
        inserted_at=TIME,
        updated_at=TIME,
    ),
    st.builds(
        Message.new,
        id=ID,
        room_id=st.just("room"),
        sender_id=optional(ID),
        role=one_of(Message, "role"),
        content=JSON,
        reply_to_id=optional(ID),
        external_id=optional(EXTERNAL),
        external_reply_to_id=optional(EXTERNAL),
        thread_id=optional(ID),
        external_thread_id=optional(EXTERNAL),
        delivery_external_room_id=optional(EXTERNAL),
        status=one_of(Message, "status"),
        reactions=MAP,
        receipts=MAP,
        metadata=MAP | st.fixed_dictionaries({"channel": ID, "bridge_id": ID}),
        inserted_at=TIME,
        updated_at=TIME,
    ),
    st.builds(
        BridgeConfig.new,
        id=ID,
        adapter_module=optional(TEXT),
        credentials=MAP,
        opts=MAP,
        enabled=st.booleans(),
        capabilities=LIST,
        delivery_policy=MAP,
        revision=st.integers(0, 2**63),
        inserted_at=TIME,
        updated_at=TIME,
    ),
    st.builds(
        RoutingPolicy.new,
        id=ID,
        room_id=st.just("room"),
        delivery_mode=one_of(RoutingPolicy, "delivery_mode"),
        failover_policy=one_of(RoutingPolicy, "failover_policy"),
        dedupe_scope=one_of(RoutingPolicy, "dedupe_scope"),
        fallback_order=st.lists(TEXT, max_size=3),
        metadata=MAP,
        revision=st.integers(0, 2**63),
        inserted_at=TIME,
        updated_at=TIME,
    ),
    st.builds(
        IngressSubscription.new,
        bridge_id=ID,
        adapter_name=optional(TEXT),
        status=one_of(IngressSubscription, "status"),
        external_id=optional(EXTERNAL),
        subscription_id=optional(ID),
        target_url=optional(TEXT),
        expires_at=optional(TIME),
        metadata=MAP,
        raw=JSON,
    ),
    st.builds(lambda flow, one: {**flow, "onboarding_id": one}, MAP, ID),
)


@given(ANY_MODEL)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_checked_model_is_checked_to_itself(model):
    if not isinstance(model, dict):
        assert checked(model) == model
        assert msgspec.json.decode(msgspec.json.encode(model), type=type(model)) == model


@pytest.fixture(params=["memory://", "sqlite://", "sqlite:///{}/bot.db"])
async def store(request, tmp_path):
    async with PersistenceStore(request.param.format(tmp_path)) as store:
        await store.save_room(Room.new(id="room"))
        yield store


@given(model=ANY_MODEL)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_whatever_is_saved_comes_back(store, model):
    if isinstance(model, Room):
        saved, found = await store.save_room(model), await store.get_room(model.id)
        await store.save_room(Room.new(id="room"))
    elif isinstance(model, Participant):
        saved, found = await store.save_participant(model), await store.get_participant(model.id)
    elif isinstance(model, Thread):
        saved, found = await store.save_thread(model), await store.get_thread(model.id)
    elif isinstance(model, Message):
        saved, found = await store.save_message(model), await store.get_message(model.id)
    elif isinstance(model, BridgeConfig):
        saved = await store.save_bridge_config(model)
        found = await store.get_bridge_config(model.id)
    elif isinstance(model, RoutingPolicy):
        saved = await store.save_routing_policy(model)
        found = await store.get_routing_policy(model.room_id)
    elif isinstance(model, IngressSubscription):
        saved = await store.save_ingress_subscription(model)
        [found] = [
            one
            for one in await store.list_ingress_subscriptions(model.bridge_id)
            if one.subscription_id == model.subscription_id
        ]
    else:
        saved = await store.save_onboarding(model)
        found = await store.get_onboarding(model["onboarding_id"])
    assert saved == found == model
    # Equal is not the same: 1 == 1.0 == True.
    assert repr(found) == repr(model)
