"""Values as bytes, and back as they went in: msgpack, with extensions for what it lacks.

JSON and msgpack know nothing of tuples and sets, and what they make of dates and decimals does not
come back as it went in. Here each such value is an extension of its own, so that decoding gives
what was encoded, type by type. A datetime keeps its `zoneinfo` zone by name and any other zone as
the offset that it has at that instant.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec.msgpack import Ext

from trunkline.errors import ConfigurationError

__all__ = ("Key", "Unstorable", "decode", "decode_key", "encode", "encode_key")

#: What identifies a conversation: a scalar, or tuples of ints, strings and None, nested.
Key: TypeAlias = int | str | tuple["Key", ...] | None

_PLAIN = (type(None), bool, float, str, bytes)
_KEYS = (type(None), bool, int, float, str, bytes)
_KEY_PARTS = (int, str, type(None))
#: What PostgreSQL takes into an index is shorter than 2,704 bytes, the bot's name included.
_MAX_KEY = 1_500

#: Collections in collections. Python's own limit depends on who calls, so that without this one
#: what was stored might not be readable from another place.
_MAX_DEPTH = 100

_TUPLE, _SET, _FROZENSET, _DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID, _BIG_INT = range(10)

#: type → (extension code, what makes text of it).
_TEXTUAL: dict[type, tuple[int, Callable[[Any], str]]] = {
    date: (_DATE, date.isoformat),
    Decimal: (_DECIMAL, str),
    UUID: (_UUID, str),
}
_FROM_TEXT: dict[int, Callable[[str], Any]] = {
    _DATE: date.fromisoformat,
    _DECIMAL: Decimal,
    _UUID: UUID,
}
#: type → (extension code, what makes a list of it).
_LISTED: dict[type, tuple[int, Callable[[Any], list[Any]]]] = {
    datetime: (_DATETIME, lambda value: [value.isoformat(), value.fold, _zone(value)]),
    time: (_TIME, lambda value: [value.isoformat(), value.fold, _zone(value)]),
    timedelta: (_TIMEDELTA, lambda value: [value.days, value.seconds, value.microseconds]),
}
_COLLECTIONS: dict[type, int] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_FROM_LIST: dict[int, Callable[[list[Any]], Any]] = {
    _TUPLE: tuple,
    _SET: set,
    _FROZENSET: frozenset,
    _DATETIME: lambda parts: _in_zone(datetime.fromisoformat(parts[0]), *parts[1:]),
    _TIME: lambda parts: _in_zone(time.fromisoformat(parts[0]), *parts[1:]),
    _TIMEDELTA: lambda parts: timedelta(*parts),
}

_encoder = msgspec.msgpack.Encoder()


def encode(value: object) -> bytes:
    """`value` as bytes.

    Args:
        value: None, bools, ints, floats, strings, bytes, lists, tuples, sets, frozensets, maps,
            datetimes, dates, times, timedeltas, Decimals and UUIDs, nested up to 100 deep.

    Raises:
        Unstorable: it holds something else. The message tells of types, never of values, which
            may be secrets.
    """
    try:
        return _encoder.encode(_pack(value, 0))
    except UnicodeEncodeError:
        raise Unstorable("a str is not valid Unicode") from None


def encode_key(key: Key) -> str:
    """A key as ASCII text; different keys give different texts.

    Raises:
        ConfigurationError: a key that holds anything but ints, strings and None, or is too long.
    """
    if type(key) is tuple and all(type(part) in _KEY_PARTS for part in key):
        return _encode_flat_key(key)
    return _dump_key(_checked_key(key, key, 0))


@lru_cache(maxsize=16_384)
def decode_key(text: str) -> Key:
    """The key of which `encode_key` made `text`."""
    key: Key = _tuples(json.loads(text))
    return key


# Exact types only: an int and a bool that are equal must not share an entry.
@lru_cache(maxsize=16_384)
def _encode_flat_key(key: tuple[Key, ...]) -> str:
    return _dump_key(list(key))


def _dump_key(parts: Any) -> str:
    try:
        text = json.dumps(parts, separators=(",", ":"))
    except ValueError:  # an int of more than 4300 digits
        text = None
    if text is None or len(text) > _MAX_KEY:
        raise ConfigurationError(f"a key of more than {_MAX_KEY} characters cannot be stored")
    if "\\ud" in text:
        # Two halves of a surrogate pair look like the whole; neither is valid Unicode.
        try:
            json.dumps(parts, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ConfigurationError("a str of a key is not valid Unicode") from None
    return text


class Unstorable(ConfigurationError):
    """A value that has no encoding."""


def _pack(value: Any, depth: int) -> Any:
    """`value` with an extension for everything that msgpack would change."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        # Beyond 64 bits msgpack has no integers.
        return value if -(2**63) <= value < 2**64 else Ext(_BIG_INT, _int_bytes(value))
    if depth == _MAX_DEPTH:
        raise Unstorable(f"it is nested more than {_MAX_DEPTH} deep")
    if kind is dict:
        return {_packed_name(name): _pack(item, depth + 1) for name, item in value.items()}
    if kind is list:
        return [_pack(item, depth + 1) for item in value]
    if kind in _COLLECTIONS:
        items = [_pack(item, depth + 1) for item in value]
        return Ext(_COLLECTIONS[kind], _encoder.encode(items))
    if kind in _TEXTUAL:
        code, to_text = _TEXTUAL[kind]
        return Ext(code, to_text(value).encode())
    if kind in _LISTED:
        code, to_list = _LISTED[kind]
        return Ext(code, _encoder.encode(to_list(value)))
    raise Unstorable(f"type {kind.__module__}.{kind.__qualname__} has no encoding")


def _packed_name(name: Any) -> Any:
    if type(name) not in _KEYS:
        raise Unstorable(f"a map's keys are scalars, not {type(name).__name__}")
    if type(name) is int and not -(2**63) <= name < 2**64:
        raise Unstorable("a map's int key has more than 64 bits")
    return name


def _int_bytes(value: int) -> bytes:
    # Not as decimal digits, of which Python makes no more than 4300.
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _zone(value: datetime | time) -> str | None:
    return value.tzinfo.key if type(value.tzinfo) is ZoneInfo else None


def _in_zone(value: Any, fold: int, zone: str | None) -> Any:
    """`value`, in the zone named `zone` if this machine knows it, else with its offset."""
    try:
        return value.replace(fold=fold, tzinfo=ZoneInfo(zone) if zone else value.tzinfo)
    except ZoneInfoNotFoundError:
        return value.replace(fold=fold)


def _unpack(code: int, payload: memoryview) -> Any:
    if code in _FROM_TEXT:
        return _FROM_TEXT[code](bytes(payload).decode())
    if code == _BIG_INT:
        return int.from_bytes(payload, "big", signed=True)
    return _FROM_LIST[code](_decoder.decode(payload))


_decoder = msgspec.msgpack.Decoder(ext_hook=_unpack)

#: The value that `encode` was given.
decode = _decoder.decode


def _checked_key(part: object, key: object, depth: int) -> Any:
    if part is None or type(part) is str or type(part) is int:
        return part
    if depth == _MAX_DEPTH:
        raise ConfigurationError(f"a key nested more than {_MAX_DEPTH} deep cannot be stored")
    if isinstance(part, tuple):
        return [_checked_key(item, key, depth + 1) for item in part]
    raise ConfigurationError(
        f"a key holds ints, strings, None and tuples of these, not {type(part).__name__}: {key!r}"
    )


def _tuples(part: Any) -> Any:
    return tuple(_tuples(item) for item in part) if isinstance(part, list) else part
