from __future__ import annotations

from enum import Enum

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from trunkline import SessionKey
from trunkline.errors import InvalidSessionKey
from trunkline.routing.key import partition_of, session_key

#: Everything that Unicode has, with what the text form escapes or trips over made likely.
PARTS = st.one_of(
    st.text(),
    st.text(alphabet="%:\0\n25A3\U0001f6aa"),
    st.sampled_from(["%", ":", "%3A", "%25", "%253A", "\n", "\r\n", "\N{DOOR}", "\u0301", " "]),
)
ROOMS = st.tuples(*[PARTS.filter(bool)] * 3)
KEYS = st.builds(lambda room, thread: SessionKey(*room, thread), ROOMS, st.none() | PARTS)  # type: ignore[call-arg]


class Platform(str, Enum):  # noqa: UP042 - whose str() is not its value
    TELEGRAM = "telegram"


# -- text form -----------------------------------------------------------------------------------


@given(KEYS)
@example(SessionKey("matrix", "home", "!r:example.org", "%3A"))
@example(SessionKey("a", "b", "c", ""))
@example(SessionKey("a", "b", "c:"))
def test_every_key_comes_back_from_its_text(key):
    assert SessionKey.parse(str(key)) == key


@given(KEYS, KEYS)
@example(SessionKey("a", "b", "c", ""), SessionKey("a", "b", "c"))
@example(SessionKey("a:b", "c", "d"), SessionKey("a", "b:c", "d"))
def test_two_keys_never_share_a_text(one, other):
    assert (str(one) == str(other)) == (one == other)


def test_the_text_of_a_key_escapes_colons_and_percent_signs_and_nothing_else():
    assert str(SessionKey("irc", "libera", "#python")) == "irc:libera:#python"
    assert str(SessionKey("matrix", "home", "!r:example.org")) == "matrix:home:!r%3Aexample.org"
    assert str(SessionKey("a", "100%", "c", "x y\n")) == "a:100%25:c:x y\n"


def test_an_empty_thread_is_a_thread():
    key = SessionKey("a", "b", "c", "")
    assert str(key) == "a:b:c:"
    assert key != key.room_scope


def test_a_key_of_enum_members_has_the_text_of_their_values():
    key = SessionKey(Platform.TELEGRAM, "bot", "42")
    assert str(key) == "telegram:bot:42"
    assert SessionKey.parse(str(key)) == key == session_key(key)
    assert partition_of(key, 1_000) == partition_of(SessionKey("telegram", "bot", "42"), 1_000)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "channel:bridge:room"),
        ("a", "channel:bridge:room"),
        ("a:b", "channel:bridge:room"),
        ("a:b:c:d:e", "channel:bridge:room"),
        (":b:c", "channel of"),
        ("a::c", "bridge_id of"),
        ("a:b:", "room_id of"),
        ("a:b::t", "room_id of"),
        ("a:b:100%", "not an escape"),
        ("a:b:%3a", "not an escape"),
        ("a:%2525%:c", "not an escape"),
        ("a:b:c\udc80", "not valid Unicode"),
    ],
)
def test_text_that_no_key_has_is_refused_with_the_reason(text, why):
    with pytest.raises(InvalidSessionKey, match=why):
        SessionKey.parse(text)


@pytest.mark.parametrize("text", [None, b"a:b:c", 42, ("a", "b", "c")])
def test_only_text_is_parsed(text):
    with pytest.raises(InvalidSessionKey) as refused:
        SessionKey.parse(text)
    assert repr(text) in str(refused.value)


@given(st.text(alphabet="ab:%3A25", max_size=12))
def test_parse_answers_with_a_key_of_this_text_or_not_at_all(text):
    try:
        key = SessionKey.parse(text)
    except InvalidSessionKey:
        return
    assert str(key) == text


# -- rooms and threads ---------------------------------------------------------------------------


@given(KEYS)
def test_the_room_scope_is_the_key_without_its_thread(key):
    assert key.room_scope == SessionKey(*key[:3])
    assert key.room_scope.room_scope == key.room_scope
    assert key.same_room(key.room_scope)


def test_the_same_room_is_the_same_first_three_parts():
    key = SessionKey("a", "b", "c", "t")
    assert key.same_room(SessionKey("a", "b", "c", "other"))
    assert key.same_room(("a", "b", "c"))
    assert not key.same_room(SessionKey("a", "b", "other", "t"))


def test_a_key_is_a_tuple():
    key = SessionKey("a", "b", "c")
    assert key == ("a", "b", "c", None)
    assert hash(key) == hash(("a", "b", "c", None))
    assert key._fields == ("channel", "bridge_id", "room_id", "thread_id")  # type: ignore[attr-defined]


# -- what a key is -------------------------------------------------------------------------------


@given(KEYS)
def test_every_tuple_of_three_or_four_strings_is_a_key(key):
    assert session_key(tuple(key)) == key
    assert session_key(key) is key
    assert session_key(key[:3]) == key.room_scope


BAD_KEYS = [
    (("a", "b"), "2 parts"),
    ((), "0 parts"),
    (("a", "b", "c", "d", "e"), "5 parts"),
    ("a:b:c", "not str"),
    (["a", "b", "c"], "not list"),
    ({"channel": "a"}, "not dict"),
    (None, "not NoneType"),
    (("", "b", "c"), "channel of"),
    (("a", "", "c"), "bridge_id of"),
    (("a", "b", ""), "room_id of"),
    ((None, "b", "c"), "channel of"),
    (("a", None, "c"), "bridge_id of"),
    (("a", "b", None), "room_id of"),
    (("a", "b", 42), "type int"),
    (("a", "b", 0), "type int"),
    ((b"a", "b", "c"), "type bytes"),
    (("a", ["b"], "c"), "type list"),
    (("a", "b", "c", 7), "type int"),
    (("a", "b", "c", False), "type bool"),
    (("a", "b", "c", ["t"]), "type list"),
    (("\ud800", "b", "c"), "Unicode"),
    (("a", "\udfff", "c"), "Unicode"),
    (("a", "b", "room \udc80"), "Unicode"),
    (("a", "b", "c", "\ud83d"), "Unicode"),
]


@pytest.mark.parametrize(("key", "why"), BAD_KEYS)
def test_what_is_no_key_is_refused_with_its_value_and_the_reason(key, why):
    with pytest.raises(InvalidSessionKey) as refused:
        session_key(key)
    assert repr(key) in str(refused.value)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    "key",
    [SessionKey(*key) for key, _ in BAD_KEYS if isinstance(key, tuple) and 3 <= len(key) <= 4],
)
def test_the_short_check_on_the_hot_path_refuses_the_same_keys(key):
    with pytest.raises(InvalidSessionKey) as refused:
        partition_of(key, 8)
    with pytest.raises(InvalidSessionKey) as expected:
        session_key(key)
    assert str(refused.value) == str(expected.value)


def test_a_bad_key_is_a_value_error():
    with pytest.raises(ValueError, match="room_id"):
        session_key(("a", "b", ""))


# -- partitions ----------------------------------------------------------------------------------

#: The hash of a room is the same in every process and release: xxh3_64 of its UTF-8 parts with a
#: NUL between them. A change of these values moves every room of every running bot.
GOLDEN = [
    (("telegram", "support_bot", "42"), 16362177883816548045, 5, 3),
    (("matrix", "home", "!r:example.org"), 10812881592696664504, 0, 2),
    (("irc", "libera", "#python"), 9997365621717089155, 3, 1),
    (("discord", "main", "günther's raum \N{DOOR}"), 945301093916233996, 4, 4),
    (("a", "b", "c"), 10253449605869280036, 4, 2),
    (("x", "%", "line\nbreak"), 830607991331819311, 7, 2),
]


@pytest.mark.parametrize(("room", "digest", "of_8", "of_7"), GOLDEN)
def test_the_partition_of_a_room_never_changes(room, digest, of_8, of_7):
    key = SessionKey(*room)
    assert partition_of(key, 2**64) == digest
    assert partition_of(key, 8) == of_8
    assert partition_of(key, 7) == of_7
    assert partition_of(key, 1) == 0


@given(KEYS, st.integers(1, 64))
def test_a_partition_is_the_hash_of_the_room_modulo_their_count(key, count):
    digest = xxh3_64_intdigest(b"\0".join(part.encode() for part in key[:3]))
    assert partition_of(key, count) == digest % count


@given(ROOMS, st.none() | PARTS, st.integers(1, 64))
def test_a_thread_is_in_the_partition_of_its_room(room, thread, count):
    key = SessionKey(*room, thread)  # type: ignore[call-arg]
    assert partition_of(key, count) == partition_of(key.room_scope, count)


def test_rooms_spread_evenly_over_the_partitions():
    counts = [0] * 8
    for room in range(80_000):
        counts[partition_of(SessionKey("telegram", "bot", str(room)), 8)] += 1
    assert min(counts) > 9_500
    assert max(counts) < 10_500
