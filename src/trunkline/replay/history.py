"""Saves the messages of a log in a persistence store, as a bot would have done."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import NamedTuple, Self
from uuid import UUID

import msgspec
from anyio import AsyncContextManagerMixin
from msgspec.structs import replace
from xxhash import xxh3_128_intdigest

from trunkline.actors.task_group import open_task_group
from trunkline.errors import InvalidModel
from trunkline.persistence import PersistenceStore
from trunkline.persistence.inbound import new_inbound
from trunkline.replay.log import ChatMessage

__all__ = ("History", "Stored")

#: Concurrent calls: the store commits them together.
_IN_FLIGHT = 256

#: Messages that are saved together.
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


class _Waiting(NamedTuple):
    message: ChatMessage
    id: str
    inserted_at: datetime


class History(AsyncContextManagerMixin):
    """Saves the messages of a log in a store.

    A message's id is made of what was said, where, when and by whom: the same log saved again
    adds nothing, whatever files it comes in. Messages of one instant in one room are told apart
    by microseconds, so that the store returns them in the order of the log.

    Use it as an async context manager: the last messages are saved on leaving.

    Args:
        store: where to; it is running.
        on_problem: called with what cannot be stored, in one line of plain text.
    """

    def __init__(
        self,
        store: PersistenceStore,
        *,
        on_problem: Callable[[str], object] = lambda problem: None,
    ) -> None:
        self._store = store
        self._on_problem = on_problem
        self._waiting: list[_Waiting] = []
        self._instant = _Instant()
        # The ids of those that the messages saved so far refer to.
        self._rooms: set[str] = set()
        self._participants: set[str] = set()
        self._threads: set[str] = set()
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
        key, instant = message.session_key, self._instant
        said = xxh3_128_intdigest(msgspec.json.encode([*key, message.user_id, message.text]))
        instant.move_to(message.at_ms)
        microseconds = min(instant.number(key.room_scope), 999)
        inserted_at = _EPOCH + timedelta(milliseconds=message.at_ms, microseconds=microseconds)
        id_ = _timed_id(message.at_ms, said + instant.number(said))
        self._waiting.append(_Waiting(message, id_, inserted_at))
        if len(self._waiting) == _TOGETHER:
            await self._save_waiting()

    def stored(self) -> Stored:
        """What was saved. Call it after leaving."""
        new = {kind: count - self._before[kind] for kind, count in self._after.items()}
        return Stored(
            rooms=len(self._rooms),
            new_rooms=new["rooms"],
            participants=len(self._participants),
            new_participants=new["participants"],
            threads=len(self._threads),
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
        waiting, self._waiting = iter(self._waiting), []

        async def save_in_turn() -> None:
            for one in waiting:
                await self._save_one(one)

        started = perf_counter()
        try:
            async with open_task_group() as task_group:
                for _ in range(_IN_FLIGHT):
                    task_group.start_soon(save_in_turn)
        except ExceptionGroup as group:  # calls that are committed together fail together
            raise group.exceptions[0] from None
        self._seconds += perf_counter() - started

    async def _save_one(self, waiting: _Waiting) -> None:
        message, id_, inserted_at = waiting
        key, text, user_id = message.session_key, message.text, message.user_id
        instants = {"inserted_at": inserted_at, "updated_at": inserted_at}
        try:
            new = new_inbound(
                channel=key.channel,
                bridge_id=key.bridge_id,
                external_room_id=key.room_id,
                external_thread_id=key.thread_id,
                external_user_id=None if user_id in (None, "") else str(user_id),
                content=[] if text is None else text,
                room={"type": "group", "name": key.room_id, "inserted_at": inserted_at},
                participant={"identity": {"name": str(user_id)}},
            )
            thread = new.thread
            if thread is not None:
                thread = replace(thread, delivery_external_room_id=key.room_id, **instants)
            new = replace(new, message=replace(new.message, id=id_, **instants), thread=thread)
            saved = await self._store.save_new_inbound(new)
        except InvalidModel as error:
            self._refused += 1
            self._on_problem(f"a message in {key} cannot be stored: {error}")
            return
        self._messages += 1
        self._rooms.add(saved.room.id)
        if saved.participant is not None:
            self._participants.add(saved.participant.id)
        if saved.message.thread_id is not None:
            self._threads.add(saved.message.thread_id)


class _Instant:
    """Numbers the equal things of one instant, from 0."""

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


def _timed_id(at_ms: int, number: int) -> str:
    """A UUID of version 8: 48 bits of time, so that ids sort by it, and 74 bits of `number`."""
    time = max(at_ms, 0) << 80
    low, high = number & _62_BITS, number >> 62 & _12_BITS
    return str(UUID(int=time | 0x8 << 76 | high << 64 | 0b10 << 62 | low))


_62_BITS, _12_BITS = (1 << 62) - 1, (1 << 12) - 1
