"""How long it takes to import trunkline, beyond the start of the interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.rows import Row

TIMED = """
from time import perf_counter_ns
started = perf_counter_ns()
{statement}
print(perf_counter_ns() - started)
"""


@pytest.mark.parametrize("statement", ["import trunkline", "from trunkline import SessionRouter"])
def test_import(race, scale, statement):
    def import_once() -> float:
        """Milliseconds, by a fresh interpreter's own account."""
        command = [sys.executable, "-c", TIMED.format(statement=statement)]
        return int(subprocess.run(command, check=True, capture_output=True).stdout) / 1e6

    import_once()  # compiles what was not compiled yet
    figure = min(race.repeat(import_once, times=scale.repeats))
    race.add(Row(section="import", work=statement, figure=figure, unit="ms", budget=150))
