"""Signal keys in memory: for tests, and for devices that are linked anew each time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, Self

from trunkline.backends import AdapterOptions
from trunkline.signal.adapter import ABSENT, Commit, KeyName, SignalAdapter, Versioned

__all__ = ("MemorySignalAdapter",)


class MemorySignalAdapter(SignalAdapter):
    """Entries in a dictionary of this process."""

    blocking: ClassVar = False

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        adapter = cls()
        adapter.namespace = options.namespace
        return adapter

    def __init__(self) -> None:
        self._entries: dict[KeyName, Versioned] = {}

    def get(self, names: Collection[KeyName]) -> dict[KeyName, Versioned]:
        return {name: self._entries[name] for name in names if name in self._entries}

    def commit(self, commit: Commit) -> bool:
        if commit.expected_entries not in (None, len(self._entries)):
            return False
        for name, version in commit.expected.items():
            entry = self._entries.get(name)
            if (ABSENT if entry is None else entry.version) != version:
                return False
        if commit.clear:
            self._entries.clear()
        for name, value in commit.changes.items():
            if value is None:
                self._entries.pop(name, None)
            else:
                self._entries[name] = Versioned(commit.version, value)
        return True

    def names(self) -> Sequence[KeyName]:
        return sorted(self._entries)
