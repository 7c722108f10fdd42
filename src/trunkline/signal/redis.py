"""Signal keys on Redis or Valkey: a hash a family, a commit one script."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from trunkline.actors import Call
from trunkline.backends import AdapterOptions
from trunkline.backends.dump import Key, Row, Schema, Table
from trunkline.backends.redis import Command, RedisAdapter, ScriptCall, load_script
from trunkline.errors import UnreadableRecord
from trunkline.signal.adapter import Commit, KeyName, SignalAdapter, Versioned, unreadable

__all__ = ("RedisSignalAdapter",)

# The entries of a family are fields of a hash: a value behind the decimal digits of its version and
# a colon.

_GET, _COMMIT, _NAMES, _SUMMARY, _LOAD, _MIGRATE = (
    load_script(__package__, name)
    for name in ("get", "commit", "names", "summary", "load", "migrate")
)

#: The keys of trunkline 0.1, which knew no namespaces.
_OLD_FAMILIES, _OLD_PREFIX = "trunkline:{signal}:families", "trunkline:{signal}:family:"


class RedisSignalAdapter(RedisAdapter, SignalAdapter):
    """Entries in a hash a family; a commit checks the versions and the lease on the server."""

    def open(self) -> None:
        super().open()
        if self.namespace == AdapterOptions().namespace:
            keys = [_OLD_FAMILIES, self.families]
            self.server.call(ScriptCall(_MIGRATE, keys, [_OLD_PREFIX, self.family]))

    def attach(self) -> None:
        super().open()

    def run_together(self, calls: Sequence[Call]) -> None:
        """Every call is a script of its own: one that fails does not affect the others."""
        names = [call.handler.__name__ for call in calls]
        if any(name not in ("get", "commit") for name in names):  # locks, names
            super().run_together(calls)
            return
        scripts = [
            (self._get if name == "get" else self._commit)(call.args[0])
            for name, call in zip(names, calls, strict=True)
        ]
        results = self.server.call_all(scripts)
        for name, call, result in zip(names, calls, results, strict=True):
            if isinstance(result, Exception):
                call.error = result
            elif name == "commit":
                call.value = bool(result)
            else:
                try:
                    call.value = _found(call.args[0], result)
                except UnreadableRecord as error:
                    call.error = error

    def get(self, names: Collection[KeyName]) -> dict[KeyName, Versioned]:
        return _found(names, self.server.call(self._get(names)))

    def commit(self, commit: Commit) -> bool:
        return bool(self.server.call(self._commit(commit)))

    def names(self) -> Sequence[KeyName]:
        raw = self.server.call(ScriptCall(_NAMES, [self.families], [self.family]))
        parts = [part.decode() for part in raw]
        return sorted(map(KeyName, parts[::2], parts[1::2]))

    def summary(self) -> dict[str, int]:
        raw = self.server.call(ScriptCall(_SUMMARY, [self.families], [self.family]))
        counts = zip(raw[::2], raw[1::2], strict=True)
        return {family.decode(): count for family, count in sorted(counts) if count}

    @property
    def tables(self) -> Sequence[Table]:
        return [_EntryTable(self)]

    def schema(self) -> Schema | None:
        old = self.server.call(Command("EXISTS", [_OLD_FAMILIES]))
        return Schema(version=1, known_version=2) if old else super().schema()

    def namespaces(self) -> list[str]:
        return self.server.namespaces("trunkline:{*}:signal:families")

    def _get(self, names: Collection[KeyName]) -> ScriptCall:
        keys = [self.family + name.family for name in names]
        return ScriptCall(_GET, keys, [name.id for name in names])

    def _commit(self, commit: Commit) -> ScriptCall:
        lock, token = commit.lease or ("", "")
        count = "" if commit.expected_entries is None else commit.expected_entries
        arguments: list[Any] = [self.family, token, commit.version, int(commit.clear), count]
        arguments.append(len(commit.expected))
        for (family, entry_id), version in commit.expected.items():
            arguments += [family, entry_id, version]
        for (family, entry_id), value in commit.changes.items():
            arguments += [family, entry_id, int(value is not None), value or b""]
        return ScriptCall(_COMMIT, [self.families, self._lock_name(lock)], arguments)

    @property
    def families(self) -> str:
        """The key of the set of families."""
        return f"{self.prefix}:families"

    @property
    def family(self) -> str:
        """The beginning of the key of a family's hash; no other key begins like this."""
        return f"{self.prefix}:family:"


class _EntryTable(Table):
    """Entries as rows of family, id, version, value."""

    name = "signal"
    key_width = 2

    def __init__(self, adapter: RedisSignalAdapter) -> None:
        self._adapter = adapter

    def count(self, at_ms: int = 0) -> int:
        return sum(self._adapter.summary().values())

    def dump(self, at_ms: int = 0, *, keys_only: bool = False) -> Iterator[Sequence[Row]]:
        """An entry that changes meanwhile may be dumped twice."""
        for family in self._adapter.summary():
            cursor = b"0"
            while True:
                arguments = [self._adapter.family + family, cursor, "COUNT", 500]
                cursor, raw = self._adapter.server.call(Command("HSCAN", arguments))
                names = [KeyName(family, entry_id.decode()) for entry_id in raw[::2]]
                if names:
                    found = _found(names, raw[1::2])
                    yield [name if keys_only else (*name, *entry) for name, entry in found.items()]
                if cursor == b"0":
                    break

    def present(self, keys: Collection[Key]) -> set[Key]:
        return set(self._adapter.get([KeyName(*key) for key in keys]))

    def load(self, rows: Sequence[Row]) -> None:
        arguments: list[Any] = [self._adapter.family]
        for family, entry_id, version, value in rows:
            arguments += [family, entry_id, b"%d:%b" % (version, value)]
        self._adapter.server.call(ScriptCall(_LOAD, [self._adapter.families], arguments))

    def erase(self) -> None:
        self._adapter.commit(Commit({}, 1, clear=True))


def _found(names: Collection[KeyName], raw: Sequence[bytes | None]) -> dict[KeyName, Versioned]:
    found = {}
    for name, stored in zip(names, raw, strict=True):
        if stored is not None:
            version, _, value = stored.partition(b":")
            if not version.isdigit():
                raise unreadable(name)
            found[name] = Versioned(int(version), value)
    return found
