"""Several processes on one database, all of them after the same rooms and participants."""

from __future__ import annotations

from collections import defaultdict

import anyio
import pytest

from tests.servers.writer import CALLERS, meet, processes, race, read_journal
from trunkline.persistence import PersistenceStore

PROCESSES = 4


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'bot.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 12])
def test_processes_that_race_for_the_same_ids_get_one_row_each(url, tmp_path, size):
    entries = race_in_processes(url, tmp_path, size)

    assert [entry for entry in entries if entry[0] == "error"] == []
    found: dict[tuple, set[str]] = defaultdict(set)
    for kind, external_id, row_id in entries:
        found[kind, external_id].add(row_id)
    for external_id in range(size):
        assert len(found["room", external_id]) == 1
        assert len(found["participant", external_id]) == 1
        assert len(found["message", external_id]) == PROCESSES * CALLERS
    assert anyio.run(count_all, url) == {
        "rooms": size,
        "room_bindings": size,
        "participants": size,
        "messages": size * PROCESSES * CALLERS,
    }


@pytest.mark.slow
def test_processes_that_meet_at_one_participant_and_one_message_lose_and_double_nothing(
    url, tmp_path
):
    entries = race_in_processes(url, tmp_path, 32, meet)

    assert [entry for entry in entries if entry[0] == "error"] == []
    channels = {entry[1] for entry in entries if entry[0] == "channel"}
    messages = {entry[1] for entry in entries if entry[0] == "message"}
    assert len(channels) == 32 * PROCESSES
    assert len(messages) == 32

    async def look() -> None:
        async with PersistenceStore(url) as store:
            assert (await store.get_participant("p")).external_ids.keys() == channels
            assert {one for one, _ in await store.scan("messages")} == messages
            assert (await store.counts())["threads"] == 1

    anyio.run(look)


def race_in_processes(url: str, folder, size: int, program=race) -> list[list]:
    """Let every process run a program at the same time; all that they noted."""
    start = processes.Event()
    backends = ["asyncio", "trio"] * (PROCESSES // 2)
    journals = [folder / f"{number}.journal" for number in range(PROCESSES)]
    racers = [
        processes.Process(target=program, args=(url, journal, start, backend, number, size))
        for number, (journal, backend) in enumerate(zip(journals, backends, strict=True))
    ]
    for racer in racers:
        racer.start()
    start.set()
    for racer in racers:
        racer.join(300)
        assert racer.exitcode == 0
    return [entry for journal in journals for entry in read_journal(journal)]


async def count_all(url: str) -> dict[str, int]:
    async with PersistenceStore(url) as store:
        return {kind: number for kind, number in (await store.counts()).items() if number}
