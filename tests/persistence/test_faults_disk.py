"""A disk that is full, or a file that may not grow: nothing acknowledged is lost."""

from __future__ import annotations

import sqlite3

import anyio
import pytest

from tests.servers.writer import fill_limited_file, processes, read_journal
from trunkline.errors import StoreUnavailable
from trunkline.persistence import Message, PersistenceStore


def stored_messages(path) -> set[str]:
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {row_id for (row_id,) in connection.execute("SELECT id FROM trunkline_messages")}
    finally:
        connection.close()


async def test_a_store_on_a_full_disk_says_so_and_works_on_when_there_is_room(small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 4_000_000)
    acknowledged: set[str] = set()
    refused: list[StoreUnavailable] = []
    async with PersistenceStore(f"sqlite:///{small_disk / 'bot.db'}") as store:
        room = await store.get_or_create_room_by_external_binding("test", "bot", "lobby")

        async def save_until_refused() -> None:
            while True:
                message = Message.new(room_id=room.id, content="x" * 1_000)
                try:
                    await store.save_message(message)
                except StoreUnavailable as error:
                    refused.append(error)
                    return
                acknowledged.add(message.id)

        async with anyio.create_task_group() as callers:
            for _ in range(8):
                callers.start_soon(save_until_refused)
        assert len(acknowledged) > 100
        for error in refused:
            assert "bot.db: " in str(error)
            assert "full" in str(error) or "disk I/O error" in str(error)
        for message_id in acknowledged:
            assert (await store.get_message(message_id)).id == message_id

        filler.unlink()
        for _ in range(100):
            message = await store.save_message(Message.new(room_id=room.id, content="x" * 1_000))
            acknowledged.add(message.id)
    assert stored_messages(small_disk / "bot.db") >= acknowledged


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_store_whose_file_may_not_grow_says_so_and_works_on_when_it_may(tmp_path, backend):
    path, journal = tmp_path / "bot.db", tmp_path / "journal"
    limit = 2_000_000
    writer = processes.Process(target=fill_limited_file, args=(path, journal, limit, backend))
    writer.start()
    writer.join(300)
    assert writer.exitcode == 0
    entries = read_journal(journal)
    ((_, refused, said),) = [entry for entry in entries if entry[0] == "refused"]
    acknowledged = [row_id for kind, row_id, *_ in entries if kind == "message"]
    assert len(acknowledged) > 50
    assert "bot.db: disk I/O error (SQLITE_IOERR" in said
    stored = stored_messages(path)
    assert stored >= set(acknowledged)
    assert refused not in stored
