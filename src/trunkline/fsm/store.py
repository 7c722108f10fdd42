"""The fsm store: which step is this user at?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self

import msgspec
from anyio.lowlevel import checkpoint

from trunkline.actors import sleep_ms
from trunkline.actors.clock import wall_clock_ms
from trunkline.actors.task_group import open_task_group
from trunkline.backends import AdapterOptions, Store, choose_adapter
from trunkline.backends.codec import Key, decode, decode_key, encode_key
from trunkline.backends.locks import Lock
from trunkline.errors import ConfigurationError, TrunklineError
from trunkline.fsm.adapter import Fields, FSMAdapter, Place, Record, Step
from trunkline.fsm.memory import MemoryFSMAdapter, ShortWay, is_plain
from trunkline.fsm.records import WallClock, encode_fields
from trunkline.fsm.state import FSMState
from trunkline.observe import Event
from trunkline.validation import require_positive, text_problem

__all__ = ("ConversationExpired", "FSMStore")

#: Expired records that one call removes at most.
_SWEEP_LIMIT = 500

#: Longer texts would not fit into the index of every database.
_LONGEST_NAME = 250

#: Later instants would not fit into every database. It is 3,000 years.
_LONGEST_TTL_MS = 10**14


class ConversationExpired(Event, frozen=True, kw_only=True):
    """An idle conversation has ended: its time to live is over, and it was removed.

    One that began anew before it was removed is not told of. In memory it may also be the one that
    was changed longest ago, which had to go because there were too many.
    """

    name: str = "expired"
    bot_name: str
    key: Any
    #: What it was.
    state: FSMState


class FSMStore(Store[FSMAdapter]):
    """States and data of conversations, by bot and key. A write that returned is on disk.

    A key is opaque: a scalar or nested tuples of ints, strings and None; `(1, 2)` and `("1", "2")`
    are different keys. `ChatUser` and the other strategies make keys out of updates.

    Args:
        url: `sqlite:///bot.db`, `postgresql://…`, `redis://…`, `valkey://…`, or `memory://`, which
            keeps the 100,000 conversations of each bot that were changed last.
        adapter: an adapter of your own, instead of a URL, or
            `MemoryFSMAdapter(max_conversations=…)`.
        namespace: stores of two namespaces never see each other's data.
        clock: tells milliseconds since 1970, for times to live in memory and SQL databases. Redis
            and Valkey go by their own.
        sweep_interval_ms: how often expired conversations are removed and told of as
            `ConversationExpired`, in memory and SQL databases. Redis and Valkey do not tell.
        name: stands in events, logs and errors.
        **options: `call_timeout_ms`, `mailbox_size`, `max_batch`, `restart_policy`.

    Raises:
        ConfigurationError: a URL or option that can never work.
        StoreUnavailable: out of `async with`, when the database cannot be reached.

    Every method raises `StoreUnavailable` while the database is away, within `call_timeout_ms`, and
    `ConfigurationError` for a bot that was not initialised, a key or a value that cannot be stored.

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
        **options: Any,
    ) -> None:
        adapter_options = AdapterOptions(
            namespace=namespace, timeout_ms=options.get("call_timeout_ms", 5_000), clock=clock
        )
        chosen = choose_adapter(FSMAdapter, url, adapter, adapter_options)
        super().__init__(chosen, name=name, **options)
        # Past the methods of the adapter, which a subclass may have changed.
        self._short = ShortWay(chosen) if type(chosen) is MemoryFSMAdapter else None
        self._clock = clock
        self._sweep_interval_ms = require_positive("sweep_interval_ms", sweep_interval_ms)
        #: bot name → time to live of its conversations.
        self._bots: dict[str, int | None] = {}

    async def init(self, bot_name: str, *, ttl_ms: int | None = None) -> None:
        """Make a bot known. Calling it again changes its options and nothing else.

        Args:
            bot_name: bots never see each other's keys.
            ttl_ms: how long a conversation lives after its last change; for ever by default.
        """
        if not _text("bot_name", bot_name) or len(bot_name) > _LONGEST_NAME:
            raise ConfigurationError(
                f"bot_name has 1 to {_LONGEST_NAME} characters, unlike {bot_name!r}"
            )
        if ttl_ms is not None and require_positive("ttl_ms", ttl_ms) > _LONGEST_TTL_MS:
            raise ConfigurationError(f"ttl_ms is None for ever, or up to {_LONGEST_TTL_MS}")
        self._bots[bot_name] = ttl_ms
        if self._short is not None:
            (self._short.add_bot if ttl_ms is None else self._short.remove_bot)(bot_name)

    async def get_state(self, bot_name: str, key: Key) -> FSMState | None:
        """State, flow and data; `None` where nothing is stored."""
        if self._short is not None and self.tracing is None:
            found = self._short.claim(bot_name, key, False)
            if found is not None:
                return FSMState(found.state, found.flow, found.data.copy())
        place, _ = self._place(bot_name, key)
        record = await self._read(FSMAdapter.load, place)
        return None if record is None else _state(record)

    async def set_state(self, bot_name: str, key: Key, state: FSMState | str | None) -> None:
        """Store a whole `FSMState`; a string or `None` changes the state alone."""
        if type(state) is str and self._short is not None and self.tracing is None:
            # What can be printed can be stored.
            found = self._short.claim(bot_name, key, True) if state.isprintable() else None
            if found is not None:
                found.state = state
                return
        place, ttl_ms = self._place(bot_name, key)
        if isinstance(state, FSMState):
            record = Record(_step(state), encode_fields(key, state.data))
            await self._write(place, FSMAdapter.save, place, record, ttl_ms)
        else:
            name = _text("state", state)
            await self._write(place, FSMAdapter.set_state, place, name, ttl_ms)

    async def get_data(self, bot_name: str, key: Key) -> dict[Any, Any] | None:
        """The data; `None` where nothing is stored."""
        state = await self.get_state(bot_name, key)
        return None if state is None else state.data

    async def set_data(self, bot_name: str, key: Key, data: Mapping[Any, Any]) -> None:
        """Replace the data. Where nothing is stored, the state is `None`."""
        place, ttl_ms = self._place(bot_name, key)
        await self._write(place, FSMAdapter.set_data, place, encode_fields(key, data), ttl_ms)

    async def update_data(self, bot_name: str, key: Key, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Merge `data` into the data, name by name; the data after it.

        It is atomic, also among processes: of two updates at once, none is lost. Where nothing is
        stored, the state is `None`.
        """
        if self._short is not None and self.tracing is None and is_plain(data):
            found = self._short.claim(bot_name, key, True)
            if found is not None:
                found.data.update(data)
                merged: dict[Any, Any] = found.data.copy()
                return merged
        place, ttl_ms = self._place(bot_name, key)
        fields = encode_fields(key, data)
        return _data(await self._write(place, FSMAdapter.update_data, place, fields, ttl_ms))

    async def clear(self, bot_name: str, key: Key) -> None:
        """Remove state, flow and data. Where nothing is stored, it does nothing."""
        place, _ = self._place(bot_name, key)
        await self._write(place, FSMAdapter.clear, place)

    async def compare_and_set(
        self,
        bot_name: str,
        key: Key,
        expected: FSMState,
        state: FSMState,
        *,
        keep_data: bool = True,
    ) -> FSMState | None:
        """Change flow and state, if they still are what `expected` says; its data does not count.

        Of two that expect the same at once, in one process or several, only one succeeds. What is
        not stored has neither flow nor state.

        Args:
            bot_name: the bot.
            key: the conversation.
            expected: flow and state as they should be.
            state: flow and state as they shall be.
            keep_data: whether the data stays; if not, it becomes `state.data`.

        Returns:
            `None` if it was changed; else the flow and state that stand, unchanged.
        """
        place, ttl_ms = self._place(bot_name, key)
        standing = await self._write(
            place,
            FSMAdapter.compare_and_set,
            place,
            _step(expected),
            _step(state),
            None if keep_data else encode_fields(key, state.data),
            ttl_ms,
        )
        return None if standing is None else FSMState(standing.state, standing.flow)

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
        place, _ = self._place(bot_name, key)
        return self._lock(place, timeout_ms)

    @asynccontextmanager
    async def _lock(self, place: Place, timeout_ms: int | None) -> AsyncGenerator[Lock, Any]:
        key = msgspec.json.encode([place.bot_name, place.key]).decode()
        async with self._hold(key, timeout_ms) as lock:
            yield lock
        lock.require_held()

    # -- inside ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, Any]:
        async with super().__asynccontextmanager__(), open_task_group() as task_group:
            task_group.start_soon(self._sweep_forever, name=f"{self.name}: sweep")
            self._adapter.on_dropped = self._tell_of_end
            if self._short is not None:
                (self._short.worker,) = self._writers
            try:
                yield self
            finally:
                if self._adapter.on_dropped == self._tell_of_end:
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
                continue  # there will be another time

    async def _sweep(self) -> int:
        swept = await self._write(None, FSMAdapter.sweep, _SWEEP_LIMIT)
        for place, record in swept:
            self._tell_of_end(place, record)
        return len(swept)

    def _place(self, bot_name: str, key: Key) -> tuple[Place, int | None]:
        try:
            ttl_ms = self._bots[bot_name]
        except (KeyError, TypeError):
            raise ConfigurationError(
                f"bot {bot_name!r} was not initialised: await store.init({bot_name!r}) first"
            ) from None
        return Place(bot_name, encode_key(key)), ttl_ms

    def _tell_of_end(self, place: Place, record: Record) -> None:
        if self.events.subscribers:
            event = ConversationExpired(
                instance=self.name,
                bot_name=place.bot_name,
                key=decode_key(place.key),
                state=_state(record),
            )
            self.events.publish(event)


def _text(name: str, value: object) -> Any:
    """`value` if it is `None` or a string that every database can store."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is a str or None, not {value!r}")
    problem = text_problem(value)
    if problem is not None:
        raise ConfigurationError(f"{name} {value!r} {problem}, and cannot be stored")
    return value


def _step(state: FSMState) -> Step:
    return Step(_text("flow", state.flow), _text("state", state.state))


def _data(fields: Fields) -> dict[Any, Any]:
    return {decode(name): decode(value) for name, value in fields.items()}


def _state(record: Record) -> FSMState:
    return FSMState(record.step.state, record.step.flow, _data(record.fields))
