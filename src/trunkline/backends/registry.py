"""Adapters by URL scheme: the one place in the project that names its backends."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import msgspec

from trunkline.actors.clock import wall_clock_ms
from trunkline.backends.adapter import Adapter
from trunkline.backends.url import hide_password
from trunkline.errors import ConfigurationError
from trunkline.validation import require_positive, text_problem

__all__ = (
    "AdapterOptions",
    "open_adapter",
    "register_adapter",
    "registered_schemes",
    "registered_stores",
    "resolve_adapter",
)

A = TypeVar("A", bound=Adapter)

#: In bytes of UTF-8: it stands in every index beside ids, and those have their limits.
_LONGEST_NAMESPACE = 100


class AdapterOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a store tells the adapter that it opens by a URL.

    Raises:
        ConfigurationError: a value that cannot work.
    """

    #: Leads every key, index and lock: stores of two namespaces never see each other's data.
    namespace: str = "default"
    #: How long connecting, one statement, or waiting for a lock may take.
    timeout_ms: int = 5_000
    #: Milliseconds since 1970, for times to live. A server's own clock takes its place.
    clock: Callable[[], int] = wall_clock_ms

    def __post_init__(self) -> None:
        require_positive("call_timeout_ms", self.timeout_ms)
        name = self.namespace
        if not isinstance(name, str):
            raise ConfigurationError(f"namespace is a str, not {name!r}")
        problem = text_problem(name)
        if problem is None and not 0 < len(name.encode()) <= _LONGEST_NAMESPACE:
            problem = f"does not have 1 to {_LONGEST_NAMESPACE} bytes"
        if problem is not None:
            raise ConfigurationError(f"namespace {name!r} {problem}, and cannot be stored")


#: scheme → store → the class of its adapter, or where to import it from, so that a program loads
#: only the drivers that it uses.
_adapters: dict[str, dict[str, type[Adapter] | str]] = {}


def register_adapter(scheme: str, adapter: type[Adapter]) -> None:
    """Open URLs of `scheme` with this class of adapters, for the store that it names.

    A scheme that is registered already gets the new class.

    Args:
        scheme: what stands before `://`, in lower case.
        adapter: subclass of a store's contract, with a `from_url`.

    Raises:
        ConfigurationError: it is not a class of adapters, or names no store.
    """
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter) and adapter.store):
        raise ConfigurationError(f"an adapter subclasses a store's contract, unlike {adapter!r}")
    _adapters.setdefault(scheme.lower(), {})[adapter.store] = adapter


def registered_schemes(store: str) -> list[str]:
    """The schemes that a store can be opened with, sorted."""
    return sorted(scheme for scheme, stores in _adapters.items() if store in stores)


def registered_stores(url: str) -> list[str]:
    """The stores that the scheme of `url` is registered for; empty if it is not registered."""
    return list(_adapters.get(_scheme(url), {}))


def open_adapter(store: str, url: str, options: AdapterOptions) -> Adapter:
    """The adapter of a store for `url`, not yet connected.

    Args:
        store: `persistence`, `fsm`, `signal`, `inbox`.
        url: `scheme://…`; `postgresql+psycopg://` counts as `postgresql://`.
        options: what the adapter is to know.

    Raises:
        ConfigurationError: not a URL, a scheme that is not registered for this store, a missing
            extra, or a URL that cannot work.
    """
    found = _adapters.get(_scheme(url), {}).get(store)
    if found is None:
        known = ", ".join(f"{name}://" for name in registered_schemes(store))
        raise ConfigurationError(
            f"no {store} adapter for {hide_password(url)!r}: known are {known}"
        )
    if isinstance(found, str):
        module, _, name = found.partition(":")
        adapter_class: type[Adapter] = getattr(import_module(module), name)
    else:
        adapter_class = found
    return adapter_class.from_url(url, options)


def _scheme(url: str) -> str:
    if not isinstance(url, str) or "://" not in url:
        shown = hide_password(url) if isinstance(url, str) else url
        raise ConfigurationError(f"a store's URL looks like 'sqlite:///bot.db', not {shown!r}")
    return url.partition("://")[0].partition("+")[0].lower()


def resolve_adapter(
    contract: type[Any], url: str | None, adapter: A | None, options: AdapterOptions
) -> A:
    """The adapter that a program gave to a store, or the one for its URL.

    Args:
        contract: what a store of this kind needs.
        url: as in `open_adapter`.
        adapter: an adapter instead.
        options: for the adapter of a URL.

    Raises:
        ConfigurationError: both, neither, an adapter of another store, a namespace beside an
            adapter that has another one, or whatever `open_adapter` raises.
    """
    if adapter is None:
        if url is None:
            raise ConfigurationError("give a URL, such as 'sqlite:///bot.db', or an adapter")
        chosen: Any = open_adapter(contract.store, url, options)
    elif url is not None:
        raise ConfigurationError("give a URL or an adapter, not both")
    else:
        chosen = adapter
        default = AdapterOptions.__struct_defaults__[0]
        if options.namespace not in (default, adapter.namespace):
            raise ConfigurationError(
                f"the adapter has the namespace {adapter.namespace!r}: give {options.namespace!r}"
                " to the adapter, not to the store"
            )
    if not isinstance(chosen, contract):
        raise ConfigurationError(
            f"a {contract.store} store needs a {contract.__name__}, not {type(chosen).__name__}"
        )
    result: A = chosen
    return result


def _register_built_in() -> None:
    sql = {
        "persistence": "trunkline.persistence.sql:SQLPersistenceAdapter",
        "fsm": "trunkline.fsm.sql:SQLFSMAdapter",
        "signal": "trunkline.signal.sql:SQLSignalAdapter",
        "inbox": "trunkline.turns.sql:SQLInboxAdapter",
    }
    redis = {
        "fsm": "trunkline.fsm.redis:RedisFSMAdapter",
        "signal": "trunkline.signal.redis:RedisSignalAdapter",
        "inbox": "trunkline.turns.redis:RedisInboxAdapter",
    }
    memory = {
        "persistence": "trunkline.persistence.memory:MemoryPersistenceAdapter",
        "fsm": "trunkline.fsm.memory:MemoryFSMAdapter",
        "signal": "trunkline.signal.memory:MemorySignalAdapter",
        "inbox": "trunkline.turns.memory:MemoryInboxAdapter",
    }
    _adapters["memory"] = dict(memory)
    for scheme in ("sqlite", "postgresql"):
        _adapters[scheme] = dict(sql)
    for scheme in ("redis", "rediss", "unix", "valkey", "valkeys"):
        _adapters[scheme] = dict(redis)


_register_built_in()
