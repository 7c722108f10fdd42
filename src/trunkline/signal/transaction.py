"""A transaction: reads and writes that become visible together, or not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from trunkline.signal.adapter import ABSENT, KeyName, Versioned

__all__ = ("SignalTransaction", "ValueCodec")


class ValueCodec(Protocol):
    """Checks names and turns values into bytes and back."""

    def names(self, family: str, ids: Iterable[str]) -> list[KeyName]: ...

    def changes(self, data: Mapping[str, Mapping[str, Any]]) -> dict[KeyName, bytes | None]: ...

    def decode(self, name: KeyName, encoded: bytes) -> Any: ...


class SignalTransaction:
    """What `SignalStore.transaction` gives: the store's methods, inside the transaction.

    Reads see its own writes, and what they have read once does not change under them. Nothing is
    visible outside before the commit.
    """

    def __init__(
        self,
        key: str,
        read: Callable[[Collection[KeyName]], Awaitable[dict[KeyName, Versioned]]],
        codec: ValueCodec,
    ) -> None:
        #: The key it was begun with.
        self.key = key
        #: Whether it is under way still.
        self.is_open = True
        self._read = read
        self._codec = codec
        # What was stored when this transaction first touched it; the commit checks the versions.
        self._seen: dict[KeyName, Versioned | None] = {}
        self._changes: dict[KeyName, bytes | None] = {}
        self._cleared = False

    def __repr__(self) -> str:
        return f"<SignalTransaction {self.key!r} {'open' if self.is_open else 'over'}>"

    async def get(self, family: str, ids: Iterable[str]) -> dict[str, Any]:
        """The values of `ids`; absent ones are left out. Raises as `SignalStore.get`."""
        self._require_open()
        names = self._codec.names(family, ids)
        await self._touch(name for name in names if name not in self._changes)
        found = {}
        for name in names:
            encoded = self._encoded(name)
            if encoded is not None:
                found[name.id] = self._codec.decode(name, encoded)
        return found

    async def set(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """Store values, and delete where one is `None`. Raises as `SignalStore.set`."""
        self._require_open()
        changes = self._codec.changes(data)
        await self._touch(changes)
        self._changes.update(changes)

    async def clear(self) -> None:
        """Delete everything in the store."""
        self._require_open()
        self._changes.clear()
        self._cleared = True

    @property
    def in_transaction(self) -> bool:
        """True while it is under way."""
        return self.is_open

    def _encoded(self, name: KeyName) -> bytes | None:
        if name in self._changes:
            return self._changes[name]
        seen = self._seen[name]
        return None if seen is None or self._cleared else seen.value

    async def _touch(self, names: Iterable[KeyName]) -> None:
        """See what is stored under `names`, so that a change of it by others is noticed."""
        unseen = [name for name in names if name not in self._seen]
        if unseen:
            found = await self._read(unseen)
            self._seen.update((name, found.get(name)) for name in unseen)

    def _require_open(self) -> None:
        if not self.is_open:
            raise RuntimeError(f"the transaction on {self.key!r} is over")

    # -- for the store -----------------------------------------------------------------------------

    def has_changes(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._changes) or self._cleared

    def outcome(self) -> tuple[dict[KeyName, bytes | None], dict[KeyName, int], bool]:
        """The changes, the versions that must still stand, and whether all else is deleted."""
        expected = {
            name: ABSENT if seen is None else seen.version for name, seen in self._seen.items()
        }
        return self._changes, expected, self._cleared
