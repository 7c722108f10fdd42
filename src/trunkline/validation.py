"""Checks of settings and texts that every part shares."""

from __future__ import annotations

from trunkline.errors import ConfigurationError

__all__ = ("require_non_negative", "require_positive", "text_problem")

#: Larger numbers do not fit into a float, a timer or a column. As milliseconds it is 30,000 years.
_LARGEST = 10**15


def require_positive(name: str, value: object) -> int:
    """`value`, if it is an int from 1 to 10**15.

    Raises:
        ConfigurationError: it is not; a bool and a float are refused as well.
    """
    return _require(name, value, 1)


def require_non_negative(name: str, value: object) -> int:
    """`value`, if it is an int from 0 to 10**15.

    Raises:
        ConfigurationError: it is not; a bool and a float are refused as well.
    """
    return _require(name, value, 0)


def _require(name: str, value: object, least: int) -> int:
    if type(value) is not int or value < least:
        raise ConfigurationError(f"{name} must be an int of {least} or more, not {value!r}")
    if value > _LARGEST:
        raise ConfigurationError(f"{name} must be an int of at most 10**15")
    return value


def text_problem(text: str) -> str | None:
    """Why no database can store `text`; `None` if it can be stored."""
    if "\0" in text:
        return "has a NUL"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "is not valid Unicode"
    return None
