"""Models as the JSON documents that a database holds, and back.

During a rolling upgrade a newer process may store a document with fields that this version does
not know. They are kept: the model is then of a subclass that carries them as `unknown_fields`.
`msgspec.structs.replace` copies them, and `dump_model` writes them back where they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any, TypeVar

import msgspec

from trunkline.errors import UnreadableRecord

__all__ = (
    "UNREADABLE",
    "decode_document",
    "dump_model",
    "encode_document",
    "kind_of",
    "load_model",
)

T = TypeVar("T")

#: What encoding, decoding and comparing raise for what JSON does not hold.
UNREADABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.DecodeError)

#: A class of models → its subclass that carries unknown fields, and back.
_EXTENDED: dict[type, type] = {}
_KINDS: dict[type, type] = {}
_lock = Lock()


def dump_model(model: msgspec.Struct | Mapping[str, Any]) -> str:
    """The document of a model with its unknown fields, or of an onboarding flow."""
    return encode_document(model).decode()


def load_model(kind: type[T], table: str, key: object, document: str | bytes) -> T:
    """The model of a stored document.

    Args:
        kind: a class of models, or `dict` for an onboarding flow.
        table: the table that holds the document, for the error.
        key: the primary key of its row, for the error.
        document: what `dump_model` returned, in this version of trunkline or in another.

    Raises:
        UnreadableRecord: the document is no JSON, or no model of this kind. The message names the
            table and the key; it quotes no value, which may be a secret.
    """
    try:
        return decode_document(kind, document)
    except UNREADABLE as error:
        reason, _, path = str(error).partition(" - at ")
        if isinstance(error, RecursionError):
            reason = "it is nested too deep"
        elif reason.startswith("Invalid enum value"):
            reason = "Invalid enum value"
    at = f" at {path}" if path else ""
    raise UnreadableRecord(f"row {key!r} of {table} cannot be decoded: {reason}{at}")


def encode_document(model: msgspec.Struct | Mapping[str, Any]) -> bytes:
    """As `dump_model`, in bytes."""
    if type(model) not in _KINDS:
        return msgspec.json.encode(model)
    fields = msgspec.structs.asdict(model)  # type: ignore[arg-type]
    return msgspec.json.encode(fields | fields.pop("unknown_fields"))


def decode_document(kind: type[T], document: str | bytes) -> T:
    """As `load_model`, but raises one of `UNREADABLE`."""
    try:
        return _decoder(kind).decode(document)
    except msgspec.ValidationError:
        fields = msgspec.json.decode(document)
        if not isinstance(fields, dict) or not issubclass(kind, msgspec.Struct):
            raise
        unknown = {name: fields.pop(name) for name in fields.keys() - set(kind.__struct_fields__)}
        if not unknown:
            raise
        known = _decoder(kind).decode(msgspec.json.encode(fields))
        return _extend(kind, {**msgspec.structs.asdict(known), "unknown_fields": unknown})


def kind_of(model: object) -> type:
    """The class of a model, whether it carries unknown fields or not."""
    return _KINDS.get(type(model), type(model))


def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    return decoder


_decoders: dict[type, msgspec.json.Decoder[Any]] = {}


def _extend(kind: type[T], fields: dict[str, Any]) -> T:
    """A model of the subclass of `kind` that carries unknown fields."""
    with _lock:
        if kind not in _EXTENDED:
            extended = msgspec.defstruct(
                kind.__name__,
                [("unknown_fields", dict[str, Any])],
                bases=(kind,),
                module=kind.__module__,
                namespace={"__reduce__": _reduce},
                frozen=True,
                kw_only=True,
            )
            _EXTENDED[kind], _KINDS[extended] = extended, kind
    model: T = _EXTENDED[kind](**fields)
    return model


def _reduce(model: msgspec.Struct) -> tuple[Any, ...]:
    """The subclass has no name that pickle could find it by."""
    return _extend, (kind_of(model), msgspec.structs.asdict(model))
