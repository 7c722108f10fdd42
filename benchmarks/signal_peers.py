"""Another way to keep Signal keys: a file a key, as Baileys' `useMultiFileAuthState` does."""

from __future__ import annotations

import asyncio
import json
import os
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
from anyio import to_thread


class FileAKeyStore:
    """A JSON file for each key, all files of a `set` written at once by several threads.

    Written for this benchmark, and as durable as a database: a file is written beside its place,
    is on the disk before it takes its name, and its name is on the disk before `set` returns.
    (Baileys writes in place and syncs nothing. A `set` of several keys is not all or nothing, in
    neither of them.)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # As in Baileys a lock a file and a lock a transaction.
        self._files: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._transactions: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def get(self, family: str, ids: Iterable[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def read(entry_id: str) -> None:
            path = self._path(family, entry_id)
            async with self._files[path]:
                value = await to_thread.run_sync(_read, path)
            if value is not None:
                found[entry_id] = value

        async with anyio.create_task_group() as task_group:
            for entry_id in ids:
                task_group.start_soon(read, entry_id)
        return found

    async def set(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        async def write(path: Path, value: Any) -> None:
            async with self._files[path]:
                await to_thread.run_sync(_write, path, value)

        async with anyio.create_task_group() as task_group:
            for family, values in data.items():
                for entry_id, value in values.items():
                    task_group.start_soon(write, self._path(family, entry_id), value)

    @asynccontextmanager
    async def transaction(self, key: str) -> AsyncGenerator[FileAKeyTransaction, None]:
        async with self._transactions[key]:
            tx = FileAKeyTransaction(self, {})
            yield tx
            await self.set(tx.changes)

    def _path(self, family: str, entry_id: str) -> Path:
        return self._folder / f"{family}-{entry_id.replace('/', '__').replace(':', '-')}.json"


class FileAKeyTransaction(NamedTuple):
    """What was set stays here until the end. Baileys reads of it, too; nothing here does."""

    store: FileAKeyStore
    changes: dict[str, dict[str, Any]]

    async def get(self, family: str, ids: Iterable[str]) -> dict[str, Any]:
        return await self.store.get(family, ids)

    async def set(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        for family, values in data.items():
            self.changes.setdefault(family, {}).update(values)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes(), object_hook=_from_json)
    except FileNotFoundError:
        return None


def _write(path: Path, value: Any) -> None:
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(json.dumps(value, default=_to_json).encode())
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _to_json(value: bytes) -> dict[str, str]:
    return {"type": "Buffer", "data": b64encode(value).decode()}


def _from_json(value: dict[str, Any]) -> Any:
    return b64decode(value["data"]) if value.get("type") == "Buffer" else value
