"""What the benchmarks share: how much to measure, event loops to measure in, and the race."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from benchmarks.disk import IN_MEMORY, look_at
from benchmarks.race import Race
from benchmarks.scale import SCALES, Scale
from benchmarks.traffic import PARTITIONS, RouterLoops, Sessions, capacity_for
from trunkline import SessionRouter


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scale", choices=SCALES, default="full", help="how much to measure")


def pytest_benchmark_update_machine_info(machine_info: dict[str, object]) -> None:
    machine_info.pop("node", None)  # figures are shown to others; a host's name is not


#: Why benchmarks were skipped, and the disk on which stores were measured, for the report.
_NOTES: dict[str, Any] = {"skipped": [], "disk": None}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in _NOTES["skipped"]:
            _NOTES["skipped"].append(reason)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json.update(_NOTES)


def scale_of(config: pytest.Config) -> Scale:
    # There is no such option when pytest meets this folder only by chance, as in `pytest .`.
    return SCALES[config.getoption("--scale", default="full")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    scale = scale_of(metafunc.config)
    for name in ("callers", "partitions", "session_count"):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, getattr(scale, name))


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> Scale:
    return scale_of(pytestconfig)


@pytest.fixture
def race(benchmark, scale: Scale) -> Race:
    return Race(benchmark, scale.rounds)


EVENT_LOOPS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.fixture
def event_loop_name() -> str:
    """The event loop that `portal` runs; a benchmark of another one overrides this."""
    return "asyncio"


@pytest.fixture
def portal(event_loop_name: str) -> Iterator[BlockingPortal]:
    """An event loop that runs in a thread of its own for as long as the benchmark does."""
    backend, options = EVENT_LOOPS[event_loop_name]
    with start_blocking_portal(backend, options) as portal:
        yield portal


@pytest.fixture
def open_router(portal: BlockingPortal) -> Iterator[Callable[..., SessionRouter]]:
    """Starts a router in the portal's event loop, with room for so many sessions."""
    with ExitStack() as stack:

        def open_router(sessions: int, partitions: int = PARTITIONS, **settings) -> SessionRouter:
            router = SessionRouter(
                partition_count=partitions,
                max_entries_per_partition=capacity_for(sessions, partitions),
                **settings,
            )
            return stack.enter_context(portal.wrap_async_context_manager(router))

        yield open_router


@pytest.fixture
def open_filled(portal: BlockingPortal, open_router) -> Callable[..., RouterLoops]:
    """Starts a router that holds the given sessions, and gives the loops over it."""

    def open_filled(sessions: Sessions, partitions: int = PARTITIONS, **settings) -> RouterLoops:
        router = open_router(len(sessions.keys), partitions, **settings)
        loops = RouterLoops(router)
        portal.call(loops.set, zip(*sessions, strict=True))
        assert router.stats().total.entries == len(sessions.keys)
        return loops

    return open_filled


@pytest.fixture(scope="session")
def disk() -> Iterator[Path]:
    """A folder on a real disk: what costs nothing in memory is what the stores are about."""
    with tempfile.TemporaryDirectory(prefix="trunkline-bench-") as name:
        folder = Path(name)
        found = look_at(folder)
        if found.file_system in IN_MEMORY:
            pytest.skip(f"{folder.parent} is {found.file_system}: set TMPDIR to a folder on a disk")
        _NOTES["disk"] = str(found)
        yield folder


@pytest.fixture
def disk_folder(disk: Path) -> Iterator[Path]:
    """A folder there for one benchmark."""
    with tempfile.TemporaryDirectory(dir=disk) as name:
        yield Path(name)
