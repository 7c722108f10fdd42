"""Opening by URL: the adapter of each scheme, and a URL without its password."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

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
        raise ConfigurationError(f"a store's URL looks like 'sqlite:///bot.db', not {url!r}")
    scheme = url.partition("://")[0].partition("+")[0].lower()
    factory = schemes.get(scheme)
    if factory is None:
        known = ", ".join(f"{name}://" for name in sorted(schemes))
        raise ConfigurationError(f"no adapter for {hide_password(url)!r}: known are {known}")
    return factory(url, **options)


def hide_password(url: str) -> str:
    """`url` with `***` in the place of its password."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at or ":" not in userinfo:
        return url
    user = userinfo.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))
