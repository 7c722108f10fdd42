"""Signal keys on Redis or Valkey: a hash a family, a commit one script."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from trunkline.actors import Call
from trunkline.backends.dump import Key, Row, Table
from trunkline.backends.redis import RedisAdapter, ScriptCall
from trunkline.signal.adapter import Commit, KeyName, SignalAdapter, Versioned

__all__ = ("RedisSignalAdapter",)

#: What the keys of the families begin with: nothing else does, whatever a family is called.
_PREFIX = "trunkline:{signal}:family"
_FAMILIES = "trunkline:{signal}:families"

# A value is kept behind the decimal digits of its version and a colon.

#: KEYS: hashes of families, one for each of the ids in ARGV.
_GET = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('HGET', key, ARGV[i]) end
return found
"""

#: KEYS[1]: the set of families; KEYS[2]: the lock, or anything.
#: ARGV: prefix, token of the lock or '', version, clear, expected number of entries or '', number
#: of expected, then triples family, id, version, then quadruples family, id, '1' to set or '0' to
#: delete, value.
_COMMIT = """
local prefix, token, version, clear, entries = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if token ~= '' and redis.call('GET', KEYS[2]) ~= token then return 0 end
if entries ~= '' then
    local standing = 0
    for _, family in ipairs(redis.call('SMEMBERS', KEYS[1])) do
        standing = standing + redis.call('HLEN', prefix .. ':' .. family)
    end
    if standing ~= tonumber(entries) then return 0 end
end
local i = 7
for _ = 1, tonumber(ARGV[6]) do
    local stored = redis.call('HGET', prefix .. ':' .. ARGV[i], ARGV[i + 1])
    local standing = '0'
    if stored then standing = string.match(stored, '^(%d+):') end
    if standing ~= ARGV[i + 2] then return 0 end
    i = i + 3
end
if clear == '1' then
    for _, family in ipairs(redis.call('SMEMBERS', KEYS[1])) do
        redis.call('DEL', prefix .. ':' .. family)
    end
    redis.call('DEL', KEYS[1])
end
while i <= #ARGV do
    local family, id = ARGV[i], ARGV[i + 1]
    local key = prefix .. ':' .. family
    if ARGV[i + 2] == '1' then
        redis.call('SADD', KEYS[1], family)
        redis.call('HSET', key, id, version .. ':' .. ARGV[i + 3])
    else
        redis.call('HDEL', key, id)
    end
    i = i + 4
end
return 1
"""

#: KEYS[1]: the set of families. ARGV[1]: prefix.
_NAMES = """
local names = {}
for _, family in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    for _, id in ipairs(redis.call('HKEYS', ARGV[1] .. ':' .. family)) do
        names[#names + 1] = family
        names[#names + 1] = id
    end
end
return names
"""


#: KEYS[1]: the set of families. ARGV[1]: prefix.
_SUMMARY = """
local counts = {}
for _, family in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    counts[#counts + 1] = family
    counts[#counts + 1] = redis.call('HLEN', ARGV[1] .. ':' .. family)
end
return counts
"""

#: KEYS[1]: the hash of a family. ARGV[1]: cursor.
_SCAN = """
return redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 500)
"""

#: KEYS[1]: the set of families. ARGV: prefix, then triples family, id, stored value.
_RESTORE = """
for i = 2, #ARGV, 3 do
    redis.call('SADD', KEYS[1], ARGV[i])
    redis.call('HSET', ARGV[1] .. ':' .. ARGV[i], ARGV[i + 1], ARGV[i + 2])
end
"""


class RedisSignalAdapter(RedisAdapter, SignalAdapter):
    """Entries in a hash a family; a commit checks the versions and the lease on the server."""

    lock_prefix = "trunkline:{signal}:lock"

    def run_together(self, calls: Sequence[Call]) -> None:
        """Every call is a script of its own: one that fails has done nothing to the others."""
        names = [call.handler.__name__ for call in calls]
        if any(name not in ("get", "commit") for name in names):  # locks, names
            super().run_together(calls)
            return
        scripts = [
            (_get if name == "get" else self._commit)(call.args[0])
            for name, call in zip(names, calls, strict=True)
        ]
        results = self.server.call_all(scripts)
        for name, call, result in zip(names, calls, results, strict=True):
            if isinstance(result, Exception):
                call.error = result
            elif name == "get":
                call.value = _found(call.args[0], result)
            else:
                call.value = bool(result)

    def get(self, names: Collection[KeyName]) -> dict[KeyName, Versioned]:
        return _found(names, self.server.call(_get(names)))

    def commit(self, commit: Commit) -> bool:
        return bool(self.server.call(self._commit(commit)))

    def names(self) -> Sequence[KeyName]:
        raw = self.server.call(ScriptCall(_NAMES, [_FAMILIES], [_PREFIX]))
        parts = [part.decode() for part in raw]
        return sorted(map(KeyName, parts[::2], parts[1::2]))

    def summary(self) -> dict[str, int]:
        raw = self.server.call(ScriptCall(_SUMMARY, [_FAMILIES], [_PREFIX]))
        counts = zip(raw[::2], raw[1::2], strict=True)
        return {family.decode(): count for family, count in sorted(counts) if count}

    @property
    def tables(self) -> Sequence[Table]:
        return [_EntryTable(self)]

    def namespaces(self) -> list[str]:
        return [self.namespace] if self.summary() else []

    def _commit(self, commit: Commit) -> ScriptCall:
        lock, token = commit.lease or ("", "")
        count = "" if commit.expected_entries is None else commit.expected_entries
        arguments: list[Any] = [_PREFIX, token, commit.version, int(commit.clear), count]
        arguments.append(len(commit.expected))
        for (family, entry_id), version in commit.expected.items():
            arguments += [family, entry_id, version]
        for (family, entry_id), value in commit.changes.items():
            arguments += [family, entry_id, int(value is not None), value or b""]
        return ScriptCall(_COMMIT, [_FAMILIES, f"{self.lock_prefix}:{lock}"], arguments)


class _EntryTable(Table):
    """Entries as rows of family, id, version, value."""

    name = "signal"
    key_width = 2

    def __init__(self, adapter: RedisSignalAdapter) -> None:
        self._adapter = adapter

    def count(self, at_ms: int = 0) -> int:
        return sum(self._adapter.summary().values())

    def dump(self, at_ms: int = 0, *, keys_only: bool = False) -> Iterator[Sequence[Row]]:
        """An entry that changes meanwhile is dumped maybe twice."""
        for family in self._adapter.summary():
            cursor = b"0"
            while True:
                call = ScriptCall(_SCAN, [f"{_PREFIX}:{family}"], [cursor])
                cursor, raw = self._adapter.server.call(call)
                names = [KeyName(family, entry_id.decode()) for entry_id in raw[::2]]
                if names:
                    found = _found(names, raw[1::2])
                    yield [name if keys_only else (*name, *entry) for name, entry in found.items()]
                if cursor == b"0":
                    break

    def present(self, keys: Collection[Key]) -> set[Key]:
        return set(self._adapter.get([KeyName(*key) for key in keys]))

    def load(self, rows: Sequence[Row]) -> None:
        arguments: list[Any] = [_PREFIX]
        for family, entry_id, version, value in rows:
            arguments += [family, entry_id, b"%d:%b" % (version, value)]
        self._adapter.server.call(ScriptCall(_RESTORE, [_FAMILIES], arguments))

    def erase(self) -> None:
        self._adapter.commit(Commit({}, 1, clear=True))


def _get(names: Collection[KeyName]) -> ScriptCall:
    return ScriptCall(
        _GET, [f"{_PREFIX}:{name.family}" for name in names], [name.id for name in names]
    )


def _found(names: Collection[KeyName], raw: Sequence[bytes | None]) -> dict[KeyName, Versioned]:
    found = {}
    for name, stored in zip(names, raw, strict=True):
        if stored is not None:
            version, _, value = stored.partition(b":")
            found[name] = Versioned(int(version), value)
    return found
