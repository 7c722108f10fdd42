"""Our adapters, each against the contract that any adapter must keep."""

from __future__ import annotations

import pytest

from tests.fixtures_servers import OnOneLoop
from trunkline.testing import InboxContract, ManualClock
from trunkline.turns.memory import MemoryInboxAdapter
from trunkline.turns.redis import RedisInboxAdapter
from trunkline.turns.sql import SQLInboxAdapter

SEVENTIES_MS = 10**9


class OnAManualClock(InboxContract):
    unit_ms = 5_000

    @pytest.fixture
    def clock(self):
        return ManualClock(SEVENTIES_MS)

    @pytest.fixture
    def advance(self, clock):
        async def advance(duration_ms):
            clock.advance_ms(duration_ms)

        return advance


class TestMemory(OnAManualClock):
    @pytest.fixture
    def adapter(self, clock):
        return MemoryInboxAdapter(clock)


class TestSQLite(OnOneLoop, OnAManualClock):
    @pytest.fixture
    def adapter(self, clock, tmp_path):
        return SQLInboxAdapter(f"sqlite:///{tmp_path / 'bot.db'}", clock)


class TestPostgreSQL(OnOneLoop, OnAManualClock):
    @pytest.fixture
    def adapter(self, clock, postgres_url):
        return ServerClockAhead(postgres_url, clock)


class ServerClockAhead(SQLInboxAdapter):
    """Its server's clock is ahead by what a test has let pass."""

    def _now_ms(self):
        return super()._now_ms() + self._clock() - SEVENTIES_MS


class TestValkey(OnOneLoop, InboxContract):
    """The server's clock is its own: time passes."""

    sweeps = False

    @pytest.fixture
    def adapter(self, valkey_url):
        return RedisInboxAdapter(valkey_url)
