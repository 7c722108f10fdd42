"""The contract of persistence, on each of our adapters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fixtures_servers import OnOneLoop
from trunkline.persistence.memory import MemoryPersistenceAdapter
from trunkline.persistence.schema import tables
from trunkline.persistence.sql import SQLPersistenceAdapter
from trunkline.testing import PersistenceContract


class TestMemory(PersistenceContract):
    @pytest.fixture
    def adapter(self):
        return MemoryPersistenceAdapter()


class TestSQLite(PersistenceContract):
    @pytest.fixture
    def adapter(self, tmp_path):
        return SQLPersistenceAdapter(f"sqlite:///{tmp_path}/bot.db")


class TestSQLiteInMemory(PersistenceContract):
    @pytest.fixture
    def adapter(self):
        return SQLPersistenceAdapter("sqlite://")


class TestPostgres(OnOneLoop, PersistenceContract):
    @pytest.fixture
    def adapter(self, emptied_url):
        adapter = SQLPersistenceAdapter(emptied_url)
        # Connecting takes longer than a test does.
        adapter.writers, adapter.readers = 2, 1
        return adapter


@pytest.fixture(scope="module")
def database(postgres_server) -> Iterator[str]:
    """One database for all tests of this module, since making one takes long."""
    name = postgres_server.create_database()
    adapter = SQLPersistenceAdapter(postgres_server.url(name))
    adapter.open()
    adapter.close()
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def emptied_url(postgres_server, database) -> str:
    names = ", ".join(table.name for table in tables)
    postgres_server.execute(f"TRUNCATE {names}", database)
    return postgres_server.url(database)
