"""Which process this is, and whether another one of this machine has ended."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

__all__ = ("has_ended", "this_process")


def this_process() -> str:
    """Names this process for ever: boot, pid namespace, pid and start time.

    Empty where the system does not tell, as on macOS and Windows.
    """
    here, pid = _machine(os.getpid()), os.getpid()
    started = _started_at(pid)
    return f"{here}/{pid}/{started}" if here and started else ""


def has_ended(process: str) -> bool:
    """Whether a process is known to have ended. False also if that cannot be told from here."""
    machine, pid, started = process.split("/") if process.count("/") == 2 else ("", "", "")
    if not machine or machine != _machine(os.getpid()):
        return False
    return _started_at(int(pid)) != started


@cache
def _machine(_pid: int) -> str:
    """The boot and the pid namespace of this process; its pid, so that a fork asks anew."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started_at(pid: int) -> str:
    """When a process started, in ticks since the boot; empty if there is none, or a zombie."""
    try:
        # The name, in parentheses, may have any character.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
