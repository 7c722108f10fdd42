"""Values and keys as bytes and text, and back."""

from __future__ import annotations

import sys
from collections import OrderedDict, namedtuple
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from enum import IntEnum, StrEnum
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.backends import codec
from trunkline.backends.codec import Unstorable, decode, decode_key, encode, encode_key
from trunkline.contracts.fsm.properties import VALUES
from trunkline.contracts.fsm.samples import KEYS, KINDS, UNSTORABLE, WRONG_KEYS, same
from trunkline.errors import ConfigurationError

PARIS = ZoneInfo("Europe/Paris")

KEY_PARTS = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda parts: st.lists(parts).map(tuple),
    max_leaves=10,
)


@given(value=VALUES)
def test_a_value_comes_back_as_it_went_in(value):
    assert same(decode(encode(value)), value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_this_kind_comes_back_as_it_went_in(kind):
    assert same(decode(encode(KINDS[kind])), KINDS[kind])


@pytest.mark.parametrize("kind", UNSTORABLE)
def test_what_has_no_encoding_is_refused(kind):
    with pytest.raises(Unstorable):
        encode(UNSTORABLE[kind])


class Step(StrEnum):
    NAME = "name"


class Level(IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    "value",
    [
        Step.NAME,
        Level.LOW,
        namedtuple("Point", "x y")(1, 2),
        OrderedDict(a=1),
        type("Moment", (datetime,), {})(2026, 1, 1),
        msgspec.Raw(b"\x01"),
        {2**64: "a name beyond 64 bits"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_come_back_as_another_type_is_refused(value):
    with pytest.raises(Unstorable, match=r"has no encoding|more than 64 bits"):
        encode({"deep": [value]})


def test_a_refusal_tells_of_types_and_not_of_values():
    class Secret:
        def __repr__(self):
            return "hunter2"

    with pytest.raises(Unstorable, match=r"Secret has no encoding") as refusal:
        encode(["hunter2", Secret()])
    assert "hunter2" not in str(refusal.value)


def test_a_datetime_keeps_its_zone_and_not_only_its_offset():
    winter = datetime(2026, 1, 1, 12, tzinfo=PARIS)
    restored = decode(encode(winter))
    assert restored.tzinfo is PARIS
    assert (restored + timedelta(days=200)).utcoffset() == timedelta(hours=2)


@pytest.mark.parametrize("fold", [0, 1])
def test_an_hour_that_comes_twice_keeps_which_one_it_is(fold):
    for value in (
        datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=PARIS),
        datetime(2026, 10, 25, 2, 30, fold=fold),
        time(2, 30, fold=fold, tzinfo=PARIS),
    ):
        restored = decode(encode(value))
        assert (restored, restored.fold) == (value, fold)
        assert restored.utcoffset() == value.utcoffset()


def test_a_zone_that_this_machine_does_not_know_is_read_as_its_offset(monkeypatch):
    encoded = encode(datetime(2026, 7, 1, 12, tzinfo=PARIS))
    monkeypatch.setattr(codec, "ZoneInfo", no_zone)
    assert decode(encoded) == datetime(2026, 7, 1, 10, tzinfo=UTC)


def no_zone(name):
    return ZoneInfo(f"{name}/Nowhere")


def test_another_zone_is_kept_as_its_offset():
    class Moon(tzinfo):
        def utcoffset(self, _when):
            return timedelta(hours=7, seconds=1)

    restored = decode(encode(datetime(2026, 1, 1, tzinfo=Moon())))
    assert restored == datetime(2026, 1, 1, tzinfo=Moon())
    assert restored.tzinfo == timezone(timedelta(hours=7, seconds=1))


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}], ids="ltd")
def test_what_is_nested_as_deep_as_allowed_is_read_with_the_stack_almost_full(wrap):
    value = 1
    for _ in range(100):
        value = wrap(value)
    encoded = encode(value)
    with pytest.raises(Unstorable, match="more than 100 deep"):
        encode(wrap(value))

    def read_below(depth):
        return read_below(depth - 1) if depth else decode(encoded)

    assert read_below(sys.getrecursionlimit() - 700) == value


@given(key=KEY_PARTS)
def test_a_key_comes_back_as_it_went_in(key):
    try:
        text = encode_key(key)
    except ConfigurationError:
        assert len(repr(key)) > 100
        return
    assert text.isascii()
    assert same(decode_key(text), key)


def test_different_keys_have_different_texts():
    assert len({encode_key(key) for key in KEYS}) == len(KEYS)


@pytest.mark.parametrize("first", [1, True, 1.0])
def test_keys_that_are_equal_in_python_are_not_mixed_up(first):
    for part in (first, 1, True, 1.0):
        if type(part) is int:
            assert encode_key((part, "x")) == '[1,"x"]'
        else:
            with pytest.raises(ConfigurationError, match=f"not {type(part).__name__}"):
                encode_key((part, "x"))


@pytest.mark.parametrize("kind", WRONG_KEYS)
def test_a_key_of_another_type_is_refused_by_name(kind):
    with pytest.raises(ConfigurationError, match=f"not {kind}: "):
        encode_key(((1, WRONG_KEYS[kind]),))


def test_a_key_has_at_most_1500_characters():
    assert decode_key(encode_key("x" * 1_498)) == "x" * 1_498
    with pytest.raises(ConfigurationError, match="1500 characters"):
        encode_key("x" * 1_499)
    with pytest.raises(ConfigurationError, match="1500 characters"):
        encode_key((1, "☃" * 300))


@pytest.mark.parametrize("text", ["\ud800", "\ud83d\ude00", "a\ud800b"])
def test_a_key_that_is_no_valid_unicode_is_refused(text):
    for key in (text, (1, text), (1, (text,))):
        with pytest.raises(ConfigurationError, match="not valid Unicode"):
            encode_key(key)


@pytest.mark.parametrize("text", ["\U0001f600", "\\ud83d", '"\\ud83d\\ude00"'])
def test_a_key_that_only_looks_like_that_is_stored(text):
    assert decode_key(encode_key((1, text))) == (1, text)
