"""What the tests of the suite store, and how they compare it."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

__all__ = (
    "BOT",
    "EQUAL_NAMES",
    "KEY",
    "KEYS",
    "KINDS",
    "MORTAL",
    "SUBCLASSES",
    "UNSTORABLE",
    "WRONG_KEYS",
    "Answer",
    "ChatMember",
    "Expire",
    "same",
)

#: Lets milliseconds pass for an adapter.
Expire: TypeAlias = Callable[[int], Awaitable[None]]

BOT, KEY = "bot", (42, 7)
#: A bot whose conversations end when they are idle.
MORTAL = "mortal"


class ChatMember(NamedTuple):
    chat_id: int
    user_id: int


class Text(str):
    """A string as libraries for configuration files or translations have it."""


class Answer(str, Enum):  # noqa: UP042 - this kind has another `format`
    YES = "yes"


class Level(IntEnum):
    LOW = 1


#: Values of subclasses, and the built-in values that they equal.
SUBCLASSES: list[tuple[Any, Any]] = [
    (Text("red"), "red"),
    (Answer.YES, "yes"),
    (Level.LOW, 1),
    (ChatMember(1, 2), (1, 2)),
    (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (defaultdict(list, {Answer.YES: [Level.LOW]}), {"yes": [1]}),
    ([{"deep": (Answer.YES, {Level.LOW})}], [{"deep": ("yes", {1})}]),
]

#: Keys that are all different.
KEYS: list[Any] = [
    0,
    1,
    -1,
    2**70,
    "",
    "1",
    "None",
    "null",
    "[1,2]",
    "(1, 2)",
    "a b",
    'quote " and \\',
    "nul \0",
    "naïve ☃ 𝄞",
    "{brace}",
    "%s?:x",
    (),
    (None,),
    (1,),
    ("1",),
    (1, 2),
    ("1", "2"),
    (1, "2"),
    (1, (2,)),
    ((1, 2),),
    ((1,), 2),
    (1, 2, None),
    (1, None, 2),
    (0, 1, 2),
    ("1,2",),
    ("x" * 1_000,),
]

WRONG_KEYS: dict[str, Any] = {
    "bool": True,
    "float": 1.5,
    "bytes": b"key",
    "list": [1, 2],
    "dict": {"chat": 1},
    "frozenset": frozenset({1}),
    "object": object(),
    "datetime": (1, datetime(2026, 1, 1)),
}

#: Names of data that are equal in Python, and so name one thing.
EQUAL_NAMES: list[tuple[Any, Any]] = [
    (2, 2.0),
    (1, True),
    (0, -0.0),
    (Decimal("2.50"), 2.5),
    ((1, "a"), (True, Text("a"))),
    (Text("name"), "name"),
]

PARIS = ZoneInfo("Europe/Paris")

#: One value of each kind, and those that are easily lost on the way.
KINDS: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 1, 2**31, 2**53 + 1, -(2**63), 2**64 - 1],
    "big ints": [2**64, -(2**63) - 1, 10**40, -(10**5_000)],
    "floats": [0.0, -0.0, 1.5, 1e308, math.inf, -math.inf, math.nan],
    "strings": ["", "naïve ☃ 𝄞", "nul \0", "'; DROP TABLE x; --", "%s {} \\"],
    "bytes": [b"", b"\x00\xff", bytes(range(256))],
    "tuples": [(), (1, (2, "3")), ([1], (2,))],
    "sets": [set(), {1, 2}, {(1, 2), None, "x"}, frozenset({frozenset({1})})],
    "maps": {"a": {"b": {}}, 1: "int", None: "none", b"x": "bytes", 1.5: "float", False: "bool"},
    "datetimes": [
        datetime(2026, 2, 3, 4, 5, 6, 789),
        datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
        datetime(2026, 2, 3, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
        datetime.min,
        datetime.max,
    ],
    "the hour that comes twice": [
        datetime(2026, 10, 25, 2, 30, tzinfo=PARIS),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=PARIS),
    ],
    "dates": [date(2026, 2, 3), time(4, 5, 6, 7), time(4, 5, tzinfo=UTC), timedelta(-1, 2, 3)],
    "decimals": [Decimal("0.10"), Decimal("-1E+50"), Decimal("NaN"), Decimal("-0")],
    "uuids": UUID(int=42),
    "deep": [[[[[[[[[[{"a": ({"b"},)}]]]]]]]]]],
}

_ENDLESS: list[Any] = []
_ENDLESS.append(_ENDLESS)

UNSTORABLE: dict[str, Any] = {
    "an object": object(),
    "a class": int,
    "a bytearray": bytearray(b"x"),
    "an enum member": Enum("Colour", "RED").RED,  # type: ignore[attr-defined]
    "deep": {"a": [{"b": (object(),)}]},
    "half a surrogate": "\ud800",
    "half a surrogate as a name": {"\ud800": 1},
    "a tuple as a name": {(1, 2): 3},
    "a list without end": _ENDLESS,
}


def same(found: object, stored: object) -> bool:
    """Whether two values are equal in every type within, zones, folds and NaN included."""
    if type(found) is not type(stored):
        return False
    if isinstance(stored, Mapping):
        assert isinstance(found, Mapping)
        return same({_typed(one) for one in found}, {_typed(one) for one in stored}) and all(
            same(found[name], stored[name]) for name in stored
        )
    if isinstance(stored, list | tuple):
        assert isinstance(found, list | tuple)
        return len(found) == len(stored) and all(map(same, found, stored))
    if isinstance(stored, set | frozenset):
        assert isinstance(found, set | frozenset)
        return {_typed(one) for one in found} == {_typed(one) for one in stored}
    # As text, the zone and fold of an instant count, and NaN is NaN.
    return found == stored if isinstance(stored, int) else repr(found) == repr(stored)


def _typed(value: object) -> tuple[type, object]:
    """`value` so that `True` and `1`, or `(1,)` and `(1.0,)`, are different."""
    if isinstance(value, tuple):
        return tuple, tuple(map(_typed, value))
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(_typed, value))
    return type(value), repr(value)
