"""The fsm on Redis or Valkey: a hash a conversation, every change of it one script."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

import msgspec

from trunkline.actors import Call
from trunkline.backends import AdapterOptions
from trunkline.backends.codec import decode, encode
from trunkline.backends.dump import Key, Row, Schema, Table
from trunkline.backends.redis import (
    AnyRedis,
    Command,
    RedisAdapter,
    ScriptCall,
    load_script,
    optional,
    text_or_none,
)
from trunkline.errors import UnreadableRecord
from trunkline.fsm.adapter import Fields, FSMAdapter, Record, RecordKey, Step
from trunkline.fsm.records import decode_fields, encode_fields, unreadable

__all__ = ("RedisFSMAdapter",)

_SAVE = load_script(__package__, "head", "save")
_SET_STATE = load_script(__package__, "head", "set_state")
_SET_DATA = load_script(__package__, "head", "set_data")
_UPDATE_DATA = load_script(__package__, "head", "update_data")
_COMPARE_AND_SET = load_script(__package__, "head", "compare_and_set")
_SCAN = load_script(__package__, "scan")
_RESTORE = load_script(__package__, "head", "restore")
_EXIST = load_script(__package__, "exist")
_ERASE = load_script(__package__, "erase")
_MIGRATE = load_script(__package__, "migrate")

#: What the keys of trunkline 0.1 begin with, and their pattern.
_OLD_PREFIX, _OLD_PATTERN = "trunkline:fsm:[", "trunkline:fsm:\\[*"


class RedisFSMAdapter(RedisAdapter, FSMAdapter):
    """Records in a hash each; the server removes expired ones by itself, without an event."""

    def __init__(
        self, server: AnyRedis, *, namespace: str = "default", timeout_ms: int = 5_000
    ) -> None:
        super().__init__(server, namespace=namespace, timeout_ms=timeout_ms)
        self._prefix = f"{self.prefix}:["
        self._pattern = self._prefix.replace("[", "\\[") + "*"

    def open(self) -> None:
        super().open()
        if self.namespace != AdapterOptions().namespace:
            return
        cursor = b"0"
        while True:
            arguments = [cursor, _OLD_PATTERN, len(_OLD_PREFIX), self._prefix]
            call = ScriptCall(_MIGRATE, [f"{self.prefix}:version"], arguments)
            cursor = self.server.call(call)
            if cursor == b"0":
                return

    def attach(self) -> None:
        super().open()

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
                continue
            try:
                call.value = _READ[name](result, call.args[0])
            except UnreadableRecord as error:
                call.error = error

    def load(self, key: RecordKey) -> Record | None:
        return _record(self.server.call(self._load(key)), key)

    def save(self, key: RecordKey, step: Step, fields: Fields, ttl_ms: int | None) -> None:
        self.server.call(self._save(key, step, fields, ttl_ms))

    def set_state(
        self, key: RecordKey, state: str | None, ttl_ms: int | None, remove_empty: bool
    ) -> None:
        self.server.call(self._set_state(key, state, ttl_ms, remove_empty))

    def set_data(
        self, key: RecordKey, fields: Fields, ttl_ms: int | None, remove_empty: bool
    ) -> None:
        self.server.call(self._set_data(key, fields, ttl_ms, remove_empty))

    def update_data(self, key: RecordKey, fields: Fields, ttl_ms: int | None) -> Fields:
        return _fields(self.server.call(self._update_data(key, fields, ttl_ms)), key)

    def clear(self, key: RecordKey) -> None:
        self.server.call(self._clear(key))

    def compare_and_set(
        self,
        key: RecordKey,
        expected: Step,
        step: Step,
        fields: Fields | None,
        ttl_ms: int | None,
    ) -> Step | None:
        call = self._compare_and_set(key, expected, step, fields, ttl_ms)
        return _step(self.server.call(call), key)

    # -- as a whole --------------------------------------------------------------------------------

    def summary(self) -> dict[tuple[str, Step], int]:
        counts: Counter[tuple[str, Step]] = Counter()
        for page in self.scan(with_fields=False):
            for key, stored, _ in page:
                counts[key.bot_name, _step_of(stored, key)] += 1
        return dict(counts)

    @property
    def tables(self) -> Sequence[Table]:
        return [_RecordTable(self)]

    def schema(self) -> Schema | None:
        if not self.server.call(Command("EXISTS", [f"{self.prefix}:version"])) and any(
            self.server.keys(_OLD_PATTERN)
        ):
            return Schema(version=1, known_version=2)
        return super().schema()

    def namespaces(self) -> list[str]:
        return self.server.namespaces("trunkline:{*}:fsm:\\[*")

    def scan(self, *, with_fields: bool) -> Iterator[list[tuple[RecordKey, Any, int | None]]]:
        """Key, raw hash and end of every record, a page at a time.

        One that changes meanwhile may come twice.
        """
        cursor = b"0"
        while True:
            arguments = [cursor, self._pattern, int(with_fields)]
            cursor, page = self.server.call(ScriptCall(_SCAN, [], arguments))
            yield [
                (self._record_key(name), _map(raw), int(end) if end else None)
                for name, raw, end in page
            ]
            if cursor == b"0":
                return

    # -- each operation as one call ----------------------------------------------------------------

    def _load(self, key: RecordKey) -> Command:
        return Command("HGETALL", [self._key(key)])

    def _save(self, key: RecordKey, step: Step, fields: Fields, ttl_ms: int | None) -> ScriptCall:
        head = [_ttl(ttl_ms), optional(step.flow), optional(step.state)]
        return ScriptCall(_SAVE, [self._key(key)], [*head, *_flat(fields)])

    def _set_state(
        self, key: RecordKey, state: str | None, ttl_ms: int | None, remove_empty: bool
    ) -> ScriptCall:
        arguments = [_ttl(ttl_ms), optional(state), int(remove_empty)]
        return ScriptCall(_SET_STATE, [self._key(key)], arguments)

    def _set_data(
        self, key: RecordKey, fields: Fields, ttl_ms: int | None, remove_empty: bool
    ) -> ScriptCall:
        arguments = [_ttl(ttl_ms), int(remove_empty), *_flat(fields)]
        return ScriptCall(_SET_DATA, [self._key(key)], arguments)

    def _update_data(self, key: RecordKey, fields: Fields, ttl_ms: int | None) -> ScriptCall:
        return ScriptCall(_UPDATE_DATA, [self._key(key)], [_ttl(ttl_ms), *_flat(fields)])

    def _clear(self, key: RecordKey) -> Command:
        return Command("DEL", [self._key(key)])

    def _compare_and_set(
        self,
        key: RecordKey,
        expected: Step,
        step: Step,
        fields: Fields | None,
        ttl_ms: int | None,
    ) -> ScriptCall:
        steps = [optional(text) for one in (expected, step) for text in (one.flow, one.state)]
        data = ["0"] if fields is None else ["1", *_flat(fields)]
        return ScriptCall(_COMPARE_AND_SET, [self._key(key)], [_ttl(ttl_ms), *steps, *data])

    def _key(self, key: RecordKey) -> str:
        return f"{self._prefix}{quoted(key.bot_name)}, {quoted(key.key)}]"

    def _record_key(self, name: bytes) -> RecordKey:
        """The record key of which `_key` made `name`."""
        bot_name, key = json.loads(name[len(self._prefix) - 1 :])
        return RecordKey(bot_name, key)


class _RecordTable(Table):
    """Records as rows of bot, key, flow, state, fields, end."""

    name = "fsm"
    key_width = 2

    def __init__(self, adapter: RedisFSMAdapter) -> None:
        self._adapter = adapter

    def dump(self, at_ms: int = 0, *, keys_only: bool = False) -> Iterator[Sequence[Row]]:
        for page in self._adapter.scan(with_fields=not keys_only):
            live = [one for one in page if one[2] is None or one[2] > at_ms]
            if keys_only:
                yield [(key.bot_name, key.key) for key, _, _ in live]
            else:
                yield [self._row(key, stored, end) for key, stored, end in live]

    def _row(self, key: RecordKey, stored: Mapping[bytes, bytes], end: int | None) -> Row:
        try:
            fields = msgspec.msgpack.encode(_encoded(stored))
        except Exception as error:
            raise unreadable(key, error) from error
        step = _step_of(stored, key)
        return (key.bot_name, key.key, step.flow, step.state, fields, end)

    def present(self, keys: Collection[Key]) -> set[Key]:
        names = [self._adapter._key(RecordKey(*key)) for key in keys]
        found = self._adapter.server.call(ScriptCall(_EXIST, names))
        return {key for key, exists in zip(keys, found, strict=True) if exists}

    def load(self, rows: Sequence[Row]) -> None:
        calls = []
        for bot_name, key, flow, state, encoded, end in rows:
            fields = msgspec.msgpack.decode(encoded, type=dict[bytes, bytes])
            head = ["" if end is None else end, optional(flow), optional(state)]
            name = self._adapter._key(RecordKey(bot_name, key))
            calls.append(
                ScriptCall(_RESTORE, [name], [*head, *chain.from_iterable(fields.items())])
            )
        for result in self._adapter.server.call_all(calls):
            if isinstance(result, Exception):
                raise result

    def erase(self) -> None:
        cursor = b"0"
        while True:
            arguments = [cursor, self._adapter._pattern]
            cursor = self._adapter.server.call(ScriptCall(_ERASE, [], arguments))
            if cursor == b"0":
                return


def _ttl(ttl_ms: int | None) -> str:
    return "" if ttl_ms is None else str(ttl_ms)


def _flat(fields: Fields) -> list[bytes]:
    return [*chain.from_iterable(encode_fields(fields).items())]


def _map(raw: Any) -> Mapping[bytes, bytes]:
    if isinstance(raw, dict):  # the third version of the protocol has maps
        return raw
    return dict(zip(raw[::2], raw[1::2], strict=True))


def _record(raw: Any, key: RecordKey) -> Record | None:
    if not raw:
        return None
    stored = _map(raw)
    return Record(_step_of(stored, key), _fields(stored, key))


def _step_of(stored: Mapping[bytes, bytes], key: RecordKey) -> Step:
    return _step((stored.get(b"flow"), stored.get(b"state")), key) or Step()


def _fields(raw: Any, key: RecordKey) -> Fields:
    try:
        return decode_fields(_encoded(_map(raw)))
    except Exception as error:
        raise unreadable(key, error) from error


def _encoded(stored: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The data as it is stored, in the order of its names."""
    fields = {name[1:]: value for name, value in stored.items() if name[:1] == b"."}
    if b"".join(fields) == stored[b"names"]:
        return fields  # a small hash keeps its order
    # Joined names behind the head of an array are an array.
    names = decode(b"\xdd%b%b" % (len(fields).to_bytes(4, "big"), stored[b"names"]))
    return {(name := encode(one)): fields[name] for one in names}


def _step(raw: Any, key: RecordKey) -> Step | None:
    try:
        return None if raw is None else Step(text_or_none(raw[0]), text_or_none(raw[1]))
    except UnicodeDecodeError as error:
        raise unreadable(key, error) from error


def _nothing(_raw: Any, _key: RecordKey) -> None:
    return None


def _is_true(raw: Any, _key: RecordKey) -> bool:
    return bool(raw)


#: What makes an operation's result of the server's reply.
_READ: dict[str, Callable[[Any, RecordKey], Any]] = {
    "load": _record,
    "save": _nothing,
    "set_state": _nothing,
    "set_data": _nothing,
    "update_data": _fields,
    "clear": _nothing,
    "compare_and_set": _step,
    "try_lock": _is_true,
    "renew_lock": _is_true,
    "unlock": _is_true,
}
