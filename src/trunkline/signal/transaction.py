"""A transaction: reads and writes that become visible together, or not at all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from trunkline.backends.locks import Lock
from trunkline.signal.adapter import ABSENT, Commit, KeyName, SignalAdapter, Versioned
from trunkline.signal.codec import EntryCodec

__all__ = ("SignalTransaction",)

R = TypeVar("R")


class SignalTransaction:
    """The store's methods inside a transaction; `SignalStore.transaction` yields it.

    Reads see its own writes, and what they have read once does not change under them. Nothing is
    visible outside before the commit.
    """

    def __init__(
        self,
        key: str,
        lock: Lock,
        read: Callable[..., Awaitable[Any]],
        codec: EntryCodec,
    ) -> None:
        #: The key it was begun with.
        self.key = key
        #: The lock on the key. Where it is lost, the commit will raise `TransactionConflict`.
        self.lock = lock
        #: Whether it has not ended.
        self.is_open = True
        self._read = read
        self._codec = codec
        # What was stored when this transaction first touched it; the commit checks the versions.
        self._seen: dict[KeyName, Versioned | None] = {}
        # At how many instants it was looked at.
        self._reads = 0
        self._changes: dict[KeyName, bytes | None] = {}
        # How many entries there were when this transaction deleted them all.
        self._cleared: int | None = None

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
        """Delete everything in the store: that touches every entry there is."""
        self._require_open()
        if self._cleared is None:
            names: Sequence[KeyName] = await self._read(SignalAdapter.names)
            self._require_open()
            await self._touch(names)
            self._cleared = sum(self._seen[name] is not None for name in names)
        self._changes.clear()

    def transaction(
        self, key: str, *, timeout_ms: int | None = None
    ) -> AbstractAsyncContextManager[SignalTransaction]:
        """This transaction itself: a nested one joins it, whatever its key."""
        self._codec.lock(key)
        return self._join()

    async def transact(
        self,
        key: str,
        function: Callable[[SignalTransaction], Awaitable[R]],
        *,
        retries: int = 8,
        timeout_ms: int | None = None,
    ) -> R:
        """Run `function` in this transaction, once: a conflict is raised where it was begun."""
        async with self.transaction(key) as tx:
            return await function(tx)

    @property
    def in_transaction(self) -> bool:
        """True until it ends."""
        return self.is_open

    @asynccontextmanager
    async def _join(self) -> AsyncGenerator[SignalTransaction, Any]:
        self._require_open()
        yield self

    def _encoded(self, name: KeyName) -> bytes | None:
        if name in self._changes:
            return self._changes[name]
        seen = self._seen[name]
        return None if seen is None or self._cleared is not None else seen.value

    async def _touch(self, names: Iterable[KeyName]) -> None:
        """See what is stored under `names`, so that a change of it by others is noticed."""
        unseen = [name for name in names if name not in self._seen]
        if unseen:
            found: dict[KeyName, Versioned] = await self._read(SignalAdapter.get, unseen)
            # Tasks that share the transaction may have ended it meanwhile, or have read an entry
            # before this one did: the commit expects the version that was read first.
            self._require_open()
            self._reads += 1
            for name in unseen:
                self._seen.setdefault(name, found.get(name))

    def _require_open(self) -> None:
        if not self.is_open:
            raise RuntimeError(f"the transaction on {self.key!r} is over")

    # -- for the store -----------------------------------------------------------------------------

    def outcome(self, version: int) -> Commit | None:
        """What there is to commit, or to check; `None` if nothing.

        Reads at one instant are consistent, and need no check. Those at several instants may show
        a state that never existed.
        """
        if not self._changes and self._cleared is None and self._reads < 2:
            return None
        expected = {
            name: ABSENT if seen is None else seen.version for name, seen in self._seen.items()
        }
        return Commit(
            self._changes,
            version,
            expected,
            clear=self._cleared is not None,
            expected_entries=self._cleared,
        )
