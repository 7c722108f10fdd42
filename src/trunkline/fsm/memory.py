"""The fsm in memory: for tests, and for bots that may forget."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any, ClassVar, Self, TypeAlias, TypeGuard

from trunkline.actors import ActorRef
from trunkline.actors.clock import wall_clock_ms
from trunkline.backends import AdapterOptions
from trunkline.backends.codec import Key, decode, decode_key, encode, encode_key
from trunkline.fsm.adapter import Place, Record, Step
from trunkline.fsm.records import Kept, RecordFSMAdapter, WallClock
from trunkline.validation import require_positive, text_problem

__all__ = ("Conversation", "MemoryFSMAdapter", "ShortWay", "is_plain")

_KEY_PARTS = frozenset({int, str, type(None)})

#: Values that nobody can change and that come back as they are. So are strings, but for those that
#: are no valid Unicode.
_SCALARS = frozenset({type(None), bool, int, float, bytes})


class Conversation:
    """What is kept of one: as it was written, as Python has it, or both.

    As it was written it is a `Kept`, whose values are encoded, so that nobody can change them. As
    Python has it, it costs no decoding; that is for plain data, whose values nobody can change.
    """

    __slots__ = ("_kept", "_may_be_plain", "data", "expires_at_ms", "flow", "state")

    def __init__(self, kept: Kept, before: Conversation | None) -> None:
        self.flow = kept.record.step.flow
        self.state = kept.record.step.state
        self.expires_at_ms = kept.expires_at_ms
        #: The data, if it is plain and `decode_plain` was asked for it. Whoever changes it, or the
        #: state, calls `changed`.
        self.data: Any = None
        self._kept: Kept | None = kept
        # One that expires is left to those who look at the clock; one that was not plain before is
        # not looked through after each change.
        self._may_be_plain: bool = kept.expires_at_ms is None and (
            before is None or before._may_be_plain or before.expires_at_ms is not None
        )

    @property
    def kept(self) -> Kept:
        """It as it is written."""
        if self._kept is None:
            fields = {encode(name): encode(value) for name, value in self.data.items()}
            step = Step(self.flow, self.state)
            self._kept = Kept(Record(step, fields), self.expires_at_ms)
        return self._kept

    def decode_plain(self) -> bool:
        """Have `data` there; false if it is not plain."""
        if self.data is None and self._may_be_plain:
            data = {decode(name): decode(value) for name, value in self.kept.record.fields.items()}
            self._may_be_plain = is_plain(data)
            if self._may_be_plain:
                self.data = data
        return self._may_be_plain

    def changed(self) -> None:
        """Forget how it was written."""
        self._kept = None


def is_plain(data: object) -> TypeGuard[dict[str, Any]]:
    """Whether `data` is a dictionary of names and values that can be kept as they are."""
    if type(data) is not dict:
        return False
    for name, value in data.items():
        if type(name) is not str or not (name.isascii() or text_problem(name) is None):
            return False
        kind = type(value)
        if kind is str:
            if not (value.isascii() or text_problem(value) is None):
                return False
        elif kind not in _SCALARS:
            return False
    return True


#: The conversations of one bot, in the order in which they were last changed.
_Conversations: TypeAlias = OrderedDict[Key, Conversation]


class MemoryFSMAdapter(RecordFSMAdapter):
    """Records in dictionaries of this process.

    Args:
        clock: tells milliseconds since 1970.
        max_conversations: how many of each bot are kept; of more, the one goes that was changed
            longest ago.
    """

    blocking: ClassVar = False

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls(options.clock)

    def __init__(
        self, clock: WallClock = wall_clock_ms, *, max_conversations: int = 100_000
    ) -> None:
        super().__init__(clock)
        self._max_conversations = require_positive("max_conversations", max_conversations)
        self._bots: dict[str, _Conversations] = {}
        # Time to live → when each record's is over. Those of one time to live end in the order of
        # their last changes, so that a sweep looks at no others than it removes.
        self._ends: dict[int, OrderedDict[Place, int]] = {}

    def count(self) -> int:
        """How many conversations are kept."""
        return sum(map(len, self._bots.values()))

    def conversations(self, bot_name: str) -> _Conversations:
        """Those of one bot."""
        found = self._bots.get(bot_name)
        if found is None:
            found = self._bots[bot_name] = OrderedDict()
        return found

    def save(self, place: Place, record: Record, ttl_ms: int | None) -> None:
        if self._ends:
            self._forget_end(place)
        end = None if ttl_ms is None else self._clock() + ttl_ms
        self._write(place, Kept(record, end))
        if ttl_ms is not None and end is not None:
            self._ends.setdefault(ttl_ms, OrderedDict())[place] = end

    def sweep(self, limit: int) -> list[tuple[Place, Record]]:
        now = self._clock()
        swept: list[tuple[Place, Record]] = []
        for ends in self._ends.values():
            while ends and len(swept) < limit and next(iter(ends.values())) <= now:
                place, _ = ends.popitem(last=False)
                conversation = self._bots[place.bot_name].pop(decode_key(place.key))
                swept.append((place, conversation.kept.record))
        self._ends = {ttl_ms: ends for ttl_ms, ends in self._ends.items() if ends}
        return swept

    def summary(self) -> dict[tuple[str, Step], int]:
        now = self._clock()
        counts: Counter[tuple[str, Step]] = Counter()
        for bot_name, conversations in self._bots.items():
            for one in conversations.values():
                if one.expires_at_ms is None or one.expires_at_ms > now:
                    counts[bot_name, Step(one.flow, one.state)] += 1
        return dict(counts)

    def _read(self, place: Place) -> Kept | None:
        conversation = self.conversations(place.bot_name).get(decode_key(place.key))
        return None if conversation is None else conversation.kept

    def _write(self, place: Place, kept: Kept | None) -> None:
        conversations, key = self.conversations(place.bot_name), decode_key(place.key)
        if kept is None:
            self._forget_end(place)
            del conversations[key]
            return
        conversations[key] = Conversation(kept, conversations.get(key))
        conversations.move_to_end(key)
        if len(conversations) > self._max_conversations:
            oldest, dropped = conversations.popitem(last=False)
            dropped_from = Place(place.bot_name, encode_key(oldest))
            self._forget_end(dropped_from)
            if self.on_dropped is not None:
                self.on_dropped(dropped_from, dropped.kept.record)

    def _forget_end(self, place: Place) -> None:
        for ends in self._ends.values():
            ends.pop(place, None)


class ShortWay:
    """A store's way to what is asked most of an adapter in memory, a third as long.

    It is for keys of the usual kind and conversations that are plain, while the adapter may be
    asked at once. All else goes the ordinary way, to the same conversations.
    """

    def __init__(self, adapter: MemoryFSMAdapter) -> None:
        #: The adapter's actor, while the store runs.
        self.worker: ActorRef[Any] | None = None
        self._adapter = adapter
        self._bots: dict[str, _Conversations] = {}

    def add_bot(self, bot_name: str) -> None:
        """Take the short way to its conversations as well, from now on."""
        self._bots[bot_name] = self._adapter.conversations(bot_name)

    def remove_bot(self, bot_name: str) -> None:
        """Do not take it any more: its conversations expire."""
        self._bots.pop(bot_name, None)

    def claim(self, bot_name: str, key: Key, to_change: bool) -> Conversation | None:
        """One whose `data` is there, to be asked once and at once; `None` if it has another way."""
        worker = self.worker
        if worker is None or not worker.local_turns or type(key) is not tuple:
            return None
        # Before it is looked up: `True` would find what is kept under `1`.
        for part in key:
            if type(part) is not int and type(part) not in _KEY_PARTS:
                return None
        try:
            conversations = self._bots.get(bot_name)
        except TypeError:  # no name at all, which the ordinary way will say
            return None
        found = None if conversations is None else conversations.get(key)
        if conversations is None or found is None:
            return None
        if found.data is None and not found.decode_plain():
            return None
        worker.local_turns -= 1
        if to_change:
            conversations.move_to_end(key)
            found.changed()
        return found
