"""Redis and Valkey as an operator sees them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
from redis.connection import parse_url

from trunkline.admin.side import Key, Row, Schema, Shelf, Side
from trunkline.backends.redis import ScriptCall
from trunkline.fsm.adapter import Record, RecordKey, Step
from trunkline.fsm.records import decode_fields, encode_fields
from trunkline.fsm.redis import RedisFSMAdapter
from trunkline.signal.adapter import Commit, KeyName, Versioned
from trunkline.signal.redis import RedisSignalAdapter

__all__ = ("RedisSide",)


class RedisSide(Side):
    """A numbered database of a server. It has no schemas, and shows no single instant.

    Args:
        url: `redis://…` or `valkey://…`.
    """

    can_hold = ("fsm", "signal")

    def __init__(self, url: str) -> None:
        self._fsm = RedisFSMAdapter(url)
        self._signal = RedisSignalAdapter(url)
        self.shown_url = self._fsm.server.shown_url

    def open(self) -> None:
        self._fsm.open()
        self._signal.open()

    def close(self) -> None:
        self._fsm.close()
        self._signal.close()

    def exists(self) -> bool:
        return True

    def identity(self) -> str:
        server = self._fsm.server.call(ScriptCall("return redis.call('INFO', 'server')", []))
        run_id = server.partition(b"run_id:")[2].split()[0].decode()
        return f"{run_id}:{_database_number(self._fsm.server.url)}"

    def snapshot(self) -> AbstractContextManager[None]:
        return nullcontext()

    def transaction(self) -> AbstractContextManager[None]:
        return nullcontext()

    def stores(self) -> dict[str, Schema]:
        found = {}
        if next(self._fsm.scan(with_fields=False), None):
            found["fsm"] = Schema()
        if self._signal.summary():
            found["signal"] = Schema()
        return found

    def adapter(self, store: str) -> Any:
        return self._fsm if store == "fsm" else self._signal

    def shelves(self, store: str) -> tuple[Shelf, ...]:
        return (FSMShelf(self._fsm) if store == "fsm" else SignalShelf(self._signal),)

    def create(self, stores: Collection[str]) -> None:
        """There is nothing to make."""

    def erase(self, store: str) -> None:
        if store == "fsm":
            self._fsm.erase()
        else:
            self._signal.commit(Commit({}, 1, clear=True))


class FSMShelf(Shelf):
    """Conversations: rows of namespace, bot, key, flow, state, fields, end."""

    name = "fsm"
    key_width = 3

    def __init__(self, adapter: RedisFSMAdapter) -> None:
        self._adapter = adapter

    def count(self, at_ms: int) -> int:
        return sum(map(len, self._pages(at_ms, with_fields=False)))

    def pages(self, at_ms: int) -> Iterator[Sequence[Row]]:
        return self._pages(at_ms, with_fields=True)

    def keys(self, at_ms: int) -> Iterator[Sequence[Key]]:
        for page in self._pages(at_ms, with_fields=False):
            yield [row[: self.key_width] for row in page]

    def present(self, keys: Collection[Key]) -> set[Key]:
        found = self._adapter.present([RecordKey(*key[1:]) for key in keys])
        return {(self._adapter.namespace, key.bot_name, key.key) for key in found}

    def put(self, rows: Sequence[Row]) -> None:
        self._adapter.restore([_conversation(row) for row in rows])

    def _pages(self, at_ms: int, *, with_fields: bool) -> Iterator[Sequence[Row]]:
        for page in self._adapter.scan(with_fields=with_fields):
            yield [
                (
                    self._adapter.namespace,
                    key.bot_name,
                    key.key,
                    record.step.flow,
                    record.step.state,
                    msgspec.msgpack.encode(encode_fields(record.fields)),
                    record.expires_at_ms,
                )
                for key, record in page
                if record.expires_at_ms is None or record.expires_at_ms > at_ms
            ]


def _conversation(row: Row) -> tuple[RecordKey, Record]:
    _namespace, bot_name, key, flow, state, fields, end = row
    decoded = decode_fields(msgspec.msgpack.decode(fields, type=dict[bytes, bytes]))
    return RecordKey(bot_name, key), Record(Step(flow, state), decoded, end)


class SignalShelf(Shelf):
    """Keys of the Signal protocol: rows of family, id, version, value."""

    name = "signal"
    key_width = 2

    def __init__(self, adapter: RedisSignalAdapter) -> None:
        self._adapter = adapter

    def count(self, at_ms: int) -> int:
        return sum(self._adapter.summary().values())

    def pages(self, at_ms: int) -> Iterator[Sequence[Row]]:
        for page in self._adapter.scan():
            yield [(*name, *versioned) for name, versioned in page]

    def keys(self, at_ms: int) -> Iterator[Sequence[Key]]:
        for page in self._adapter.scan():
            yield [tuple(name) for name, _ in page]

    def present(self, keys: Collection[Key]) -> set[Key]:
        return set(self._adapter.get([KeyName(*key) for key in keys]))

    def put(self, rows: Sequence[Row]) -> None:
        self._adapter.restore(
            [
                (KeyName(family, entry_id), Versioned(version, value))
                for family, entry_id, version, value in rows
            ]
        )


def _database_number(url: str) -> int:
    parsed = parse_url(url.replace("valkey", "redis", 1))  # type: ignore[no-untyped-call]
    return parsed.get("db") or 0


#: For `open_side`.
SIDE = RedisSide
