"""What may be stored: the base of the models, and the check of their fields."""

from __future__ import annotations

import math
import reprlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, ClassVar, Self, TypeVar, get_args, get_type_hints

import msgspec
from msgspec.structs import replace

from trunkline.errors import InvalidModel
from trunkline.persistence.documents import UNREADABLE, decode_document, encode_document, kind_of
from trunkline.validation import text_problem

__all__ = (
    "Model",
    "checked",
    "checked_flow",
    "checked_json",
    "choices",
    "external_key",
    "folded",
    "id_problem",
    "optional_id",
    "require_external_id",
    "require_id",
    "require_mapping",
    "shown",
)

M = TypeVar("M", bound="Model")
T = TypeVar("T")

#: An index of PostgreSQL holds no more than 2,704 bytes, and some are of three ids.
_LONGEST_ID = 800
_HUGE = 10 ** (_LONGEST_ID - 1)

#: Python reads and compares what is nested no deeper than its stack, of which others use a part.
_DEEPEST = 500


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Base of the models.

    What JSON holds has no cycles, and so the garbage collector need not look at models. With many
    calls under way at once it would do so with each batch.
    """

    #: Fields whose values appear in no repr and no error; unknown fields are then secret as well.
    secret_fields: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def new(cls, /, **fields: Any) -> Self:
        """A checked model with its id and times filled in where `fields` lacks them.

        Raises:
            InvalidModel: a wrong type or value, a missing or an unknown field; the message names
                the model, the field and the value.
        """
        unknown = fields.keys() - _field_names(cls)
        if unknown:
            name = min(unknown)
            # What was meant for a secret field, misspelt, is as secret.
            given = "***" if cls.secret_fields else shown(fields[name])
            raise InvalidModel(
                f"{cls.__name__} has no field {name!r} (given {given});"
                f" its fields are {', '.join(cls.__struct_fields__)}"
            )
        try:
            model = cls(**fields)
        except TypeError as error:
            raise InvalidModel(f"{cls.__name__}: {error}") from None
        return checked(model)

    def nested_ids(self) -> Iterable[tuple[str, str | int]]:
        """Ids inside of maps by which a database finds it, each with the name of its field."""
        return ()


def checked(model: M) -> M:
    """`model` with every field checked, times in UTC, and its maps copied: what JSON makes of it.

    Raises:
        InvalidModel: a field is of a wrong type or value, or holds what JSON does not.
    """
    kind = kind_of(model)
    try:
        model = _in_utc(model)
        encoded = encode_document(model)
        copy: M = decode_document(kind, encoded)
        is_same = copy == model
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").partition(".")[0].partition("[")[0]
        if reason.startswith("Invalid enum value"):
            reason = f"Expected one of {', '.join(choices(kind, name))}"
        elif reason.startswith("Invalid RFC3339"):
            reason = f"Expected `datetime`, got `{type(getattr(model, name)).__name__}`"
        raise _invalid(model, name, reason) from None
    except UNREADABLE as error:
        raise _invalid(model, _unreadable_field(model), _reason(error)) from None
    if not is_same:
        _check_types(model, copy)
    if encoded.count(b"[") + encoded.count(b"{") > _DEEPEST:
        _check_depth(copy)
    has_nul = b"\\u0000" in encoded
    if has_nul or len(encoded) > _LONGEST_ID:
        _check_ids(copy, has_nul)
    return copy


def checked_json(what: str, value: T) -> T:
    """A copy of `value`: what JSON makes of it.

    Raises:
        InvalidModel: it holds what JSON does not; the message begins with `what`.
    """
    try:
        encoded = msgspec.json.encode(value)
        copy = msgspec.json.decode(encoded)
        is_same = copy == value
    except UNREADABLE as error:
        raise InvalidModel(f"{what}: {_reason(error)}") from None
    if not is_same and _has_no_number(value):
        raise InvalidModel(f"{what}: {_NO_NUMBER}")
    if encoded.count(b"[") + encoded.count(b"{") > _DEEPEST and _is_too_deep(copy):
        raise InvalidModel(f"{what}: {_TOO_DEEP}")
    checked_copy: T = copy
    return checked_copy


def checked_flow(flow: dict[str, Any]) -> dict[str, Any]:
    """A copy of an onboarding flow, as `checked_json`."""
    return checked_json(f"onboarding flow {shown(flow.get('onboarding_id'))}", flow)


def id_problem(value: str | int) -> str | None:
    """Why `value` cannot be stored as an id; `None` if it can."""
    if isinstance(value, int):
        is_long = not -_HUGE < value < _HUGE
    else:
        problem = text_problem(value)
        if problem is not None:
            return problem
        is_long = len(value.encode()) > _LONGEST_ID
    return f"is longer than {_LONGEST_ID} bytes" if is_long else None


def require_id(name: str, value: object) -> str:
    """`value` as a plain str, if it can be an id.

    Raises:
        InvalidModel: it cannot, and so cannot be found either; the message has `name`.
    """
    if type(value) is str and value.isascii() and 0 < len(value) <= _LONGEST_ID:
        if "\0" not in value:
            return value  # as nearly every id
    elif not isinstance(value, str) or not value:
        raise InvalidModel(f"{name} is a non-empty str, not {shown(value)}")
    problem = id_problem(value)
    if problem is not None:
        raise InvalidModel(f"{name} {shown(value)} {problem}, and cannot be stored")
    return value if type(value) is str else str.__str__(value)


def optional_id(name: str, value: object) -> str | None:
    """As `require_id`; `None` stays `None`."""
    return None if value is None else require_id(name, value)


def require_external_id(name: str, value: object) -> str | int:
    """`value` as a plain str or int, if a platform can have such an id.

    Raises:
        InvalidModel: it is none: empty, too long, a bool.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        return require_id(name, value)
    problem = id_problem(value)
    if problem is not None:
        raise InvalidModel(f"{name} {shown(value)} {problem}, and cannot be stored")
    return int(value)


def external_key(name: str, value: object) -> str:
    """An external id as it is looked up: `42` and `"42"` are the same. Raises `InvalidModel`."""
    return str(require_external_id(name, value))


def require_mapping(name: str, value: object) -> Mapping[str, Any]:
    """`value` if it is a mapping with keys of type str; `{}` for `None`. Raises `InvalidModel`."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidModel(f"{name} is a mapping with keys of type str, not {shown(value)}")
    return value


def folded(name: str) -> str:
    """`name` as the directory compares it: the same in any case, composed (NFC) or decomposed.

    Capital I is that of i and of Turkish dotless i, and capital dotted I is one letter where its
    small one is two: all of them are i here.
    """
    # Some letters fold to what is no longer composed, and decomposing shows the dot of a capital I.
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
    text = text.replace("i\u0307", "i").replace("\u0131", "i")
    # A NUL is text like any other, but not to PostgreSQL.
    return unicodedata.normalize("NFC", text).replace("\0", "\ufffd")


@cache
def choices(kind: type[Model], field: str) -> tuple[str, ...]:
    """The values that a field of few values may have."""
    return get_args(get_type_hints(kind)[field])


_NO_NUMBER = "JSON has no NaN and no infinity"
_TOO_DEEP = f"it is nested more than {_DEEPEST} deep"


def _reason(error: Exception) -> str:
    return _TOO_DEEP if isinstance(error, RecursionError) else str(error)


def _in_utc(model: M) -> M:
    for name in _fields_of_type(kind_of(model), datetime):
        value = getattr(model, name)
        if isinstance(value, datetime) and value.tzinfo is not UTC and value.tzinfo is not None:
            try:
                model = replace(model, **{name: value.astimezone(UTC)})
            except OverflowError:
                raise _invalid(model, name, "Expected a time that UTC has, too") from None
    return model


def _check_types(model: Model, copy: Model) -> None:
    """Refuse what JSON made something else of: a date of a string, nothing of a NaN."""
    for name in model.__struct_fields__:
        value, copied = getattr(model, name), getattr(copy, name)
        if value == copied:
            continue
        if isinstance(copied, str | datetime) and name in _scalar_fields(kind_of(model)):
            wanted = "datetime" if isinstance(copied, datetime) else "str"
            raise _invalid(model, name, f"Expected `{wanted}`, got `{type(value).__name__}`")
        if _has_no_number(value):
            raise _invalid(model, name, _NO_NUMBER)


def _check_depth(model: Model) -> None:
    for name in model.__struct_fields__:
        if _is_too_deep(getattr(model, name)):
            raise _invalid(model, name, _TOO_DEEP)


def _check_ids(model: Model, has_nul: bool) -> None:
    ids = [(name, getattr(model, name)) for name in _id_fields(kind_of(model))]
    for name, value in (*ids, *model.nested_ids()):
        if value is None:
            continue
        # A character has up to four bytes.
        if isinstance(value, int) or has_nul or len(value) > _LONGEST_ID // 4:
            problem = id_problem(value)
            if problem is not None:
                raise _invalid(model, name, f"an id that {problem} cannot be stored")


@cache
def _field_names(kind: type[Model]) -> frozenset[str]:
    return frozenset(kind.__struct_fields__)


@cache
def _id_fields(kind: type[Model]) -> tuple[str, ...]:
    """The fields by whose value a database finds a model."""
    return tuple(
        name for name in _scalar_fields(kind) if name in ("id", "channel") or name.endswith("_id")
    )


@cache
def _scalar_fields(kind: type[Model]) -> tuple[str, ...]:
    return _fields_of_type(kind, str) + _fields_of_type(kind, datetime)


@cache
def _fields_of_type(kind: type[Model], wanted: type) -> tuple[str, ...]:
    return tuple(
        name for name, hint in get_type_hints(kind).items() if wanted in {hint, *get_args(hint)}
    )


def _has_no_number(value: object) -> bool:
    return any(isinstance(one, float) and not math.isfinite(one) for one in _walk(value))


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _walk(value: object) -> Iterator[object]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(_inside(one))


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value


def _unreadable_field(model: Model) -> str:
    """The field of `model` that JSON cannot hold."""
    for name in model.__struct_fields__:
        try:
            msgspec.json.decode(msgspec.json.encode(getattr(model, name)))
        except UNREADABLE:
            return name
    return model.__struct_fields__[0]


def _invalid(model: Model, name: str, reason: str) -> InvalidModel:
    value = "***" if name in model.secret_fields else shown(getattr(model, name, None))
    return InvalidModel(f"{type(model).__name__}.{name} is {value}: {reason}")


def shown(value: object) -> str:
    """`value` as an error shows it: short, whatever it is."""
    return _SHORT.repr(value)


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes no more than 4,300 digits
            return f"an int of {x.bit_length()} bits"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 200
