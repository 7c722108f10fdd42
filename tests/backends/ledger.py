"""An adapter small enough to look inside: lines in a book, with transactions."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from anyio import to_thread

from trunkline.backends import Adapter, Store
from trunkline.errors import NotFound


class Gate:
    """A place where an operation waits in its thread until the test lets it go on."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def pass_through(self) -> None:
        self._reached.set()
        assert self._opened.wait(120), "the test never opened the gate"

    async def reached(self) -> None:
        assert await to_thread.run_sync(self._reached.wait, 120), "no operation came to the gate"

    def open(self) -> None:
        self._opened.set()

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()


class Book:
    """What a ledger keeps, and what it has been through."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        #: How many lines each commit added.
        self.commits: list[int] = []
        #: Every operation in the order in which it was run, also if it was undone.
        self.runs: list[str] = []
        self.opened = 0
        self.closed = 0
        self.closed_in_the_middle = False
        #: Raised one after another where the name says, `None` for once not; then it works again.
        self.on_open: list[Exception | None] = []
        self.on_begin: list[Exception | None] = []
        self.on_commit: list[Exception | None] = []


class Bug(Exception):
    """A bug in an adapter."""


class Ledger(Adapter):
    """Appends lines to a book; those of a transaction when it commits."""

    def __init__(self, book: Book | None = None, *, writers: int = 1, readers: int = 0) -> None:
        self.book = Book() if book is None else book
        self.writers = writers
        self.readers = readers
        self._pending: list[str] | None = None

    def sibling(self) -> Ledger:
        return type(self)(self.book)

    def open(self) -> None:
        self.book.opened += 1
        _raise_next(self.book.on_open)

    def close(self) -> None:
        self.book.closed += 1
        self.book.closed_in_the_middle |= self._pending is not None

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[None]:
        _raise_next(self.book.on_begin)
        self._pending = []
        try:
            yield
            _raise_next(self.book.on_commit)
            if not read_only:
                self.book.lines += self._pending
                self.book.commits.append(len(self._pending))
        finally:
            self._pending = None

    def write(self, line: str) -> str:
        self.book.runs.append(line)
        self._add(line)
        return line.upper()

    def write_all(self, lines: Sequence[str]) -> list[str]:
        self.book.runs.append(" ".join(lines))
        for line in lines:
            self._add(line)
        return [line.upper() for line in lines]

    bulk: ClassVar = {write: write_all}

    def fail(self, line: str, error: Exception) -> None:
        """Write, and then fail."""
        self.book.runs.append(line)
        self._add(line)
        raise error

    def fail_once(self, line: str, errors: list[Exception | None]) -> str:
        """Write, and raise what is left of `errors`, one a run."""
        self.book.runs.append(line)
        self._add(line)
        _raise_next(errors)
        return line.upper()

    def hold(self, line: str, gate: Gate) -> str:
        self.book.runs.append(line)
        self._add(line)
        gate.pass_through()
        return line.upper()

    def read(self) -> list[str]:
        return list(self.book.lines)

    def read_one(self, line: str) -> str:
        self.book.runs.append(line)
        if line not in self.book.lines:
            raise NotFound(f"no line {line!r}")
        return line

    def _add(self, line: str) -> None:
        if self._pending is None:
            self.book.lines.append(line)
        else:
            self._pending.append(line)


class PlainLedger(Ledger):
    """A ledger without transactions: every call stands for itself."""

    transaction = Adapter.transaction


class LedgerStore(Store[Ledger]):
    """A store on a ledger; a line's first letter says which belong together."""

    def __init__(self, ledger: Ledger, **options) -> None:
        super().__init__(ledger, name="ledger", **options)
        self.book = ledger.book

    async def write(self, line: str) -> str:
        return await self._write(line[0], Ledger.write, line)

    async def fail(self, line: str, error: Exception) -> None:
        await self._write(line[0], Ledger.fail, line, error)

    async def fail_once(self, line: str, *errors: Exception) -> str:
        return await self._write(line[0], Ledger.fail_once, line, list(errors))

    async def hold(self, line: str, gate: Gate) -> str:
        return await self._write(line[0], Ledger.hold, line, gate)

    async def read(self) -> list[str]:
        return await self._read(Ledger.read)

    async def read_one(self, line: str) -> str:
        return await self._read(Ledger.read_one, line)

    async def hold_read(self, gate: Gate) -> str:
        return await self._read(Ledger.hold, "read", gate)

    @property
    def waiting(self) -> int:
        """Calls that wait for a writer."""
        return sum(writer.mailbox_depth for writer in self._writers)

    @property
    def restarts(self) -> int:
        return sum(writer.restarts for writer in self._writers)


def _raise_next(errors: list[Exception | None]) -> None:
    error = errors.pop(0) if errors else None
    if error is not None:
        raise error
