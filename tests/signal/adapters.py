"""Adapters that stand still, or fail, when a test says so."""

from __future__ import annotations

import threading

from anyio import to_thread

from trunkline.signal.memory import MemorySignalAdapter


class Gate:
    """Where a thread waits until it is let through."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()

    def pass_through(self) -> None:
        self._reached.set()
        assert self._open.wait(120), "nobody opened the gate"

    async def until_reached(self) -> None:
        assert await to_thread.run_sync(self._reached.wait, 120), "nobody came to the gate"

    def open(self) -> None:
        self._open.set()


class GatedAdapter(MemorySignalAdapter):
    """Runs in a thread, as one that waits for I/O; commits, and reads of `gate`, wait there."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.commit_gate: Gate | None = None
        self.read_gate = Gate()

    def get(self, names):
        if any(name.id == "gate" for name in names):
            self.read_gate.pass_through()
        return super().get(names)

    def names(self):
        self.read_gate.pass_through()
        return super().names()

    def commit(self, commit):
        if self.commit_gate is not None:
            self.commit_gate.pass_through()
        return super().commit(commit)
