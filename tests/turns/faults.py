"""What the tests of faults have in common: what a bot has noted, and waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import Any, TypeVar

from tests.servers.writer import read_journal
from tests.turns.worker import Bot, session
from trunkline import Inbox
from trunkline.turns import InboxCounts

__all__ = ("accept", "begun", "counts", "finished", "noted", "wait_until")

T = TypeVar("T")

#: A process notices the end of another one of its machine within a second; the rest is for a
#: machine that has something else to do.
SLACK = 5.0


async def accept(
    url: str, *payloads: Any, name: object = "room", namespace: str = "default"
) -> None:
    """Accept items of one session, each with its payload as its external id."""
    async with Inbox(url, namespace=namespace) as inbox:
        for payload in payloads:
            await inbox.accept(session(name), payload, external_id=payload)


async def counts(url: str, namespace: str = "default") -> InboxCounts:
    async with Inbox(url, namespace=namespace) as inbox:
        return await inbox.counts()


def wait_until(condition: Callable[[], T], seconds: float = 30.0) -> T:
    """What `condition` returns, once it is true."""
    deadline = monotonic() + seconds
    while not (found := condition()):
        assert monotonic() < deadline, "it never happened"
        sleep(0.01)
    return found


def noted(bot: Bot, name: str) -> list[list[Any]]:
    """The entries of a bot's journal that begin with `name`."""
    return [entry for entry in read_journal(bot.journal) if entry[0] == name]


def begun(bot: Bot) -> list[list[Any]]:
    return noted(bot, "begin")


def finished(bot: Bot) -> list[list[Any]]:
    return noted(bot, "finished")
