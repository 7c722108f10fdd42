"""The project's surroundings: metadata, CI, and the guides for contributors."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_ci_runs_every_python_that_the_metadata_names():
    (matrix,) = re.findall(r"python: \[(.*)\]", WORKFLOW)
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert named
    assert {*named} <= {*re.findall(r"3\.\d+", matrix)}


def test_the_oldest_dependencies_are_tested_on_the_oldest_python():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    job = WORKFLOW.partition("oldest-dependencies:")[2]
    assert f'python-version: "{oldest}"' in job


def test_every_dependency_has_a_lower_bound():
    extras = PROJECT["optional-dependencies"]
    requirements = [*PROJECT["dependencies"], *(one for names in extras.values() for one in names)]
    assert not [one for one in requirements if ">=" not in one and not one.startswith("trunkline[")]


@pytest.mark.parametrize("script", ["run", "oldest"])
def test_a_script_of_ci_can_be_parsed(script):
    checked = subprocess.run(["bash", "-n", ROOT / ".ci" / script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("script", re.findall(r"run: (\S+)", WORKFLOW))
def test_ci_runs_scripts_that_are_there(script):
    assert (ROOT / script).stat().st_mode & 0o100
