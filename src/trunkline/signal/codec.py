"""The families of keys, and their entries as a database keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trunkline.backends.cipher import Cipher, EncryptionKey
from trunkline.backends.codec import Unstorable, decode, encode
from trunkline.errors import ConfigurationError, UnreadableRecord
from trunkline.signal.adapter import KeyName, unreadable
from trunkline.validation import text_problem

__all__ = ("FAMILIES", "EntryCodec")

#: Those of the Signal protocol, as Baileys and its ports name them.
FAMILIES = frozenset(
    {
        "app-state-sync-key",
        "app-state-sync-version",
        "device-list",
        "identity-key",
        "lid-mapping",
        "pre-key",
        "sender-key",
        "sender-key-memory",
        "session",
        "tctoken",
    }
)

#: The first byte of a stored value.
_PLAIN, _ENCRYPTED = b"\0", b"\1"

#: The longest name that every database can index, in bytes of UTF-8.
_MAX_NAME = 1_000


class EntryCodec:
    """Checks names, and turns values into the bytes that a database keeps, and back."""

    def __init__(self, families: Iterable[str], encryption_key: EncryptionKey | None) -> None:
        if isinstance(families, str):
            raise ConfigurationError(f"families= takes a list of names, not one: {families!r}")
        self._families = FAMILIES | {
            _require_text("the name of a family", family) for family in families
        }
        self._cipher = None if encryption_key is None else Cipher(encryption_key)

    def lock(self, key: str) -> str:
        return _require_text("the key of a transaction", key)

    def names(self, family: str, ids: Iterable[str]) -> list[KeyName]:
        self._check_family(family)
        if isinstance(ids, str | bytes):
            raise ConfigurationError(f"ids of {family} are a list of strings, not one string")
        names = (KeyName(family, _require_text(f"an id of {family}", one)) for one in ids)
        return list(dict.fromkeys(names))

    def changes(self, data: Mapping[str, Mapping[str, Any]]) -> dict[KeyName, bytes | None]:
        if not isinstance(data, Mapping):
            raise ConfigurationError(f"set() takes a map, not {type(data).__name__}")
        changes: dict[KeyName, bytes | None] = {}
        for family, values in data.items():
            self._check_family(family)
            if not isinstance(values, Mapping):
                raise ConfigurationError(
                    f"{family} takes a map of values by id, not {type(values).__name__}"
                )
            for entry_id, value in values.items():
                name = KeyName(family, _require_text(f"an id of {family}", entry_id))
                changes[name] = None if value is None else self._encode(name, value)
        return changes

    def decode(self, name: KeyName, encoded: bytes) -> Any:
        mark, payload = encoded[:1], encoded[1:]
        if mark == _ENCRYPTED:
            payload = self._decrypt(f"{name.family} {name.id!r}", payload)
        elif mark != _PLAIN:
            raise unreadable(name)
        try:
            return decode(payload)
        except Exception:
            pass  # its message may quote the value
        raise unreadable(name)

    def _decrypt(self, what: str, payload: bytes) -> bytes:
        if self._cipher is None:
            raise ConfigurationError(f"{what} is encrypted: give encryption_key=")
        try:
            return self._cipher.decrypt(payload.decode("ascii", "replace"), what)
        except ConfigurationError as error:
            problem = f"{error}, or is damaged"
        raise _Undecryptable(problem)

    def _encode(self, name: KeyName, value: object) -> bytes:
        try:
            plain = encode(value)
        except Unstorable as error:
            raise ConfigurationError(
                f"{name.family} {name.id!r} cannot be stored: {error}"
            ) from None
        if self._cipher is None:
            return _PLAIN + plain
        return _ENCRYPTED + self._cipher.encrypt(plain).encode()

    def _check_family(self, family: object) -> None:
        if not isinstance(family, str):
            raise ConfigurationError(f"a family is a str, not {type(family).__name__}")
        if family not in self._families:
            raise ConfigurationError(
                f"unknown family {family[:40]!r}: known are {', '.join(sorted(self._families))};"
                " allow others by families="
            )


class _Undecryptable(UnreadableRecord, ConfigurationError):
    """A value that was encrypted with another key, or is damaged: both look the same."""


def _require_text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{what} is a str, not {type(value).__name__}")
    problem = text_problem(value) if value else "is empty"
    if problem is None and len(value) * 4 > _MAX_NAME and len(value.encode()) > _MAX_NAME:
        problem = f"is longer than {_MAX_NAME} bytes"
    if problem is not None:
        raise ConfigurationError(f"{what} {problem}, and cannot be stored: {value[:40]!r}")
    return value
