"""The signal store: which keys encrypt this chat?"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import anyio
import msgspec

from trunkline.actors import RestartPolicy
from trunkline.actors.task_group import open_task_group
from trunkline.backends import AdapterOptions, ConnectionLost, Store, resolve_adapter
from trunkline.backends.cipher import EncryptionKey
from trunkline.backends.locks import Lock
from trunkline.errors import (
    CallTimeout,
    ConfigurationError,
    StoreUnavailable,
    TransactionConflict,
)
from trunkline.signal.adapter import Commit, SignalAdapter
from trunkline.signal.codec import EntryCodec
from trunkline.signal.transaction import SignalTransaction

__all__ = ("SignalStore",)

R = TypeVar("R")

#: store → the open transaction of this task.
_running: ContextVar[Mapping[int, SignalTransaction]] = ContextVar("trunkline_signal", default={})  # noqa: B039

#: The longest wait between two attempts of `transact`, in seconds.
_LONGEST_WAIT = 0.25


class SignalStore(Store[SignalAdapter]):
    """Key families of the Signal protocol, with transactions. A write that returned is on disk.

    Args:
        url: `sqlite:///bot.db`, `postgresql://…`, `redis://…`, `valkey://…` or `memory://`.
        adapter: an adapter of your own, instead of a URL.
        namespace: the account: stores of two namespaces never see each other's keys and locks.
        encryption_key: a Fernet key, or several, with which values are encrypted at rest: the
            first encrypts, all decrypt.
        families: families to allow beside the ten of the protocol.
        name: names the store in events, logs and errors.
        call_timeout_ms: how long a call may take, waiting included.
        mailbox_size: calls that may wait for one worker; more make their callers wait for room.
        max_batch: calls that are committed together at most.
        restart_policy: how many crashes a worker may have, and the backoff after each.

    Raises:
        ConfigurationError: a URL, key or option that can never work.
        StoreUnavailable: out of `async with`, when the database cannot be reached.

    Values are bytes, lists, maps, key pairs, whatever msgpack holds, and come back with the same
    types. They never appear in a repr, a log, an event or an error. Every method raises
    `StoreUnavailable` while the database is away, within `call_timeout_ms`. If the connection
    breaks while something is stored, the error says that it may have been stored: wholly or not at
    all. A value that cannot be decoded raises `UnreadableRecord`, with its family and id.

    Source: BaileysEx.Signal.Store, after the `keys` of Baileys. New is that two transactions which
    touch the same entries under different keys cannot silently undo one another.

    Example:
        >>> import anyio
        >>> from trunkline import SignalStore
        >>> async def main() -> dict[str, bytes]:
        ...     async with SignalStore("memory://") as store:
        ...         async with store.transaction("alice") as tx:
        ...             await tx.set({"session": {"alice.0": b"ratchet"}, "pre-key": {"7": None}})
        ...         return await store.get("session", ["alice.0", "bob.0"])
        >>> anyio.run(main)
        {'alice.0': b'ratchet'}
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        adapter: SignalAdapter | None = None,
        namespace: str = "default",
        encryption_key: EncryptionKey | None = None,
        families: Iterable[str] = (),
        name: str = "signal",
        call_timeout_ms: int = 5_000,
        mailbox_size: int = 1_024,
        max_batch: int = 256,
        restart_policy: RestartPolicy | None = None,
    ) -> None:
        options = AdapterOptions(namespace=namespace, timeout_ms=call_timeout_ms)
        super().__init__(
            resolve_adapter(SignalAdapter, url, adapter, options),
            name=name,
            call_timeout_ms=call_timeout_ms,
            mailbox_size=mailbox_size,
            max_batch=max_batch,
            restart_policy=restart_policy,
        )
        self._codec = EntryCodec(families, encryption_key)

    async def get(self, family: str, ids: Iterable[str]) -> dict[str, Any]:
        """The values of `ids` in a family; absent ones are left out.

        Raises:
            ConfigurationError: an unknown family, an id that is no string, or a value that cannot
                be decrypted with this key.
            UnreadableRecord: a value that is damaged. It can be replaced and deleted by `set`.
        """
        names = self._codec.names(family, ids)
        if not names:
            return {}
        found = await self._read(SignalAdapter.get, names)
        return {
            name.id: self._codec.decode(name, found[name].value) for name in names if name in found
        }

    async def set(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """Store `{family: {id: value}}`; a value of `None` deletes. All of it or nothing.

        Raises:
            ConfigurationError: an unknown family, an id that is no string, or a value that cannot
                be stored; nothing was changed.
        """
        changes = self._codec.changes(data)
        if changes:
            await self._commit(Commit(changes, _new_version()))

    async def clear(self) -> None:
        """Delete everything in the namespace."""
        await self._commit(Commit({}, _new_version(), clear=True))

    def transaction(
        self, key: str, *, timeout_ms: int | None = None
    ) -> AbstractAsyncContextManager[SignalTransaction]:
        """A transaction: `async with store.transaction(key) as tx:`.

        It commits on leaving, and rolls back on an exception or a cancellation. Transactions on
        one key run one after another, in the order of arrival. On PostgreSQL, Redis and Valkey
        those of other processes do so as well, in no particular order. `tx.lock` reports if the
        lock on the key is lost.

        One that is begun inside another, in its task or in a task started there, joins it, whatever
        its key: it is the same transaction, and is committed or rolled back with it. An exception
        that leaves only the inner one rolls nothing back. The store's own `get`,
        `set` and `clear` are outside of every transaction; use those of `tx`.

        Args:
            key: what is locked; any text.
            timeout_ms: how long to wait for the lock; for ever by default.

        Raises:
            CallTimeout: on entering: the lock was not free within `timeout_ms`.
            TransactionConflict: on leaving: something that it has touched was changed meanwhile by
                another, under a different key or without a transaction; or its lock has ended.
                Nothing of it is stored. `transact` runs a function again.
            ConfigurationError: `key` is no string.
        """
        return self._transaction(self._codec.lock(key), timeout_ms)

    async def transact(
        self,
        key: str,
        function: Callable[[SignalTransaction], Awaitable[R]],
        *,
        retries: int = 8,
        timeout_ms: int | None = None,
    ) -> R:
        """Run `function` in a transaction, and again on a conflict; what it returned.

        Args:
            key: as in `transaction`.
            function: takes the transaction. It may run several times, and so should have no
                effects but those on the store.
            retries: how often it is run again.
            timeout_ms: as in `transaction`, for each attempt.

        Raises:
            TransactionConflict: the last attempt met one as well.
            ConfigurationError: `key` is no string, or `retries` no int of 0 or more.
            Exception: whatever `function` raised.
        """
        if type(retries) is not int or retries < 0:
            raise ConfigurationError(f"retries is an int of 0 or more, not {retries!r}")
        for attempt in range(retries + 1):
            try:
                async with self.transaction(key, timeout_ms=timeout_ms) as tx:
                    return await function(tx)
            except TransactionConflict:
                # Inside an outer transaction the conflict is for that one to deal with.
                if attempt == retries or self.in_transaction:
                    raise
            await anyio.sleep(random.uniform(0, min(_LONGEST_WAIT, 0.002 * 2 ** min(attempt, 30))))
        raise AssertionError("unreachable")

    @property
    def in_transaction(self) -> bool:
        """Whether this task is inside a transaction of this store."""
        return self._current() is not None

    @staticmethod
    def wrap_running(
        handle: SignalStore | SignalTransaction | None,
    ) -> SignalStore | SignalTransaction | None:
        """A running store or transaction, for code that takes either; `None` for `None`.

        Raises:
            ConfigurationError: it is neither.
        """
        if handle is None or isinstance(handle, SignalStore | SignalTransaction):
            return handle
        wrapped = getattr(handle, "signal", None)  # a Trunkline
        if isinstance(wrapped, SignalStore):
            return wrapped
        raise ConfigurationError(f"{type(handle).__name__} is no running signal store")

    # -- inside ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _transaction(
        self, key: str, timeout_ms: int | None
    ) -> AsyncGenerator[SignalTransaction, Any]:
        outer = self._current()
        if outer is not None:
            yield outer
            return
        async with self._hold(f"transaction:{key}", timeout_ms) as lock:
            tx = SignalTransaction(key, lock, self._read, self._codec)
            token = _running.set({**_running.get(), id(self): tx})
            try:
                yield tx
            finally:
                tx.is_open = False
                _running.reset(token)
            outcome = tx.outcome(_new_version())
            if outcome is not None:
                await self._commit_uninterrupted(outcome, lock)

    async def _commit_uninterrupted(self, commit: Commit, lock: Lock) -> None:
        """Commit while the lock is held. A cancellation meanwhile takes effect afterwards."""
        if not self._adapter.blocking:
            await self._commit(commit)
            return
        with anyio.CancelScope(shield=True):
            # This shield does not stop asyncio's `task.cancel()`: hence a task with its own.
            async with open_task_group() as task_group:
                task_group.start_soon(self._commit_held, commit, lock)

    async def _commit_held(self, commit: Commit, lock: Lock) -> None:
        with anyio.CancelScope(shield=True):
            if self._adapter.lease_ms:
                await self._require_held(lock)
                commit = msgspec.structs.replace(commit, lease=(lock.key, lock.token))
            await self._commit(commit)

    async def _require_held(self, lock: Lock) -> None:
        if lock.lost or not await self._ask_locker(self._adapter.renew_lock, lock.key, lock.token):
            raise TransactionConflict(
                "the lock of this transaction has ended before its commit; nothing was stored"
            )

    async def _commit(self, commit: Commit) -> None:
        try:
            # One that waits for another process does not hold up those of other keys.
            order_by = min(commit.changes, default=None)
            stored = await self._write(order_by, SignalAdapter.commit, commit)
        except StoreUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, CallTimeout) and not cause.begun:
                raise
            if isinstance(error, ConnectionLost) or cause is not None:
                raise StoreUnavailable(f"{error}; this may have been stored") from error
            raise
        if not stored:
            raise TransactionConflict(
                "another transaction has changed what this one has touched; nothing was stored"
            )

    def _current(self) -> SignalTransaction | None:
        tx = _running.get().get(id(self))
        # A task that was started inside a transaction may run longer than it.
        return tx if tx is not None and tx.is_open else None


def _new_version() -> int:
    """A version that no other change has: versions are only compared for being the same."""
    # Not from `random`: two processes that seed it alike would make the same ones.
    return secrets.randbits(62) + 1
