"""The fsm in memory: for tests, and for bots that may forget."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Self, TypeAlias

from trunkline.actors import ActorRef
from trunkline.actors.policy import require_positive
from trunkline.backends.codec import Key, decode, decode_key, encode, encode_key
from trunkline.fsm.adapter import Fields, Place, Record, Step
from trunkline.fsm.records import Kept, RecordFSMAdapter, WallClock, wall_clock_ms
from trunkline.fsm.state import FSMState
from trunkline.fsm.store import FSMStore

__all__ = ("MemoryFSMAdapter", "MemoryFSMStore")

_KEY_PARTS = frozenset({int, str, type(None)})

#: Values that nobody can change and that are stored as they are. So are strings, but for those
#: that are no valid Unicode.
_SCALARS = frozenset({type(None), bool, int, float, bytes})


class _Encoded:
    """A value that a caller could change, kept as bytes."""

    __slots__ = ("encoded",)

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded


class _Conversation:
    """A record with its data as Python has it: to encode and decode it takes most of the time."""

    __slots__ = ("data", "expires_at_ms", "flow", "is_plain", "state")

    def __init__(self, kept: Kept) -> None:
        self.flow = kept.record.step.flow
        self.state = kept.record.step.state
        self.data = _owned(kept.record.fields)
        self.expires_at_ms = kept.expires_at_ms
        #: Whether it is kept for ever, and its data is its own as soon as the map is copied.
        self.is_plain = kept.expires_at_ms is None and not any(
            type(value) is _Encoded for value in self.data.values()
        )

    def kept(self) -> Kept:
        fields = {encode(name): _encoded(value) for name, value in self.data.items()}
        return Kept(Record(Step(self.flow, self.state), fields), self.expires_at_ms)


#: The conversations of one bot, in the order in which they were last changed.
_Conversations: TypeAlias = OrderedDict[Key, _Conversation]


class MemoryFSMAdapter(RecordFSMAdapter):
    """Records in dictionaries of this process.

    Args:
        clock: tells milliseconds since 1970.
        max_conversations: how many of each bot are kept; of more, the one goes that was changed
            longest ago.
    """

    blocking: ClassVar = False

    def __init__(
        self, clock: WallClock = wall_clock_ms, *, max_conversations: int = 100_000
    ) -> None:
        super().__init__(clock)
        self._max_conversations = require_positive("max_conversations", max_conversations)
        self._bots: dict[str, _Conversations] = {}
        # Time to live → when each record's is over. Those of one time to live end in the order of
        # their last changes, so that a sweep looks at no others than it removes.
        self._ends: dict[int, OrderedDict[Place, int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._bots.values()))

    def conversations(self, bot_name: str) -> _Conversations:
        """Those of one bot, for whoever counts nanoseconds."""
        return self._bots.setdefault(bot_name, OrderedDict())

    def save(self, place: Place, record: Record, ttl_ms: int | None) -> None:
        if self._ends:
            self._forget_end(place)
        super().save(place, record, ttl_ms)
        if ttl_ms is not None:
            self._ends.setdefault(ttl_ms, OrderedDict())[place] = self._clock() + ttl_ms

    def sweep(self, limit: int) -> list[tuple[Place, Record]]:
        now = self._clock()
        swept: list[tuple[Place, Record]] = []
        for ends in self._ends.values():
            while ends and len(swept) < limit and next(iter(ends.values())) <= now:
                place, _ = ends.popitem(last=False)
                conversation = self._bots[place.bot_name].pop(decode_key(place.key))
                swept.append((place, conversation.kept().record))
        self._ends = {ttl_ms: ends for ttl_ms, ends in self._ends.items() if ends}
        return swept

    def summary(self) -> dict[tuple[str, Step], int]:
        counts: Counter[tuple[str, Step]] = Counter()
        for bot_name, conversations in self._bots.items():
            for conversation in conversations.values():
                if not self._is_over(conversation.kept()):
                    counts[bot_name, Step(conversation.flow, conversation.state)] += 1
        return dict(counts)

    def _read(self, place: Place) -> Kept | None:
        conversation = self.conversations(place.bot_name).get(decode_key(place.key))
        return None if conversation is None else conversation.kept()

    def _write(self, place: Place, kept: Kept | None) -> None:
        conversations, key = self.conversations(place.bot_name), decode_key(place.key)
        if kept is None:
            self._forget_end(place)
            del conversations[key]
            return
        conversations[key] = _Conversation(kept)
        conversations.move_to_end(key)
        if len(conversations) > self._max_conversations:
            oldest, dropped = conversations.popitem(last=False)
            dropped_from = Place(place.bot_name, encode_key(oldest))
            self._forget_end(dropped_from)
            if self.on_dropped is not None:
                self.on_dropped(dropped_from, dropped.kept().record)

    def _forget_end(self, place: Place) -> None:
        for ends in self._ends.values():
            ends.pop(place, None)


class MemoryFSMStore(FSMStore):
    """What `FSMStore` is in memory. What is asked most takes a shorter way to the same records.

    That way is for keys and data of the usual kind, of a conversation that is there and does not
    expire. For all others, and while calls are traced, it leaves the call to `FSMStore`.
    """

    _adapter: MemoryFSMAdapter

    def __init__(self, url: str | None = None, **options: Any) -> None:
        # Bots whose conversations live for ever → these.
        self._conversations: dict[str, _Conversations] = {}
        self._worker: ActorRef[Any] | _NoTurns = _NO_TURNS
        super().__init__(url, **options)

    async def init(self, bot_name: str, *, ttl_ms: int | None = None) -> None:
        await super().init(bot_name, ttl_ms=ttl_ms)
        if ttl_ms is None:
            self._conversations[bot_name] = self._adapter.conversations(bot_name)
        else:
            self._conversations.pop(bot_name, None)

    async def get_state(self, bot_name: str, key: Key) -> FSMState | None:
        kept = self._at_hand(bot_name, key)
        if kept is None:
            return await super().get_state(bot_name, key)
        return FSMState(kept.state, kept.flow, kept.data.copy())

    async def set_state(self, bot_name: str, key: Key, state: FSMState | str | None) -> None:
        if type(state) is str and state.isprintable():
            kept = self._at_hand(bot_name, key)
            if kept is not None:
                self._conversations[bot_name].move_to_end(key)
                kept.state = state
                return
        await super().set_state(bot_name, key, state)

    async def update_data(self, bot_name: str, key: Key, data: Mapping[Any, Any]) -> dict[Any, Any]:
        if _is_plain(data):
            kept = self._at_hand(bot_name, key)
            if kept is not None:
                self._conversations[bot_name].move_to_end(key)
                kept.data.update(data)
                return kept.data.copy()
        return await super().update_data(bot_name, key, data)

    def _at_hand(self, bot_name: str, key: Key) -> _Conversation | None:
        """The conversation, if it is one for the shorter way. Takes one of the worker's turns."""
        worker = self._worker
        turns = worker.local_turns
        if not turns or type(key) is not tuple or self.tracing is not None:
            return None
        # Before it is looked up: `True` would find what is kept under `1`.
        for part in key:
            if type(part) is not int and type(part) not in _KEY_PARTS:
                return None
        try:
            kept = self._conversations[bot_name][key]
        except (KeyError, TypeError):
            return None
        if not kept.is_plain:
            return None
        worker.local_turns = turns - 1
        return kept

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, Any]:
        async with super().__asynccontextmanager__():
            (self._worker,) = self._writers
            yield self


class _NoTurns:
    """Stands for a worker that may not be asked at once."""

    local_turns = 0


_NO_TURNS = _NoTurns()


def _is_plain(data: object) -> bool:
    """Whether `data` is a dictionary that can be kept by copying it alone."""
    if type(data) is not dict:
        return False
    for name, value in data.items():
        kind = type(value)
        if type(name) is not str or not name.isascii():
            return False
        if not (kind in _SCALARS or (kind is str and value.isascii())):
            return False
    return True


def _owned(fields: Fields) -> dict[Any, Any]:
    owned = {}
    for encoded_name, encoded in fields.items():
        name, value = decode(encoded_name), decode(encoded)
        if name != name:  # a NaN, which a dictionary only finds if it is the same object
            name = math.nan
        owned[name] = value if type(value) in _SCALARS or type(value) is str else _Encoded(encoded)
    return owned


def _encoded(value: object) -> bytes:
    return value.encoded if type(value) is _Encoded else encode(value)
