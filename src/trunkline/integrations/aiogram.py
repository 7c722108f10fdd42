"""aiogram 3: its states and data in an FSMStore, its updates through a Trunkline."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

try:
    from aiogram import BaseMiddleware, Bot, Dispatcher
    from aiogram.client.session.middlewares.base import (
        BaseRequestMiddleware,
        NextRequestMiddlewareType,
    )
    from aiogram.dispatcher.event.bases import UNHANDLED, CancelHandler, SkipHandler
    from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware
    from aiogram.enums import ContentType
    from aiogram.exceptions import DataNotDictLikeError
    from aiogram.fsm.state import State
    from aiogram.fsm.storage.base import BaseEventIsolation, BaseStorage, StateType, StorageKey
    from aiogram.methods import GetUpdates, TelegramMethod
    from aiogram.types import CallbackQuery, Chat, Message, TelegramObject, Update, User
    from aiogram.types.update import UpdateTypeLookupError
except ImportError as error:
    raise ImportError(
        f"trunkline.integrations.aiogram needs aiogram 3.21 or later ({error}):"
        " pip install 'trunkline[aiogram]'"
    ) from error

from msgspec import UNSET, UnsetType

from trunkline.actors.task_group import open_task_group
from trunkline.arrival import Arrival, accepted
from trunkline.delivery import Send
from trunkline.errors import ConfigurationError, InboxFull, InvalidModel
from trunkline.fsm import FSMStore
from trunkline.integrations.handle import StoreHandle
from trunkline.line import Trunkline
from trunkline.line_turn import LineTurn
from trunkline.persistence.inbound import new_inbound
from trunkline.routing import Route, SessionKey
from trunkline.turns import Item, TurnPolicy
from trunkline.turns.runner import OnFailed

__all__ = (
    "TrunklineEventIsolation",
    "TrunklineMiddleware",
    "TrunklineStorage",
    "TrunklineTurns",
)


class TrunklineStorage(BaseStorage):
    """States and data of aiogram's conversations in an FSMStore. A change that returned is on disk.

    Bots, chats, users, threads, business connections and destinies each have their own
    conversations, and no key builder is needed. Data holds what aiogram's own storages take, and
    datetimes, sets, Decimals and tuples, which come back as they went in; anything else is refused
    by name, with `ConfigurationError`. Every change is atomic, also between processes: none loses
    what another process wrote. A state of `None` and no data leave nothing stored.

    Args:
        store: the URL of a store, which is started with the first update and stopped when the
            dispatcher shuts down. Or an `FSMStore` or a line's `line.fsm`, which the program starts
            before the dispatcher and stops after it, or lets the dispatcher do so:
            `dispatcher.startup.register(store.start)`, `dispatcher.shutdown.register(store.stop)`.
        ttl_ms: how long a conversation lives after its last change; `None` for ever. If left out, a
            bot that the store knows keeps its own, and a new one has none.
        namespace: of the store of a URL: bots in two namespaces never see each other's data.

    Example:
        >>> from aiogram import Dispatcher
        >>> from trunkline.integrations.aiogram import TrunklineStorage
        >>> storage = TrunklineStorage("sqlite:///bot.db")
        >>> dispatcher = Dispatcher(storage=storage, events_isolation=storage.create_isolation())
    """

    def __init__(
        self,
        store: FSMStore | str,
        *,
        ttl_ms: int | UnsetType | None = UNSET,
        namespace: str | None = None,
    ) -> None:
        self._handle = StoreHandle(store, ttl_ms=ttl_ms, namespace=namespace)

    @property
    def store(self) -> FSMStore:
        """Where it is all kept: bot `aiogram:<bot id>`, keys of the five other parts."""
        return self._handle.store

    def create_isolation(self) -> TrunklineEventIsolation:
        """An isolation on the same store, which stays this storage's to close."""
        isolation = TrunklineEventIsolation(self.store)
        isolation._handle = self._handle
        return isolation

    async def start(self) -> None:
        """Open the store of a URL now: a wrong one ends the program, and not its first update.

        `dispatcher.startup.register(storage.start)`. Without it the first update does so.
        """
        await self._handle.start()

    async def close(self) -> None:
        """Stop the store, if it was made from a URL."""
        await self._handle.close()

    async def get_state(self, key: StorageKey) -> str | None:
        async with self._handle.calling(_bot_name(key)) as store:
            stored = await store.get_state(_bot_name(key), _store_key(key))
        return None if stored is None else stored.state

    async def set_state(self, key: StorageKey, state: StateType = None) -> None:
        name = state.state if isinstance(state, State) else state
        async with self._handle.calling(_bot_name(key)) as store:
            await store.set_state(_bot_name(key), _store_key(key), name, remove_empty=True)

    async def get_data(self, key: StorageKey) -> dict[str, Any]:
        async with self._handle.calling(_bot_name(key)) as store:
            return await store.get_data(_bot_name(key), _store_key(key)) or {}

    async def set_data(self, key: StorageKey, data: Mapping[str, Any]) -> None:
        _check_is_map(data)
        async with self._handle.calling(_bot_name(key)) as store:
            await store.set_data(_bot_name(key), _store_key(key), data, remove_empty=True)

    async def update_data(self, key: StorageKey, data: Mapping[str, Any]) -> dict[str, Any]:
        _check_is_map(data)
        if not data:
            return await self.get_data(key)
        async with self._handle.calling(_bot_name(key)) as store:
            return await store.update_data(_bot_name(key), _store_key(key), data)


class TrunklineEventIsolation(BaseEventIsolation):
    """One update of a conversation at a time, by the locks of an FSMStore.

    Updates of one conversation are handled in the order in which they came; on PostgreSQL, Redis
    and Valkey one at a time between processes, too.

    Args:
        store: an `FSMStore`, or the URL of one. `TrunklineStorage.create_isolation` makes one on
            the storage's own store.
        namespace: of the store of a URL.

    Example:
        >>> from aiogram import Dispatcher
        >>> from trunkline import FSMStore
        >>> from trunkline.integrations.aiogram import TrunklineEventIsolation, TrunklineStorage
        >>> store = FSMStore("memory://")
        >>> dispatcher = Dispatcher(
        ...     storage=TrunklineStorage(store), events_isolation=TrunklineEventIsolation(store)
        ... )
        >>> dispatcher.startup.register(store.start)
        >>> dispatcher.shutdown.register(store.stop)
    """

    def __init__(self, store: FSMStore | str, *, namespace: str | None = None) -> None:
        self._handle = StoreHandle(store, namespace=namespace)

    @asynccontextmanager
    async def lock(self, key: StorageKey) -> AsyncGenerator[None, None]:
        bot_name = _bot_name(key)
        store = await self._handle.ready(bot_name)
        async with store.lock(bot_name, _store_key(key)):
            yield

    async def close(self) -> None:
        """Stop the store, if it was made from a URL."""
        await self._handle.close()


class TrunklineMiddleware(BaseMiddleware):
    """Takes every message and pressed button into a line, and passes handlers what came of it.

    Handlers get `line`; `arrival`, the `Arrival` that `line.ingest` returned; and `route`, the
    `Resolution` of where the answer goes. Other updates, such as inline queries, have `line` alone.
    A message that comes again, or was edited, is not stored again: `arrival.duplicate` is true.

    `setup` puts it in front of aiogram's isolation of events: a message is stored when it comes,
    and not when the handlers of earlier messages of the same user have ended.

    Args:
        line: started before the dispatcher and stopped after it; the dispatcher can do so.
        channel: the platform's name in session keys.
        content: what is stored of a message or a pressed button, if not text as it is and anything
            else as one block: its type, its file's id and its caption.

    Raises:
        StoreUnavailable: to aiogram's error handlers, with nothing stored and no handler called.

    Example:
        >>> from aiogram import Dispatcher
        >>> from trunkline import Trunkline
        >>> from trunkline.integrations.aiogram import TrunklineMiddleware, TrunklineStorage
        >>> line = Trunkline("sqlite:///bot.db")
        >>> dispatcher = Dispatcher(storage=TrunklineStorage(line.fsm))
        >>> dispatcher.startup.register(line.start)
        >>> dispatcher.shutdown.register(line.stop)
        >>> TrunklineMiddleware(line).setup(dispatcher)
        >>> @dispatcher.message()
        ... async def on_message(message, line, arrival, route):
        ...     await message.answer(f"hello, {arrival.participant.identity['name']}")
    """

    def __init__(
        self,
        line: Trunkline,
        *,
        channel: str = "telegram",
        content: Callable[[Message | CallbackQuery], Any] | None = None,
    ) -> None:
        self._line = line
        self._channel = channel
        self._content = content or _content

    def setup(self, dispatcher: Dispatcher) -> None:
        """Put it on the dispatcher's updates, in front of aiogram's isolation of events.

        Middlewares of the program keep their place behind the isolation.
        """
        outer = dispatcher.update.outer_middleware
        registered = list(outer)
        behind = []
        if dispatcher.fsm in registered:  # if not, the dispatcher has disable_fsm=True
            behind = registered[registered.index(dispatcher.fsm) :]
        for middleware in behind:
            outer.unregister(middleware)
        outer.register(self)
        for middleware in behind:
            outer.register(middleware)

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        data["line"] = self._line
        spoken = _spoken(event)
        # In a turn the message is stored, and its arrival is there.
        if spoken is not None and "arrival" not in data:
            data["arrival"] = await self._ingest(spoken, data["bot"])
            data["route"] = await self._line.reply_route(data["arrival"])
        return await handler(event, data)

    async def _ingest(self, spoken: Message | CallbackQuery, bot: Bot) -> Arrival:
        return await self._line.ingest(**self.fields(spoken, bot))

    def fields(self, spoken: Message | CallbackQuery, bot: Bot) -> dict[str, Any]:
        """The arguments of `line.ingest` for a message or a pressed button."""
        place = spoken if isinstance(spoken, Message) else spoken.message
        assert place is not None, "_spoken gives no button without its message"
        message = place if isinstance(place, Message) else None
        sender = _sender(spoken)
        return {
            "channel": self._channel,
            "bridge_id": _bridge_id(
                bot, None if message is None else message.business_connection_id
            ),
            "external_room_id": place.chat.id,
            "external_thread_id": None if message is None else _thread_id(message),
            "external_user_id": None if sender is None else sender.id,
            "content": self._content(spoken),
            "room": {
                "type": _ROOM_TYPES.get(place.chat.type, "group"),
                "name": place.chat.full_name,
            },
            "participant": None if sender is None else _participant(sender),
            **_ids(spoken),
        }


class TrunklineTurns(BaseMiddleware):
    """Runs aiogram's handlers as turns: no update is lost, whenever the process dies.

    An update goes into the inbox of a line before Telegram hears that it was received: a webhook is
    answered after it is on disk, and polling moves its offset after. Then it is dispatched inside a
    turn: handlers, filters, FSM, middlewares and error handlers work as always. What they raise and
    no error handler takes makes another attempt of the turn. An update that comes twice is handled
    once.

    Handlers get, beside what `TrunklineMiddleware` gives them:

    - `turn`, the `LineTurn`: `await turn.reply("…")` answers once, whatever dies, and
      `await turn.step(…)` is not done again;
    - `updates`, those of `turn.items`, as aiogram's.

    By default each update is a turn of its own. In the modes that put several into one turn, such
    as `collect`, the handler of the newest one is called, once, and has all of them in
    `turn.items`, `turn.messages` and `updates`; if no handler takes it, the one before. Commands
    (texts that begin with `/`), edited messages and what is no message are turns of their own in
    every mode.

    Updates with a deadline (pressed buttons, inline, shipping and pre-checkout queries) or without
    a chat are dispatched at once, outside the inbox; their `turn` is `None`. They, and urgent
    updates, do not wait for a running turn of the same user, also if events are isolated.

    For webhooks, `SimpleRequestHandler` and `TokenBasedRequestHandler` need
    `handle_in_background=False`: otherwise aiogram answers before it hands the update on. Methods
    that handlers return are called inside the turn, and not as the answer to the webhook.

    Args:
        line: started before the dispatcher and stopped after it; if it does not run when the
            dispatcher starts, it is started and stopped with it.
        policy: how updates become turns; by default `TurnPolicy(while_busy="queue")`.
        channel: this and `content` as for `TrunklineMiddleware`.
        content: see there.
        alone: whether an update is a turn of its own; by default commands and all that is no new
            message.
        urgent: whether an update runs at once beside a running turn, such as `/stop`; by default
            the button that stops a generation.
        send: sends what `turn.reply` says; by default as a text message.
        max_running: this and what follows as for `Turns`.
        lease_ms: see `Turns`.
        stop_timeout_ms: see `Turns`.
        on_failed: see `Turns`.

    Example:
        >>> from aiogram import Dispatcher
        >>> from trunkline import Trunkline, TurnPolicy
        >>> from trunkline.integrations.aiogram import TrunklineStorage, TrunklineTurns
        >>> line = Trunkline("sqlite:///bot.db")
        >>> dispatcher = Dispatcher(storage=TrunklineStorage(line.fsm))
        >>> turns = TrunklineTurns(
        ...     line,
        ...     TurnPolicy(while_busy="collect", quiet_ms=700),
        ...     urgent=lambda update: update.message is not None and update.message.text == "/stop",
        ... )
        >>> turns.setup(dispatcher)
        >>> @dispatcher.message()
        ... async def on_message(message, turn):
        ...     burst = " ".join(str(message.content) for message in turn.messages)
        ...     await turn.reply(f"you said {burst}")
    """

    def __init__(
        self,
        line: Trunkline,
        policy: TurnPolicy | None = None,
        *,
        channel: str = "telegram",
        content: Callable[[Message | CallbackQuery], Any] | None = None,
        alone: Callable[[Update], bool] | None = None,
        urgent: Callable[[Update], bool] | None = None,
        send: Send | None = None,
        max_running: int = 64,
        lease_ms: int = 10_000,
        stop_timeout_ms: int = 5_000,
        on_failed: OnFailed | None = None,
    ) -> None:
        self._line = line
        self._channel = channel
        self._middleware = TrunklineMiddleware(line, channel=channel, content=content)
        self._polling = _Polling(self)
        self._alone = alone or _is_alone
        self._urgent = urgent or _is_urgent
        #: The turns, for their events, stats and `cancel`.
        self.turns = line.turns(
            self._handle,
            TurnPolicy(while_busy="queue") if policy is None else policy,
            send=send or self._send,
            max_running=max_running,
            lease_ms=lease_ms,
            stop_timeout_ms=stop_timeout_ms,
            on_failed=on_failed,
        )
        self._dispatcher: Dispatcher | None = None
        #: bot id → the bot that answers.
        self._bots: dict[int, Bot] = {}
        #: What handlers get beside what the dispatcher knows.
        self._data: dict[str, Any] = {}
        self._owns_line = False

    def setup(self, dispatcher: Dispatcher, *bots: Bot) -> None:
        """Put it in front of everything else on the dispatcher's updates, and start it with that.

        Register what handlers need at startup before: what waits in the inbox is handled as soon as
        this has started. A program that uses neither polling nor `setup_application` passes its
        bots here, and calls `start` and `stop` itself.

        Args:
            dispatcher: a dispatcher of aiogram.
            *bots: those whose updates wait in the inbox, if nobody passes them to the dispatcher
                when it starts.

        Raises:
            ConfigurationError: it is set up already.
        """
        if self._dispatcher is not None:
            raise ConfigurationError("these TrunklineTurns have their dispatcher already")
        self._dispatcher = dispatcher
        self._bots.update({bot.id: bot for bot in bots})
        self._middleware.setup(dispatcher)
        outer = dispatcher.update.outer_middleware
        # In front of aiogram's error handlers too: an update that is not on disk must not count as
        # handled.
        behind = list(outer)
        for middleware in behind:
            outer.unregister(middleware)
        outer.register(self)
        for middleware in behind:
            outer.register(middleware)
        dispatcher.fsm.events_isolation = _Lanes(dispatcher.fsm.events_isolation)
        dispatcher.startup.register(self._start)
        dispatcher.shutdown.register(self.stop)
        # Turns end before what they use.
        handlers = dispatcher.shutdown.handlers
        handlers.insert(0, handlers.pop())

    async def start(self) -> None:
        """Start the line if it does not run, and the turns. The dispatcher does so.

        Raises:
            StoreUnavailable: a database cannot be reached.
        """
        if not self._line.is_running:
            await self._line.start()
            self._owns_line = True
        try:
            await self.turns.start()
        except BaseException:
            await self._stop_line()
            raise

    async def stop(self) -> None:
        """Stop the turns, and the line if this has started it. The dispatcher does so."""
        for bot in self._bots.values():
            if self._polling in bot.session.middleware:
                bot.session.middleware.unregister(self._polling)
        await self.turns.stop()
        await self._stop_line()

    async def accept(self, bot: Bot, update: Update) -> bool:
        """Take an update into the inbox, to be handled in turn. It is on disk when this returns.

        Returns:
            False if it is not for the inbox: it has a deadline, or no chat.

        Raises:
            InboxFull: as many updates of the chat wait as the policy allows.
            StoreUnavailable: a database is away: have Telegram send the update again.
        """
        key = self.session_key(bot, update)
        if key is None:
            return False
        self._bots.setdefault(bot.id, bot)
        number, alone, urgent = update.update_id, self._alone(update), self._urgent(update)
        # As Telegram sent it: defaults of a bot are not a part of it.
        plain = update.model_dump(mode="json", by_alias=True, exclude_unset=True)
        payload = {"bot": bot.id, "update": plain}
        spoken = _spoken(update)
        if spoken is None:
            await self._line.inbox.accept(
                key, payload, external_id=number, alone=alone, urgent=urgent
            )
        else:
            inbound = new_inbound(**self._middleware.fields(spoken, bot))
            await self._line.accept_inbound(
                inbound, payload=payload, external_id=number, alone=alone, urgent=urgent
            )
        return True

    def session_key(self, bot: Bot, update: Update) -> SessionKey | None:
        """The conversation of an update; `None` if it is handled at once.

        That of a message is the conversation that it is stored in.
        """
        try:
            if update.event_type in _AT_ONCE:
                return None
        except UpdateTypeLookupError:  # of a Bot API that is newer than aiogram
            return None
        context = UserContextMiddleware.resolve_event_context(update)
        if context.chat is None:
            return None
        return SessionKey(
            self._channel,
            _bridge_id(bot, context.business_connection_id),
            str(context.chat.id),
            None if context.thread_id is None else str(context.thread_id),
        )

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        if isinstance(data.get("turn"), LineTurn) or not isinstance(event, Update):
            return await handler(event, data)
        bot: Bot = data["bot"]
        if self._polling.has_accepted(bot, event) or await self.accept(bot, event):
            return None
        data["turn"], data["updates"] = None, (event,)
        before = _lane.set("at once")
        try:
            return await handler(event, data)
        finally:
            _lane.reset(before)

    # -- inside ------------------------------------------------------------------------------------

    async def _start(self, bot: Bot | None = None, bots: Iterable[Bot] = (), **data: Any) -> None:
        data.pop("router", None)
        self._data = {**data, "bots": bots} if bots else data
        self._bots.update({one.id: one for one in (bot, *bots) if one is not None})
        for one in bots:
            if self._polling not in one.session.middleware:
                one.session.middleware.register(self._polling)
        await self.start()

    async def _stop_line(self) -> None:
        if self._owns_line:
            self._owns_line = False
            await self._line.stop()

    async def _handle(self, turn: LineTurn) -> None:
        """Dispatch the newest update of a turn that a handler takes."""
        assert self._dispatcher is not None, "turns are started by the dispatcher"
        updates = [self._update(item) for item in turn.items]
        arrivals = {arrival.message.id: arrival for arrival in turn.arrivals}
        for item, update in zip(reversed(turn.items), reversed(updates), strict=True):
            bot = update.bot
            assert bot is not None, "_update mounts it"
            data = {**self._data, "turn": turn, "updates": tuple(updates)}
            stored = accepted(item)
            if stored is not None and stored.message_id in arrivals:
                data["arrival"] = arrivals[stored.message_id]
                data["route"] = await self._line.reply_route(data["arrival"])
            _lane.set("urgent" if item.urgent else "")
            try:
                response = await self._dispatcher.feed_update(bot, update, **data)
            except (SkipHandler, CancelHandler):
                return
            if isinstance(response, TelegramMethod):
                await self._dispatcher.silent_call_request(bot=bot, result=response)
            if response is not UNHANDLED:
                return

    def _update(self, item: Item) -> Update:
        payload = item.payload if isinstance(item.payload, dict) else {}
        if "update" not in payload:
            raise ConfigurationError(f"item {item.id} of the inbox is no update of aiogram")
        return Update.model_validate(
            payload["update"], context={"bot": self._bot(payload.get("bot"))}
        )

    def _bot(self, bot_id: object) -> Bot:
        bot = self._bots.get(bot_id) if isinstance(bot_id, int) else None
        if bot is None:
            raise ConfigurationError(f"no bot {bot_id!r} is known: give setup(dispatcher, bot)")
        return bot

    async def _send(self, route: Route, content: Any) -> int:
        """Send the text of a reply."""
        if not isinstance(content, str):
            raise ConfigurationError(
                f"a reply is a text, not {type(content).__name__}: give TrunklineTurns send="
            )
        bot_id, _, connection_id = (route.bridge_id or "").partition("/")
        sent = await self._bot(int(bot_id) if bot_id.isdecimal() else bot_id).send_message(
            route.external_room_id,
            content,
            message_thread_id=None if route.thread_id is None else int(route.thread_id),
            business_connection_id=connection_id or None,
        )
        return sent.message_id


#: What isolates an update beside the handlers of ordinary turns, which may take minutes.
_lane: ContextVar[str] = ContextVar("trunkline_lane", default="")


class _Lanes(BaseEventIsolation):
    """An isolation of events in which what runs at once does not wait for a turn.

    Urgent turns of one conversation still wait for each other, and so does what has a deadline.
    """

    def __init__(self, isolation: BaseEventIsolation) -> None:
        self._isolation = isolation

    @asynccontextmanager
    async def lock(self, key: StorageKey) -> AsyncGenerator[None, None]:
        lane = _lane.get()
        if lane:
            key = replace(key, destiny=f"{key.destiny}:{lane}")
        async with self._isolation.lock(key):
            yield

    async def close(self) -> None:
        await self._isolation.close()


class _Polling(BaseRequestMiddleware):
    """Takes what a bot has fetched into the inbox, before its next request confirms it."""

    def __init__(self, turns: TrunklineTurns) -> None:
        self._turns = turns
        #: Bot and update ids that are in the inbox, and that the dispatcher has not seen yet.
        self._accepted: set[tuple[int, int]] = set()

    def has_accepted(self, bot: Bot, update: Update) -> bool:
        """Whether an update that is dispatched now was fetched, and is in the inbox."""
        key = (bot.id, update.update_id)
        is_known = key in self._accepted
        self._accepted.discard(key)
        return is_known

    async def __call__(
        self,
        make_request: NextRequestMiddlewareType[Any],
        bot: Bot,
        method: TelegramMethod[Any],
    ) -> Any:
        result: Any = await make_request(bot, method)
        if isinstance(method, GetUpdates):
            chats: dict[SessionKey | None, list[Update]] = {}
            for update in result:
                chats.setdefault(self._turns.session_key(bot, update), []).append(update)
            # What this raises counts as a failed request: aiogram fetches the same updates again.
            async with open_task_group() as tasks:
                for updates in chats.values():
                    tasks.start_soon(self._accept, bot, updates)
        return result

    async def _accept(self, bot: Bot, updates: Iterable[Update]) -> None:
        """Accept updates of one chat, one after another: none behind one that is fetched again."""
        for update in updates:
            try:
                if await self._turns.accept(bot, update):
                    self._accepted.add((bot.id, update.update_id))
            except (InboxFull, InvalidModel, ConfigurationError):
                # To fetch it again would hold up all chats. The dispatcher accepts it again, and
                # logs what that raises.
                continue


#: Updates with a deadline, which would be over after a wait.
_AT_ONCE = frozenset(
    (
        "callback_query",
        "chosen_inline_result",
        "guest_message",
        "inline_query",
        "pre_checkout_query",
        "shipping_query",
    )
)

#: Updates that may be handled together.
_NEW_MESSAGES = frozenset(("business_message", "channel_post", "message"))


def _is_alone(update: Update) -> bool:
    """Whether an update is a command, or no new message."""
    event = update.event
    if update.event_type not in _NEW_MESSAGES or not isinstance(event, Message):
        return True
    return (event.text or event.caption or "").startswith("/")


def _is_urgent(update: Update) -> bool:
    return update.event_type == "stopped_message_generation"


#: Telegram's types of chats → ours of rooms.
_ROOM_TYPES = {"private": "direct", "channel": "channel"}


def _bot_name(key: StorageKey) -> str:
    return f"aiogram:{key.bot_id}"


def _store_key(key: StorageKey) -> tuple[int | str | None, ...]:
    return (key.chat_id, key.user_id, key.thread_id, key.business_connection_id, key.destiny)


def _check_is_map(data: object) -> None:
    if not isinstance(data, Mapping):
        raise DataNotDictLikeError(
            f"Data must be a dict or dict-like object, got {type(data).__name__}"
        )


def _spoken(event: TelegramObject) -> Message | CallbackQuery | None:
    """The message or pressed button of an event, if it is from a chat."""
    if isinstance(event, Update):
        try:
            event = event.event
        except UpdateTypeLookupError:  # of a Bot API that is newer than aiogram
            return None
    if isinstance(event, Message) or (isinstance(event, CallbackQuery) and event.message):
        return event
    return None


def _bridge_id(bot: Bot, connection_id: str | None) -> str:
    """The bot; a business account that it works for has a conversation of its own with a user."""
    return str(bot.id) if connection_id is None else f"{bot.id}/{connection_id}"


def _thread_id(message: Message) -> int | None:
    # A reply in a plain group has a thread id as well, which is no topic.
    return message.message_thread_id if message.is_topic_message else None


def _sender(spoken: Message | CallbackQuery) -> User | Chat | None:
    """Who said it. Telegram puts a placeholder user behind a channel or an anonymous admin."""
    if isinstance(spoken, Message) and spoken.sender_chat is not None:
        return spoken.sender_chat
    return spoken.from_user


def _participant(sender: User | Chat) -> dict[str, Any]:
    kind = "agent" if isinstance(sender, User) and sender.is_bot else "human"
    identity = {"name": sender.full_name, "username": sender.username}
    return {"type": kind, "identity": identity}


def _ids(spoken: Message | CallbackQuery) -> dict[str, Any]:
    if isinstance(spoken, Message):
        return {
            "external_message_id": spoken.message_id,
            "external_reply_to_id": _reply_to_id(spoken),
            # Not as `sent_at`: Telegram's clock has whole seconds, which would put a message
            # before the answer that it follows.
            "metadata": {"date": spoken.date.isoformat()},
        }
    # Ids of queries and of messages are unrelated.
    message_id = None if spoken.message is None else spoken.message.message_id
    return {"external_message_id": f"callback:{spoken.id}", "external_reply_to_id": message_id}


def _reply_to_id(message: Message) -> int | None:
    answered = message.reply_to_message
    # Everything in a topic answers the message that opened it.
    if answered is None or answered.message_id == _thread_id(message):
        return None
    return answered.message_id


def _content(spoken: Message | CallbackQuery) -> Any:
    if isinstance(spoken, CallbackQuery):
        return [{"type": "callback", "data": spoken.data or spoken.game_short_name}]
    if spoken.text is not None:
        return spoken.text
    kind = ContentType(spoken.content_type).value
    media = getattr(spoken, kind, None)
    if isinstance(media, list) and media:  # a photo in several sizes, the largest last
        media = media[-1]
    block = {"type": kind, "file_id": getattr(media, "file_id", None), "text": spoken.caption}
    return [{name: value for name, value in block.items() if value is not None}]
