"""`kill -9` in the middle of transactions: of the process that runs them, and of the server."""

from __future__ import annotations

import random
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from tests.servers.writer import processes, read_journal
from tests.signal.programs import CALLERS, FAMILIES, commit_for_ever, ids_of
from trunkline.signal import SignalStore

ROUNDS = 4


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["sqlite", "postgresql", "valkey"])
def test_kill_9_of_the_process_leaves_each_transaction_wholly_or_not_at_all(
    request, tmp_path, scheme
):
    if scheme == "sqlite":
        url = f"sqlite:///{tmp_path}/signal.db"
    else:
        url = request.getfixturevalue("postgres_url" if scheme == "postgresql" else "valkey_url")
    ledger = Ledger()
    for number in range(ROUNDS):
        with writer(url, tmp_path / f"{number}.journal", number, ledger) as process:
            process.kill()
        anyio.run(ledger.check, url)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["postgresql", "valkey"])
def test_kill_9_of_the_server_leaves_each_transaction_wholly_or_not_at_all(
    request, tmp_path, scheme
):
    if scheme == "postgresql":
        server = request.getfixturevalue("mortal_postgres")
        url = server.url(server.create_database())
    else:
        server = request.getfixturevalue("mortal_valkey")
        url = server.url
    ledger = Ledger()
    for number in range(ROUNDS // 2):
        with writer(url, tmp_path / f"{number}.journal", number, ledger):
            server.kill()
        server.start()
        anyio.run(ledger.check, url)


@contextmanager
def writer(url: str, path: Path, number: int, ledger: Ledger):
    """A process that commits transactions, for a random while; then the block kills something."""
    ready = processes.Event()
    backend = ("asyncio", "trio")[number % 2]
    process = processes.Process(target=commit_for_ever, args=(url, path, ready, backend, number))
    process.start()
    assert ready.wait(120), "it never came up"
    process.join(random.uniform(0.05, 0.3))
    assert process.is_alive(), "it died by itself"
    yield process
    process.join(300)
    assert process.exitcode in (0, -9)
    process.close()
    ledger.read(path)


class Ledger:
    """What callers began and what they were told, over all rounds."""

    def __init__(self) -> None:
        self.committed: dict[int, str] = {}
        self.begun: dict[int, list[str]] = defaultdict(list)
        self.least = self.most = self.rounds = 0

    def read(self, path: Path) -> None:
        self.rounds += 1
        for event, caller, token in read_journal(path):
            if event == "committed":
                self.committed[caller] = token
                self.begun[caller].clear()
                self.least += 1
            else:
                self.begun[caller].append(token)
                self.most += 1

    async def check(self, url: str) -> None:
        async with SignalStore(url) as store:
            for caller in range(CALLERS):
                values = set()
                for family in FAMILIES:
                    found = await store.get(family, ids_of(caller))
                    values |= {found.get(one) for one in ids_of(caller)}
                assert len(values) == 1, f"half of a transaction: {values}"
                assert values <= {self.committed.get(caller), *self.begun[caller]}
                # What was not acknowledged may stand; then it is what later rounds begin with.
                (self.committed[caller],) = values
                self.begun[caller].clear()
            counted = (await store.get("lid-mapping", ["count"]))["count"]
            assert self.least <= counted <= self.most
            assert counted > self.rounds, "it hardly wrote anything"
            self.least = self.most = counted
