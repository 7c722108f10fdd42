"""URLs as they may be shown."""

from __future__ import annotations

import re

__all__ = ("hide_password",)


def hide_password(url: str) -> str:
    """`url` with `***` in the place of its password. In doubt it hides too much."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _USER_AND_PASSWORD.sub(r"\1***\3", url)
    address, query = _split_query(rest)
    if not address.startswith("/"):
        address = _USER_AND_PASSWORD.sub(r"\1***\3", address)
        address = _HOST_AND_NO_PORT.sub(r"\1***", address)
    return _SECRET_OPTION.sub("***", f"{scheme}://{address}{query}")


#: A password that should have been escaped may hold any character, also `@`.
_USER_AND_PASSWORD = re.compile(r"^([^:]*:)(.*)(@)", re.DOTALL)
#: `postgresql://user:password`, where the host was forgotten: no port is behind the colon.
_HOST_AND_NO_PORT = re.compile(r"^((?:[^@]*@)?[^:@/\[]*:)(?!\d*(?:[/,?]|$))[^@]*$")
_SECRET_OPTION = re.compile(r"(?<=password=)[^&]*", re.IGNORECASE)
_QUERY = re.compile(r"\?(?=\w+=)")


def _split_query(rest: str) -> tuple[str, str]:
    """User, password, host and path; and the query with its question mark.

    A question mark may belong to the password: then the `@` before the host is yet to come.
    """
    for mark in _QUERY.finditer(rest):
        if "@" in rest[: mark.start()] or "@" not in rest[mark.end() :]:
            return rest[: mark.start()], rest[mark.start() :]
    return rest, ""
