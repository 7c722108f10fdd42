"""The inbox on Redis or Valkey: a hash a session, and one script that changes it.

A session is in one of 64 shards, and so are all keys that belong to it; NN is the number:

| key                               | what                                                    |
|-----------------------------------|---------------------------------------------------------|
| `trunkline:{namespace:NN}:inbox:` | what the keys of a shard begin with                     |
| … `s:` session                    | hash: `v` version, `d` document, and its items by id    |
| … `due`                           | every session by when it is due; infinite if it is not  |
| … `items`, `failed`               | the ids of items with their sessions, sorted            |
| … `failed-items`                  | hash: failed items by id, and why as id`:error`         |
| … `m:` mark                       | the id of an item that was accepted, until it expires   |
| … `g:` group                      | hash: results of steps by `.`name, and `session`        |
| … `c:` process                    | hash: turn → session                                    |
| … `counts`                        | hash: how many items wait, how many run                 |
| `trunkline:{namespace}:inbox:`    | `policy`; hashes by process: `owners`, `beats`, `graves` |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from random import getrandbits
from time import monotonic
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

import msgspec
from uuid_utils import uuid7

from trunkline.actors.log import Log
from trunkline.backends.dump import Table
from trunkline.backends.redis import AnyRedis, Command, RedisAdapter, ScriptCall, load_script
from trunkline.errors import (
    ConfigurationError,
    NotFound,
    TrunklineError,
    UnreadableRecord,
)
from trunkline.turns.adapter import (
    ALONE,
    SHARDS,
    URGENT,
    Applied,
    Beat,
    InboxAdapter,
    ItemRow,
    Loaded,
    Owner,
    is_running,
    shard_of,
)
from trunkline.turns.item import InboxCounts
from trunkline.turns.policy import TurnPolicy
from trunkline.turns.redis_tables import make_tables
from trunkline.turns.session import Change, Session

__all__ = ("RedisInboxAdapter",)

_APPLY, _BEAT, _BURY, _COUNTS, _RECOVER, _REMOVE_FAILED = (
    load_script(__package__, name)
    for name in ("apply", "beat", "bury", "counts", "recover", "remove_failed")
)

#: How long the server's clock is known by what it said and the time since, in seconds.
_CLOCK_SECONDS = 1.0

#: How long a process that was found dead is remembered, in milliseconds.
_GRAVE_MS = 3_600_000

#: Shards by the beginning of their keys.
_ALL = range(SHARDS)

#: Sessions that are kept in memory, so that they need not be read.
_KEPT = 1_024

E = TypeVar("E", bytes, tuple[float, bytes])

_log = Log("trunkline.turns")

_encode = msgspec.msgpack.Encoder().encode
_decode_session = msgspec.msgpack.Decoder(Session).decode
#: What an item has besides its payload: external id, when it was accepted, flags.
_decode_head = msgspec.msgpack.Decoder(tuple[str | None, int, int]).decode
_decode_failure = msgspec.msgpack.Decoder(tuple[int, str]).decode
_decode_owner = msgspec.msgpack.Decoder(tuple[int, str]).decode

_shard_of = lru_cache(maxsize=16_384)(shard_of)


class _Stored(NamedTuple):
    """What a session was when it was loaded."""

    version: bytes = b""
    waiting: int = 0
    running: int = 0


_ABSENT = _Stored()


class RedisInboxAdapter(RedisAdapter, InboxAdapter):
    """Sessions in a hash each, written if nobody else has changed them since they were loaded.

    A write is one script, which does all or nothing to one session and what belongs to it.
    """

    #: A session's version does what a lock does elsewhere.
    lease_ms: int = 0

    def __init__(
        self, server: AnyRedis, *, namespace: str = "default", timeout_ms: int = 5_000
    ) -> None:
        super().__init__(server, namespace=namespace, timeout_ms=timeout_ms)
        name = quote(namespace, safe="")
        self.shards = [f"trunkline:{{{name}:{number:02}}}:inbox:" for number in _ALL]
        #: Names this object and its siblings in notices.
        self._sender = str(uuid7()).encode()
        self._start()

    def _start(self) -> None:
        self._loaded: dict[str, _Stored] = {}
        #: Sessions as this object has written them, with their versions; `None` for an empty one.
        self._kept: dict[str, tuple[bytes, Session | None]] = {}
        # What the server's clock is ahead of the monotonic clock, and until when that counts.
        self._ahead_ms, self._ahead_until = 0, 0.0

    def sibling(self) -> Self:
        other = super().sibling()
        other._start()
        return other

    def open(self) -> None:
        super().open()
        self._require_memory()

    def attach(self) -> None:
        super().open()

    # -- sessions ----------------------------------------------------------------------------------

    def load(self, keys: Collection[str], marks: Mapping[bytes, str]) -> Loaded:
        # Taken out, since it is changed from now on; `apply` puts it back.
        kept = {key: self._kept.pop(key) for key in keys if key in self._kept}
        read = [key for key in keys if key not in kept]
        calls = [Command("HMGET", (self.session_key(key), "v", "d")) for key in read]
        # `apply` refuses marks that are known, and what is kept is then read.
        unknown = [mark for mark, key in marks.items() if key not in kept]
        calls += [Command("GET", (self._mark_key(mark, marks[mark]),)) for mark in unknown]
        now_ms, replies = self._ask_with_time(calls)
        found = zip(unknown, _unfailed(replies[len(read) :]), strict=True)
        sessions: dict[str, Session | TrunklineError] = {}
        self._loaded = {}
        for key, (version, session) in kept.items():
            if session is not None:
                self._take(sessions, key, version, session)
        for key, reply in zip(read, replies, strict=False):
            if isinstance(reply, TrunklineError):
                sessions[key] = reply
            elif reply[0] is not None:
                self._take(sessions, key, reply[0], _session(key, reply[1]))
        seen = {mark: raw.decode() for mark, raw in found if raw}
        return Loaded(now_ms, sessions, seen, frozenset(kept))

    def _take(
        self,
        sessions: dict[str, Session | TrunklineError],
        key: str,
        version: bytes,
        session: Session | TrunklineError,
    ) -> None:
        """Add a session to those that are loaded."""
        sessions[key] = session
        if isinstance(session, Session):
            self._loaded[key] = _Stored(version, session.waiting_count, session.running_count)

    def apply(
        self, changes: Sequence[Change], items: Mapping[str, str], groups: Mapping[str, str]
    ) -> Applied:
        wanted = _Wanted(items, groups)
        changed = {change.key: change for change in changes}
        writes = [self._write(change, wanted.words.get(change.key, ())) for change in changes]
        # Items of sessions that stay as they are.
        others = [key for key in wanted.words if key not in changed]
        calls: list[Command | ScriptCall] = [
            *writes,
            *(self._read_items(key, wanted.words[key][1::2]) for key in others),
        ]
        if any(change.notify for change in changes):
            calls.append(Command("PUBLISH", (self._channel, self._sender)))
        replies = self.server.call_all(calls)
        for change, write, reply in zip(changes, writes, replies, strict=False):
            if isinstance(reply, list):
                self._keep(change, write)
        keys = [*(change.key for change in changes), *others]
        return wanted.applied(dict(zip(keys, replies, strict=False)), changed)

    def _read_items(self, key: str, item_ids: Sequence[str]) -> Command:
        return Command("HMGET", (self.session_key(key), *item_ids))

    def _keep(self, change: Change, write: ScriptCall) -> None:
        """Spare the next `load` a session: nobody else may have changed it."""
        is_empty = change.session.is_empty
        self._kept[change.key] = (b"", None) if is_empty else (write.arguments[2], change.session)
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]

    def _write(self, change: Change, wanted: Sequence[str]) -> ScriptCall:
        session = change.session
        stored = self._loaded.get(change.key, _ABSENT)
        is_empty = session.is_empty
        return self._call(
            change.key,
            change.now_ms,
            b"" if is_empty else _encode(session),
            None if is_empty else change.due_at_ms,
            session.waiting_count - stored.waiting,
            session.running_count - stored.running,
            self._changes(change),
            wanted,
        )

    def _call(
        self,
        key: str,
        now_ms: int,
        document: bytes,
        due_at_ms: int | None,
        waiting: int,
        running: int,
        changes: Sequence[Any] = (),
        wanted: Sequence[str] = (),
    ) -> ScriptCall:
        """Write a session, unless somebody else has changed it since it was loaded."""
        return ScriptCall(
            _APPLY,
            (self.shards[_shard_of(key)],),
            (
                key,
                self._loaded.get(key, _ABSENT).version,
                b"%d.%x" % (now_ms, getrandbits(48)),
                document,
                "+inf" if due_at_ms is None else due_at_ms,
                waiting,
                running,
                len(changes),
                *changes,
                *wanted,
            ),
        )

    def _changes(self, change: Change) -> list[Any]:
        """What `lua/apply.lua` has to write; what makes it refuse stands first."""
        words: list[Any] = []
        for mark, item_id in change.marks.items():
            expiry_ms = self.mark_expiry_ms(change, item_id, mark) - change.now_ms
            words += ("mark", mark, item_id, max(expiry_ms, 1))
        for item_id in change.revived:
            words += ("revive", item_id)
        for item_id in change.removed:
            words += ("remove", item_id)
        for turn_id, owner in change.released.items():
            words += ("release", turn_id, owner)
        for entry, item in change.added:
            if entry.id not in change.removed:
                flags = ALONE * entry.alone + URGENT * entry.urgent
                packed = packed_item(item.external_id, entry.accepted_at_ms, flags, item.payload)
                words += ("add", entry.id, packed)
        for item_id, payload in change.replaced.items():
            if item_id not in change.removed:
                words += ("replace", item_id, payload)
        for (group, name), value in change.steps.items():
            words += ("step", group, f".{name}", value)
        for turn_id, owner in change.claimed.items():
            words += ("claim", turn_id, owner)
        for entry, attempts, error in change.failed:
            words += ("fail", entry.id, _encode((attempts, error)))
        for group in change.ended_groups:
            words += ("end", group)
        return words

    def peek(self, keys: Collection[str]) -> Mapping[str, Session]:
        replies = self.ask([Command("HGET", (self.session_key(key), "d")) for key in keys])
        found = {
            key: _session(key, document)
            for key, document in zip(keys, replies, strict=True)
            if document is not None
        }
        return {key: one for key, one in found.items() if isinstance(one, Session)}

    def due(self, limit: int, *, urgent_only: bool) -> tuple[list[str], int | None]:
        def command(shard: str, count: int) -> Command:
            arguments = (f"{shard}due", "-inf", "(+inf", "WITHSCORES", "LIMIT", 0, count)
            return Command("ZRANGEBYSCORE", arguments)

        # One more than may be returned: it tells when the next one is due.
        first = self.first(command, scored, limit + 1)
        now_ms = self.now_ms()
        latest = 0 if urgent_only else now_ms
        keys = [key.decode() for score, key in first[:limit] if score <= latest]
        later = first[len(keys) :]
        return keys, max(int(later[0][0]) - now_ms, 0) if later else None

    def recover(self) -> int:
        return sum(self.ask([ScriptCall(_RECOVER, (shard,)) for shard in self.shards]))

    def first(
        self,
        command: Callable[[str, int], Command],
        entries: Callable[[Any], list[E]],
        limit: int,
    ) -> list[E]:
        """The smallest entries of a sorted set that is spread over all shards.

        Args:
            command: reads the first entries of a shard: how many.
            entries: makes entries of its reply.
            limit: how many to find.
        """
        pages: dict[str, list[E]] = {}
        # Shards have about as many each; of one that has more of the first, all are read.
        count = 2 + limit // 16
        shards: Sequence[str] = self.shards
        while True:
            replies = self.ask([command(shard, count) for shard in shards])
            pages.update(zip(shards, map(entries, replies), strict=True))
            found = sorted(chain.from_iterable(pages.values()))[:limit]
            last = found[-1] if len(found) == limit else None
            shards = [
                shard
                for shard, page in pages.items()
                if len(page) == count and (last is None or page[-1] <= last)
            ]
            if count >= limit or not shards:
                return found
            count = limit

    # -- items -------------------------------------------------------------------------------------

    def rows(self, after: str | None, limit: int, *, failed: bool) -> Sequence[ItemRow]:
        name, start = ("failed" if failed else "items"), f"({after}\x01" if after else "-"

        def command(shard: str, count: int) -> Command:
            return Command("ZRANGEBYLEX", (f"{shard}{name}", start, "+", "LIMIT", 0, count))

        members = [member_of(one) for one in self.first(command, list, limit)]
        return [row for row in self.read_items(members, failed=failed) if row is not None]

    def read_items(
        self, members: Sequence[tuple[str, str]], *, failed: bool
    ) -> list[ItemRow | None]:
        """Items by their ids and sessions; `None` for one that is not there."""
        calls = [
            Command("HMGET", (self.key_at(session, "failed-items"), item_id, f"{item_id}:error"))
            if failed
            else Command("HMGET", (self.session_key(session), item_id))
            for item_id, session in members
        ]
        return [
            None if not reply[0] else _row(item_id, session, *reply)
            for (item_id, session), reply in zip(members, self.ask(calls), strict=True)
        ]

    def row(self, item_id: str) -> ItemRow | None:
        range_ = (f"[{item_id}\0", f"({item_id}\x01")
        for name in ("items", "failed"):
            pages = self.ask(
                [Command("ZRANGEBYLEX", (f"{shard}{name}", *range_)) for shard in self.shards]
            )
            members = [member_of(one) for one in chain.from_iterable(pages)]
            for row in self.read_items(members, failed=name == "failed"):
                if row is not None:
                    return row
        return None

    def remove_failed(self, item_id: str) -> bool:
        row = self.row(item_id)
        if row is None or row.error is None:
            return False
        keys = [self.key_at(row.session, name) for name in ("failed", "failed-items")]
        return bool(self.server.call(ScriptCall(_REMOVE_FAILED, keys, [item_id, row.session])))

    def counts(self) -> InboxCounts:
        calls = [
            ScriptCall(_COUNTS, (f"{shard}due", f"{shard}counts", f"{shard}failed"))
            for shard in self.shards
        ]
        return InboxCounts(*map(sum, zip(*self.ask(calls), strict=True)))

    def load_policy(self) -> TurnPolicy | None:
        stored = self.server.call(Command("GET", [self.policy_key]))
        return None if stored is None else msgspec.json.decode(stored, type=TurnPolicy)

    def save_policy(self, policy: TurnPolicy) -> None:
        encoded = msgspec.json.encode(policy)
        self.server.call(Command("SET", [self.policy_key, encoded]))

    def sweep(self, limit: int) -> int:
        """The server removes marks by itself."""
        return 0

    # -- processes ---------------------------------------------------------------------------------

    def register(self, owner: Owner) -> None:
        encoded = _encode((owner.lease_ms, owner.process))
        owners, beats, graves = self.owner_keys
        self.ask(
            [
                Command("HSET", (owners, owner.id, encoded)),
                Command("HSET", (beats, owner.id, owner.beat)),
                Command("HDEL", (graves, owner.id)),
                # Others should watch it from now on.
                Command("PUBLISH", (self._channel, self._sender)),
            ]
        )

    def unregister(self, owner_id: str) -> None:
        self.ask([Command("HDEL", (key, owner_id)) for key in self.owner_keys])

    def beat(self, owner_id: str) -> Beat:
        calls: list[Command | ScriptCall] = [ScriptCall(_BEAT, self.owner_keys, [owner_id])]
        calls += self._read_claims(owner_id)
        hashes, *held = self.ask(calls)
        owners = _owners(hashes)
        claims = _claims(held)
        documents = self.peek({*claims.values()})
        return Beat(
            any(owner.id == owner_id and not owner.is_buried for owner in owners),
            {
                turn: (key, key in documents and is_running(documents[key], turn))
                for turn, key in claims.items()
            },
            owners,
        )

    def mark_buried(self, owner_id: str) -> None:
        self.server.call(ScriptCall(_BURY, self.owner_keys, [owner_id, _GRAVE_MS]))

    def sessions_of(self, owner_id: str, limit: int) -> list[str]:
        claims = _claims(self.ask(self._read_claims(owner_id)))
        return [*dict.fromkeys(claims.values())][:limit]

    def wait(self, timeout_ms: int) -> bool:
        return self.server.wait_notice(self._channel, self._sender, timeout_ms)

    @property
    def owner_keys(self) -> list[str]:
        """Processes, their counters, and those that were found dead."""
        return [f"{self.prefix}:{name}" for name in ("owners", "beats", "graves")]

    def _read_claims(self, owner_id: str) -> list[Command]:
        return [Command("HGETALL", (f"{shard}c:{owner_id}",)) for shard in self.shards]

    # -- inside ------------------------------------------------------------------------------------

    @property
    def _channel(self) -> str:
        return f"{self.prefix}:notices"

    def session_key(self, session: str) -> str:
        return f"{self.shards[_shard_of(session)]}s:{session}"

    def key_at(self, session: str, name: str) -> str:
        """A key of the shard of a session."""
        return self.shards[_shard_of(session)] + name

    def _mark_key(self, mark: bytes, session: str) -> bytes:
        return b"%bm:%b" % (self.shards[_shard_of(session)].encode(), mark)

    def ask(self, calls: Sequence[Command | ScriptCall]) -> list[Any]:
        """Run commands and scripts in one round trip; raise the first error."""
        return _unfailed(self.server.call_all(calls)) if calls else []

    def _ask_with_time(self, calls: Sequence[Command]) -> tuple[int, list[Any]]:
        """The server's clock, and what commands returned or raised, in one round trip."""
        if monotonic() < self._ahead_until:
            return self.now_ms(), self.server.call_all(calls) if calls else []
        *replies, time = self.server.call_all([*calls, Command("TIME", ())])
        self._set_clock(*_unfailed([time]))
        return self.now_ms(), replies

    def now_ms(self) -> int:
        now = monotonic()
        if now >= self._ahead_until:
            self._set_clock(self.server.call(Command("TIME", ())))
        return int(now * 1000) + self._ahead_ms

    def _set_clock(self, time: Sequence[bytes]) -> None:
        now = monotonic()
        self._ahead_ms = int(time[0]) * 1000 + int(time[1]) // 1000 - int(now * 1000)
        self._ahead_until = now + _CLOCK_SECONDS

    # -- as a whole --------------------------------------------------------------------------------

    def _require_memory(self) -> None:
        """Refuse a server that may forget items, and warn of one that a power cut makes forget.

        Raises:
            ConfigurationError: it evicts keys when its memory is full.
        """
        settings = self._settings()
        evicts = settings.get("maxmemory-policy", "noeviction")
        if evicts != "noeviction" and settings.get("maxmemory", "0") != "0":
            raise ConfigurationError(
                f"{self.server.shown_url} evicts keys when its memory is full (maxmemory-policy"
                f" {evicts}), and an inbox must lose no item: set it to noeviction"
            )
        if settings.get("appendfsync") != "always" or settings.get("appendonly") != "yes":
            _log.warning(
                "inbox_may_be_lost",
                server=self.server.shown_url,
                appendonly=settings.get("appendonly", "unknown"),
                appendfsync=settings.get("appendfsync", "unknown"),
                advice="appendonly yes and appendfsync always keep items when the server dies",
            )

    def _settings(self) -> dict[str, str]:
        """What the server tells of its memory and its persistence, as far as it is allowed to."""
        names = ("maxmemory", "maxmemory-policy", "appendonly", "appendfsync")
        *settings, info = self.server.call_all(
            [*(Command("CONFIG", ("GET", name)) for name in names), Command("INFO", ())]
        )
        if not any(isinstance(one, Exception) for one in settings):
            return {
                name.decode(): value.decode()
                for one in settings
                for name, value in pairs(one).items()
            }
        if isinstance(info, Exception):
            return {}
        lines = [line.partition(":") for line in info.decode().splitlines()]
        known = {name: value for name, _, value in lines}
        return {
            "maxmemory": known.get("maxmemory", "0"),
            "maxmemory-policy": known.get("maxmemory_policy", "noeviction"),
            "appendonly": "yes" if known.get("aof_enabled") == "1" else "no",
        }

    # -- for its tables ----------------------------------------------------------------------------

    def due_times(self, shard: str) -> list[tuple[float, str]]:
        """Every session of a shard, and when it is due."""
        (raw,) = self.ask([Command("ZRANGE", (f"{shard}due", 0, -1, "WITHSCORES"))])
        return [(due_at, member.decode()) for due_at, member in scored(raw)]

    def restore(
        self,
        session: str,
        due_at_ms: int | None,
        set_at_ms: int,
        waiting: int,
        running: int,
        document: bytes,
    ) -> ScriptCall:
        """Write a session that was loaded as it is."""
        stored = self._loaded.get(session, _ABSENT)
        waiting, running = waiting - stored.waiting, running - stored.running
        return self._call(session, set_at_ms, document, due_at_ms, waiting, running)

    def restore_item(
        self,
        item_id: str,
        session: str,
        external_id: str | None,
        accepted_at_ms: int,
        flags: int,
        attempts: int,
        error: str | None,
        payload: bytes,
    ) -> list[Command]:
        """Write an item in the place of one with the same id."""
        packed = packed_item(external_id, accepted_at_ms, flags, payload)
        member = f"{item_id}\0{session}"
        hash_, graves = self.session_key(session), self.key_at(session, "failed-items")
        items, failed = self.key_at(session, "items"), self.key_at(session, "failed")
        if error is None:
            return [
                Command("HSET", (hash_, item_id, packed)),
                Command("ZADD", (items, 0, member)),
                Command("HDEL", (graves, item_id, f"{item_id}:error")),
                Command("ZREM", (failed, member)),
            ]
        failure = _encode((attempts, error))
        return [
            Command("HSET", (graves, item_id, packed, f"{item_id}:error", failure)),
            Command("ZADD", (failed, 0, member)),
            Command("HDEL", (hash_, item_id)),
            Command("ZREM", (items, member)),
        ]

    def restore_owner(
        self, owner_id: str, beat: int, lease_ms: int, process: str, buried_at_ms: int | None
    ) -> list[Command]:
        """Write a process in the place of one with the same id."""
        owners, beats, graves = self.owner_keys
        return [
            Command("HSET", (owners, owner_id, _encode((lease_ms, process)))),
            Command("HSET", (beats, owner_id, beat)),
            Command("HDEL", (graves, owner_id))
            if buried_at_ms is None
            else Command("HSET", (graves, owner_id, buried_at_ms)),
        ]

    @property
    def policy_key(self) -> str:
        return f"{self.prefix}:policy"

    @property
    def tables(self) -> Sequence[Table]:
        return make_tables(self)

    def namespaces(self) -> list[str]:
        return self.server.namespaces("trunkline:{*}:inbox:*")


def _unfailed(replies: list[Any]) -> list[Any]:
    """Replies of which none is an error; the first one is raised."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


class _Wanted:
    """Items and steps to return."""

    def __init__(self, items: Mapping[str, str], groups: Mapping[str, str]) -> None:
        #: session → 'item' or 'steps', id, …
        self.words: dict[str, list[str]] = {}
        for item_id, key in items.items():
            self.words.setdefault(key, []).extend(("item", item_id))
        for group, key in groups.items():
            self.words.setdefault(key, []).extend(("steps", group))

    def applied(self, replies: Mapping[str, Any], changes: Mapping[str, Change]) -> Applied:
        """What came of a batch.

        Args:
            replies: session → what its command or script returned.
            changes: session → what was to be written.
        """
        conflicts: set[str] = set()
        errors: dict[str, TrunklineError] = {}
        rows: dict[str, ItemRow] = {}
        steps: dict[str, Mapping[str, bytes]] = {}
        for key, reply in replies.items():
            if reply is None:
                conflicts.add(key)
            elif isinstance(reply, TrunklineError):
                errors[key] = reply
            elif reply == _NOT_FAILED:
                errors[key] = NotFound(f"the item of session {key!r} is not failed any more")
            else:
                words = self.words.get(key, ())
                for what, name, value in zip(words[::2], words[1::2], reply, strict=True):
                    if what == "steps":
                        steps[name] = step_values(value)
                    elif value is not None:
                        rows[name] = _row(name, key, value)
                    elif key in changes and not _is_done(changes[key], name):
                        errors[key] = UnreadableRecord(
                            f"item {name} of session {key!r} has no payload"
                        )
        return Applied(frozenset(conflicts), rows, steps, errors)


def _is_done(change: Change, item_id: str) -> bool:
    return item_id in change.removed or any(entry.id == item_id for entry, *_ in change.failed)


#: What `lua/apply.lua` returns for an item that was to be tried again.
_NOT_FAILED = -1


def _session(key: str, document: bytes | None) -> Session | UnreadableRecord:
    try:
        return _decode_session(document or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return UnreadableRecord(f"session {key!r} of the inbox cannot be decoded: {error}")


def _row(item_id: str, session: str, item: bytes, failure: bytes | None = None) -> ItemRow:
    end = 2 + int.from_bytes(item[:2], "big")
    external_id, accepted_at_ms, flags = _decode_head(item[2:end])
    row = ItemRow(
        item_id,
        session,
        external_id,
        accepted_at_ms,
        item[end:],
        bool(flags & ALONE),
        bool(flags & URGENT),
    )
    if failure is None:
        return row
    attempts, error = _decode_failure(failure)
    return msgspec.structs.replace(row, attempts=attempts, error=error)


def packed_item(external_id: str | None, accepted_at_ms: int, flags: int, payload: bytes) -> bytes:
    """An item as it is stored: the length of its head in two bytes, the head, the payload."""
    head = _encode((external_id, accepted_at_ms, flags))
    return b"%b%b%b" % (len(head).to_bytes(2, "big"), head, payload)


def member_of(raw: bytes) -> tuple[str, str]:
    """The id of an item, and its session."""
    item_id, _, session = raw.decode().partition("\0")
    return item_id, session


def scored(raw: Sequence[Any]) -> list[tuple[float, bytes]]:
    """Entries of a sorted set with their scores, which come first here."""
    if raw and isinstance(raw[0], list):  # the third version of the protocol has pairs
        return [(score, member) for member, score in raw]
    return [(float(score), member) for member, score in zip(raw[::2], raw[1::2], strict=True)]


def pairs(raw: Any) -> Mapping[bytes, bytes]:
    if isinstance(raw, dict):  # the third version of the protocol has maps
        return raw
    return dict(zip(raw[::2], raw[1::2], strict=True))


def step_values(raw: Any) -> dict[str, bytes]:
    """Results of steps by name, of the hash of a group."""
    return {name[1:].decode(): value for name, value in pairs(raw).items() if name[:1] == b"."}


def _claims(hashes: Iterable[Any]) -> dict[str, str]:
    """Turn → session."""
    return {
        turn.decode(): session.decode() for raw in hashes for turn, session in pairs(raw).items()
    }


def _owners(hashes: Sequence[Any]) -> tuple[Owner, ...]:
    owners, beats, graves = map(pairs, hashes)
    return tuple(
        Owner(name.decode(), int(beats.get(name, 0)), *_decode_owner(raw), name in graves)
        for name, raw in owners.items()
    )
