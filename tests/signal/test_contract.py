"""Every backend of ours keeps the contract of signal."""

import pytest

from tests.fixtures_servers import OnOneLoop
from trunkline.signal.memory import MemorySignalAdapter
from trunkline.signal.redis import RedisSignalAdapter
from trunkline.signal.sql import SQLSignalAdapter
from trunkline.testing import SignalContract


class TestMemory(SignalContract):
    @pytest.fixture
    def adapter(self):
        return MemorySignalAdapter()


class TestSQLite(SignalContract):
    @pytest.fixture
    def adapter(self, tmp_path):
        return SQLSignalAdapter(f"sqlite:///{tmp_path}/signal.db")


class TestPostgreSQL(OnOneLoop, SignalContract):
    @pytest.fixture
    def adapter(self, postgres_url):
        return SQLSignalAdapter(postgres_url)


class TestValkey(OnOneLoop, SignalContract):
    @pytest.fixture
    def adapter(self, valkey_url):
        return RedisSignalAdapter(valkey_url)
