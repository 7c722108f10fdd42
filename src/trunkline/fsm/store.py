"""The fsm store: which step is this user at?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self

import msgspec
from anyio.lowlevel import checkpoint

from trunkline.actors import RestartPolicy, sleep_ms
from trunkline.actors.clock import wall_clock_ms
from trunkline.actors.task_group import open_task_group
from trunkline.backends import AdapterOptions, Store, resolve_adapter
from trunkline.backends.codec import (
    Key,
    Unstorable,
    copy_value,
    decode_key,
    encode_key,
    normalize_name,
)
from trunkline.backends.locks import Lock
from trunkline.errors import ConfigurationError, TrunklineError
from trunkline.fsm.adapter import FSMAdapter, Record, RecordKey, Step
from trunkline.fsm.records import WallClock
from trunkline.fsm.state import FSMState, plain_text
from trunkline.observe import Event
from trunkline.validation import require_positive

__all__ = ("ConversationExpired", "FSMStore")

#: Expired records that one call removes at most.
_SWEEP_LIMIT = 500

#: Longer texts would not fit into the index of every database.
_LONGEST_NAME = 250

#: Later instants would not fit into every database. It is 3,000 years.
_LONGEST_TTL_MS = 10**14


class ConversationExpired(Event, frozen=True, kw_only=True):
    """An idle conversation has expired and was removed.

    There is no event for one that began anew before it was removed. In memory it may also be a
    conversation that was evicted, because there were too many.
    """

    name: str = "expired"
    bot_name: str
    key: Any
    #: As it was stored.
    state: FSMState


class FSMStore(Store[FSMAdapter]):
    """States and data of conversations, by bot and key. A write that returned is on disk.

    A key is opaque: an int, a string, or nested tuples of ints, strings and None; `(1, 2)` and
    `("1", "2")` are different keys. `None` alone is refused. `ChatUser` and the other strategies
    make keys out of updates.

    Data is a map of what JSON or msgpack holds, and datetimes, sets, Decimals, UUIDs and tuples,
    which come back as they went in and in their order. A value of a subclass comes back as the
    built-in value that it equals: an enum member of `str` or `int` as its value, an `OrderedDict`
    as a dict, a named tuple as a tuple. Names that are equal in Python, such as `1` and `True`,
    are one name.

    Args:
        url: `sqlite:///bot.db`, `postgresql://…`, `redis://…`, `valkey://…`, or `memory://`, which
            keeps the 100,000 conversations of each bot that were changed last.
        adapter: an adapter of your own, instead of a URL, or
            `MemoryFSMAdapter(max_conversations=…)`.
        namespace: stores of two namespaces never see each other's data: 1 to 100 characters.
        clock: milliseconds since 1970, for times to live in memory and SQL databases. Redis and
            Valkey use their own.
        sweep_interval_ms: how often expired conversations are removed and reported as
            `ConversationExpired`, in memory and SQL databases. Redis and Valkey do not report them.
        name: stands in events, logs and errors.
        call_timeout_ms: how long a call may take, waiting included.
        mailbox_size: calls that may wait for one worker; more make their callers wait for room.
        max_batch: calls that are committed together at most.
        restart_policy: how many crashes are forgiven, and the pause after each.

    Raises:
        ConfigurationError: a URL or option that can never work.
        StoreUnavailable: out of `async with`, when the database cannot be reached.

    Every method raises `StoreUnavailable` while the database is unavailable, within
    `call_timeout_ms`; `ConfigurationError` for a bot that was not initialised, a key or a value
    that cannot be stored; and `UnreadableRecord` where a stored record cannot be decoded.

    Source: ExGram.FSM.Storage.

    Example:
        >>> import anyio
        >>> from trunkline import FSMState, FSMStore
        >>> async def main() -> FSMState | None:
        ...     async with FSMStore("memory://") as store:
        ...         await store.init("shop_bot")
        ...         await store.set_state("shop_bot", (42, 7), FSMState("get_name", "register"))
        ...         await store.update_data("shop_bot", (42, 7), {"name": "Ada"})
        ...         return await store.get_state("shop_bot", (42, 7))
        >>> anyio.run(main)
        FSMState(state='get_name', flow='register', data={'name': 'Ada'})
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        adapter: FSMAdapter | None = None,
        namespace: str = "default",
        clock: WallClock = wall_clock_ms,
        sweep_interval_ms: int = 10_000,
        name: str = "fsm",
        call_timeout_ms: int = 5_000,
        mailbox_size: int = 1_024,
        max_batch: int = 256,
        restart_policy: RestartPolicy | None = None,
    ) -> None:
        options = AdapterOptions(namespace=namespace, timeout_ms=call_timeout_ms, clock=clock)
        super().__init__(
            resolve_adapter(FSMAdapter, url, adapter, options),
            name=name,
            call_timeout_ms=call_timeout_ms,
            mailbox_size=mailbox_size,
            max_batch=max_batch,
            restart_policy=restart_policy,
        )
        self._clock = clock
        self._sweep_interval_ms = require_positive("sweep_interval_ms", sweep_interval_ms)
        #: bot name → time to live of its conversations.
        self._bots: dict[str, int | None] = {}

    async def init(
        self, bot_name: str, *, ttl_ms: int | msgspec.UnsetType | None = msgspec.UNSET
    ) -> None:
        """Make a bot known. It may be called again, and then changes nothing but `ttl_ms`.

        Args:
            bot_name: bots never see each other's keys.
            ttl_ms: how long a conversation lives after its last change; `None` for ever. If left
                out, a known bot keeps its own, and a new one has none.
        """
        name = plain_text("bot_name", bot_name)
        if not name or len(name) > _LONGEST_NAME:
            raise ConfigurationError(
                f"bot_name has 1 to {_LONGEST_NAME} characters, unlike {bot_name!r}"
            )
        if isinstance(ttl_ms, msgspec.UnsetType):
            self._bots.setdefault(name, None)
            return
        if ttl_ms is not None and require_positive("ttl_ms", ttl_ms) > _LONGEST_TTL_MS:
            raise ConfigurationError(f"ttl_ms is None for ever, or up to {_LONGEST_TTL_MS}")
        self._bots[name] = ttl_ms

    async def get_state(self, bot_name: str, key: Key) -> FSMState | None:
        """State, flow and data; `None` where nothing is stored."""
        record_key, _ = self._find(bot_name, key)
        record = await self._read(FSMAdapter.load, record_key)
        return None if record is None else _state(record)

    async def set_state(
        self,
        bot_name: str,
        key: Key,
        state: FSMState | str | None,
        *,
        remove_empty: bool = False,
    ) -> None:
        """Store a whole `FSMState`; a string or `None` changes the state alone.

        Args:
            bot_name: the bot.
            key: the conversation.
            state: the new state. A member of an enum with the mixin `str` counts as its value.
            remove_empty: remove the conversation if neither flow nor state nor data is left. It is
                one operation, also between processes: no update of another process is lost.
        """
        record_key, ttl_ms = self._find(bot_name, key)
        if isinstance(state, FSMState):
            fields = _fields(key, state.data)
            step = _step(state)
            await self._write(record_key, FSMAdapter.save, record_key, step, fields, ttl_ms)
        else:
            name = plain_text("state", state)
            await self._write(
                record_key, FSMAdapter.set_state, record_key, name, ttl_ms, remove_empty
            )

    async def get_data(self, bot_name: str, key: Key) -> dict[Any, Any] | None:
        """The data; `None` where nothing is stored."""
        state = await self.get_state(bot_name, key)
        return None if state is None else state.data

    async def set_data(
        self, bot_name: str, key: Key, data: Mapping[Any, Any], *, remove_empty: bool = False
    ) -> None:
        """Replace the data. Where nothing is stored, the state is `None`.

        Args:
            bot_name: the bot.
            key: the conversation.
            data: the new data.
            remove_empty: as in `set_state`.
        """
        record_key, ttl_ms = self._find(bot_name, key)
        fields = _fields(key, data)
        await self._write(record_key, FSMAdapter.set_data, record_key, fields, ttl_ms, remove_empty)

    async def update_data(self, bot_name: str, key: Key, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Merge `data` into the data, name by name; the data after it.

        It is atomic, also between processes: of two updates at once, none is lost. Where nothing is
        stored, the state is `None`.
        """
        record_key, ttl_ms = self._find(bot_name, key)
        fields = _fields(key, data)
        return await self._write(record_key, FSMAdapter.update_data, record_key, fields, ttl_ms)

    async def clear(self, bot_name: str, key: Key) -> None:
        """Remove state, flow and data. Where nothing is stored, it does nothing."""
        record_key, _ = self._find(bot_name, key)
        await self._write(record_key, FSMAdapter.clear, record_key)

    async def compare_and_set(
        self,
        bot_name: str,
        key: Key,
        expected: FSMState,
        state: FSMState,
        *,
        keep_data: bool = True,
    ) -> FSMState | None:
        """Change flow and state, if they still are those of `expected`; its data does not count.

        Of two that expect the same at once, in one process or several, only one succeeds. A missing
        conversation has neither flow nor state.

        Args:
            bot_name: the bot.
            key: the conversation.
            expected: flow and state before the change.
            state: flow and state after it.
            keep_data: whether the data stays; if not, it becomes `state.data`.

        Returns:
            `None` if it was changed; else the stored flow and state, unchanged.
        """
        record_key, ttl_ms = self._find(bot_name, key)
        stored = await self._write(
            record_key,
            FSMAdapter.compare_and_set,
            record_key,
            _step(expected),
            _step(state),
            None if keep_data else _fields(key, state.data),
            ttl_ms,
        )
        return None if stored is None else FSMState(stored.state, stored.flow)

    def lock(
        self, bot_name: str, key: Key, *, timeout_ms: int | None = None
    ) -> AbstractAsyncContextManager[Lock]:
        """Hold a conversation: `async with store.lock(bot_name, key) as lock:`.

        The events of one key come one after another, in the order of arrival; between processes
        too on PostgreSQL, Redis and Valkey, in no particular order. A lock that a cancelled task
        held is free at once; that of a killed process as well on PostgreSQL, and when its lease
        ends on Redis and Valkey (10 seconds).

        Args:
            bot_name: the bot.
            key: the conversation.
            timeout_ms: how long to wait for the lock; for ever by default.

        Yields:
            The lock: `lock.lost` and `await lock.wait_lost()` report that it ended too early, as
            when this process was frozen or its server was away for longer than a lease.

        Raises:
            CallTimeout: the lock was not free within `timeout_ms`.
            LockLost: on leaving, if the lock was lost inside.
            RuntimeError: this task holds it already.
        """
        record_key, _ = self._find(bot_name, key)
        return self._lock(record_key, timeout_ms)

    @asynccontextmanager
    async def _lock(self, key: RecordKey, timeout_ms: int | None) -> AsyncGenerator[Lock, Any]:
        name = msgspec.json.encode([key.bot_name, key.key]).decode()
        async with self._hold(name, timeout_ms) as lock:
            yield lock
        lock.require_held()

    # -- inside ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, Any]:
        async with super().__asynccontextmanager__(), open_task_group() as task_group:
            task_group.start_soon(self._sweep_forever, name=f"{self.name}: sweep")
            self._adapter.on_dropped = self._report_expired
            try:
                yield self
            finally:
                if self._adapter.on_dropped == self._report_expired:
                    self._adapter.on_dropped = None
                task_group.cancel_scope.cancel("the store is closing")

    async def _sweep_forever(self) -> None:
        if type(self._adapter).sweep is FSMAdapter.sweep:
            return  # the database removes them itself
        while True:
            await sleep_ms(self._clock, self._sweep_interval_ms)
            if not any(self._bots.values()):
                continue
            try:
                while await self._sweep() == _SWEEP_LIMIT:
                    await checkpoint()
            except TrunklineError:
                continue  # it is tried again

    async def _sweep(self) -> int:
        swept = await self._write(None, FSMAdapter.sweep, _SWEEP_LIMIT)
        for key, record in swept:
            self._report_expired(key, record)
        return len(swept)

    def _find(self, bot_name: str, key: Key) -> tuple[RecordKey, int | None]:
        """Where a conversation is stored, and its time to live."""
        name = bot_name if type(bot_name) is str else plain_text("bot_name", bot_name) or ""
        try:
            ttl_ms = self._bots[name]
        except KeyError:
            raise ConfigurationError(
                f"bot {bot_name!r} was not initialised: await store.init({bot_name!r}) first"
            ) from None
        return RecordKey(name, encode_key(key)), ttl_ms

    def _report_expired(self, key: RecordKey, record: Record) -> None:
        if self.events.subscribers:
            try:
                decoded: Any = decode_key(key.key)
            except ValueError:  # a damaged one, which must not end the sweep
                decoded = key.key
            event = ConversationExpired(
                instance=self.name, bot_name=key.bot_name, key=decoded, state=_state(record)
            )
            self.events.publish(event)


def _fields(key: Key, data: object) -> dict[Any, Any]:
    """A copy of a caller's data, as every database gives it back.

    Raises:
        ConfigurationError: it is not a map, or holds what cannot be stored.
    """
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"data of {key!r} is a map, not {type(data).__name__}")
    fields = {}
    for name, value in data.items():
        try:
            fields[copy_value(normalize_name(name))] = copy_value(value)
        except Unstorable as error:
            raise ConfigurationError(
                f"data {name!r} of {key!r} cannot be stored: {error}"
            ) from None
    return fields


def _step(state: FSMState) -> Step:
    return Step(plain_text("flow", state.flow), plain_text("state", state.state))


def _state(record: Record) -> FSMState:
    return FSMState(record.step.state, record.step.flow, record.fields)
