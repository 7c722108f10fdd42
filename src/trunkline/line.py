"""Trunkline: the router and the stores of one bot, opened and closed together."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, Literal, Self, TypeAlias, TypeVar, Unpack

import anyio
import msgspec
from anyio.abc import TaskStatus
from msgspec import structs

from trunkline.actors import RestartPolicy, Service
from trunkline.actors.task_group import open_task_group
from trunkline.arrival import Arrival, new_arrival, payload_of
from trunkline.backends import Adapter, Store, StoreStats
from trunkline.backends.cipher import EncryptionKey
from trunkline.backends.locks import KeyLocks
from trunkline.delivery import Delivery, Send, new_answer, send_answer
from trunkline.errors import ConfigurationError
from trunkline.fsm import FSMAdapter, FSMStore
from trunkline.line_turn import LineTurn, LineTurns
from trunkline.persistence import Inbound, Message, PersistenceAdapter, PersistenceStore
from trunkline.persistence.inbound import new_inbound
from trunkline.persistence.models import ExternalId, now
from trunkline.routing import Resolution, RouterStats, SessionKey, SessionRouter
from trunkline.settings import RouterSettings, parse_settings, refuse_unknown
from trunkline.signal import SignalAdapter, SignalStore
from trunkline.turns import Inbox, InboxAdapter, Receipt, TurnPolicy
from trunkline.turns.runner import OnFailed
from trunkline.validation import require_positive

__all__ = ("Arrival", "LineStats", "LineTurn", "LineTurns", "Trunkline")

S = TypeVar("S", bound=Store[Any])

PersistencePart: TypeAlias = str | PersistenceAdapter | PersistenceStore | None
FSMPart: TypeAlias = str | FSMAdapter | FSMStore | None
SignalPart: TypeAlias = str | SignalAdapter | SignalStore | None
InboxPart: TypeAlias = str | InboxAdapter | Inbox | None


class LineStats(msgspec.Struct, frozen=True):
    """The counters of every part; `None` for one that was left out."""

    router: RouterStats
    persistence: StoreStats | None
    fsm: StoreStats | None
    signal: StoreStats | None
    inbox: StoreStats | None


class Trunkline(Service):
    """One object for a bot: `line.router`, its stores, and the turns that answer its messages.

    Its stores are `line.persistence`, `line.fsm`, `line.signal` and `line.inbox`.

    Args:
        url: where the stores keep their data: `sqlite:///bot.db`, `postgresql://…` or `memory://`.
        persistence: another URL, an adapter or a store for this part; `None` leaves it out. The
            line enters and leaves a store that is passed in.
        fsm: the same.
        signal: the same.
        inbox: the same.
        encryption_key: encrypts credentials of bridges, signal values, and the payloads and steps
            of the inbox at rest.
        name: stands in events, logs and errors; by default `trunkline`.
        namespace: lines of two namespaces never see each other's data. By default the name, or
            `default`, as for a store by itself, where no name is passed either. Adapters and stores
            that are passed in have their own.
        stop_timeout_ms: how long closing waits for messages and answers that are under way.
        **router: those of `SessionRouter`: `partition_count`, `ttl_ms`, `clock`, ….

    Raises:
        ConfigurationError: an unknown setting, with the nearest name, or one that cannot work.
        StoreUnavailable: out of `async with`, when a database cannot be reached.

    Example:
        >>> import anyio
        >>> from trunkline import Trunkline
        >>> async def main() -> int:
        ...     async with Trunkline("memory://") as line:
        ...         arrival = await line.ingest(
        ...             channel="telegram", bridge_id="bot", external_room_id=42, content="hello"
        ...         )
        ...         answer = await line.reply_route(arrival)
        ...         return answer.external_room_id
        >>> anyio.run(main)
        42
    """

    def __init__(
        self,
        url: str = "sqlite:///trunkline.db",
        *,
        persistence: PersistencePart | Literal["same"] = "same",
        fsm: FSMPart | Literal["same"] = "same",
        signal: SignalPart | Literal["same"] = "same",
        inbox: InboxPart | Literal["same"] = "same",
        encryption_key: EncryptionKey | None = None,
        name: str | None = None,
        namespace: str | None = None,
        stop_timeout_ms: int = 5_000,
        **router: Unpack[RouterSettings],
    ) -> None:
        refuse_unknown(router)
        if namespace is None:
            namespace = "default" if name is None else name
        self.name = name = "trunkline" if name is None else name
        self.router = SessionRouter(name=f"{name}.router", **router)
        secret = {"encryption_key": encryption_key}
        self._persistence = _part(
            PersistenceStore, persistence, url, namespace, name=f"{name}.persistence", **secret
        )
        self._fsm = _part(FSMStore, fsm, url, namespace, name=f"{name}.fsm")
        self._signal = _part(SignalStore, signal, url, namespace, name=f"{name}.signal", **secret)
        self._inbox = _part(Inbox, inbox, url, namespace, name=f"{name}.inbox", **secret)
        self._stop_timeout_ms = require_positive("stop_timeout_ms", stop_timeout_ms)
        self._delivery = Delivery(name, self.router, self._persistence)
        #: The order of a conversation's messages on their way into the inbox.
        self._order = KeyLocks()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """A line from a mapping, such as a section of a configuration file.

        Numbers may be strings; an empty string for a store leaves it out.

        Raises:
            ConfigurationError: an unknown setting, with the nearest name, or a wrong value.
        """
        return cls(**parse_settings(settings))

    @classmethod
    def from_environment(
        cls, prefix: str = "TRUNKLINE_", environment: Mapping[str, str] | None = None
    ) -> Self:
        """A line from variables such as `TRUNKLINE_URL` and `TRUNKLINE_TTL_MS`.

        Raises:
            ConfigurationError: a variable that begins so and is no setting, with the nearest name.
        """
        variables = os.environ if environment is None else environment
        settings = {
            variable.removeprefix(prefix).lower(): value
            for variable, value in variables.items()
            if variable.startswith(prefix)
        }
        return cls.from_settings(settings)

    @property
    def persistence(self) -> PersistenceStore:
        """Raises `ConfigurationError` if it was left out."""
        return _present(self._persistence, "persistence")

    @property
    def fsm(self) -> FSMStore:
        """Raises `ConfigurationError` if it was left out."""
        return _present(self._fsm, "fsm")

    @property
    def signal(self) -> SignalStore:
        """Raises `ConfigurationError` if it was left out."""
        return _present(self._signal, "signal")

    @property
    def inbox(self) -> Inbox:
        """Raises `ConfigurationError` if it was left out."""
        return _present(self._inbox, "inbox")

    @property
    def is_running(self) -> bool:
        """Whether it takes messages: it was entered, and is not closing."""
        return self._delivery.is_running

    def stats(self) -> LineStats:
        """The counters of every part at this moment."""
        stores = (self._persistence, self._fsm, self._signal, self._inbox)
        return LineStats(
            self.router.stats(), *(None if store is None else store.stats() for store in stores)
        )

    # -- a message in, an answer out ---------------------------------------------------------------

    async def ingest(
        self,
        *,
        channel: str,
        bridge_id: str,
        external_room_id: ExternalId,
        content: Any,
        external_message_id: ExternalId | None = None,
        external_user_id: ExternalId | None = None,
        external_thread_id: ExternalId | None = None,
        external_reply_to_id: ExternalId | None = None,
        room: Mapping[str, Any] | None = None,
        participant: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        sent_at: datetime | None = None,
    ) -> Arrival:
        """Store an inbound message once, with its room, sender and thread, and set its route.

        They are stored all or nothing. If the same message, by its external id in its external
        room, is ingested again, in this process or another, the stored one is returned.

        Args:
            channel: the platform: `telegram`, `discord`.
            bridge_id: which of the bot's connections to it.
            external_room_id: the chat's id there.
            content: text, or blocks of content: any value that JSON has.
            external_message_id: the message's id there. Without one it is always new.
            external_user_id: the sender's id there.
            external_thread_id: the thread's or topic's id there; its `Thread` is found in the room
                or created.
            external_reply_to_id: the id there of the message that it answers, which is looked up in
                the room for `reply_to_id`.
            room: fields of the `Room`, if it is created.
            participant: fields of the `Participant`, if it is created.
            metadata: kept with the message.
            sent_at: when it was sent, by the platform's clock; kept in the metadata. Messages are
                ordered by arrival, since the times of platforms are whole seconds.

        Raises:
            InvalidModel: an argument that cannot be stored, such as an empty external id; nothing
                was stored, no route was set.
            StoreUnavailable: the database is away; no route was set, and nothing was stored unless
                the error says that it may have been.
        """
        with self._delivery.under_way():
            inbound = new_inbound(
                channel=channel,
                bridge_id=bridge_id,
                external_room_id=external_room_id,
                content=content,
                external_message_id=external_message_id,
                external_user_id=external_user_id,
                external_thread_id=external_thread_id,
                external_reply_to_id=external_reply_to_id,
                room=room,
                participant=participant,
                metadata=metadata,
                sent_at=sent_at,
            )
            return await self._ingest(inbound)

    async def accept(
        self,
        *,
        channel: str,
        bridge_id: str,
        external_room_id: ExternalId,
        content: Any,
        external_message_id: ExternalId | None = None,
        external_user_id: ExternalId | None = None,
        external_thread_id: ExternalId | None = None,
        external_reply_to_id: ExternalId | None = None,
        room: Mapping[str, Any] | None = None,
        participant: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        sent_at: datetime | None = None,
        alone: bool = False,
        urgent: bool = False,
        delay_ms: int = 0,
        replace: bool = False,
    ) -> Receipt:
        """Store an inbound message as `ingest` does, and then in the inbox, to be handled in turn.

        It is on disk when this returns: acknowledge it to the platform now. If the process dies
        between the two, the platform sends it again, and what is there already is not stored twice.
        Messages of one conversation are handled in the order of these calls.

        Args:
            channel: this and what follows as for `ingest`.
            bridge_id: see `ingest`.
            external_room_id: see `ingest`.
            content: see `ingest`.
            external_message_id: see `ingest`. It is the `external_id` of the item, too.
            external_user_id: see `ingest`.
            external_thread_id: see `ingest`.
            external_reply_to_id: see `ingest`.
            room: see `ingest`.
            participant: see `ingest`.
            metadata: see `ingest`.
            sent_at: see `ingest`.
            alone: this and what follows as for `Inbox.accept`: it is a turn of its own.
            urgent: it runs at once beside a running turn.
            delay_ms: not before then. It holds up no other message.
            replace: it was edited: the stored message gets its content, and the item, if it still
                waits, is this one.

        Returns:
            What became of the item in the inbox.

        Raises:
            InvalidModel, ConfigurationError: an argument that cannot be stored.
            InboxFull: as many messages of the conversation wait as the policy allows. It was
                ingested, and will not be handled unless it is accepted again.
            StoreUnavailable: a database is away: let the platform send it again.
        """
        inbound = new_inbound(
            channel=channel,
            bridge_id=bridge_id,
            external_room_id=external_room_id,
            content=content,
            external_message_id=external_message_id,
            external_user_id=external_user_id,
            external_thread_id=external_thread_id,
            external_reply_to_id=external_reply_to_id,
            room=room,
            participant=participant,
            metadata=metadata,
            sent_at=sent_at,
        )
        return await self.accept_inbound(
            inbound,
            external_id=external_message_id,
            alone=alone,
            urgent=urgent,
            delay_ms=delay_ms,
            replace=replace,
        )

    def turns(
        self,
        handler: Callable[[LineTurn], Awaitable[object]],
        policy: TurnPolicy | None = None,
        *,
        send: Send | None = None,
        max_running: int = 64,
        lease_ms: int = 10_000,
        stop_timeout_ms: int = 5_000,
        on_failed: OnFailed | None = None,
        name: str | None = None,
        restart_policy: RestartPolicy | None = None,
    ) -> LineTurns:
        """Run a handler over what this line accepts, as turns.

        Enter them inside the line: `async with line, turns`.

        Args:
            handler: an async function of a `LineTurn`. One that raises is tried again.
            policy: how messages become turns.
            send: sends what `turn.reply` says, as for `deliver`.
            max_running: this and what follows as for `Turns`.
            lease_ms: see `Turns`.
            stop_timeout_ms: see `Turns`.
            on_failed: see `Turns`.
            name: stands in events, logs and errors; by default that of the line and `.turns`.
            restart_policy: see `Turns`.

        Raises:
            ConfigurationError: the line has no inbox, or an argument cannot work.

        Example:
            >>> import anyio
            >>> from trunkline import Trunkline, TurnPolicy
            >>> async def send(route, content):
            ...     print(f"to {route.external_room_id}: {content}")
            >>> async def answer(turn) -> None:
            ...     await turn.reply(" ".join(message.content for message in turn.messages))
            >>> async def main() -> None:
            ...     line = Trunkline("memory://")
            ...     turns = line.turns(answer, TurnPolicy(quiet_ms=10), send=send)
            ...     async with line, turns:
            ...         for number, text in enumerate(("hi,", "how are you?")):
            ...             await line.accept(
            ...                 channel="telegram",
            ...                 bridge_id="bot",
            ...                 external_room_id=42,
            ...                 external_message_id=number,
            ...                 content=text,
            ...             )
            ...         await turns.idle()
            >>> anyio.run(main)
            to 42: hi, how are you?
        """
        return LineTurns(
            self._delivery,
            self.inbox,
            handler,
            policy,
            send=send,
            max_running=max_running,
            lease_ms=lease_ms,
            stop_timeout_ms=stop_timeout_ms,
            on_failed=on_failed,
            name=f"{self.name}.turns" if name is None else name,
            restart_policy=restart_policy,
        )

    async def reply_route(self, arrival: Arrival) -> Resolution:
        """Where the answer to a message goes: the newest route of its conversation.

        If that has expired, or its partition is down, the message's own origin.
        """
        return await self._delivery.resolve(arrival.session_key, arrival)

    async def deliver(
        self,
        arrival: Arrival,
        content: Any,
        send: Send,
        *,
        sender_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Message:
        """Answer a message: store the answer, send it along its route, record the outcome.

        Once `send` has returned, the answer is recorded, even if the calling task is cancelled: the
        cancellation is raised afterwards.

        Args:
            arrival: the message to answer.
            content: the answer.
            send: sends it: takes the route and the content, returns the id that the platform gave
                to the answer, or `None`. If it has a parameter `nonce`, it gets the id of the
                stored answer as that keyword.
            sender_id: the participant that answers.
            metadata: kept with the answer.

        Returns:
            The answer as it is stored: `sent`, with its external id.

        Raises:
            NotRecorded: the answer was sent and could not be stored as `sent`, for example because
                the database is away. `error.answer` has it, for `persistence.save_message`.
            StoreUnavailable: the database was away beforehand; nothing was sent.
            Exception: what `send` raised; the answer is stored as `failed`, or stays `sending` if
                that cannot be stored.
        """
        with self._delivery.under_way():
            resolution = await self.reply_route(arrival)
            answer = new_answer(
                arrival.session_key, arrival, resolution, content, sender_id, metadata
            )
            try:
                await self._delivery.save(answer)
            except anyio.get_cancelled_exc_class():
                await self._delivery.record_failure(answer)  # it may be stored already
                raise
            try:
                sent = await send_answer(answer, resolution.route, send)
            except BaseException:
                await self._delivery.record_failure(answer)
                raise
            await self._delivery.record(sent)
            return sent

    # -- for integrations --------------------------------------------------------------------------

    async def accept_inbound(
        self,
        inbound: Inbound,
        *,
        external_id: ExternalId | None,
        payload: Mapping[str, Any] | None = None,
        alone: bool = False,
        urgent: bool = False,
        delay_ms: int = 0,
        replace: bool = False,
    ) -> Receipt:
        """Store an inbound message, and then in the inbox with more in its payload: see `accept`.

        Args:
            inbound: the message, checked.
            external_id: of the item.
            payload: what else its payload holds.
            alone: this and what follows as for `accept`.
            urgent: see `accept`.
            delay_ms: see `accept`.
            replace: see `accept`.
        """
        inbox, binding, thread = self.inbox, inbound.binding, inbound.thread
        place = SessionKey(
            binding.channel,
            binding.bridge_id,
            str(binding.external_room_id),
            None if thread is None else str(thread.external_thread_id),
        )
        # Both writes of one message before those of the next: else two that come at the same time
        # could pass each other between the two stores.
        with self._delivery.under_way():
            async with self._order.hold(str(place)):
                arrival = await self._ingest(inbound)
                if replace and arrival.duplicate:
                    arrival = await self._edit(arrival, inbound.message.content)
                reference = payload_of(
                    arrival, line=self._delivery.id, is_stored=self._persistence is not None
                )
                return await inbox.accept(
                    arrival.session_key,
                    {**(payload or {}), **reference},
                    external_id=external_id,
                    alone=alone,
                    urgent=urgent,
                    delay_ms=delay_ms,
                    replace=replace,
                )

    # -- inside ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, Any]:
        async with open_task_group() as tasks:
            closing = anyio.Event()
            await tasks.start(self._run_parts, closing)
            try:
                yield self
            finally:
                # What was accepted is finished first, within the time that the program allows.
                await self._delivery.finish(self._stop_timeout_ms)
                closing.set()

    async def _run_parts(
        self, closing: anyio.Event, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Hold the parts open; they are closed in reverse, and so the stores last.

        A task of its own can be shielded while the program is not: a program that is cancelled
        still has its stores while its answers are recorded.
        """
        with anyio.CancelScope() as scope:
            async with AsyncExitStack() as parts:
                for store in (self._signal, self._fsm, self._persistence, self._inbox):
                    if store is not None:
                        await parts.enter_async_context(store)
                await parts.enter_async_context(self.router)
                await parts.enter_async_context(self._delivery.run())
                scope.shield = True
                task_status.started()
                await closing.wait()

    async def _edit(self, arrival: Arrival, content: Any) -> Arrival:
        """The arrival of a message that was stored before, with its new content."""
        message = arrival.message
        if self._persistence is None or message.content == content:
            return arrival
        message = structs.replace(message, content=content, updated_at=now())
        message = await self._persistence.save_message(message)
        return structs.replace(arrival, message=message)

    async def _ingest(self, inbound: Inbound) -> Arrival:
        if self._persistence is not None:
            inbound = await self._persistence.save_new_inbound(inbound)
        arrival = new_arrival(inbound, is_stored=self._persistence is not None)
        await self._delivery.set_routes(arrival.session_key, arrival.origin)
        return arrival


def _part(
    kind: type[S], given: str | Adapter | S | None, url: str, namespace: str, **options: object
) -> S | None:
    """A part of a line as a store; `None` if it is left out."""
    make: Callable[..., S] = kind
    if given is None or isinstance(given, kind):
        return given
    if isinstance(given, Adapter):
        return make(adapter=given, **options)
    if isinstance(given, Store):
        raise ConfigurationError(
            f"a line takes a {kind.__name__} here, not a {type(given).__name__}"
        )
    return make(url if given == "same" else given, namespace=namespace, **options)


def _present(store: S | None, name: str) -> S:
    if store is None:
        raise ConfigurationError(f"this line was made with {name}=None")
    return store
