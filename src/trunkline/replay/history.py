"""Saves the messages of a log into a persistence store, as a bot would have done."""

from __future__ import annotations

from collections import Counter
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Self, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
from anyio import AsyncContextManagerMixin
from xxhash import xxh3_128_intdigest

from trunkline.actors.task_group import open_task_group
from trunkline.errors import InvalidModel, NotFound, TrunklineError
from trunkline.persistence import Message, PersistenceStore, Thread
from trunkline.replay.log import ChatMessage
from trunkline.routing import SessionKey

__all__ = ("History", "Stored")

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

#: Calls that are under way at once: the store commits them together.
_IN_FLIGHT = 256

#: Messages that are saved in one go.
_TOGETHER = 4_096

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What was saved of a log, and how many of each the store has gained."""

    rooms: int
    new_rooms: int
    participants: int
    new_participants: int
    threads: int
    new_threads: int
    messages: int
    new_messages: int
    #: Messages that no store can hold, such as one in a room whose id has a NUL.
    refused: int
    #: How long saving took, without reading and replay.
    elapsed_ms: int
    #: Messages saved in a second, their rooms, participants and threads included.
    messages_per_second: int


class History(AsyncContextManagerMixin):
    """The messages of a log on their way into a store.

    A message's id is made of what was said, where, when and by whom: the same log saved again
    doubles nothing, in whatever files it comes. Messages of one instant in one room are told apart
    by microseconds, so that the store gives them in the order of the log.

    Use it as an async context manager: what `save` was given last is saved on leaving.

    Args:
        store: where to; it is running.
        on_problem: told of what cannot be stored, in one line of plain text.
    """

    def __init__(
        self,
        store: PersistenceStore,
        *,
        on_problem: Callable[[str], object] = lambda problem: None,
    ) -> None:
        self._store = store
        self._on_problem = on_problem
        self._waiting: list[ChatMessage] = []
        # The ids that they have in the store; `None` for what cannot be stored.
        self._rooms: dict[SessionKey, str | None] = {}
        self._threads: dict[SessionKey, str | None] = {}
        self._participants: dict[tuple[str, str], str | None] = {}
        self._instant = _Instant()
        self._messages = 0
        self._refused = 0
        self._seconds = 0.0
        self._before: dict[str, int] = {}
        self._after: dict[str, int] = {}

    async def save(self, message: ChatMessage) -> None:
        """Save a message, at once or together with the next ones.

        Raises:
            StoreUnavailable: this message and some before it may not be stored.
        """
        self._waiting.append(message)
        if len(self._waiting) == _TOGETHER:
            await self._save_waiting()

    def stored(self) -> Stored:
        """What was saved. To be asked for after leaving."""
        new = {kind: count - self._before[kind] for kind, count in self._after.items()}
        return Stored(
            rooms=_known(self._rooms),
            new_rooms=new["rooms"],
            participants=_known(self._participants),
            new_participants=new["participants"],
            threads=_known(self._threads),
            new_threads=new["threads"],
            messages=self._messages,
            new_messages=new["messages"],
            refused=self._refused,
            elapsed_ms=round(self._seconds * 1000),
            messages_per_second=round(self._messages / self._seconds) if self._messages else 0,
        )

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        self._before = await self._store.counts()
        yield self
        await self._save_waiting()
        self._after = await self._store.counts()

    async def _save_waiting(self) -> None:
        messages, self._waiting = self._waiting, []
        started = perf_counter()
        await _at_once(self._meet_room, _unmet(messages, _room, self._rooms))
        await _at_once(self._meet_participant, _unmet(messages, _author, self._participants))
        await _at_once(self._meet_thread, _unmet(messages, _thread, self._threads))
        stored = [self._as_stored(message) for message in messages]
        await _at_once(self._save_message, [one for one in stored if one is not None])
        self._seconds += perf_counter() - started

    async def _meet_room(self, message: ChatMessage) -> None:
        key = message.session_key.room_scope
        self._rooms[key] = None
        with self._refusing(f"room {key}"):
            room = await self._store.get_or_create_room_by_external_binding(
                key.channel,
                key.bridge_id,
                key.room_id,
                {
                    "id": _named_id("room", *key),
                    "type": "group",
                    "name": key.room_id,
                    "inserted_at": _instant(message.at_ms),
                },
            )
            self._rooms[key] = room.id

    async def _meet_participant(self, message: ChatMessage) -> None:
        channel, user_id = key = _author(message) or ("", "")
        self._participants[key] = None
        with self._refusing(f"participant {channel}:{user_id}"):
            participant = await self._store.get_or_create_participant_by_external_id(
                channel,
                user_id,
                {"id": _named_id("participant", *key), "identity": {"name": user_id}},
            )
            self._participants[key] = participant.id

    async def _meet_thread(self, message: ChatMessage) -> None:
        key = message.session_key
        self._threads[key] = None
        room_id = self._rooms[key.room_scope]
        if room_id is None or key.thread_id is None:
            return
        with self._refusing(f"thread {key}"):
            try:
                thread = await self._store.get_thread_by_external_id(room_id, key.thread_id)
            except NotFound:
                instant = _instant(message.at_ms)
                thread = await self._store.save_thread(
                    Thread(
                        id=_named_id("thread", *key),
                        room_id=room_id,
                        external_thread_id=key.thread_id,
                        delivery_external_room_id=key.room_id,
                        inserted_at=instant,
                        updated_at=instant,
                    )
                )
            self._threads[key] = thread.id

    def _as_stored(self, message: ChatMessage) -> Message | None:
        key, author = message.session_key, _author(message)
        room_id = self._rooms[key.room_scope]
        thread_id = None if key.thread_id is None else self._threads[key]
        sender_id = None if author is None else self._participants[author]
        if (
            room_id is None
            or (thread_id is None and key.thread_id is not None)
            or (sender_id is None and author is not None)
        ):
            self._refused += 1
            return None
        said = xxh3_128_intdigest(msgspec.json.encode([*key, message.user_id, message.text]))
        instant = self._instant
        instant.move_to(message.at_ms)
        inserted_at = _instant(message.at_ms, min(instant.number(key.room_scope), 999))
        return Message(
            id=_timed_id(message.at_ms, said + instant.number(said)),
            room_id=room_id,
            sender_id=sender_id,
            content=[] if message.text is None else message.text,
            thread_id=thread_id,
            external_thread_id=key.thread_id,
            delivery_external_room_id=key.room_id,
            status="delivered",
            metadata={"channel": key.channel, "bridge_id": key.bridge_id},
            inserted_at=inserted_at,
            updated_at=inserted_at,
        )

    async def _save_message(self, message: Message) -> None:
        self._refused += 1
        with self._refusing(f"a message of {message.inserted_at}"):
            await self._store.save_message(message)
            self._refused -= 1
            self._messages += 1

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        """Tell of what the store refuses for good, and go on."""
        try:
            yield
        except InvalidModel as error:
            self._on_problem(f"{what} cannot be stored: {error}")


class _Instant:
    """Numbers things of one instant from 0."""

    def __init__(self) -> None:
        self._at_ms: int | None = None
        self._numbers: Counter[Hashable] = Counter()

    def move_to(self, at_ms: int) -> None:
        if at_ms != self._at_ms:
            self._at_ms = at_ms
            self._numbers.clear()

    def number(self, thing: Hashable) -> int:
        number = self._numbers[thing]
        self._numbers[thing] += 1
        return number


async def _at_once(function: Callable[[T], Awaitable[None]], items: Collection[T]) -> None:
    """Call `function` on each item, in this order, many at once; raise the first that is raised."""
    errors: list[TrunklineError] = []
    remaining = iter(items)

    async def work() -> None:
        for item in remaining:
            try:
                await function(item)
            except TrunklineError as error:
                errors.append(error)
            if errors:
                return

    async with open_task_group() as task_group:
        for _ in range(min(_IN_FLIGHT, len(items))):
            task_group.start_soon(work)
    if errors:
        raise errors[0]


def _unmet(
    messages: Iterable[ChatMessage],
    key: Callable[[ChatMessage], K | None],
    known: Mapping[K, object],
) -> Collection[ChatMessage]:
    """The first message of each key that is not known."""
    first: dict[K, ChatMessage] = {}
    for message in messages:
        found = key(message)
        if found is not None and found not in known:
            first.setdefault(found, message)
    return first.values()


def _room(message: ChatMessage) -> SessionKey:
    return message.session_key.room_scope


def _thread(message: ChatMessage) -> SessionKey | None:
    return None if message.session_key.thread_id is None else message.session_key


def _author(message: ChatMessage) -> tuple[str, str] | None:
    if message.user_id is None:
        return None
    return (message.session_key.channel, str(message.user_id))


def _known(ids: Mapping[K, str | None]) -> int:
    return sum(one is not None for one in ids.values())


def _named_id(*names: str | None) -> str:
    return str(uuid5(NAMESPACE_URL, f"trunkline:{msgspec.json.encode(names).decode()}"))


def _timed_id(at_ms: int, number: int) -> str:
    """A UUID of version 8: 48 bits of time, so that ids sort by it, and 74 bits of `number`."""
    time = max(at_ms, 0) << 80
    low, high = number & _62_BITS, number >> 62 & _12_BITS
    return str(UUID(int=time | 0x8 << 76 | high << 64 | 0b10 << 62 | low))


_62_BITS, _12_BITS = (1 << 62) - 1, (1 << 12) - 1


def _instant(at_ms: int, microseconds: int = 0) -> datetime:
    return _EPOCH + timedelta(milliseconds=at_ms, microseconds=microseconds)
