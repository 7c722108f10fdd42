"""The route table: a bounded LRU of route records with expiry beside it."""

from __future__ import annotations

from cachetools import Cache, LRUCache

from trunkline.routing.key import SessionKey
from trunkline.routing.route import RouteRecord

__all__ = ("RouteTable",)


class RouteTable(LRUCache[SessionKey, RouteRecord]):
    """Route records by session key. At capacity the least recently used goes first.

    It is an `LRUCache`, and not a `TTLCache` or `TLRUCache`: both of these hide an expired item as
    if it had never been, while a router tells stale from absent; `TTLCache` has one lifetime for
    all; and `TLRUCache` adds a heap item on every write, so that a route set again and again grows
    it. Here a record carries its own expiry: `read` compares it, and a prune finds the rest.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        #: The records that were evicted since this was last emptied.
        self.evicted: list[tuple[SessionKey, RouteRecord]] = []

    def popitem(self) -> tuple[SessionKey, RouteRecord]:
        """Evict the least recently used record, and keep it in `evicted`."""
        item = super().popitem()
        self.evicted.append(item)
        return item

    def read(self, key: SessionKey, now_ms: int) -> RouteRecord | None:
        """The record of `key`, marked as used; `None` if there is none.

        An expired record is given this once, so that its reader can tell, and is removed.
        """
        # Not get(): a mapping's get() looks the key up twice, and this is the hot path.
        try:
            record = self[key]
        except KeyError:
            return None
        if record.expires_at_ms <= now_ms:
            del self[key]
        return record

    def peek(self, key: SessionKey) -> RouteRecord | None:
        """The record of `key` without marking it as used."""
        return Cache.__getitem__(self, key) if key in self else None
