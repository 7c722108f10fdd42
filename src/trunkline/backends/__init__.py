"""One way to reach a database and one way to run an adapter, for every store.

An `Adapter` says what to do, plainly; a `Store` runs it as supervised actors. SQL databases are
opened by `trunkline.backends.sql`.
"""

from trunkline.backends.adapter import Adapter
from trunkline.backends.dump import Row, Schema, Table
from trunkline.backends.errors import Conflict, ConnectionLost
from trunkline.backends.registry import (
    AdapterOptions,
    open_adapter,
    register_adapter,
    registered_stores,
    resolve_adapter,
)
from trunkline.backends.store import Store, StoreStats
from trunkline.backends.url import hide_password

__all__ = (
    "Adapter",
    "AdapterOptions",
    "Conflict",
    "ConnectionLost",
    "Row",
    "Schema",
    "Store",
    "StoreStats",
    "Table",
    "hide_password",
    "open_adapter",
    "register_adapter",
    "registered_stores",
    "resolve_adapter",
)
