"""The fsm on Redis or Valkey: a hash a conversation, every change of it one script."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

import msgspec

from trunkline.actors import Call
from trunkline.backends.dump import Key, Row, Table
from trunkline.backends.redis import (
    Command,
    RedisAdapter,
    ScriptCall,
    optional,
    text_or_none,
)
from trunkline.fsm.adapter import Fields, FSMAdapter, Place, Record, Step
from trunkline.fsm.records import Kept

__all__ = ("RedisFSMAdapter",)

# KEYS[1] is a hash. Its field `x` is always there, `flow` and `state` where they are not None, and
# those of the data begin with a dot, which the names in ARGV have already.
_HEAD = """
local function live(ttl)
    if ttl == '' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ttl) end
end
local function put(field, value)
    if value == '' then redis.call('HDEL', KEYS[1], field)
    else redis.call('HSET', KEYS[1], 'x', 1, field, value) end
end
local function put_fields(first)
    -- Lua takes some 8,000 values from a table at once.
    for i = first, #ARGV, 1000 do
        redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 999, #ARGV)))
    end
end
local function replace(flow, state, first)
    -- A script that has deleted something may fill a server that is full already.
    redis.call('HSET', KEYS[1], 'x', 1)
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'x', 1)
    if flow and flow ~= '' then redis.call('HSET', KEYS[1], 'flow', flow) end
    if state and state ~= '' then redis.call('HSET', KEYS[1], 'state', state) end
    put_fields(first)
end
"""

#: ttl, flow, state, then names and values.
_SAVE = (
    _HEAD
    + """
replace(ARGV[2], ARGV[3], 4)
live(ARGV[1])
"""
)

#: ttl, state.
_SET_STATE = (
    _HEAD
    + """
if ARGV[2] == '' then redis.call('HSET', KEYS[1], 'x', 1) end
put('state', ARGV[2])
live(ARGV[1])
"""
)

#: ttl, then names and values.
_SET_DATA = (
    _HEAD
    + """
local step = redis.call('HMGET', KEYS[1], 'flow', 'state')
replace(step[1], step[2], 2)
live(ARGV[1])
"""
)

#: ttl, then names and values.
_UPDATE_DATA = (
    _HEAD
    + """
redis.call('HSET', KEYS[1], 'x', 1)
put_fields(2)
live(ARGV[1])
return redis.call('HGETALL', KEYS[1])
"""
)

#: ttl, expected flow and state, new flow and state, whether to replace the data, then that.
_COMPARE_AND_SET = (
    _HEAD
    + """
local step = redis.call('HMGET', KEYS[1], 'flow', 'state')
local flow, state = step[1] or '', step[2] or ''
if flow ~= ARGV[2] or state ~= ARGV[3] then return {flow, state} end
if ARGV[6] == '1' then
    replace(ARGV[4], ARGV[5], 7)
else
    redis.call('HSET', KEYS[1], 'x', 1)
    put('flow', ARGV[4])
    put('state', ARGV[5])
end
live(ARGV[1])
return false
"""
)


_PREFIX = "trunkline:fsm:["
_PATTERN = "trunkline:fsm:\\[*"

#: Cursor, pattern, whether to give the data: the next cursor, and the records of this page.
_SCAN = """
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 500)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
for _, key in ipairs(page[2]) do
    local ttl = redis.call('PTTL', key)
    if ttl ~= -2 then
        local fields, ends = {}, ''
        if ARGV[3] == '1' then
            fields = redis.call('HGETALL', key)
        else
            for _, name in ipairs({'flow', 'state'}) do
                local value = redis.call('HGET', key, name)
                if value then
                    fields[#fields + 1] = name
                    fields[#fields + 1] = value
                end
            end
        end
        if ttl >= 0 then ends = string.format('%.0f', now + ttl) end
        found[#found + 1] = {key, fields, ends}
    end
end
return {page[1], found}
"""

#: The instant at which it ends or '', flow, state, then names and values.
_RESTORE = (
    _HEAD
    + """
replace(ARGV[2], ARGV[3], 4)
if ARGV[1] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[1]) end
"""
)

_EXIST = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('EXISTS', key) end
return found
"""

#: Cursor, pattern: the next cursor.
_ERASE = """
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 500)
for _, key in ipairs(page[2]) do redis.call('DEL', key) end
return page[1]
"""


class RedisFSMAdapter(RedisAdapter, FSMAdapter):
    """Records in a hash each; the server lets them expire by itself, without telling."""

    lock_prefix = "trunkline:fsm-lock"

    def run_together(self, calls: Sequence[Call]) -> None:
        """Every call is one of the server: one that fails has done nothing to the others."""
        names = [call.handler.__name__ for call in calls]
        if any(name not in _READ for name in names):
            super().run_together(calls)
            return
        sent = [
            getattr(self, f"_{name}")(*call.args) for name, call in zip(names, calls, strict=True)
        ]
        results = self.server.call_all(sent)
        for name, call, result in zip(names, calls, results, strict=True):
            if isinstance(result, Exception):
                call.error = result
            else:
                call.value = _READ[name](result)

    def load(self, place: Place) -> Record | None:
        return _record(self.server.call(self._load(place)))

    def save(self, place: Place, record: Record, ttl_ms: int | None) -> None:
        self.server.call(self._save(place, record, ttl_ms))

    def set_state(self, place: Place, state: str | None, ttl_ms: int | None) -> None:
        self.server.call(self._set_state(place, state, ttl_ms))

    def set_data(self, place: Place, fields: Fields, ttl_ms: int | None) -> None:
        self.server.call(self._set_data(place, fields, ttl_ms))

    def update_data(self, place: Place, fields: Fields, ttl_ms: int | None) -> Fields:
        return _fields(self.server.call(self._update_data(place, fields, ttl_ms)))

    def clear(self, place: Place) -> None:
        self.server.call(self._clear(place))

    def compare_and_set(
        self,
        place: Place,
        expected: Step,
        step: Step,
        fields: Fields | None,
        ttl_ms: int | None,
    ) -> Step | None:
        return _step(self.server.call(self._compare_and_set(place, expected, step, fields, ttl_ms)))

    # -- as a whole --------------------------------------------------------------------------------

    def summary(self) -> dict[tuple[str, Step], int]:
        counts: Counter[tuple[str, Step]] = Counter()
        for page in self.scan(with_fields=False):
            counts.update((place.bot_name, kept.record.step) for place, kept in page)
        return dict(counts)

    @property
    def tables(self) -> Sequence[Table]:
        return [_RecordTable(self)]

    def namespaces(self) -> list[str]:
        return [self.namespace] if next(self.scan(with_fields=False), None) else []

    def scan(self, *, with_fields: bool) -> Iterator[list[tuple[Place, Kept]]]:
        """Every record with its end, a page at a time; one that changes meanwhile, maybe twice."""
        cursor = b"0"
        while True:
            arguments = [cursor, _PATTERN, int(with_fields)]
            cursor, found = self.server.call(ScriptCall(_SCAN, [], arguments))
            if found:
                yield [
                    (_place(name), Kept(_existing(fields), int(end) if end else None))
                    for name, fields, end in found
                ]
            if cursor == b"0":
                return

    # -- each operation as one call ----------------------------------------------------------------

    def _load(self, place: Place) -> Command:
        return Command("HGETALL", [_key(place)])

    def _save(self, place: Place, record: Record, ttl_ms: int | None) -> ScriptCall:
        step = record.step
        head = [_ttl(ttl_ms), optional(step.flow), optional(step.state)]
        return ScriptCall(_SAVE, [_key(place)], [*head, *_flat(record.fields)])

    def _set_state(self, place: Place, state: str | None, ttl_ms: int | None) -> ScriptCall:
        return ScriptCall(_SET_STATE, [_key(place)], [_ttl(ttl_ms), optional(state)])

    def _set_data(self, place: Place, fields: Fields, ttl_ms: int | None) -> ScriptCall:
        return ScriptCall(_SET_DATA, [_key(place)], [_ttl(ttl_ms), *_flat(fields)])

    def _update_data(self, place: Place, fields: Fields, ttl_ms: int | None) -> ScriptCall:
        return ScriptCall(_UPDATE_DATA, [_key(place)], [_ttl(ttl_ms), *_flat(fields)])

    def _clear(self, place: Place) -> Command:
        return Command("DEL", [_key(place)])

    def _compare_and_set(
        self,
        place: Place,
        expected: Step,
        step: Step,
        fields: Fields | None,
        ttl_ms: int | None,
    ) -> ScriptCall:
        steps = [optional(text) for one in (expected, step) for text in (one.flow, one.state)]
        data = ["0"] if fields is None else ["1", *_flat(fields)]
        return ScriptCall(_COMPARE_AND_SET, [_key(place)], [_ttl(ttl_ms), *steps, *data])


class _RecordTable(Table):
    """Records as rows of bot, key, flow, state, fields, end."""

    name = "fsm"
    key_width = 2

    def __init__(self, adapter: RedisFSMAdapter) -> None:
        self._adapter = adapter

    def dump(self, at_ms: int = 0, *, keys_only: bool = False) -> Iterator[Sequence[Row]]:
        for page in self._adapter.scan(with_fields=not keys_only):
            yield [
                (place.bot_name, place.key)
                if keys_only
                else (
                    place.bot_name,
                    place.key,
                    kept.record.step.flow,
                    kept.record.step.state,
                    msgspec.msgpack.encode(kept.record.fields),
                    kept.expires_at_ms,
                )
                for place, kept in page
                if kept.expires_at_ms is None or kept.expires_at_ms > at_ms
            ]

    def present(self, keys: Collection[Key]) -> set[Key]:
        names = [_key(Place(*key)) for key in keys]
        found = self._adapter.server.call(ScriptCall(_EXIST, names))
        return {key for key, is_there in zip(keys, found, strict=True) if is_there}

    def load(self, rows: Sequence[Row]) -> None:
        calls = []
        for bot_name, key, flow, state, encoded, end in rows:
            fields = msgspec.msgpack.decode(encoded, type=dict[bytes, bytes])
            head = ["" if end is None else end, optional(flow), optional(state)]
            calls.append(
                ScriptCall(_RESTORE, [_key(Place(bot_name, key))], [*head, *_flat(fields)])
            )
        for result in self._adapter.server.call_all(calls):
            if isinstance(result, Exception):
                raise result

    def erase(self) -> None:
        cursor = b"0"
        while True:
            cursor = self._adapter.server.call(ScriptCall(_ERASE, [], [cursor, _PATTERN]))
            if cursor == b"0":
                return


def _key(place: Place) -> str:
    return f"{_PREFIX}{quoted(place.bot_name)}, {quoted(place.key)}]"


def _place(key: bytes) -> Place:
    """Where the record is that is kept under `key`."""
    bot_name, place_key = json.loads(key[len(_PREFIX) - 1 :])
    return Place(bot_name, place_key)


def _ttl(ttl_ms: int | None) -> str:
    return "" if ttl_ms is None else str(ttl_ms)


def _flat(fields: Fields) -> list[bytes]:
    flat: list[bytes] = []
    for name, value in fields.items():
        flat += (b"." + name, value)
    return flat


def _map(raw: Any) -> Mapping[bytes, bytes]:
    if isinstance(raw, dict):  # the third version of the protocol has maps
        return raw
    return dict(zip(raw[::2], raw[1::2], strict=True))


def _record(raw: Any) -> Record | None:
    return _existing(raw) if raw else None


def _existing(raw: Any) -> Record:
    stored = _map(raw)
    step = Step(text_or_none(stored.get(b"flow")), text_or_none(stored.get(b"state")))
    return Record(step, _fields(stored))


def _fields(raw: Any) -> Fields:
    return {name[1:]: value for name, value in _map(raw).items() if name[0] == _DOT}


_DOT = ord(".")


def _step(raw: Any) -> Step | None:
    return None if raw is None else Step(text_or_none(raw[0]), text_or_none(raw[1]))


def _nothing(_raw: Any) -> None:
    return None


#: What makes an operation's result of the script's.
_READ: dict[str, Callable[[Any], Any]] = {
    "load": _record,
    "save": _nothing,
    "set_state": _nothing,
    "set_data": _nothing,
    "update_data": _fields,
    "clear": _nothing,
    "compare_and_set": _step,
    "try_lock": bool,
    "renew_lock": bool,
    "unlock": bool,
}
