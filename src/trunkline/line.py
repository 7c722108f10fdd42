"""Trunkline: the router and the stores of one bot, opened and closed together."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from typing import Any, Literal, Self, TypeAlias, TypeVar, Unpack

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus
from msgspec.structs import replace

from trunkline.actors import Service
from trunkline.actors.task_group import open_task_group
from trunkline.backends import Adapter, Store, StoreStats
from trunkline.backends.cipher import EncryptionKey
from trunkline.errors import ConfigurationError, NotRecorded, StoreUnavailable
from trunkline.fsm import FSMAdapter, FSMStore
from trunkline.persistence import (
    Inbound,
    Message,
    Participant,
    PersistenceAdapter,
    PersistenceStore,
    Room,
)
from trunkline.persistence.inbound import new_inbound
from trunkline.persistence.models import ExternalId, now
from trunkline.persistence.validation import require_mapping
from trunkline.routing import Resolution, Route, RouterStats, SessionKey, SessionRouter
from trunkline.settings import RouterSettings, parse_settings, refuse_unknown
from trunkline.signal import SignalAdapter, SignalStore
from trunkline.validation import require_positive

__all__ = ("Arrival", "LineStats", "Trunkline")

S = TypeVar("S", bound=Store[Any])

PersistencePart: TypeAlias = str | PersistenceAdapter | PersistenceStore | None
FSMPart: TypeAlias = str | FSMAdapter | FSMStore | None
SignalPart: TypeAlias = str | SignalAdapter | SignalStore | None


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """An inbound message, as `ingest` has stored it."""

    #: The conversation: its route is set.
    session_key: SessionKey
    #: Where the message came from, and where its answer goes if no newer route is set.
    origin: Route
    #: As it is stored; not stored, if the line has no persistence.
    message: Message
    room: Room
    participant: Participant | None
    #: Whether the same message, by its external id, was ingested before.
    duplicate: bool


class LineStats(msgspec.Struct, frozen=True):
    """The counters of every part; `None` for one that was left out."""

    router: RouterStats
    persistence: StoreStats | None
    fsm: StoreStats | None
    signal: StoreStats | None


class Trunkline(Service):
    """One object for a bot: `line.router`, `line.persistence`, `line.fsm` and `line.signal`.

    Args:
        url: where the stores keep their data: `sqlite:///bot.db`, `postgresql://…` or `memory://`.
        persistence: another URL, an adapter or a store for this part; `None` leaves it out. The
            line enters and leaves a store that is passed in.
        fsm: the same.
        signal: the same.
        encryption_key: encrypts credentials of bridges and signal values at rest.
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
        self._stop_timeout_ms = require_positive("stop_timeout_ms", stop_timeout_ms)
        self._under_way = 0
        self._all_done: anyio.Event | None = None
        # Where answers are recorded, whatever cancels the tasks that deliver them.
        self._recorder: TaskGroup | None = None

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

    def stats(self) -> LineStats:
        """The counters of every part at this moment."""
        stores = (self._persistence, self._fsm, self._signal)
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
        self._begin()
        try:
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
            if self._persistence is not None:
                inbound = await self._persistence.save_new_inbound(inbound)
            arrival = _arrival(inbound, is_stored=self._persistence is not None)
            await self._set_routes(arrival)
            return arrival
        finally:
            self._end()

    async def reply_route(self, arrival: Arrival) -> Resolution:
        """Where the answer to a message goes: the newest route of its conversation.

        If that has expired, or its partition is down, the message's own origin.
        """
        return await self.router.resolve(arrival.session_key, arrival.origin)

    async def deliver(
        self,
        arrival: Arrival,
        content: Any,
        send: Callable[[Route, Any], Awaitable[ExternalId | None]],
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
                to the answer, or `None`.
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
        self._begin()
        try:
            resolution = await self.reply_route(arrival)
            answer = Message.new(
                room_id=arrival.room.id,
                sender_id=sender_id,
                role="assistant",
                content=content,
                reply_to_id=arrival.message.id,
                external_reply_to_id=arrival.message.external_id,
                thread_id=arrival.message.thread_id,
                external_thread_id=arrival.message.external_thread_id,
                delivery_external_room_id=resolution.external_room_id,
                status="sending",
                metadata={
                    **require_mapping("metadata", metadata),
                    "channel": arrival.session_key.channel,
                    "bridge_id": arrival.session_key.bridge_id,
                },
            )
            try:
                await self._save(answer)
            except anyio.get_cancelled_exc_class():
                await self._record_failure(answer)  # it may be stored already
                raise
            try:
                external_id = await send(resolution.route, content)
            except BaseException:
                await self._record_failure(answer)
                raise
            sent = replace(answer, status="sent", external_id=external_id, updated_at=now())
            await self._record(sent)
            return sent
        finally:
            self._end()

    # -- inside ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, Any]:
        async with open_task_group() as tasks:
            closing = anyio.Event()
            await tasks.start(self._run_parts, closing)
            self._all_done = None
            try:
                yield self
            finally:
                # What was accepted is finished first, within the time that the program allows.
                self._all_done = anyio.Event()
                with anyio.move_on_after(self._stop_timeout_ms / 1000, shield=True):
                    if self._under_way:
                        await self._all_done.wait()
                self._recorder = None
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
                for store in (self._signal, self._fsm, self._persistence):
                    if store is not None:
                        await parts.enter_async_context(store)
                await parts.enter_async_context(self.router)
                self._recorder = await parts.enter_async_context(open_task_group())
                scope.shield = True
                task_status.started()
                await closing.wait()

    def _begin(self) -> None:
        """Note that a message or an answer is under way; `_end` must follow."""
        if self._recorder is None:
            raise StoreUnavailable(
                f"{self.name} does not run: enter it with 'async with', or await start()"
            )
        if self._all_done is not None:
            raise StoreUnavailable(f"{self.name} is closing and takes no more messages")
        self._under_way += 1

    def _end(self) -> None:
        self._under_way -= 1
        if self._all_done is not None and not self._under_way:
            self._all_done.set()

    async def _record(self, answer: Message) -> None:
        """Store how an answer went, in a task of the line; a cancelled caller waits for that.

        Cancellation by asyncio itself ignores the shields of anyio. It is raised when the answer
        is stored.

        Raises:
            NotRecorded: the answer could not be stored. It is raised before a cancellation.
        """
        if self._recorder is None:
            raise NotRecorded(f"the answer was sent, not stored: {self.name} has closed", answer)
        failure: BaseException | None = None
        recorded = anyio.Event()

        async def record() -> None:
            nonlocal failure
            try:
                with anyio.CancelScope(shield=True):
                    await self._save(answer)
            except BaseException as error:
                failure = error
                if not isinstance(error, Exception):
                    raise
            finally:
                recorded.set()

        self._recorder.start_soon(record)
        cancellation: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while not recorded.is_set():
                try:
                    await recorded.wait()
                except anyio.get_cancelled_exc_class() as error:
                    cancellation = error
        if failure is not None:
            raise NotRecorded(f"the answer was sent, not stored: {failure}", answer) from failure
        if cancellation is not None:
            raise cancellation

    async def _record_failure(self, answer: Message) -> None:
        with suppress(NotRecorded):
            await self._record(replace(answer, status="failed", updated_at=now()))

    async def _set_routes(self, arrival: Arrival) -> None:
        key, origin = arrival.session_key, arrival.origin
        if key.thread_id is not None:
            await self.router.set(key, origin)
            origin = replace(origin, thread_id=None)
        await self.router.set(key.room_scope, origin)

    async def _save(self, message: Message) -> None:
        if self._persistence is not None:
            await self._persistence.save_message(message)


def _arrival(inbound: Inbound, *, is_stored: bool) -> Arrival:
    binding, thread = inbound.binding, inbound.thread
    # A room that is not stored has no id that others know.
    room_id = inbound.room.id if is_stored else str(binding.external_room_id)
    thread_id = None if thread is None else str(thread.external_thread_id)
    return Arrival(
        SessionKey(binding.channel, binding.bridge_id, room_id, thread_id),
        Route(
            binding.external_room_id,
            channel_type=binding.channel,
            bridge_id=binding.bridge_id,
            room_id=room_id,
            thread_id=thread_id,
        ),
        inbound.message,
        inbound.room,
        inbound.participant,
        inbound.duplicate,
    )


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
