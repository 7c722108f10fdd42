"""`python -m benchmarks`: run them, print the ratios beside their budgets, write the plot."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent

#: What the extra `bench` brings; the benchmarks do not run without.
PACKAGES = (
    "aiocache",
    "aiogram",
    "aiosqlite",
    "asyncpg",
    "cashews",
    "chat_sdk",
    "greenlet",
    "matplotlib",
    "psutil",
    "pykka",
    "pytest",
    "pytest_benchmark",
    "redis",
    "trio",
    "uvloop",
)

#: The benchmarks of the stores; all others are of the router.
STORES = {"test_fsm.py", "test_persistence.py", "test_signal.py", "test_turns.py"}


def main() -> int:
    arguments = parse_arguments()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"the benchmarks need {', '.join(missing)}: pip install -e '.[bench]'", file=sys.stderr
        )
        return 2
    arguments.results.mkdir(parents=True, exist_ok=True)
    figures = arguments.results.resolve() / "benchmarks.json"
    figures.unlink(missing_ok=True)
    status = run_pytest(arguments.only, arguments.scale, figures)
    if status != 0:
        print("the benchmarks did not all run: see above", file=sys.stderr)
        return status

    from rich.console import Console  # only now: it is not needed to say what is missing

    from benchmarks.report import Report

    report = Report(figures)
    plot = figures.with_suffix(".png")
    report.plot(plot)
    report.print(Console())
    print(f"raw figures: {figures}\nplot: {plot}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument(
        "--quick",
        dest="scale",
        action="store_const",
        const="quick",
        default="full",
        help="two minutes instead of six; less exact",
    )
    scale.add_argument(
        "--smoke",
        dest="scale",
        action="store_const",
        const="smoke",
        help="some seconds; shows that everything runs, and its figures mean nothing",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=FOLDER / "results",
        metavar="FOLDER",
        help="where the figures and the plot go (default: benchmarks/results)",
    )
    parser.add_argument("--only", choices=["router", "stores"], help="measure one part alone")
    return parser.parse_args()


def run_pytest(only: str | None, scale: str, figures: Path) -> int:
    """Run the benchmarks in an interpreter of their own; its exit status."""
    files = sorted(FOLDER.glob("test_*.py"))
    if only is not None:
        files = [file for file in files if (file.name in STORES) == (only == "stores")]
    command = [sys.executable, "-m", "pytest", *map(str, files)]
    command += ["--benchmark-only", "--benchmark-quiet"]
    command += [f"--scale={scale}", f"--benchmark-json={figures}", "--quiet"]
    return subprocess.run(command, cwd=FOLDER.parent, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
