"""Rows of an inbox that are damaged, and what becomes of the others."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import anyio
import pytest

from trunkline import Inbox, Turns
from trunkline.errors import UnreadableRecord
from trunkline.turns.adapter import InboxAdapter, Owner
from trunkline.turns.session import Claimant


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bot.db"


def damage(path, room):
    with closing(sqlite3.connect(path)) as database, database:
        changed = database.execute(
            "UPDATE trunkline_inbox_sessions SET document = x'c1' WHERE session = ?",
            (f"test:bot:{room}",),
        )
        assert changed.rowcount == 1


async def handle_what_is_there(inbox, items):
    handled, done = [], anyio.Event()

    async def answer(turn):
        handled.extend(item.payload for item in turn.items)
        if len(handled) == items:
            done.set()

    async with Turns(inbox, answer):
        with anyio.fail_after(60):
            await done.wait()
    return handled


async def test_a_session_that_cannot_be_read_does_not_hold_up_the_others(path):
    async with Inbox(f"sqlite:///{path}") as inbox:
        await inbox.accept(("test", "bot", "damaged"), "lost")
        damage(path, "damaged")
        await inbox.accept(("test", "bot", "whole"), "handled")
        assert await handle_what_is_there(inbox, 1) == ["handled"]
        with pytest.raises(UnreadableRecord, match="damaged"):
            await inbox.accept(("test", "bot", "damaged"), "again")


async def test_a_claim_that_cannot_be_read_does_not_hold_up_what_a_dead_process_has_left(path):
    async with Inbox(f"sqlite:///{path}") as inbox:
        # The only session of a process that is dead, and of every lot that is asked for.
        owner = Owner("dead", 0, 10_000, "")
        await inbox.ask(None, InboxAdapter.register, owner)
        await inbox.accept(("test", "bot", "damaged"), "lost")
        claimed = await inbox.ask(None, InboxAdapter.claim, Claimant("dead"), 1)
        assert len(claimed.begun) == 1
        damage(path, "damaged")
        assert await inbox.ask(None, InboxAdapter.bury, "dead", 1) == (0, ())
        await inbox.accept(("test", "bot", "whole"), "handled")
        assert await handle_what_is_there(inbox, 1) == ["handled"]
