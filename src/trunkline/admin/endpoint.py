"""A database that is inspected, copied from or copied to: the adapters of its stores."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Self

from trunkline.backends import (
    Adapter,
    AdapterOptions,
    Schema,
    hide_password,
    open_adapter,
    registered_stores,
)
from trunkline.errors import ConfigurationError

__all__ = ("DEFAULT_NAMESPACE", "Endpoint")

DEFAULT_NAMESPACE = AdapterOptions().namespace


class Endpoint:
    """The adapters for one URL: of each store, for each namespace.

    Args:
        url: what `open_adapter` takes.
        create: create or migrate what a store is kept in; without, nothing is changed.
        timeout_ms: how long one statement, or waiting for a lock, may take.

    Raises:
        ConfigurationError: no adapter is registered for the URL, or it cannot work.
    """

    def __init__(self, url: str, *, create: bool = False, timeout_ms: int = 5_000) -> None:
        self.shown_url = hide_password(url)
        self._url = url
        self._create = create
        self._timeout_ms = timeout_ms
        #: The stores that it can hold.
        self.can_hold = registered_stores(url)
        if not self.can_hold:
            raise ConfigurationError(f"no adapter for {self.shown_url!r}")
        self._adapters: dict[tuple[str, str], Adapter] = {}
        #: Those with a connection of their own.
        self._connected: list[Adapter] = []
        self._connections = ExitStack()
        #: The snapshots of the connections, while there is one.
        self._snapshots: ExitStack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connections.close()

    def adapter(self, store: str, namespace: str = DEFAULT_NAMESPACE) -> Adapter:
        """The adapter of a store for a namespace, connected.

        Raises:
            StoreUnavailable: the server cannot be reached.
            ConfigurationError: there is no such file, or it is not a database.
        """
        adapter = self._adapters.get((store, namespace))
        if adapter is None:
            adapter = self._open(store, namespace)
            self._connect(adapter)
            self._adapters[store, namespace] = adapter
        return adapter

    def _open(self, store: str, namespace: str) -> Adapter:
        options = AdapterOptions(namespace=namespace, timeout_ms=self._timeout_ms)
        return open_adapter(store, self._url, options)

    def _connect(self, adapter: Adapter) -> None:
        for other in self._connected:
            # A store that is to be created needs `open`.
            if (adapter.store == other.store or not self._create) and adapter.share(other):
                return
        self._connections.callback(adapter.close)
        adapter.open() if self._create else adapter.attach()
        self._connected.append(adapter)
        if self._snapshots is not None:
            self._snapshots.enter_context(adapter.snapshot())

    def exists(self) -> bool:
        """Whether there is something to connect to."""
        adapter = self._open(self.can_hold[0], DEFAULT_NAMESPACE)
        try:
            return adapter.exists()
        finally:
            adapter.close()

    def is_same_as(self, other: Endpoint) -> bool | None:
        """Whether both lead to one database; `None` if unknown. Inside a snapshot of both."""
        if self._url == other._url:
            return True
        adapter = self.adapter(self.can_hold[0])
        other_adapter = other.adapter(other.can_hold[0])
        identity = adapter.identity()
        if identity is None and type(adapter) is type(other_adapter):
            return None
        return identity is not None and identity == other_adapter.identity()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is as it was at one instant, where the database can do that."""
        with ExitStack() as self._snapshots:
            try:
                for adapter in self._connected:
                    self._snapshots.enter_context(adapter.snapshot())
                yield
            finally:
                self._snapshots = None

    def schemas(self) -> dict[str, Schema]:
        """The stores that are there. Inside a snapshot, as `namespaces`."""
        found = {store: self.adapter(store).schema() for store in self.can_hold}
        return {store: schema for store, schema in found.items() if schema is not None}

    def require_known(self, schemas: Mapping[str, Schema]) -> None:
        """Raise `ConfigurationError` unless these schemas have the version of their adapters."""
        for store, schema in schemas.items():
            if not schema.is_known:
                raise ConfigurationError(
                    f"{self.shown_url} has version {schema.version} of the {store} schema, and this"
                    f" trunkline works with version {schema.known_version}: {schema.advice}"
                )

    def namespaces(self, stores: Collection[str], wanted: str | None = None) -> list[str]:
        """The namespaces in which these stores hold something, sorted; the default one if none.

        Args:
            stores: those with the known version of their schemas.
            wanted: only this one, if it holds something.
        """
        found = {name for store in stores for name in self.adapter(store).namespaces()}
        return sorted(name for name in found or {DEFAULT_NAMESPACE} if wanted in (None, name))
