"""Every Python snippet of the README is run, and every command of it is one that exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trunkline.commands.main import _parser

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(fenced("python"))))
def test_a_python_snippet_runs_as_it_stands(number: int, tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(fenced("python")[number], encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for expected in re.findall(r"#> (.*)", script.read_text(encoding="utf-8")):
        assert expected in ran.stdout.splitlines()


def test_the_first_program_has_15_lines_at_most() -> None:
    lines = [line for line in fenced("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_every_trunkline_command_is_understood() -> None:
    commands = [
        shlex.split(line.partition("#")[0])
        for block in fenced("sh")
        for line in block.splitlines()
        if line.startswith("trunkline ")
    ]
    assert commands
    for command in commands:
        _parser().parse_args(command[1:])
