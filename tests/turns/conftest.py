"""A database of each kind for the tests of turns."""

from __future__ import annotations

import pytest

URLS = ["memory", "sqlite", "postgres", "valkey"]


@pytest.fixture(params=URLS)
def url(request, tmp_path):
    """The URL of an empty database of each kind."""
    return make_url(request, tmp_path)


@pytest.fixture(params=URLS[1:])
def shared_url(request, tmp_path):
    """The URL of an empty database that several processes can share."""
    return make_url(request, tmp_path)


def make_url(request, folder):
    if request.param == "memory":
        return "memory://"
    if request.param == "sqlite":
        return f"sqlite:///{folder / 'bot.db'}"
    return request.getfixturevalue(f"{request.param}_url")
