"""What tests of the router share: a clock that stands still, and restarts that do not rest."""

from __future__ import annotations

import pytest

from trunkline.actors import RestartPolicy
from trunkline.testing import ManualClock


@pytest.fixture
def clock():
    return ManualClock(1_000_000)


@pytest.fixture
def for_long():
    """A policy under which a crashed partition stays down for as long as a test may take."""
    return RestartPolicy(min_backoff_ms=600_000, max_backoff_ms=600_000)


@pytest.fixture
def at_once():
    """A policy under which a crashed partition is back after a millisecond, however often."""
    return RestartPolicy(max_restarts=1_000_000, min_backoff_ms=1, max_backoff_ms=1)
