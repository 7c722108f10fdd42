"""The route table: a bounded LRU of route records, with an index of their expiry."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from trunkline.routing.key import SessionKey
from trunkline.routing.route import Route

__all__ = ("Entry", "RouteTable")


class _Bucket(dict[SessionKey, None]):
    """Keys whose records expire at `start_ms` or later."""

    __slots__ = ("start_ms",)

    def __init__(self, start_ms: int) -> None:
        self.start_ms = start_ms


class Entry(msgspec.Struct, gc=False):
    """A `RouteRecord` as the table holds it."""

    route: Route
    updated_at_ms: int
    expires_at_ms: int
    bucket: _Bucket
    #: For a thread that has copied its room's route: the room's entry at that time.
    source: Entry | None = None


class RouteTable:
    """Route records by session key. At capacity, the least recently used one is evicted.

    It is an ordered dictionary and not one of cachetools' caches: `TTLCache` and `TLRUCache` hide
    expired items, while a router has to tell stale from absent, and `LRUCache` has no place for the
    bucket of a record, so that every `store` would have to look into one dictionary more.

    Every key is in exactly one bucket of the expiry index. A bucket starts no later than its
    records expire, and earlier by at most 1/64 of their time to live. A route that is set again
    stays in its bucket: once the bucket has started, `remove_expired` moves it to a later one. So a
    prune looks at what has expired, and at every other route at most twice in its time to live.
    """

    def __init__(self, capacity: int) -> None:
        #: The records that were evicted since this was last emptied.
        self.evicted: list[tuple[SessionKey, Entry]] = []
        self._capacity = capacity
        # The least recently used first.
        self._entries: OrderedDict[SessionKey, Entry] = OrderedDict()
        self._buckets: dict[int, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[SessionKey]:
        return iter(self._entries)

    def store(
        self,
        key: SessionKey,
        route: Route,
        now_ms: int,
        expires_at_ms: int,
        source: Entry | None = None,
    ) -> None:
        """Store a record as the most recently used one, which may evict another."""
        entries = self._entries
        old = entries.get(key)
        if old is not None and old.bucket.start_ms <= expires_at_ms:
            entries[key] = Entry(route, now_ms, expires_at_ms, old.bucket, source)
        else:
            bucket = self._bucket_of(expires_at_ms, now_ms)
            # From here on nothing needs a deeper stack, so that a table is never half changed.
            if old is not None:
                self._take_out(key, old.bucket)
            elif len(entries) == self._capacity:
                evicted = entries.popitem(last=False)
                self._take_out(evicted[0], evicted[1].bucket)
                self.evicted.append(evicted)
            entries[key] = Entry(route, now_ms, expires_at_ms, bucket, source)
            self._buckets[bucket.start_ms] = bucket
            bucket[key] = None
        entries.move_to_end(key)

    def use(self, key: SessionKey) -> Entry | None:
        """The record of `key`, which becomes the most recently used one; `None` if it is missing.

        An expired record is returned as well.
        """
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def peek(self, key: SessionKey) -> Entry | None:
        """The record of `key` without marking it as used; `None` if it is missing."""
        return self._entries.get(key)

    def remove(self, key: SessionKey) -> bool:
        """Remove the record of `key`; whether there was one."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._take_out(key, entry.bucket)
        return True

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
                entry = self._entries[key]
                if entry.expires_at_ms <= now_ms:
                    del self._entries[key]
                    removed.append(key)
                else:
                    later = self._bucket_of(entry.expires_at_ms, now_ms)
                    entry.bucket = self._buckets[later.start_ms] = later
                    later[key] = None
                bucket.popitem()
            del self._buckets[start_ms]
        return removed, False

    def _bucket_of(self, expires_at_ms: int, now_ms: int) -> _Bucket:
        """The bucket for what expires at `expires_at_ms`; it starts after `now_ms`."""
        width_ms = 1 << max(0, (expires_at_ms - now_ms).bit_length() - 7)
        start_ms = expires_at_ms - expires_at_ms % width_ms
        return self._buckets.get(start_ms) or _Bucket(start_ms)

    def _take_out(self, key: SessionKey, bucket: _Bucket) -> None:
        del bucket[key]
        if not bucket:
            del self._buckets[bucket.start_ms]
