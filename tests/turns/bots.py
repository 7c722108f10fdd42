"""A bot whose handler a test holds by the hand."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager

import anyio

from trunkline import Inbox, Turns

KEY = ("telegram", "bot", "42")

#: Longer than anything takes here, on any machine.
LIMIT = 60


class Bot:
    """A handler that writes down its turns, and waits in those for which it is `held`."""

    def __init__(self, *, held=()):
        #: The payloads of each turn, in the order in which they began.
        self.handled = []
        self.turns = []
        self._held = list(held)
        self._gates = {}
        self._begun = deque()
        self._arrived = anyio.Event()

    async def __call__(self, turn):
        self.turns.append(turn)
        self.handled.append(payloads(turn))
        self._begun.append(turn)
        self._arrived.set()
        await self.act(turn)

    async def act(self, turn):
        for item in turn.items:
            if item.payload in self._held:
                await self._gate(item.payload).wait()

    async def begun(self):
        """The next turn that begins."""
        with anyio.fail_after(LIMIT):
            while not self._begun:
                self._arrived = anyio.Event()
                await self._arrived.wait()
        return self._begun.popleft()

    def let_go(self, payload):
        self._held = [one for one in self._held if one != payload]
        self._gate(payload).set()

    def _gate(self, payload):
        return self._gates.setdefault(payload, anyio.Event())


def payloads(turn):
    return [item.payload for item in turn.items]


@asynccontextmanager
async def running(url, handler, policy=None, *, inbox_options=None, **options):
    """An inbox and its turns; idle before they are left, unless the test failed."""
    with anyio.fail_after(LIMIT):
        async with (
            Inbox(url, **(inbox_options or {})) as inbox,
            Turns(inbox, handler, policy, **options) as turns,
        ):
            yield inbox, turns
            await turns.idle()


async def until(condition):
    """Wait until something is true that no event tells."""
    with anyio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110 (it may depend on another thread)
            await anyio.sleep(0.002)
