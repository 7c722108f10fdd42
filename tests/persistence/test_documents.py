"""Stored documents of this version, of another, and of none."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from msgspec.structs import replace

from trunkline.errors import InvalidModel, StoreError, UnreadableRecord
from trunkline.persistence import BridgeConfig, Message, Room
from trunkline.persistence.documents import dump_model, kind_of, load_model
from trunkline.persistence.validation import checked

NEWER = {"colour": {"of": ["its", None]}, "pinned": True}


def newer(model: msgspec.Struct) -> str:
    """The document as a newer version would have stored it."""
    return msgspec.json.encode(msgspec.json.decode(dump_model(model)) | NEWER).decode()


def load(kind, document):
    return load_model(kind, "trunkline_rooms", "r", document)


def test_a_field_of_a_newer_version_is_kept_and_written_back():
    room = load(Room, newer(Room.new(id="r")))
    changed = replace(room, name="Lobby")
    document = msgspec.json.decode(dump_model(changed))
    assert document == msgspec.json.decode(newer(Room.new(id="r"))) | {
        "name": "Lobby",
        "inserted_at": document["inserted_at"],
    }


def test_a_model_with_unknown_fields_is_a_model_of_its_kind():
    room = load(Room, newer(Room.new(id="r", name="Lobby")))
    assert isinstance(room, Room)
    assert kind_of(room) is kind_of(Room.new()) is Room
    assert (room.id, room.name) == ("r", "Lobby")
    assert "name='Lobby'" in repr(room)
    assert "unknown_fields={" in repr(room)


def test_models_differ_if_their_unknown_fields_do():
    plain = Room.new(id="r")
    room = load(Room, newer(plain))
    assert room == load(Room, newer(plain))
    assert room != plain
    assert load(Room, dump_model(plain)) == plain


def test_a_model_with_unknown_fields_is_checked_as_any_other():
    room = load(Room, newer(Room.new(id="r")))
    assert checked(room) == room
    with pytest.raises(InvalidModel, match=r"Room\.type is 'lobby': Expected one of direct"):
        checked(replace(room, type="lobby"))
    with pytest.raises(InvalidModel, match=r"Room\.id is 'a\\x00': an id that has a NUL"):
        checked(replace(room, id="a\0"))
    with pytest.raises(InvalidModel, match="has no field 'colour'"):
        type(room).new(colour="red", unknown_fields={})


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda room: pickle.loads(pickle.dumps(room))]
)
def test_a_copy_keeps_unknown_fields(copied):
    room = load(Room, newer(Room.new(id="r")))
    assert copied(room) == room


def test_unknown_fields_may_be_as_secret_as_credentials():
    config = load(BridgeConfig, newer(BridgeConfig.new(credentials={"token": "s3cret"})))
    assert "s3cret" not in repr(config)
    assert "its" not in repr(config)


def test_threads_that_meet_unknown_fields_at_once_get_one_class():
    document = newer(Message.new(room_id="r"))
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda _: load(Message, document), range(64)))
    assert len({type(model) for model in models}) == 1


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "[]",
        "null",
        "{}x",
        b"\xff\xfe",
        '{"id": 5}',
        '{"id": "r", "type": "s3cret"}',
        '{"id": "r", "type": "s3cret", "colour": 1}',
        '{"id": "r", "metadata": ' + '{"s3cret":' * 100_000,
    ],
    ids=range(10),
)
def test_what_is_no_model_is_an_error_that_names_table_and_key_and_quotes_no_value(document):
    with pytest.raises(UnreadableRecord, match=r"row 'r' of trunkline_rooms cannot") as unreadable:
        load(Room, document)
    assert isinstance(unreadable.value, StoreError)
    assert "s3cret" not in str(unreadable.value)
    assert unreadable.value.__cause__ is None


def test_the_error_names_the_field():
    with pytest.raises(UnreadableRecord, match=r"Invalid enum value at `\$\.type`"):
        load(Room, '{"id": "r", "type": "lobby"}')


def test_an_onboarding_flow_that_is_no_mapping_is_unreadable():
    assert load(dict, '{"onboarding_id": "o"}') == {"onboarding_id": "o"}
    with pytest.raises(UnreadableRecord, match="Expected `object`"):
        load(dict, "[]")
