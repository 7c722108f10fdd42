"""Opening by URL: the adapter of each scheme, and a URL without its password."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from trunkline.errors import ConfigurationError

__all__ = ("REDIS_SCHEMES", "choose_adapter", "hide_password")

T = TypeVar("T")

#: The schemes that the client of Redis and Valkey understands.
REDIS_SCHEMES = ("redis", "rediss", "unix", "valkey", "valkeys")


def choose_adapter(
    url: str | None,
    adapter: T | None,
    schemes: Mapping[str, Callable[..., T]],
    **options: Any,
) -> T:
    """The adapter that was given, or the one for `url`.

    Args:
        url: `scheme://…`; `postgresql+psycopg://` counts as `postgresql://`.
        adapter: an adapter instead.
        schemes: what makes an adapter out of a URL, by scheme.
        **options: handed on to it.

    Raises:
        ConfigurationError: both, neither, no URL, an unknown scheme, or a missing extra.
    """
    if adapter is not None:
        if url is not None:
            raise ConfigurationError("give a URL or an adapter, not both")
        return adapter
    if url is None:
        raise ConfigurationError("give a URL, such as 'sqlite:///bot.db', or an adapter")
    if not isinstance(url, str) or "://" not in url:
        shown = hide_password(url) if isinstance(url, str) else url
        raise ConfigurationError(f"a store's URL looks like 'sqlite:///bot.db', not {shown!r}")
    scheme = url.partition("://")[0].partition("+")[0].lower()
    factory = schemes.get(scheme)
    if factory is None:
        known = ", ".join(f"{name}://" for name in sorted(schemes))
        raise ConfigurationError(f"no adapter for {hide_password(url)!r}: known are {known}")
    return factory(url, **options)


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
