"""What must type-check does, and what must not is refused: the files beside this one, by mypy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = sorted(path.name for path in HERE.glob("*_api.py"))

#: At the end of a line that must be refused: one error code of mypy, or those of several releases.
MARK = re.compile(r"# error: (?P<codes>[a-z, -]+)$")
FOUND = re.compile(r"(?P<path>.+?):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")


@pytest.fixture(scope="module")
def refused() -> dict[str, dict[int, set[str]]]:
    """The codes of the errors that mypy finds, by file and line."""
    # As a user's project would: without the settings of this one.
    options = ["--strict", "--config-file=", "--cache-dir=.mypy_cache/typing"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *(str(HERE / name) for name in FILES)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for line in done.stdout.splitlines():
        if error := FOUND.match(line):
            found[Path(error["path"]).name][int(error["line"])].add(error["code"])
    return found


def marked(name: str) -> dict[int, set[str]]:
    """The codes of the errors that a file expects, by line."""
    lines = (HERE / name).read_text().splitlines()
    marks = {number: MARK.search(line) for number, line in enumerate(lines, 1)}
    return {number: {*mark["codes"].split(", ")} for number, mark in marks.items() if mark}


@pytest.mark.parametrize("name", FILES)
def test_mypy_refuses_the_marked_lines_and_no_others(name, refused):
    expected = marked(name)
    assert refused[name].keys() == expected.keys()
    assert not [line for line, codes in expected.items() if not codes & refused[name][line]]


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_lines_that_are_refused(name):
    assert marked(name)
