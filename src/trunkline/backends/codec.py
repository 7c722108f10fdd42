"""Values as bytes, and back as they went in: msgpack, with extensions for what it lacks.

JSON and msgpack know nothing of tuples and sets, and what they make of dates and decimals does not
come back as it went in. Here each such value is an extension of its own, so that decoding gives
what was encoded, type by type. A datetime keeps its `zoneinfo` zone by name and any other zone as
the offset that it has at that instant.

A value of a subclass comes back as the built-in value that it equals: an enum member with the mixin
`str` or `int` as its value, an `OrderedDict` or `defaultdict` as a dict, a named tuple as a tuple.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec.msgpack import Ext

from trunkline.errors import ConfigurationError

__all__ = (
    "Key",
    "Unstorable",
    "copy_fields",
    "copy_value",
    "decode",
    "decode_key",
    "encode",
    "encode_key",
    "normalize_name",
)

#: What identifies a conversation: an int, a string, or tuples of ints, strings and None, nested.
Key: TypeAlias = int | str | tuple["Key | None", ...]

_PLAIN = frozenset({type(None), bool, float, str, bytes})
_SCALARS = _PLAIN | {int}
_IMMUTABLE = _SCALARS | {date, datetime, time, timedelta, Decimal, UUID}
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

#: type → what makes a built-in value of an instance of a subclass.
_BUILT_IN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: bytes.__bytes__,
    dict: dict,
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
}

_encoder = msgspec.msgpack.Encoder()


def encode(value: object) -> bytes:
    """`value` as bytes.

    Args:
        value: None, bools, ints, floats, strings, bytes, lists, tuples, sets, frozensets, dicts and
            subclasses of these; datetimes, dates, times, timedeltas, Decimals and UUIDs; nested up
            to 100 deep.

    Raises:
        Unstorable: it holds something else. The message names types, never values, which may be
            secrets.
    """
    try:
        return _encoder.encode(value if type(value) in _PLAIN else _pack(value, 0))
    except UnicodeEncodeError:
        raise Unstorable("a str is not valid Unicode") from None


def copy_value(value: Any) -> Any:
    """What decoding `value` after encoding it gives: a copy, which no caller can change.

    Raises:
        Unstorable: it has no encoding.
    """
    kind = type(value)
    if kind in _SCALARS and (kind is not str or value.isascii()):
        return value
    return decode(encode(value))


def copy_fields(fields: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of a map of values that `copy_value` has made."""
    if _IMMUTABLE.issuperset(map(type, fields.values())):
        return dict(fields)
    return {name: copy_value(value) for name, value in fields.items()}


def normalize_name(name: Any) -> Any:
    """The one spelling of all names that are equal in Python: 2 for `2.0`, 1 for `True`.

    A map has one entry for names that are equal, but they would be encoded differently.

    Args:
        name: a name of a map, hashable.
    """
    kind = type(name)
    if kind is str:
        return name
    if kind is bool or (kind is float and name.is_integer()):
        return int(name)
    if kind is tuple or kind is frozenset:
        return kind(map(normalize_name, name))
    if kind is Decimal and name.is_finite() and name.adjusted() < _MAX_EXPONENT:
        if name == int(name):
            return int(name)
        if name == float(name):
            return float(name)
        return name.normalize(Context(prec=len(name.as_tuple().digits)))
    if kind is datetime and name.utcoffset() is not None:
        return name.astimezone(UTC)
    base = _base(kind)
    return name if base is None or base is kind else normalize_name(_BUILT_IN[base](name))


#: Of larger Decimals no int is made.
_MAX_EXPONENT = 400


def _base(kind: type) -> type | None:
    """The built-in type that `kind` is or extends."""
    return next((base for base in kind.__mro__ if base in _BUILT_IN), None)


def encode_key(key: Key) -> str:
    """A key as ASCII text; different keys have different texts.

    Raises:
        ConfigurationError: a key that is `None`, that holds anything but ints, strings and None, or
            that is too long.
    """
    if type(key) is tuple:
        try:
            return _encode_flat_key(*key)
        except TypeError:
            pass  # a part is a tuple, or of a type that is refused below
    if key is None:
        raise ConfigurationError(
            "None is no key: what the key was made from lacks a part that its strategy needs"
        )
    return _dump_key(_checked_key(key, key, 0))


@lru_cache(maxsize=16_384)
def decode_key(text: str) -> Key:
    """The key of which `encode_key` made `text`."""
    key: Key = _tuples(json.loads(text))
    return key


# Typed: an int and a bool that are equal must not share an entry. That does not extend to what is
# inside a part. What is raised is not cached.
@lru_cache(maxsize=16_384, typed=True)
def _encode_flat_key(*parts: Any) -> str:
    if not _FLAT.issuperset(map(type, parts)):
        raise TypeError("not flat")
    return _dump_key(parts)


_FLAT = frozenset({int, str, type(None)})


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
        if kind is not tuple:
            items.sort(key=_encoder.encode)  # equal sets are encoded alike
        return Ext(_COLLECTIONS[kind], _encoder.encode(items))
    if kind in _TEXTUAL:
        code, to_text = _TEXTUAL[kind]
        return Ext(code, to_text(value).encode())
    if kind in _LISTED:
        code, to_list = _LISTED[kind]
        return Ext(code, _encoder.encode(to_list(value)))
    base = _base(kind)
    if base is not None:
        return _pack(_BUILT_IN[base](value), depth)
    raise Unstorable(f"type {kind.__module__}.{kind.__qualname__} has no encoding")


def _packed_name(name: Any) -> Any:
    kind = type(name)
    if kind not in _SCALARS:
        base = _base(kind)
        if base not in _SCALARS:
            raise Unstorable(f"a map's keys are scalars, not {kind.__name__}")
        return _packed_name(_BUILT_IN[base](name))
    if kind is int and not -(2**63) <= name < 2**64:
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
    if part is None:
        return part
    if isinstance(part, str | int) and type(part) is not bool:
        return _BUILT_IN[str if isinstance(part, str) else int](part)
    if depth == _MAX_DEPTH:
        raise ConfigurationError(f"a key nested more than {_MAX_DEPTH} deep cannot be stored")
    if isinstance(part, tuple):
        return [_checked_key(item, key, depth + 1) for item in part]
    raise ConfigurationError(
        f"a key holds ints, strings, None and tuples of these, not {type(part).__name__}: {key!r}"
    )


def _tuples(part: Any) -> Any:
    return tuple(_tuples(item) for item in part) if isinstance(part, list) else part
