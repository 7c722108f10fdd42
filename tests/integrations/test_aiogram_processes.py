"""Several processes that serve the same conversations of aiogram."""

from __future__ import annotations

import anyio
import pytest

from tests.integrations.aiogram_programs import (
    TwoStepStorage,
    hold_updates,
    lost_updates,
    processes,
)
from tests.servers.writer import read_journal
from trunkline import Trunkline
from trunkline.integrations.aiogram import TrunklineStorage


@pytest.fixture(params=["sqlite", "postgres", "valkey"])
def shared_url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'bot.db'}"
    return request.getfixturevalue(f"{request.param}_url")


@pytest.mark.slow
def test_a_state_that_is_removed_takes_no_update_of_another_process_with_it(shared_url):
    assert lost_updates(shared_url, TrunklineStorage) == 0


@pytest.mark.slow
def test_looking_first_and_removing_then_loses_updates_of_another_process(valkey_url):
    # Else the test above would show nothing.
    assert lost_updates(valkey_url, TwoStepStorage) > 0


@pytest.mark.slow
def test_what_was_acknowledged_while_an_earlier_message_was_handled_is_stored(tmp_path):
    url, journal = f"sqlite:///{tmp_path / 'bot.db'}", tmp_path / "journal"
    all_acknowledged = processes.Event()
    process = processes.Process(target=hold_updates, args=(url, journal, all_acknowledged))
    process.start()
    assert all_acknowledged.wait(120)
    process.kill()
    process.join()

    acknowledged = [text for (text,) in read_journal(journal)]
    assert sorted(acknowledged) == ["hello 0", "hello 1", "hello 2"]
    assert anyio.run(stored_texts, url) == acknowledged


async def stored_texts(url):
    async with Trunkline(url) as line:
        (room,) = await line.persistence.list_rooms()
        return [message.content for message in await line.persistence.get_messages(room.id)]
