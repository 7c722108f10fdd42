"""Values and keys as bytes and text, and back."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, namedtuple
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.backends import codec
from trunkline.backends.codec import (
    Unstorable,
    copy_value,
    decode,
    decode_key,
    encode,
    encode_key,
    normalize_name,
)
from trunkline.contracts.fsm.properties import VALUES
from trunkline.contracts.fsm.samples import KEYS, KINDS, UNSTORABLE, WRONG_KEYS, same
from trunkline.errors import ConfigurationError

PARIS = ZoneInfo("Europe/Paris")

KEY_PARTS = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda parts: st.lists(parts).map(tuple),
    max_leaves=10,
).filter(lambda key: key is not None)


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


class State(str, Enum):  # noqa: UP042
    NAME = "name"


class Points(int, Enum):
    FEW = 3


class Text(str):
    """As libraries for configuration files or translations have it."""


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Step.NAME, "name"),
        (State.NAME, "name"),
        (Level.LOW, 1),
        (Points.FEW, 3),
        (Text("text"), "text"),
        (type("Price", (float,), {})(1.5), 1.5),
        (type("Photo", (bytes,), {})(b"x"), b"x"),
        (Point(1, State.NAME), (1, "name")),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(list, {State.NAME: [Point(1, 2)]}), {"name": [(1, 2)]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (type("Cart", (list,), {})([Level.LOW]), [1]),
        (type("Tags", (set,), {})({Step.NAME}), {"name"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_of_a_subclass_comes_back_as_the_built_in_one_that_it_equals(value, plain):
    found = decode(encode({"deep": [value]}))
    assert same(found, {"deep": [plain]})
    assert found == {"deep": [value]}
    assert same(copy_value(value), plain)


@pytest.mark.parametrize(
    "value",
    [
        Enum("Colour", "RED").RED,  # type: ignore[attr-defined]
        type("Moment", (datetime,), {})(2026, 1, 1),
        msgspec.Raw(b"\x01"),
        {2**64: "a name beyond 64 bits"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_equals_no_built_in_value_is_refused(value):
    with pytest.raises(Unstorable, match=r"has no encoding|more than 64 bits"):
        encode({"deep": [value]})


SCALAR_NAMES = st.one_of(
    st.integers(-3, 3),
    st.booleans(),
    st.floats(allow_nan=False),
    st.integers(-3, 3).map(float),
    st.decimals(allow_nan=False),
    st.integers(-30, 30).map(lambda tenths: Decimal(tenths) / 10),
    st.integers(-30, 30).map(lambda tenths: Decimal(f"{tenths}.500")),
    st.sampled_from(["name", State.NAME, Step.NAME, Text("name"), b"name", None]),
    st.timezones().map(lambda zone: datetime(2026, 1, 1, 12, tzinfo=UTC).astimezone(zone)),
)
NAMES = st.recursive(
    SCALAR_NAMES,
    lambda names: st.lists(names, max_size=2).map(tuple) | st.frozensets(names, max_size=2),
    max_leaves=3,
)


@given(one=NAMES, other=NAMES)
def test_names_that_are_equal_are_one_name_and_others_are_not(one, other):
    alike = encode(normalize_name(one)) == encode(normalize_name(other))
    assert alike == (normalize_name(one) == normalize_name(other))
    assert alike or one != other
    if not isinstance(one, Enum):
        assert normalize_name(one) == one


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        (True, 1),
        (2.0, 2),
        (Decimal("2.00"), 2),
        (Decimal("0.50"), 0.5),
        (Decimal("0.10"), Decimal("0.1")),
        ((1.0, (True,)), (1, (1,))),
        (frozenset({2.0}), frozenset({2})),
        (State.NAME, "name"),
        (datetime(2026, 1, 1, 13, tzinfo=PARIS), datetime(2026, 1, 1, 12, tzinfo=UTC)),
        (1e300, int(1e300)),
        (Decimal("1E+999999"), Decimal("1E+999999")),
        (math.inf, math.inf),
        (0.1, 0.1),
        ("2", "2"),
        (None, None),
    ],
)
def test_a_name_has_one_spelling(name, normal):
    assert same(normalize_name(name), normal)


def test_equal_sets_have_one_encoding_in_every_process():
    program = (
        "from trunkline.backends.codec import encode\n"
        "print(encode({'a', 'b', 'c', 1, None, ('d', frozenset('xyz'))}).hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_a_refusal_names_types_and_not_values():
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


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        (Text("a"), "a"),
        ((State.NAME, Level.LOW), ("name", 1)),
        (Point(1, Point(2, Step.NAME)), (1, (2, "name"))),
    ],
)
def test_a_key_of_a_subclass_is_the_key_that_it_equals(key, plain):
    assert encode_key(key) == encode_key(plain)
    assert same(decode_key(encode_key(key)), plain)


@pytest.mark.parametrize("wrong", [True, 1.0])
def test_what_a_tuple_holds_is_checked_though_an_equal_one_was_encoded_before(wrong):
    for wrap in (lambda part: (1, (part,)), lambda part: (1, Point(part, 2))):
        encode_key(wrap(1))
        with pytest.raises(ConfigurationError, match=f"not {type(wrong).__name__}"):
            encode_key(wrap(wrong))


def test_none_is_no_key():
    with pytest.raises(ConfigurationError, match="None is no key"):
        encode_key(None)
    assert decode_key(encode_key((None,))) == (None,)


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
