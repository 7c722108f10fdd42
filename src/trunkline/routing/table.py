"""The route table: a bounded LRU of route records, with an index of their expiry."""

from __future__ import annotations

from collections import OrderedDict

from cachetools import Cache

from trunkline.routing.key import SessionKey
from trunkline.routing.route import RouteRecord

__all__ = ("RouteTable",)

# Looking them up in the class each time would cost as much as one of their dictionaries.
_cache_get, _cache_set = Cache.__getitem__, Cache.__setitem__


class RouteTable(Cache[SessionKey, RouteRecord]):
    """Route records by session key. At capacity, the least recently used one is evicted.

    It is a `Cache` with an LRU order of its own. cachetools' `TTLCache` and `TLRUCache` hide
    expired items, while a router has to tell stale from absent; `TTLCache` has one time to live for
    all items, and `TLRUCache` grows whenever an item is set again.

    Every key is in exactly one bucket of the expiry index. A bucket starts no later than its
    records expire, and earlier by at most 1/64 of their time to live. A route that is set again
    stays in its bucket: once the bucket has started, `remove_expired` moves it to a later one. So a
    prune looks at what has expired, and at every other route at most twice in its time to live.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        #: The records that were evicted since this was last emptied.
        self.evicted: list[tuple[SessionKey, RouteRecord]] = []
        # The least recently used key first, each with its bucket: to look the bucket up costs no
        # more than to ask whether the key is new, which an LRU has to do in any case.
        self._order: OrderedDict[SessionKey, _Bucket] = OrderedDict()
        self._buckets: dict[int, _Bucket] = {}

    def __setitem__(self, key: SessionKey, record: RouteRecord) -> None:
        self.store(key, record)

    def store(self, key: SessionKey, record: RouteRecord) -> None:
        """Store `record` as the most recently used one, which may evict another."""
        previous = self._order.get(key)
        if previous is not None and previous.start_ms <= record.expires_at_ms:
            _cache_set(self, key, record)
        else:
            bucket = self._bucket_of(record.expires_at_ms, record.updated_at_ms)
            _cache_set(self, key, record)
            # From here on nothing needs a deeper stack, so that a table is never half changed.
            if previous is not None:
                self._remove_from(previous, key)
            self._add_to(bucket, key)
        self._order.move_to_end(key)

    def __delitem__(self, key: SessionKey) -> None:
        Cache.__delitem__(self, key)
        self._remove_from(self._order.pop(key), key)

    def __missing__(self, key: SessionKey) -> RouteRecord:
        # An exception would cost more than the rest of a look-up.
        return None  # type: ignore[return-value]

    def popitem(self) -> tuple[SessionKey, RouteRecord]:
        """Evict the least recently used record, and keep it in `evicted`."""
        key = next(iter(self._order))
        item = key, self[key]
        del self[key]
        self.evicted.append(item)
        return item

    def use(self, key: SessionKey) -> RouteRecord | None:
        """The record of `key`, which becomes the most recently used one; `None` if it is missing.

        An expired record is returned as well.
        """
        record: RouteRecord | None = _cache_get(self, key)
        if record is not None:
            self._order.move_to_end(key)
        return record

    def peek(self, key: SessionKey) -> RouteRecord | None:
        """The record of `key` without marking it as used; `None` if it is missing."""
        return self[key]

    def remove_expired(self, now_ms: int, limit: int) -> tuple[list[SessionKey], bool]:
        """Remove records that expire at `now_ms` or before.

        Args:
            now_ms: the instant.
            limit: how many records are looked at, at most.

        Returns:
            The keys that were removed, and whether more may have expired.
        """
        removed: list[SessionKey] = []
        looked_at = 0
        while (start_ms := min(self._buckets, default=now_ms + 1)) <= now_ms:
            bucket = self._buckets[start_ms]
            while bucket:
                if looked_at == limit:
                    return removed, True
                looked_at += 1
                key = next(reversed(bucket))
                expires_at_ms = self[key].expires_at_ms
                if expires_at_ms > now_ms:
                    later = self._bucket_of(expires_at_ms, now_ms)
                    bucket.popitem()
                    self._add_to(later, key)
                else:
                    bucket.popitem()
                    del self._order[key]
                    Cache.__delitem__(self, key)
                    removed.append(key)
            del self._buckets[start_ms]
        return removed, False

    def _bucket_of(self, expires_at_ms: int, now_ms: int) -> _Bucket:
        """The bucket for what expires at `expires_at_ms`; it starts after `now_ms`."""
        width_ms = 1 << max(0, (expires_at_ms - now_ms).bit_length() - 7)
        start_ms = expires_at_ms - expires_at_ms % width_ms
        return self._buckets.get(start_ms) or _Bucket(start_ms)

    def _add_to(self, bucket: _Bucket, key: SessionKey) -> None:
        self._buckets[bucket.start_ms] = bucket
        bucket[key] = None
        self._order[key] = bucket

    def _remove_from(self, bucket: _Bucket, key: SessionKey) -> None:
        del bucket[key]
        if not bucket:
            del self._buckets[bucket.start_ms]


class _Bucket(dict[SessionKey, None]):
    """Keys whose records expire at `start_ms` or later."""

    __slots__ = ("start_ms",)

    def __init__(self, start_ms: int) -> None:
        self.start_ms = start_ms
