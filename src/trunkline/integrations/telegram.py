"""python-telegram-bot: what its Application remembers, in an FSMStore."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

try:
    from telegram.ext import Application, BasePersistence, ContextTypes, PersistenceInput
except ImportError as error:
    raise ImportError(
        f"trunkline.integrations.telegram needs python-telegram-bot 21 or later ({error}):"
        " pip install 'trunkline[telegram]'"
    ) from error

from xxhash import xxh3_64_intdigest

from trunkline.backends.codec import Key, Unstorable, decode, encode, encode_key
from trunkline.backends.locks import KeyLocks
from trunkline.errors import ConfigurationError, TrunklineError, UnreadableRecord
from trunkline.fsm import FSMStore
from trunkline.integrations.handle import StoreHandle

__all__ = ("DurableApplication", "TrunklinePersistence")

#: What python-telegram-bot keeps of one user, one chat or the bot: a dict, or an object of the type
#: that `context_types` names.
Data: TypeAlias = Any

#: `telegram.ext` does not export these three.
CallbackData: TypeAlias = tuple[list[tuple[str, float, dict[str, Any]]], dict[str, str]]
ConversationKey: TypeAlias = tuple[int | str, ...]
Conversations: TypeAlias = dict[ConversationKey, object]


class TrunklinePersistence(BasePersistence[Data, Data, Data]):
    """User, chat, bot and callback data and conversations in an FSMStore.

    A change is on disk when its `update_…` or `drop_…` returned, and a `kill -9` at any moment
    neither loses nor corrupts it. The Application calls these every `update_interval`; with
    `DurableApplication` it does so after every update.

    Values are None, bools, numbers, strings, bytes, lists, tuples, sets, maps, datetimes,
    timedeltas, Decimals and UUIDs, nested up to 100 deep, and come back as they went in; those of
    subclasses, such as members of an `IntEnum`, as the built-in value that they equal. Anything
    else is refused by name, with `ConfigurationError`, which goes to the Application's error
    handlers; what was stored before stays. There is no pickle: a stored value can run no code.

    A change that the database refused is kept in memory, and written again every
    `update_interval` until it is stored. Like every persistence of python-telegram-bot this one is
    read when the Application starts. One process at a time serves a bot.

    Args:
        store: the URL of a store, which is started with the Application and stopped at the end of
            its `shutdown`. Or an `FSMStore` or a line's `line.fsm`, which the program starts before
            `application.initialize()` and stops after `application.shutdown()`. With `run_polling`
            only a URL will do: it loads the data before it calls `post_init`.
        bot_name: whose data it is; by default `telegram:<id of the bot>`, and `telegram` where
            there is no bot. Bots that share a database do not see each other's.
        store_data: which kinds of data are stored; all by default.
        update_interval: seconds between two calls of the Application's `update_persistence`. Short,
            since only what has changed is written.
        context_types: those of the Application, if `user_data`, `chat_data` or `bot_data` have
            types of their own. Of a dict its items are stored, of any other object its attributes;
            to read one, the type is called without arguments, and they are set.
        namespace: of the store of a URL: bots in two namespaces never see each other's data.

    Raises:
        ConfigurationError: a URL that can never work.

    Every method raises `StoreUnavailable` while the database is unavailable, and
    `UnreadableRecord` where a stored value cannot be decoded.

    Example:
        >>> from telegram.ext import Application
        >>> from trunkline.integrations.telegram import DurableApplication, TrunklinePersistence
        >>> builder = Application.builder().application_class(DurableApplication)
        >>> builder = builder.persistence(TrunklinePersistence("sqlite:///bot.db"))
        >>> application = builder.token("123:secret").build()
    """

    def __init__(
        self,
        store: FSMStore | str,
        *,
        bot_name: str | None = None,
        store_data: PersistenceInput | None = None,
        update_interval: float = 1,
        context_types: ContextTypes[Any, Any, Any, Any] | None = None,
        namespace: str | None = None,
    ) -> None:
        super().__init__(store_data=store_data, update_interval=update_interval)
        self.context_types = context_types or ContextTypes()
        self._bot_name = bot_name
        self._handle = StoreHandle(store, namespace=namespace)
        self._users = _ValueMap(self, "user_data")
        self._chats = _ValueMap(self, "chat_data")
        self._bot_data = _Value(self, "bot_data")
        self._callback_data = _Value(self, "callback_data")
        self._conversations: dict[str, _ValueMap] = {}
        #: Runs while there are changes that could not be written.
        self._retrying: asyncio.Task[None] | None = None

    @property
    def store(self) -> FSMStore:
        """Where it is all kept."""
        return self._handle.store

    @property
    def bot_name(self) -> str:
        """Whose data it is."""
        if self._bot_name is not None:
            return self._bot_name
        return "telegram" if self.bot is None else f"telegram:{self.bot.id}"

    # -- users and chats -------------------------------------------------------------------------

    async def get_user_data(self) -> dict[int, Data]:
        if not self.store_data.user_data:
            return {}
        stored = await self._users.load()
        return {one: _restored(self.context_types.user_data, stored[one]) for one in stored}

    async def update_user_data(self, user_id: int, data: Data) -> None:
        if self.store_data.user_data:
            await self._users.put(user_id, _attributes(data))

    async def drop_user_data(self, user_id: int) -> None:
        if self.store_data.user_data:
            await self._users.drop(user_id)

    async def get_chat_data(self) -> dict[int, Data]:
        if not self.store_data.chat_data:
            return {}
        stored = await self._chats.load()
        return {one: _restored(self.context_types.chat_data, stored[one]) for one in stored}

    async def update_chat_data(self, chat_id: int, data: Data) -> None:
        if self.store_data.chat_data:
            await self._chats.put(chat_id, _attributes(data))

    async def drop_chat_data(self, chat_id: int) -> None:
        if self.store_data.chat_data:
            await self._chats.drop(chat_id)

    # -- the bot ---------------------------------------------------------------------------------

    async def get_bot_data(self) -> Data:
        stored = await self._bot_data.load() if self.store_data.bot_data else None
        return _restored(self.context_types.bot_data, stored or {})

    async def update_bot_data(self, data: Data) -> None:
        if self.store_data.bot_data:
            await self._bot_data.put(_attributes(data))

    async def get_callback_data(self) -> CallbackData | None:
        stored: CallbackData | None = None
        if self.store_data.callback_data:
            stored = await self._callback_data.load()
        return stored

    async def update_callback_data(self, data: CallbackData) -> None:
        if self.store_data.callback_data:
            await self._callback_data.put(data)

    # -- conversations ---------------------------------------------------------------------------

    async def get_conversations(self, name: str) -> Conversations:
        return await self._conversation(name).load()

    async def update_conversation(
        self, name: str, key: ConversationKey, new_state: object | None
    ) -> None:
        if new_state is None:
            await self._conversation(name).drop(key)
        else:
            await self._conversation(name).put(key, new_state)

    def _conversation(self, name: str) -> _ValueMap:
        if name not in self._conversations:
            self._conversations[name] = _ValueMap(self, "conversations", name)
        return self._conversations[name]

    # -- the rest --------------------------------------------------------------------------------

    async def refresh_user_data(self, user_id: int, user_data: Data) -> None:
        """Does nothing: what the Application has in memory is newer than what is stored."""

    async def refresh_chat_data(self, chat_id: int, chat_data: Data) -> None:
        """Does nothing: what the Application has in memory is newer than what is stored."""

    async def refresh_bot_data(self, bot_data: Data) -> None:
        """Does nothing: what the Application has in memory is newer than what is stored."""

    async def flush(self) -> None:
        """Stop the store, if it was made from a URL; it is started again when it is needed.

        The Application calls it at the end of its `shutdown`. What could not be written before is
        written now, or the error of the last attempt is raised.
        """
        try:
            if self._retrying is not None:
                self._retrying.cancel()
            await self._write_unstored()
        finally:
            await self._handle.close()

    def retry_later(self) -> None:
        """Write again, after a pause, what could not be written."""
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.create_task(self._retry(), name="TrunklinePersistence: retry")

    async def _retry(self) -> None:
        while any(values.has_unstored for values in self._value_maps):
            await asyncio.sleep(self.update_interval)
            try:
                await self._write_unstored()
            except TrunklineError:
                continue  # the Application's error handlers got the first one

    async def _write_unstored(self) -> None:
        for values in self._value_maps:
            await values.write_unstored()

    @property
    def _value_maps(self) -> list[_ValueMap]:
        return [self._users, self._chats, *self._conversations.values()]


class DurableApplication(Application[Any, Any, Any, Any, Any, Any]):
    """An Application that has stored what an update changed before the update counts as done.

    A `kill -9` between two updates loses nothing. Updates that end at the same time are stored
    together. What a handler with `block=False` does after that is stored with the next update, or
    after the persistence's `update_interval`.

    Example:
        >>> from telegram.ext import Application
        >>> from trunkline.integrations.telegram import DurableApplication
        >>> builder = Application.builder().application_class(DurableApplication)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        #: Will store what has changed until it begins.
        self._storing: asyncio.Task[None] | None = None
        self._storing_turns = KeyLocks()

    async def process_update(self, update: object) -> None:
        await super().process_update(update)
        if self.persistence is None:
            return
        if self._storing is None:
            self._storing = asyncio.create_task(self._store(), name="DurableApplication: store")
        # Others wait for the same: one that is cancelled does not take it along.
        await asyncio.shield(self._storing)

    async def _store(self) -> None:
        async with self._storing_turns.hold("store"):
            self._storing = None
            await self.update_persistence()


#: On so many records a map is spread. Part of the stored format.
_RECORDS = 256

#: The id of a user, a chat or a conversation.
Name: TypeAlias = int | ConversationKey

#: Encoded values by id; `None` for one that is dropped.
Changes: TypeAlias = dict[Name, bytes | None]


class _ValueMap:
    """Values by id, spread over a fixed number of records, each a map from ids to encoded values.

    One record a value could not be listed; a single record would be written anew with every change.
    """

    def __init__(self, persistence: TrunklinePersistence, *path: str) -> None:
        self._persistence = persistence
        self._path = path
        #: record → the changes that will be written to it next.
        self._batches: dict[int, _Batch] = {}
        #: record → changes that are not known to be stored. The Application reports each only once.
        self._unstored: dict[int, Changes] = {}
        self._turns = KeyLocks()

    async def load(self) -> dict[Any, Any]:
        bot_name = self._persistence.bot_name
        async with self._persistence._handle.calling(bot_name) as store:
            reads = (store.get_data(bot_name, self._key(number)) for number in range(_RECORDS))
            records = await asyncio.gather(*reads)
        return {
            name: _decoded(self._where(name), value)
            for record in records
            if record is not None
            for name, value in record.items()
        }

    async def put(self, name: Name, value: object) -> None:
        await self._change(name, _encoded(self._where(name), value))

    async def drop(self, name: Name) -> None:
        await self._change(name, None)

    @property
    def has_unstored(self) -> bool:
        """Whether there are changes that are not known to be stored."""
        return bool(self._unstored)

    async def write_unstored(self) -> None:
        """Write these changes, or wait until they are written."""
        for number in list(self._unstored):
            await asyncio.shield(self._batch(number).writing)

    async def _change(self, name: Name, value: bytes | None) -> None:
        number = xxh3_64_intdigest(encode(name)) % _RECORDS
        encode_key(self._key(number))  # refused now, and not at each attempt to write
        batch = self._batch(number)
        batch.changes[name] = value
        # Others wait for the same batch: one that is cancelled does not take it along.
        await asyncio.shield(batch.writing)

    def _batch(self, number: int) -> _Batch:
        batch = self._batches.get(number)
        if batch is None:
            writing = asyncio.create_task(self._write_next(number))
            batch = self._batches[number] = _Batch({}, writing)
        return batch

    async def _write_next(self, number: int) -> None:
        # One after another, since to drop a value takes a read and a write.
        async with self._turns.hold(str(number)):
            changes = {**self._unstored.get(number, {}), **self._batches.pop(number).changes}
            if not changes:
                return
            self._unstored[number] = changes
            try:
                await self._write(self._key(number), changes)
            except TrunklineError:
                self._persistence.retry_later()
                raise
            del self._unstored[number]

    async def _write(self, key: Key, changes: Changes) -> None:
        bot_name = self._persistence.bot_name
        async with self._persistence._handle.calling(bot_name) as store:
            if None not in changes.values():
                await store.update_data(bot_name, key, changes)
                return
            record = {**(await store.get_data(bot_name, key) or {}), **changes}
            left = {name: value for name, value in record.items() if value is not None}
            await store.set_data(bot_name, key, left, remove_empty=True)

    def _where(self, name: Name) -> str:
        return f"{'.'.join(self._path)}[{name!r}]"

    def _key(self, number: int) -> Key:
        return (*self._path, number)


class _Batch(NamedTuple):
    """Changes of one record that are written together."""

    changes: Changes
    writing: asyncio.Task[None]


class _Value:
    """A value in a record of its own, which is only written when it has changed."""

    def __init__(self, persistence: TrunklinePersistence, name: str) -> None:
        self._persistence = persistence
        self._name = name
        #: What is stored; `None` if that is not known.
        self._stored: bytes | None = None
        self._turns = KeyLocks()

    async def load(self) -> Any:
        bot_name = self._persistence.bot_name
        async with self._persistence._handle.calling(bot_name) as store:
            record = await store.get_data(bot_name, (self._name,))
        if record is None:
            return None
        self._stored = record.get("value")
        return _decoded(self._name, self._stored)

    async def put(self, value: object) -> None:
        bot_name = self._persistence.bot_name
        encoded = _encoded(self._name, value)
        async with self._turns.hold(self._name):
            if encoded == self._stored:
                return
            # If it fails, it is unknown whether it was stored.
            self._stored = None
            async with self._persistence._handle.calling(bot_name) as store:
                await store.set_data(bot_name, (self._name,), {"value": encoded})
            self._stored = encoded


def _encoded(name: str, value: object) -> bytes:
    try:
        return encode(value)
    except Unstorable as error:
        raise ConfigurationError(f"{name}{_culprit(value)} cannot be stored: {error}") from None


def _decoded(name: str, value: Any) -> Any:
    try:
        return decode(value)
    except Exception as error:
        raise UnreadableRecord(f"stored {name} cannot be decoded: {error}") from error


def _attributes(data: Data) -> Any:
    """What is stored of an object of a type in `context_types`."""
    if isinstance(data, dict):
        return data
    try:
        return vars(data)
    except TypeError:
        kind = type(data).__name__
        raise ConfigurationError(f"{kind} has no attributes that can be stored") from None


def _restored(kind: Callable[[], Data], stored: dict[Any, Any]) -> Data:
    """An object of a type in `context_types`, as it was stored."""
    data = kind()
    if isinstance(data, dict):
        data.update(stored)
    else:
        for name, value in stored.items():
            setattr(data, name, value)
    return data


def _culprit(value: Any, depth: int = 10) -> str:
    """The path to the part of `value` that has no encoding, `['cart'][0]`, or the way there."""
    parts: Iterable[tuple[Any, Any]] = ()
    if type(value) is dict:
        parts = value.items()
    elif type(value) in (list, tuple):
        parts = enumerate(value)
    for name, part in parts:
        try:
            encode(part)
        except Unstorable:
            return f"[{name!r}]{_culprit(part, depth - 1) if depth else '…'}"
    return ""
