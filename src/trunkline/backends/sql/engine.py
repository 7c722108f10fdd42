"""How a SQL database is connected to: by URL, and set up to be durable and not to hang."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from trunkline.errors import ConfigurationError

__all__ = ("check_sqlite_path", "create_engine", "sqlite_path")

R = TypeVar("R")

#: How long SQLite itself waits for a lock, in seconds. It asks ever more seldom, so that under
#: steady load from other processes it might ask in vain for long; we ask again after a short rest.
_SQLITE_WAIT = 0.1


def create_engine(url: str, shown_url: str, timeout_ms: int, *, set_up: bool) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        drivername = _DRIVERS.get(parsed.drivername.lower())
    except (ArgumentError, ValueError):
        # What these say may quote the password.
        raise ConfigurationError(f"{shown_url!r} is no database URL") from None
    if drivername is None:
        raise ConfigurationError(f"{shown_url!r}: a database is sqlite:// or postgresql://")
    if "@" in (parsed.host or ""):
        raise ConfigurationError(f"{shown_url!r}: an '@' in a password is written %40")
    connect_args: dict[str, Any]
    if drivername == "sqlite":
        connect_args = {"check_same_thread": False, "timeout": min(_SQLITE_WAIT, timeout_ms / 1000)}
    else:
        seconds = max(1, timeout_ms // 1000)
        # A server that vanished without a word is noticed, also while we wait for its answer.
        patience = {
            "connect_timeout": seconds,
            "tcp_user_timeout": timeout_ms,
            "keepalives_idle": seconds,
            "keepalives_interval": seconds,
        }
        connect_args = {name: patience[name] for name in patience.keys() - parsed.query.keys()}
    try:
        engine = sa.create_engine(
            parsed.set(drivername=drivername),
            # One thread holds one connection; a pool would only hide when it is lost.
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            json_serializer=_dump_json,
            json_deserializer=msgspec.json.decode,
            connect_args=connect_args,
        )
    except ArgumentError:
        raise ConfigurationError(
            f"{shown_url!r}: a file is sqlite:///relative.db or sqlite:////absolute/path.db"
        ) from None
    except ImportError as error:
        raise ConfigurationError(
            f"{shown_url!r} needs psycopg: pip install 'trunkline[postgres]' ({error})"
        ) from None
    if drivername == "sqlite":
        if set_up:
            event.listen(engine, "connect", _prepare_sqlite)
    else:
        event.listen(engine, "do_connect", _connect_postgres)
        event.listen(engine, "connect", _prepare_postgres(timeout_ms))
    return engine


_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    for pragma in (
        "journal_mode = WAL",  # readers do not wait for the writer
        "synchronous = FULL",  # a commit that returned is on disk
        "foreign_keys = ON",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _connect_postgres(
    _dialect: object, _record: object, args: list[Any], kwargs: dict[str, Any]
) -> Any:
    return _impatient_connection().connect(*args, **kwargs)


def _prepare_postgres(timeout_ms: int) -> Callable[[Any, object], None]:
    settings = {
        "statement_timeout": timeout_ms,
        # Shorter than the second after which PostgreSQL looks for a deadlock: a batch holds many
        # locks, and had better let go of them and take them one by one.
        "lock_timeout": max(1, timeout_ms // 20),
        # A process that is frozen in the middle of a batch lets go of its locks.
        "idle_in_transaction_session_timeout": timeout_ms,
    }
    statement = "; ".join(f"SET {name} = {value}" for name, value in settings.items())

    def prepare(connection: Any, _record: object) -> None:
        connection.execute(statement)
        # The server itself ends a statement that takes too long, if it still can.
        connection.patience = timeout_ms / 1000 + _GRACE

    return prepare


#: How much longer a server's answer may take than the server was told, in seconds.
_GRACE = 0.5


@cache
def _impatient_connection() -> Any:
    """A connection of psycopg that does not wait for a frozen server for ever."""
    from psycopg import Connection, OperationalError

    class ImpatientConnection(Connection[Any]):
        #: How long an answer may take, in seconds; `None` for ever.
        patience: float | None = None

        def wait(self, gen: Generator[Any, Any, R], *args: Any, **kwargs: Any) -> R:
            if self.patience is not None:
                gen = self._limited(gen, monotonic() + self.patience)
            return super().wait(gen, *args, **kwargs)

        def _limited(self, gen: Generator[Any, Any, R], deadline: float) -> Generator[Any, Any, R]:
            """`gen`, which yields what it waits for, and gets nothing every 100 ms."""
            ready = None
            while True:
                try:
                    wanted = gen.send(ready)
                except StopIteration as end:
                    return cast(R, end.value)
                ready = yield wanted
                if not ready and monotonic() > deadline:
                    self.close()
                    raise OperationalError("the server does not answer")

    return ImpatientConnection


def sqlite_path(url: sa.URL) -> Path | None:
    """The file of a SQLite URL; `None` for a database in memory."""
    database = url.database
    if not database or database in (":memory:", "file::memory:"):
        return None
    if url.query.get("mode") == "memory":
        return None
    return Path(database)


def check_sqlite_path(url: sa.URL) -> None:
    """Say what is wrong with a path better than SQLite's "unable to open database file"."""
    path = sqlite_path(url)
    if path is None or str(path).startswith("file:"):
        return
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder, not a database file")
    if not path.parent.is_dir():
        raise ConfigurationError(f"the folder of {path} does not exist")


def _dump_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
