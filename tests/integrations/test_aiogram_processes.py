"""Several processes that serve the same conversations of aiogram."""

from __future__ import annotations

import pytest

from tests.integrations.shared_storage import TwoStepStorage, lost_updates
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
