"""Replies of a database that are lost: what was committed is neither lost nor done twice."""

from __future__ import annotations

from contextlib import contextmanager, suppress

import anyio
import pytest

from tests.turns.worker import session
from trunkline import Inbox, TurnPolicy, Turns
from trunkline.backends import ConnectionLost, resolve_adapter
from trunkline.backends.registry import AdapterOptions
from trunkline.errors import StoreUnavailable
from trunkline.turns import InboxAdapter, InboxCounts

pytestmark = pytest.mark.slow

#: So long that no scan, and no heartbeat of another process, can help.
LEASE_MS = 600_000

ITEMS = 20


def losing(url, lost):
    """An adapter whose connection breaks after each commit with calls of this name, once a call."""
    plain = resolve_adapter(InboxAdapter, url, None, AdapterOptions())
    kind = type(plain)
    seen = set()

    class Losing(kind):
        lost_replies = seen

        def run_together(self, calls):
            super().run_together(calls)
            found = [call for call in calls if call.handler.__name__ == lost]
            self._to_lose = {repr(call.args[:2]) for call in found}

        @contextmanager
        def transaction(self, *, read_only=False):
            self._to_lose = set()
            with super().transaction(read_only=read_only):
                yield
            if self._to_lose and self._to_lose.isdisjoint(seen):
                seen.update(self._to_lose)
                raise ConnectionLost("the connection broke after the commit")

    plain.__class__ = Losing
    return plain


async def counts_of(inbox):
    # Where reads and writes share a connection, its loss concerns both.
    with suppress(StoreUnavailable):
        return await inbox.counts()


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("mode", ["queue", "collect"])
@pytest.mark.parametrize("lost", ["accept", "claim", "finish", "fail", "step"])
async def test_a_call_whose_reply_is_lost_loses_and_doubles_nothing(shared_url, lost, mode):
    handled = []
    adapter = losing(shared_url, lost)
    policy = TurnPolicy(while_busy=mode, retry_delay_ms=1)

    async def answer(turn):
        number = turn.items[0].payload
        assert await turn.step("number", echo, number) == number
        if lost == "fail" and turn.attempt == 1:
            raise ValueError("not yet")
        handled.extend((turn.session_key.room_id, item.payload) for item in turn.items)

    async def echo(number):
        return number

    async with Inbox(adapter=adapter) as inbox:
        if lost == "claim":  # they wait when the turns begin
            for number in range(ITEMS):
                await inbox.accept(session(number % 4), number, external_id=number)
        async with Turns(inbox, answer, policy, lease_ms=1_000 if lost == "claim" else LEASE_MS):
            if lost != "claim":
                for number in range(ITEMS):
                    receipt = await inbox.accept(session(number % 4), number, external_id=number)
                    assert receipt.outcome == "accepted"
            with anyio.fail_after(30):
                while await counts_of(inbox) != InboxCounts():  # noqa: ASYNC110 (its own turns)
                    await anyio.sleep(0.02)
    expected = [(str(number % 4), number) for number in range(ITEMS)]
    assert sorted(handled) == sorted(expected)
    for room in range(4):
        of_room = [number for key, number in handled if key == str(room)]
        assert of_room == sorted(of_room)
    assert adapter.lost_replies
