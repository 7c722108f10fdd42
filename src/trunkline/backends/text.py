"""What is wrong with a text that is to be stored or looked up."""

from __future__ import annotations

__all__ = ("text_problem",)


def text_problem(text: str) -> str | None:
    """Why no database can store `text`; `None` if it can be stored."""
    if "\0" in text:
        return "has a NUL"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "is no valid Unicode"
    return None
