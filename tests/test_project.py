"""The project's surroundings: metadata, CI, and the guides for contributors."""

from __future__ import annotations

import re
import subprocess
import sys
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
    # A peer of the benchmarks whose interface changes is pinned.
    loose = [one for one in requirements if not re.search("[>=]=", one)]
    assert all(one.startswith("trunkline[") for one in loose), loose


@pytest.mark.parametrize("script", ["run", "oldest"])
def test_a_script_of_ci_can_be_parsed(script):
    checked = subprocess.run(["bash", "-n", ROOT / ".ci" / script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("script", re.findall(r"run: (\S+)", WORKFLOW))
def test_ci_runs_scripts_that_are_there(script):
    assert (ROOT / script).stat().st_mode & 0o100


# -- the guides of CONTRIBUTING.md ----------------------------------------------------------------

ADAPTER, INTEGRATION = re.findall(
    r"^```python\n(.*?)^```",
    (ROOT / ".github" / "CONTRIBUTING.md").read_text(),
    re.MULTILINE | re.DOTALL,
)


def run_python(*arguments, cwd):
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


#: A test of the guide's adapter beside its contract: `trunkline copy` to it, and from it.
COPY = """
import anyio
from trunkline.admin import copy_database

def test_copy(tmp_path):
    async def use(url, *new):
        async with SignalStore(url) as store:
            await store.set({"session": dict(new)})
            return await store.get("session", ["ann", "bob"])

    urls = [f"sqlite:///{tmp_path}/a.db", f"folder://{tmp_path}", f"sqlite:///{tmp_path}/b.db"]
    anyio.run(use, urls[0], ("ann", b"1"), ("bob", b"2"))
    for source, target in zip(urls, urls[1:]):
        assert copy_database(source, target).copied == 2
    assert anyio.run(use, urls[2]) == {"ann": b"1", "bob": b"2"}
"""


@pytest.mark.slow
def test_the_adapter_of_the_guide_keeps_its_contract_and_is_copied(tmp_path):
    (tmp_path / "test_guide.py").write_text(ADAPTER + COPY)
    options = ["-q", "-p", "no:cacheprovider", "-k", "asyncio or copy"]
    done = run_python("-m", "pytest", *options, "test_guide.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100


def test_the_integration_of_the_guide_runs_as_it_stands(tmp_path):
    (tmp_path / "guide.py").write_text(INTEGRATION)
    done = run_python("guide.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"#> (.*)", INTEGRATION)
