"""Where the files of the stores go: a real disk, and what it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter_ns, sleep

import msgspec
import psutil

#: What looks like a disk and is memory, where a commit costs nothing.
IN_MEMORY = {"tmpfs", "ramfs"}


#: A disk that was idle takes longer; as long as `Turns.idle` waits between two looks.
_PAUSE_SECONDS = 0.02


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    file_system: str
    #: The median time to write 4 KiB and have it on the disk, in µs.
    fsync_us: float

    def __str__(self) -> str:
        return f"{self.file_system}, where 4 KiB are on the disk after {self.fsync_us:.0f} µs"


def look_at(folder: Path) -> Disk:
    """The disk on which `folder` stands."""
    path = folder.resolve()
    mounts = [
        one for one in psutil.disk_partitions(all=True) if path.is_relative_to(one.mountpoint)
    ]
    # Of those mounted on one place the last one is on top.
    mounted = max(reversed(mounts), key=lambda one: len(Path(one.mountpoint).parts), default=None)
    return Disk(
        file_system="unknown" if mounted is None else mounted.fstype, fsync_us=_time_fsync(folder)
    )


def _time_fsync(folder: Path, times: int = 100) -> float:
    return median(_time(os.fsync, folder, times)) / 1000


def time_fdatasync(folder: Path, times: int) -> list[int]:
    """How long it takes a disk that was idle to have 4 KiB written, in ns, sorted."""
    return sorted(_time(getattr(os, "fdatasync", os.fsync), folder, times, _PAUSE_SECONDS))


def _time(
    sync: Callable[[int], None], folder: Path, times: int, pause_seconds: float = 0
) -> list[int]:
    file = os.open(folder / "fsync", os.O_CREAT | os.O_WRONLY)
    took = []
    try:
        for _ in range(times):
            sleep(pause_seconds)
            started = perf_counter_ns()
            os.write(file, bytes(4096))
            sync(file)
            took.append(perf_counter_ns() - started)
    finally:
        os.close(file)
    return took
