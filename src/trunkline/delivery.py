"""Delivery: how a line sends an answer, and records what came of it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeAlias, cast

import anyio
from anyio.abc import TaskGroup
from msgspec.structs import replace
from uuid_utils import uuid7

from trunkline.actors.task_group import open_task_group
from trunkline.arrival import Arrival
from trunkline.errors import NotRecorded, StoreUnavailable
from trunkline.persistence import Message, PersistenceStore
from trunkline.persistence.models import ExternalId, now
from trunkline.persistence.validation import require_mapping
from trunkline.routing import Resolution, Route, SessionKey, SessionRouter

__all__ = ("Delivery", "Send", "new_answer", "send_answer")


class SendOnce(Protocol):
    """Sends a content with a nonce: the id of the stored answer, the same if it is sent again."""

    def __call__(
        self, route: Route, content: Any, /, *, nonce: str
    ) -> Awaitable[ExternalId | None]: ...


#: Sends a content along a route; returns the id that the platform gave to it, or `None`.
Send: TypeAlias = Callable[[Route, Any], Awaitable[ExternalId | None]] | SendOnce

#: Between two attempts to record an answer while a store is away, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Delivery:
    """What a line has under way: messages that come in, and answers that go out.

    Args:
        name: of the line.
        router: knows where answers go.
        persistence: where answers are recorded; `None` to record none.
    """

    def __init__(
        self, name: str, router: SessionRouter, persistence: PersistenceStore | None
    ) -> None:
        #: Tells which items of an inbox this line accepted.
        self.id = str(uuid7())
        self.router = router
        self.persistence = persistence
        self._name = name
        self._under_way = 0
        self._all_done: anyio.Event | None = None
        # Where answers are recorded, whatever cancels the tasks that deliver them.
        self._recorder: TaskGroup | None = None

    @property
    def is_running(self) -> bool:
        """Whether it takes messages and answers."""
        return self._recorder is not None and self._all_done is None

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None, Any]:
        """Messages and answers can be under way inside."""
        async with open_task_group() as self._recorder:
            self._all_done = None
            try:
                yield
            finally:
                self._recorder = None

    async def finish(self, timeout_ms: int) -> None:
        """Take no more, and wait for what is under way."""
        self._all_done = anyio.Event()
        with anyio.move_on_after(timeout_ms / 1000, shield=True):
            if self._under_way:
                await self._all_done.wait()
        self._recorder = None

    @contextmanager
    def under_way(self) -> Generator[None]:
        """A message or an answer is under way inside.

        Raises:
            StoreUnavailable: the line does not run, or is closing.
        """
        if self._recorder is None:
            raise StoreUnavailable(
                f"{self._name} does not run: enter it with 'async with', or await start()"
            )
        if self._all_done is not None:
            raise StoreUnavailable(f"{self._name} is closing and takes no more messages")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if self._all_done is not None and not self._under_way:
                self._all_done.set()

    async def set_routes(self, key: SessionKey, origin: Route) -> None:
        """Set the route of a conversation, and that of its room."""
        if key.thread_id is not None:
            await self.router.set(key, origin)
            origin = replace(origin, thread_id=None)
        await self.router.set(key.room_scope, origin)

    async def resolve(self, key: SessionKey, arrival: Arrival | None) -> Resolution:
        """The newest route of a conversation; if there is none, the origin of `arrival`."""
        return await self.router.resolve(key, () if arrival is None else arrival.origin)

    async def save(self, answer: Message) -> None:
        """Store an answer."""
        if self.persistence is not None:
            await self.persistence.save_message(answer)

    async def record(
        self, answer: Message, store: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """Store how an answer went, in a task of the line; a cancelled caller waits for that.

        Cancellation by asyncio itself ignores the shields of anyio. It is raised when the answer
        is stored.

        Args:
            answer: what was sent.
            store: stores it, if that is not all of it.

        Raises:
            NotRecorded: the answer could not be stored. It is raised before a cancellation. The
                cause is what `store` raised.
        """
        if self._recorder is None:
            raise NotRecorded(f"the answer was sent, not stored: {self._name} has closed", answer)
        store = store or partial(self.save, answer)
        failure: BaseException | None = None
        recorded = anyio.Event()

        async def record() -> None:
            nonlocal failure
            try:
                with anyio.CancelScope(shield=True):
                    await store()
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

    async def record_failure(self, answer: Message) -> None:
        """Store that an answer was not sent, if that can be stored."""
        with suppress(NotRecorded):
            await self.record(replace(answer, status="failed", updated_at=now()))

    def record_later(self, store: Callable[[], Awaitable[object]]) -> anyio.Event:
        """Go on recording while the store is away, until the line closes.

        Returns:
            Set when it is recorded, or never will be.
        """
        ended = anyio.Event()
        if self._recorder is None:
            ended.set()
        else:
            self._recorder.start_soon(self._record_until_stored, store, ended)
        return ended

    async def _record_until_stored(
        self, store: Callable[[], Awaitable[object]], ended: anyio.Event
    ) -> None:
        pause = _FIRST_PAUSE
        try:
            while self._recorder is not None:
                try:
                    await store()
                    return
                except StoreUnavailable:
                    await anyio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                except Exception:
                    return  # it can never be stored, and the caller has been told
        finally:
            ended.set()


def new_answer(
    key: SessionKey,
    arrival: Arrival | None,
    resolution: Resolution,
    content: Any,
    sender_id: str | None,
    metadata: Mapping[str, Any] | None,
) -> Message:
    """An answer that is to be sent, to a message or to a conversation."""
    fields: dict[str, Any] = {"room_id": key.room_id}
    if arrival is not None:
        fields = {
            "room_id": arrival.room.id,
            "reply_to_id": arrival.message.id,
            "external_reply_to_id": arrival.message.external_id,
            "thread_id": arrival.message.thread_id,
            "external_thread_id": arrival.message.external_thread_id,
        }
    return Message.new(
        sender_id=sender_id,
        role="assistant",
        content=content,
        delivery_external_room_id=resolution.external_room_id,
        status="sending",
        metadata={
            **require_mapping("metadata", metadata),
            "channel": key.channel,
            "bridge_id": key.bridge_id,
        },
        **fields,
    )


async def send_answer(answer: Message, route: Route, send: Send) -> Message:
    """Send an answer that is stored; returns it as it should be recorded."""
    if _takes_nonce(send):
        external_id = await cast(SendOnce, send)(route, answer.content, nonce=answer.id)
    else:
        plain = cast(Callable[[Route, Any], Awaitable[ExternalId | None]], send)
        external_id = await plain(route, answer.content)
    return replace(answer, status="sent", external_id=external_id, updated_at=now())


def _takes_nonce(send: Send) -> bool:
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(send).parameters
    except (TypeError, ValueError):  # one that is written in C
        return False
    found = parameters.get("nonce")
    return found is not None and found.kind is not found.POSITIONAL_ONLY
