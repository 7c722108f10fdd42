"""`kill -9` of a process that writes to a SQLite file, at random moments."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from tests.servers.writer import processes, read_journal, write_for_ever

ROUNDS = 50

#: Rows that only the half of a call could have left behind.
HALVES = {
    "a room without a binding": """
        SELECT count(*) FROM trunkline_rooms
        WHERE id NOT IN (SELECT room_id FROM trunkline_room_bindings)""",
    "a participant without an external id": """
        SELECT count(*) FROM trunkline_participants
        WHERE id NOT IN (SELECT participant_id FROM trunkline_participant_external_ids)""",
    "a message without a room": """
        SELECT count(*) FROM trunkline_messages
        WHERE room_id NOT IN (SELECT id FROM trunkline_rooms)""",
}

TABLES = {
    "message": "trunkline_messages",
    "room": "trunkline_rooms",
    "participant": "trunkline_participants",
}


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_acknowledged_and_leaves_no_half_of_a_call(tmp_path):
    path = tmp_path / "bot.db"
    acknowledged: dict[str, set[str]] = {kind: set() for kind in TABLES}
    for number in range(ROUNDS):
        journal = tmp_path / f"{number}.journal"
        backend = ("asyncio", "trio")[number % 2]
        write_until_killed(path, journal, backend, number)
        for kind, row_id in read_journal(journal):
            acknowledged[kind].add(row_id)
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
            for kind, table in TABLES.items():
                stored = {row_id for (row_id,) in connection.execute(f"SELECT id FROM {table}")}
                assert acknowledged[kind] <= stored, f"round {number}"
            for what, query in HALVES.items():
                assert connection.execute(query).fetchone() == (0,), f"{what} in round {number}"
        connection.close()
    assert all(len(ids) > ROUNDS for ids in acknowledged.values()), "it never wrote anything"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_kill_9_while_a_file_is_made_leaves_one_that_can_be_opened(tmp_path, number):
    path, journal = tmp_path / "bot.db", tmp_path / "journal"
    ready = processes.Event()
    process = processes.Process(
        target=write_for_ever, args=(f"sqlite:///{path}", journal, ready, "asyncio", number)
    )
    process.start()
    process.join(random.uniform(0.0, 0.1))
    process.kill()
    process.join()
    write_until_killed(path, journal, "asyncio", number)
    assert read_journal(journal) != []


def write_until_killed(path: Path, journal: Path, backend: str, seed: int) -> None:
    """Let a process write for a random while, and kill it in the middle."""
    ready = processes.Event()
    process = processes.Process(
        target=write_for_ever, args=(f"sqlite:///{path}", journal, ready, backend, seed)
    )
    process.start()
    assert ready.wait(120), "it never came up"
    process.join(random.uniform(0.05, 0.3))
    assert process.is_alive(), "it died by itself"
    process.kill()
    process.join()
    process.close()
