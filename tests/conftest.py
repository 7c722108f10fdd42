"""What every test gets: an event loop of each kind, and a quiet log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

pytest_plugins = ("tests.fixtures_servers", "tests.fixtures_valkey")

BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]

UVLOOP = pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")


@pytest.fixture(params=BACKENDS)
def anyio_backend(request):
    """Async tests run on asyncio and on trio; a module that needs uvloop as well overrides this."""
    return request.param


@pytest.fixture(autouse=True)
def log() -> Iterator[list]:
    """What was logged during the test, as a list of dictionaries."""
    with structlog.testing.capture_logs() as entries:
        yield entries
