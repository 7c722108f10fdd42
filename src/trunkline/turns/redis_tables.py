"""The inbox on Redis and Valkey as rows: those of the SQL tables, for `inspect` and `copy`."""

from __future__ import annotations

from abc import abstractmethod
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from trunkline.backends.dump import Key, Row, Table
from trunkline.backends.redis import Command, ScriptCall, load_script
from trunkline.turns.adapter import ALONE, SHARDS, URGENT, ItemRow
from trunkline.turns.session import Session

if TYPE_CHECKING:
    from trunkline.turns.redis import RedisInboxAdapter

__all__ = ("make_tables",)

_MARKS = load_script(__package__, "marks")

#: Rows that are read in one go.
_PAGE = 256


def make_tables(adapter: RedisInboxAdapter) -> list[Table]:
    """The tables of an inbox, those that others refer to first."""
    kinds = (_Sessions, _Items, _Marks, _Claims, _Owners, _Steps, _Policy)
    return [kind(adapter) for kind in kinds]


class _InboxTable(Table):
    """A table of an inbox on Redis. What changes meanwhile may come twice, or not at all."""

    def __init__(self, adapter: RedisInboxAdapter) -> None:
        self.adapter = adapter

    def dump(self, at_ms: int = 0, *, keys_only: bool = False) -> Iterator[Sequence[Row]]:
        for page in self.pages():
            rows = [row for row in page if self.is_live(row, at_ms)]
            if rows:
                yield [row[: self.key_width] for row in rows] if keys_only else rows

    def is_live(self, row: Row, at_ms: int) -> bool:
        return True

    @abstractmethod
    def pages(self) -> Iterator[Sequence[Row]]:
        """All rows."""

    def keys(self, name: str) -> Iterator[list[bytes]]:
        """The keys of all shards that begin with `name`, a page at a time."""
        page: list[bytes] = []
        for key in self.adapter.server.keys(self.pattern(name)):
            page.append(key)
            if len(page) == _PAGE:
                yield page
                page = []
        if page:
            yield page

    def pattern(self, name: str) -> str:
        # A namespace is quoted, and so has no characters with a meaning.
        return f"{self.adapter.shards[0].replace(':00}', ':??}')}{name}*"

    def erase_keys(self, *names: str) -> None:
        for name in names:
            for page in self.keys(name):
                self.adapter.ask([Command("DEL", page)])


class _Sessions(_InboxTable):
    """session, due_at_ms, set_at_ms, waiting, running, document."""

    name, key_width = "inbox_sessions", 1

    def count(self, at_ms: int = 0) -> int:
        return self.adapter.counts().sessions

    def pages(self) -> Iterator[Sequence[Row]]:
        for shard in self.adapter.shards:
            found = self.adapter.due_times(shard)
            for start in range(0, len(found), _PAGE):
                yield [*self._rows(found[start : start + _PAGE])]

    def _rows(self, found: Sequence[tuple[float, str]]) -> Iterator[Row]:
        calls = [Command("HMGET", (self.adapter.session_key(key), "v", "d")) for _, key in found]
        sessions = self.adapter.peek([key for _, key in found])
        for (due_at, key), (version, document) in zip(found, self.adapter.ask(calls), strict=True):
            if version is None:
                continue
            session = sessions.get(key, Session())
            due_at_ms = None if due_at == float("inf") else int(due_at)
            set_at_ms = int(version.partition(b".")[0])
            counts = (session.waiting_count, session.running_count)
            yield (key, due_at_ms, set_at_ms, *counts, document)

    def present(self, keys: Collection[Key]) -> set[Key]:
        calls = [Command("HEXISTS", (self.adapter.session_key(key), "v")) for (key,) in keys]
        return _where(keys, self.adapter.ask(calls))

    def load(self, rows: Sequence[Row]) -> None:
        self.adapter.load([row[0] for row in rows], {})
        self.adapter.ask([self.adapter.restore(*row) for row in rows])

    def erase(self) -> None:
        self.erase_keys("s:", "due", "counts")


class _Items(_InboxTable):
    """id, session, external_id, accepted_at_ms, flags, attempts, error, payload."""

    name, key_width = "inbox_items", 1

    def count(self, at_ms: int = 0) -> int:
        names = [f"{shard}{name}" for shard in self.adapter.shards for name in ("items", "failed")]
        return sum(self.adapter.ask([Command("ZCARD", (name,)) for name in names]))

    def pages(self) -> Iterator[Sequence[Row]]:
        for failed in (False, True):
            after = None
            while rows := self.adapter.rows(after, _PAGE, failed=failed):
                yield [_item_row(row) for row in rows]
                after = rows[-1].id

    def present(self, keys: Collection[Key]) -> set[Key]:
        ids = sorted(item_id for (item_id,) in keys)
        bounds = (f"[{ids[0]}\0", f"({ids[-1]}\x01")
        names = [f"{shard}{name}" for shard in self.adapter.shards for name in ("items", "failed")]
        found = self.adapter.ask([Command("ZRANGEBYLEX", (name, *bounds)) for name in names])
        stored = {raw.partition(b"\0")[0].decode() for raw in chain.from_iterable(found)}
        return {key for key in keys if key[0] in stored}

    def load(self, rows: Sequence[Row]) -> None:
        self.adapter.ask([call for row in rows for call in self.adapter.restore_item(*row)])

    def erase(self) -> None:
        after = None
        while rows := self.adapter.rows(after, _PAGE, failed=False):
            self.adapter.ask(
                [Command("HDEL", (self.adapter.session_key(row.session), row.id)) for row in rows]
            )
            after = rows[-1].id
        self.erase_keys("items", "failed")


class _Marks(_InboxTable):
    """mark, item_id, expires_at_ms. Those of items without an external id are over in a minute."""

    name, key_width = "inbox_marks", 1

    def is_live(self, row: Row, at_ms: int) -> bool:
        return bool(row[2] > at_ms)

    def pages(self) -> Iterator[Sequence[Row]]:
        cursor = b"0"
        while True:
            arguments = [cursor, self.pattern("m:")]
            cursor, found = self.adapter.server.call(ScriptCall(_MARKS, [], arguments))
            rows = []
            for key, item_id, end in found:
                mark = key[len(self.adapter.shards[0]) + 2 :]
                if mark.hex() != item_id.replace(b"-", b"").decode():
                    rows.append((_mark_text(mark), item_id.decode(), int(end)))
            yield rows
            if cursor == b"0":
                return

    def present(self, keys: Collection[Key]) -> set[Key]:
        calls = [Command("EXISTS", (self._key(text),)) for (text,) in keys]
        return _where(keys, self.adapter.ask(calls))

    def load(self, rows: Sequence[Row]) -> None:
        self.adapter.ask(
            [
                Command("SET", (self._key(text), item_id, "PXAT", expires_at_ms))
                for text, item_id, expires_at_ms in rows
            ]
        )

    def erase(self) -> None:
        self.erase_keys("m:")

    def _key(self, text: str) -> bytes:
        try:
            mark = urlsafe_b64decode(text + "==")
        except ValueError:
            mark = b""
        # Its first byte is the shard of its session: see `mark_of`.
        shard = self.adapter.shards[mark[0] % SHARDS if mark else 0].encode()
        # The decoder skips what is no base64.
        return b"%bm:%b" % (shard, mark if _mark_text(mark) == text else b"")


def _mark_text(mark: bytes) -> str:
    return urlsafe_b64encode(mark).rstrip(b"=").decode()


class _Claims(_InboxTable):
    """owner, turn, session."""

    name, key_width = "inbox_claims", 2

    def pages(self) -> Iterator[Sequence[Row]]:
        for page in self.keys("c:"):
            rows: list[Row] = []
            found = self.adapter.ask([Command("HGETALL", (key,)) for key in page])
            for key, raw in zip(page, found, strict=True):
                owner = key[len(self.adapter.shards[0]) + 2 :].decode()
                rows += [
                    (owner, turn.decode(), session.decode()) for turn, session in _items_of(raw)
                ]
            yield rows

    def present(self, keys: Collection[Key]) -> set[Key]:
        return self._in_any_shard(keys, "c:")

    def load(self, rows: Sequence[Row]) -> None:
        self.adapter.ask(
            [
                Command("HSET", (self.adapter.key_at(session, f"c:{owner}"), turn, session))
                for owner, turn, session in rows
            ]
        )

    def erase(self) -> None:
        self.erase_keys("c:")

    def _in_any_shard(self, keys: Collection[Key], name: str, prefix: str = "") -> set[Key]:
        """Those of `keys` whose second part is a field of the hash that the first part names."""
        found: set[Key] = set()
        for first, second in keys:
            hashes = [f"{shard}{name}{first}" for shard in self.adapter.shards]
            calls = [Command("HEXISTS", (one, f"{prefix}{second}")) for one in hashes]
            if any(self.adapter.ask(calls)):
                found.add((first, second))
        return found


class _Steps(_Claims):
    """turn_group, name, session, value."""

    name, key_width = "inbox_steps", 2

    def pages(self) -> Iterator[Sequence[Row]]:
        for page in self.keys("g:"):
            rows: list[Row] = []
            found = self.adapter.ask([Command("HGETALL", (key,)) for key in page])
            for key, raw in zip(page, found, strict=True):
                group = key[len(self.adapter.shards[0]) + 2 :].decode()
                fields = dict(_items_of(raw))
                session = fields.pop(b"session", b"").decode()
                rows += [
                    (group, name[1:].decode(), session, value) for name, value in fields.items()
                ]
            yield rows

    def present(self, keys: Collection[Key]) -> set[Key]:
        return self._in_any_shard(keys, "g:", ".")

    def load(self, rows: Sequence[Row]) -> None:
        self.adapter.ask(
            [
                Command(
                    "HSET",
                    (
                        self.adapter.key_at(session, f"g:{group}"),
                        *("session", session),
                        *(f".{name}", value),
                    ),
                )
                for group, name, session, value in rows
            ]
        )

    def erase(self) -> None:
        self.erase_keys("g:")


class _Owners(_InboxTable):
    """owner, beat, lease_ms, process, buried_at_ms."""

    name, key_width = "inbox_owners", 1

    def pages(self) -> Iterator[Sequence[Row]]:
        calls = [Command("HGETALL", (key,)) for key in self.adapter.owner_keys]
        owners, beats, graves = (dict(_items_of(raw)) for raw in self.adapter.ask(calls))
        yield [
            (
                name.decode(),
                int(beats.get(name, 0)),
                *msgspec.msgpack.decode(raw),
                int(graves[name]) if name in graves else None,
            )
            for name, raw in owners.items()
        ]

    def present(self, keys: Collection[Key]) -> set[Key]:
        owners = self.adapter.owner_keys[0]
        return _where(keys, self.adapter.ask([Command("HEXISTS", (owners, *key)) for key in keys]))

    def load(self, rows: Sequence[Row]) -> None:
        self.adapter.ask([call for row in rows for call in self.adapter.restore_owner(*row)])

    def erase(self) -> None:
        self.adapter.ask([Command("DEL", self.adapter.owner_keys)])


class _Policy(_InboxTable):
    """policy, as JSON."""

    name, key_width = "inbox_policy", 0

    def pages(self) -> Iterator[Sequence[Row]]:
        (stored,) = self.adapter.ask([Command("GET", (self.adapter.policy_key,))])
        if stored is not None:
            yield [(stored.decode(),)]

    def present(self, keys: Collection[Key]) -> set[Key]:
        (exists,) = self.adapter.ask([Command("EXISTS", (self.adapter.policy_key,))])
        return set(keys) if exists else set()

    def load(self, rows: Sequence[Row]) -> None:
        self.adapter.ask([Command("SET", (self.adapter.policy_key, *row)) for row in rows])

    def erase(self) -> None:
        self.adapter.ask([Command("DEL", (self.adapter.policy_key,))])


def _item_row(row: ItemRow) -> Row:
    flags = ALONE * row.alone + URGENT * row.urgent
    return (
        row.id,
        row.session,
        row.external_id,
        row.accepted_at_ms,
        flags,
        row.attempts,
        row.error,
        row.payload,
    )


def _where(keys: Collection[Key], found: Sequence[Any]) -> set[Key]:
    return {key for key, is_there in zip(keys, found, strict=True) if is_there}


def _items_of(raw: Any) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(raw, dict):  # the third version of the protocol has maps
        return iter(raw.items())
    return zip(raw[::2], raw[1::2], strict=True)
