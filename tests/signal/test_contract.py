"""Every backend of ours keeps the contract of signal."""

import pytest

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


@pytest.fixture(scope="module")
def postgres_database(postgres_server):
    name = postgres_server.create_database()
    yield name
    postgres_server.drop_database(name)


class TestPostgreSQL(SignalContract):
    @pytest.fixture
    def adapter(self, postgres_server, postgres_database):
        # Ten times as fast as a database of its own for each of so many tests.
        tables = "trunkline_signal, trunkline_schema"
        postgres_server.execute(f"DROP TABLE IF EXISTS {tables}", postgres_database)
        return SQLSignalAdapter(postgres_server.url(postgres_database))


class TestValkey(SignalContract):
    @pytest.fixture
    def adapter(self, valkey_url):
        return RedisSignalAdapter(valkey_url)
