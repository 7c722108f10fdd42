"""Our adapters, each against the contract that any adapter must keep."""

from __future__ import annotations

import pytest

from tests.fixtures_servers import OnOneLoop
from trunkline.fsm.memory import MemoryFSMAdapter
from trunkline.testing import FSMContract, ManualClock

SEVENTIES_MS = 10**9


class OnAManualClock(FSMContract):
    @pytest.fixture
    def clock(self):
        return ManualClock(SEVENTIES_MS)

    @pytest.fixture
    def expire(self, clock):
        async def advance(duration_ms):
            clock.advance_ms(duration_ms)

        return advance


class TestMemory(OnAManualClock):
    @pytest.fixture
    def adapter(self, clock):
        return MemoryFSMAdapter(clock)


class TestSQLite(OnAManualClock):
    @pytest.fixture
    def adapter(self, clock, tmp_path):
        return sql_adapter(f"sqlite:///{tmp_path / 'bot.db'}", clock)


class TestPostgreSQL(OnOneLoop, OnAManualClock):
    @pytest.fixture
    def adapter(self, clock, postgres_url):
        return sql_adapter(postgres_url, clock)


class TestValkey(OnOneLoop, FSMContract):
    ttl_ms = 60_000

    @pytest.fixture
    def adapter(self, valkey_url):
        from trunkline.fsm.redis import RedisFSMAdapter

        return RedisFSMAdapter(valkey_url)

    @pytest.fixture
    def expire(self, valkey_server):
        """Instead of waiting, take the time away from what the server has yet to live."""

        async def advance(duration_ms):
            for key in valkey_server.execute("KEYS", "*"):
                left_ms = valkey_server.execute("PTTL", key)
                if left_ms > 0:
                    valkey_server.execute("PEXPIRE", key, max(left_ms - duration_ms, 0))

        return advance


def sql_adapter(url, clock):
    from trunkline.fsm.sql import SQLFSMAdapter

    return SQLFSMAdapter(url, clock)
