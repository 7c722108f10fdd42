"""What every test gets: an event loop of each kind, and a quiet log."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

# A process that a shell starts in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before a test imports a part of a suite on its own.
pytest.register_assert_rewrite("trunkline.contracts")

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


class _Entries(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[dict] = []

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        self.entries.append({"event": record.event, "log_level": level, **record.fields})  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def log() -> Iterator[list]:
    """What was logged during the test, as a list of dictionaries."""
    logger, handler = logging.getLogger("trunkline"), _Entries()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield handler.entries
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
