"""What the tests of the suite call and compare."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
from anyio.abc import TaskStatus
from uuid_utils import uuid7

from trunkline.errors import TrunklineError
from trunkline.turns import Inbox, InboxAdapter, TurnPolicy
from trunkline.turns.adapter import (
    Accepted,
    Beat,
    Begun,
    Cancelled,
    Claimed,
    Happening,
    ItemRow,
    Owner,
    short_mark,
)
from trunkline.turns.item import ItemState
from trunkline.turns.session import Claimant, NewItem

__all__ = ("KEY", "KEYS", "ONE", "TWO", "Advance", "Box", "new_item", "open_box", "texts")

#: Lets milliseconds pass for an adapter.
Advance: TypeAlias = Callable[[int], Awaitable[None]]

#: A session, and two processes that run turns.
KEY = "telegram:bot:42"
ONE, TWO = "one", "two"

#: Sessions that are all different.
KEYS = [
    "telegram:bot:42",
    "telegram:bot:42:7",
    "Telegram:bot:42",
    "telegram:bot:420",
    "telegram:bot:naïve ☃ 𝄞",
    "telegram:bot:%s?{brace}[*]",
    "telegram:bot:'; DROP TABLE x; --\"\\",
    "telegram:bot:" + "x" * 900,
]


def new_item(
    text: str,
    *,
    external_id: str | None = None,
    alone: bool = False,
    urgent: bool = False,
    delay_ms: int = 0,
    replace: bool = False,
    item_id: str | None = None,
) -> NewItem:
    """An item whose payload is `text`; one external id has one mark in all sessions here."""
    item_id = str(uuid7()) if item_id is None else item_id
    mark = short_mark(item_id) if external_id is None else external_id.encode().ljust(16, b"\0")
    return NewItem(item_id, text.encode(), external_id, mark, alone, urgent, delay_ms, replace)


def texts(rows: Iterable[ItemRow]) -> str:
    """The payloads of items, with a space between them."""
    return " ".join(row.payload.decode() for row in rows)


@asynccontextmanager
async def open_box(
    adapter: InboxAdapter,
    policy: TurnPolicy | None = None,
    *,
    dedupe_ms: int = 86_400_000,
    call_timeout_ms: int = 60_000,
) -> AsyncGenerator[Box, Any]:
    """An inbox over `adapter`, with the processes `ONE` and `TWO`."""
    inbox = Inbox(
        adapter=adapter,
        policy=TurnPolicy() if policy is None else policy,
        dedupe_ms=dedupe_ms,
        call_timeout_ms=call_timeout_ms,
    )
    async with inbox:
        box = Box(inbox)
        for name in (ONE, TWO):
            await box.register(name)
        yield box


class Box:
    """An inbox, and the calls that turns make on it."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox

    async def call(self, key: str | None, method: Callable[..., Any], *args: Any) -> Any:
        return await self.inbox._write(key, method, *args)

    async def together(self, *calls: tuple[Any, ...]) -> list[Any]:
        """Make calls at once, in this order; the result or the error of each.

        Each is a method of the adapter and its arguments. The first of these is a session.
        """
        results: list[Any] = [None] * len(calls)

        async def make(index: int, *, task_status: TaskStatus[None]) -> None:
            method, *args = calls[index]
            # The task runs on until its call was made.
            task_status.started()
            try:
                results[index] = await self.inbox._write(args[0], method, *args)
            except TrunklineError as error:
                results[index] = error

        async with anyio.create_task_group() as task_group:
            for index in range(len(calls)):
                await task_group.start(make, index)
        return results

    # -- items -------------------------------------------------------------------------------------

    async def put(
        self, text: str, key: str = KEY, *, claimant: Claimant | None = None, **options: Any
    ) -> Accepted:
        """Accept an item; see `new_item`."""
        item = new_item(text, **options)
        accepted: Accepted = await self.call(key, InboxAdapter.accept, key, item, claimant)
        return accepted

    async def put_all(self, words: str, key: str = KEY) -> list[str]:
        """Accept an item for each word. One that ends in `!` is urgent, one in `.` is alone."""
        return [
            (await self.put(word, key, urgent=word[-1] == "!", alone=word[-1] == ".")).item_id
            for word in words.split()
        ]

    async def cancel(self, key: str = KEY, *, waiting: bool = True) -> Cancelled:
        cancelled: Cancelled = await self.call(key, InboxAdapter.cancel, key, waiting)
        return cancelled

    async def waiting(self, key: str = KEY) -> int:
        count: int = await self.inbox._read(InboxAdapter.waiting, key)
        return count

    async def rows(
        self, state: ItemState, limit: int = 1_000, after: str | None = None
    ) -> list[ItemRow]:
        return await self.inbox._read(InboxAdapter.list_items, state, limit, after)

    async def texts(self, state: ItemState, key: str = KEY) -> str:
        """The payloads of the items of a session in this state, in the order of their ids."""
        return texts(row for row in await self.rows(state) if row.session == key)

    async def retry(self, item_id: str) -> None:
        await self.call(None, InboxAdapter.retry, item_id)

    async def discard(self, item_id: str) -> bool:
        discarded: Cancelled = await self.call(None, InboxAdapter.discard, item_id)
        assert [(one.name, one.item_ids) for one in discarded.happened] == [
            ("cancelled", (item_id,))
        ] * discarded.count
        return discarded.count == 1

    # -- turns -------------------------------------------------------------------------------------

    async def claim(
        self,
        owner: str = ONE,
        limit: int = 100,
        *,
        is_free: bool = True,
        takes_suspects: bool = True,
    ) -> list[Begun]:
        return [*(await self.claimed(Claimant(owner, is_free, takes_suspects), limit)).begun]

    async def claimed(self, claimant: Claimant, limit: int = 100) -> Claimed:
        claimed: Claimed = await self.call(None, InboxAdapter.claim, claimant, limit)
        return claimed

    async def begin(self, owner: str = ONE) -> Begun:
        """The one turn that is due."""
        (begun,) = await self.claim(owner)
        return begun

    async def begin_all(self, owner: str = ONE) -> list[str]:
        """The items of each turn that is due."""
        return [texts(begun.items) for begun in await self.claim(owner)]

    async def finish(
        self,
        begun: Begun,
        *,
        taken: Sequence[str] = (),
        again: bool = False,
        claimant: Claimant | None = None,
        given_again: Sequence[str] = (),
    ) -> Claimed:
        """A turn is done. `given_again` are items of an earlier attempt that it took as well."""
        rows = (*begun.items, *begun.skipped)
        item_ids = [*(row.id for row in rows), *taken, *given_again]
        claimed: Claimed = await self.call(
            begun.session,
            InboxAdapter.finish,
            begun.session,
            begun.id,
            taken,
            item_ids,
            again,
            claimant,
        )
        return claimed

    async def fail(
        self,
        begun: Begun,
        *,
        taken: Sequence[str] = (),
        error: str = "ValueError('no')",
        is_final: bool = False,
        jitter: float = 1.0,
        claimant: Claimant | None = None,
        again: bool = False,
    ) -> Claimed:
        item_ids = [row.id for row in (*begun.items, *begun.skipped)]
        turn = (begun.session, begun.id, taken)
        args = (*turn, error, is_final, jitter, claimant, item_ids, again)
        claimed: Claimed = await self.call(begun.session, InboxAdapter.fail, *args)
        return claimed

    async def stop(self, begun: Begun, *, taken: Sequence[str] = ()) -> Claimed:
        args = (begun.session, begun.id, taken)
        claimed: Claimed = await self.call(begun.session, InboxAdapter.stop, *args)
        return claimed

    async def end(self, begun: Begun, *, claimant: Claimant | None = None) -> Claimed:
        args = (begun.session, begun.id, claimant)
        claimed: Claimed = await self.call(begun.session, InboxAdapter.end, *args)
        return claimed

    async def forget(self, begun: Begun) -> None:
        await self.call(begun.session, InboxAdapter.forget, begun.session, begun.id)

    async def join(self, begun: Begun) -> str:
        rows: Sequence[ItemRow] = await self.call(
            begun.session, InboxAdapter.join, begun.session, begun.id
        )
        return texts(rows)

    async def take(self, begun: Begun, *item_ids: str) -> None:
        await self.call(begun.session, InboxAdapter.take, begun.session, begun.id, item_ids)

    async def step(
        self, begun: Begun, name: str, value: bytes = b"", *, taken: Sequence[str] = ()
    ) -> None:
        args = (begun.session, begun.id, taken, name, value)
        await self.call(begun.session, InboxAdapter.step, *args)

    # -- processes ---------------------------------------------------------------------------------

    async def register(self, owner: str, lease_ms: int = 10_000, process: str = "") -> None:
        await self.call(None, InboxAdapter.register, Owner(owner, 0, lease_ms, process))

    async def beat(self, owner: str = ONE) -> Beat:
        beat: Beat = await self.call(None, InboxAdapter.beat, owner)
        return beat

    async def bury(self, owner: str = ONE, limit: int = 100) -> tuple[Happening, ...]:
        """Give back all turns of a process; what happened."""
        count, happened = await self.call(None, InboxAdapter.bury, owner, limit)
        everything = [*happened]
        while count == limit:
            count, happened = await self.call(None, InboxAdapter.bury, owner, limit)
            everything += happened
        return tuple(everything)

    async def look(self, key: str = KEY) -> dict[str, Any]:
        """All that is known of a session, to compare it before and after."""
        return {
            **{state: await self.rows(state) for state in ("waiting", "running", "failed")},
            "counts": await self.inbox.counts(),
            "count": await self.waiting(key),
            **{owner: (await self.beat(owner)).claims for owner in (ONE, TWO)},
        }
