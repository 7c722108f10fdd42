"""Races: rounds of several contenders by turns, so that whatever disturbs them hits all alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import cycle, islice
from time import perf_counter_ns
from typing import Any, TypeVar

import anyio
import msgspec
from anyio.from_thread import BlockingPortal
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.rows import Row

T = TypeVar("T")


class Contender:
    """Work that is done on many inputs, so many of them a round.

    Args:
        work: takes a list of inputs, and loops over them itself, so that nothing of ours stands
            between two operations. Plain or async.
        inputs: a round takes the next ones, and starts again at their end. An iterator makes new
            ones without end.
        operations: inputs of one round.
    """

    def __init__(
        self, work: Callable[[list[Any]], Any], inputs: Iterable[Any], operations: int
    ) -> None:
        self.work = work
        self.operations = operations
        self._inputs = inputs if isinstance(inputs, Iterator) else cycle(inputs)

    def next_inputs(self) -> list[Any]:
        return list(islice(self._inputs, self.operations))


class Crowd:
    """Work for a contender: so many callers at once, each of whom takes an input when it is free.

    Args:
        call: takes one input.
        callers: a task each.
    """

    def __init__(self, call: Callable[[Any], Awaitable[object]], callers: int) -> None:
        self.callers = callers
        self._call = call
        #: How long each call of each round took, in ns, sorted.
        self._laps: list[list[int]] = []

    async def __call__(self, inputs: list[Any]) -> None:
        waiting, lap = iter(inputs), []

        async def work() -> None:
            for one in waiting:
                started = perf_counter_ns()
                await self._call(one)
                lap.append(perf_counter_ns() - started)

        async with anyio.create_task_group() as task_group:
            for _ in range(self.callers):
                task_group.start_soon(work)
        self._laps.append(sorted(lap))

    def latency(self, percent: int) -> int:
        """How long so many percent of the calls took at most, in ns, in the best round."""
        return min(lap[(len(lap) - 1) * percent // 100] for lap in self._laps)


def whole_turns(operations: int, callers: int) -> int:
    """So many operations, or some more, that every caller gets as many as the others."""
    return callers * -(-operations // callers)


def by(callers: int) -> str:
    return f"{callers} caller{'s'[: callers > 1]}"


class Race:
    """What a benchmark of this folder is given: two ways to measure, and a place for its rows."""

    def __init__(self, benchmark: BenchmarkFixture, rounds: int) -> None:
        self._benchmark = benchmark
        self._rounds = rounds
        self._benchmark.extra_info["rows"] = []

    def run(
        self,
        portal: BlockingPortal,
        ours: Contender,
        rounds: int | None = None,
        **peers: Contender,
    ) -> dict[str, float]:
        """The best ns per operation of each contender; ours under `ours`.

        All run in the event loop of `portal`. A round is one call through it, which takes far less
        time than the round's operations, and the same for all.
        """
        laps: dict[str, list[float]] = {name: [] for name in peers}

        def run_peers() -> tuple[tuple[Any, ...], dict[str, Any]]:
            for name, peer in peers.items():
                inputs = peer.next_inputs()
                started = perf_counter_ns()
                portal.call(peer.work, inputs)
                laps[name].append((perf_counter_ns() - started) / peer.operations)
            return (ours.work, ours.next_inputs()), {}

        self._benchmark.pedantic(
            portal.call, setup=run_peers, rounds=rounds or self._rounds, warmup_rounds=1
        )
        seconds = self._benchmark.stats.stats.data
        laps["ours"] = [one * 1e9 / ours.operations for one in seconds]
        self.note("ns_per_operation", laps)
        return {name: min(times) for name, times in laps.items()}

    def repeat(
        self, measure: Callable[[], T], times: int, setup: Callable[[], None] | None = None
    ) -> list[T]:
        """What `measure` returned each time, for figures that it takes itself."""
        figures: list[T] = []
        self._benchmark.pedantic(lambda: figures.append(measure()), setup=setup, rounds=times)
        self.note("figures", figures)
        return figures

    def note(self, name: str, figures: object) -> None:
        """Put raw figures where `--benchmark-json` writes them."""
        self._benchmark.extra_info[name] = figures

    def add(self, row: Row) -> None:
        """Put `row` where `--benchmark-json` writes it."""
        self._benchmark.extra_info["rows"].append(msgspec.to_builtins(row))
