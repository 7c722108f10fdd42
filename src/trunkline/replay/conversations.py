"""The rooms and threads of a log, and how many routes of them partitions would hold."""

from __future__ import annotations

from collections import OrderedDict

from trunkline.routing import Route, RouterConfig, SessionKey

__all__ = ("Conversation", "UnlimitedTables")


class Conversation:
    """A room or thread of the log."""

    __slots__ = ("key", "partition", "room", "route", "set_at_ms")

    #: When its route was last set; `None` if it never was.
    set_at_ms: int | None

    def __init__(self, key: SessionKey, partition: int, room: Conversation | None) -> None:
        self.key = key
        self.partition = partition
        self.room = self if room is None else room
        self.set_at_ms = None
        self.route = Route(
            key.room_id,
            channel_type=key.channel,
            bridge_id=key.bridge_id,
            room_id=key.room_id,
            thread_id=key.thread_id,
        )


class UnlimitedTables:
    """The routes that partitions of unlimited capacity would hold, in the order of their sets."""

    def __init__(self, config: RouterConfig) -> None:
        #: The highest number of routes in each partition so far.
        self.peaks = [0] * config.partition_count
        self._counts = [0] * config.partition_count
        self._lifetime_ms = config.ttl_ms + config.stale_retention_ms
        self._by_age: OrderedDict[Conversation, None] = OrderedDict()

    def set(self, conversation: Conversation, now_ms: int) -> None:
        conversation.set_at_ms = now_ms
        if conversation in self._by_age:
            self._by_age.move_to_end(conversation)
            return
        self._by_age[conversation] = None
        index = conversation.partition
        self._counts[index] += 1
        self.peaks[index] = max(self.peaks[index], self._counts[index])

    def prune(self, now_ms: int) -> bool:
        """Prune, and return whether anything has expired."""
        set_before_ms = now_ms - self._lifetime_ms
        pruned = False
        while self._by_age:
            oldest = next(iter(self._by_age))
            if oldest.set_at_ms > set_before_ms:  # type: ignore[operator]
                break
            del self._by_age[oldest]
            self._counts[oldest.partition] -= 1
            pruned = True
        return pruned
