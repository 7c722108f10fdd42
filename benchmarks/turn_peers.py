"""Two ways to run a handler once for every message of many chats: ours, and chat-sdk's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any, TypeAlias
from uuid import uuid4

import anyio
from chat_sdk import Author, BaseAdapter, Chat, Message, MessageMetadata
from chat_sdk.state.memory import MemoryStateAdapter
from chat_sdk.state.redis import RedisStateAdapter
from chat_sdk.types import ChannelVisibility

from trunkline import Inbox, SessionKey, TurnPolicy, Turns

#: Chats that are written in at the same time, each by a caller of its own.
SESSIONS = 64

#: The chat, the platform's id of a message, and its text.
Input: TypeAlias = tuple[int, int, str]

#: Accepts the messages, and returns when a handler has run for each.
Handle: TypeAlias = Callable[[list[Any]], Awaitable[None]]


def make_inputs() -> Iterator[Input]:
    """New ones without end, of all chats by turns."""
    for number in count():
        yield number % SESSIONS, number, f"Is anybody here? I asked {number} times."


class _Rounds:
    """Counts the turns of a round."""

    def __init__(self) -> None:
        self._left = 0
        self._done = anyio.Event()

    def begin(self, turns: int) -> None:
        self._left = turns
        self._done = anyio.Event()

    def count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()

    async def end(self) -> None:
        await self._done.wait()


async def _by_chat(inputs: Iterable[Any], handle: Callable[[list[Any]], Awaitable[None]]) -> None:
    """Give each chat's messages to a task of its own."""
    chats: list[list[Any]] = [[] for _ in range(SESSIONS)]
    for one in inputs:
        chats[one[0]].append(one)
    async with anyio.create_task_group() as task_group:
        for chat in chats:
            task_group.start_soon(handle, chat)


@asynccontextmanager
async def our_turns(url: str) -> AsyncGenerator[Handle, None]:
    """An inbox and turns in one process; each message is a turn of its own."""
    keys = [
        SessionKey("telegram", "support_bot", f"-100{1_000 + chat}") for chat in range(SESSIONS)
    ]
    rounds = _Rounds()

    async def handler(turn: object) -> None:
        rounds.count()

    async def accept_all(inputs: list[Input]) -> None:
        for chat, number, text in inputs:
            await inbox.accept(keys[chat], {"text": text}, external_id=number)

    async def handle(inputs: list[Input]) -> None:
        rounds.begin(len(inputs))
        await _by_chat(inputs, accept_all)
        await rounds.end()

    policy = TurnPolicy(while_busy="queue", max_waiting=100_000)
    async with (
        Inbox(url) as inbox,
        Turns(inbox, handler, policy, max_running=4 * SESSIONS) as turns,
    ):
        yield handle
        await turns.idle()
        counts = await inbox.counts()
        assert counts.failed == 0, counts


class _Platform(BaseAdapter):
    """What chat-sdk needs to know of a platform, and no more."""

    name = "telegram"
    user_name = "support_bot"

    async def initialize(self, chat: Chat) -> None:
        pass

    async def disconnect(self) -> None:
        pass

    def channel_id_from_thread_id(self, thread_id: str) -> str:
        return thread_id

    def is_dm(self, thread_id: str) -> bool:
        return True

    def get_channel_visibility(self, thread_id: str) -> ChannelVisibility:
        return "private"


class _Silent:
    """A logger that drops everything."""

    def child(self, prefix: str) -> _Silent:
        return self

    def debug(self, *args: object) -> None:
        pass

    info = warn = error = debug


_AUTHOR = Author(user_id="7", user_name="ann", full_name="Ann", is_bot=False, is_me=False)


@asynccontextmanager
async def chat_sdk_turns(state: Any) -> AsyncGenerator[Handle, None]:
    """chat-sdk's mode `queue`. A caller waits for its handler, so that nothing is skipped."""
    platform = _Platform()
    chat = Chat(
        adapters={"telegram": platform},
        state=state,
        user_name="support_bot",
        concurrency="queue",
        logger=_Silent(),
    )
    rounds = _Rounds()

    async def handler(thread: object, message: object, channel: object, context: object) -> None:
        rounds.count()

    chat.on_direct_message(handler)

    async def handle_all(inputs: list[tuple[int, str, Message]]) -> None:
        for _, thread_id, message in inputs:
            await chat.handle_incoming_message(platform, thread_id, message)

    async def handle(inputs: list[tuple[int, str, Message]]) -> None:
        rounds.begin(len(inputs))
        await _by_chat(inputs, handle_all)
        await rounds.end()

    await chat.initialize()
    yield handle
    await chat.shutdown()


def make_messages() -> Iterator[tuple[int, str, Message]]:
    """The same messages as `make_inputs`, as chat-sdk has them."""
    for chat, number, text in make_inputs():
        thread_id = f"telegram:-100{1_000 + chat}"
        message = Message(
            id=str(number),
            thread_id=thread_id,
            text=text,
            formatted={"type": "root", "children": []},
            raw={},
            author=_AUTHOR,
            metadata=MessageMetadata(date_sent=datetime.now(UTC)),
        )
        yield chat, thread_id, message


def in_memory() -> MemoryStateAdapter:
    return MemoryStateAdapter()


def on_redis(address: str) -> RedisStateAdapter:
    # Under keys of its own: it would know the messages of the contest before.
    return RedisStateAdapter(url=f"redis://{address}", key_prefix=str(uuid4()))
