"""Turns: how many a second, how soon one begins, and what many sessions and processes cost."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from time import monotonic_ns
from typing import Any

import anyio
import pytest
from anyio.streams.text import TextReceiveStream

from benchmarks import turn_peers as peers
from benchmarks.disk import time_fdatasync
from benchmarks.race import Contender, whole_turns
from benchmarks.rows import Row
from benchmarks.servers import run_postgres, run_valkey
from trunkline import Inbox, SessionKey, Turns
from trunkline.turns.adapter import InboxAdapter, Owner
from trunkline.turns.session import Claimant

#: chat-sdk's rate on Redis times this, by design.
BUDGETS = {"Valkey": 10, "SQLite": 5, "PostgreSQL": 4}

BACKENDS = ["memory", *BUDGETS]

#: How many `fdatasync` the p50 from `accept` to the handler may take on SQLite.
LATENCY_BUDGET = 6

#: Sessions that one claim begins a turn of.
CLAIMED = 16

#: Processes that run turns.
PROCESSES = 100


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with run_valkey() as address:
        yield address


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with run_postgres() as url:
        yield url


@pytest.fixture
def url(request: pytest.FixtureRequest, backend: str) -> str:
    """Where an empty inbox is kept."""
    if backend == "SQLite":
        return f"sqlite:///{request.getfixturevalue('disk_folder')}/inbox.db"
    if backend == "Valkey":
        return f"valkey://{request.getfixturevalue('valkey')}"
    return "memory://" if backend == "memory" else request.getfixturevalue("postgres")


def test_rate_in_memory(race, portal, scale):
    operations = whole_turns(scale.slow_operations * 12, peers.SESSIONS)
    with (
        portal.wrap_async_context_manager(peers.our_turns("memory://")) as ours,
        portal.wrap_async_context_manager(peers.chat_sdk_turns(peers.in_memory())) as theirs,
    ):
        best = race.run(
            portal,
            rounds=scale.store_rounds,
            ours=Contender(ours, peers.make_inputs(), operations),
            chat_sdk=Contender(theirs, peers.make_messages(), operations),
        )
    race.add(rate_row("memory", best, "chat-sdk, memory", 1))


@pytest.mark.parametrize("backend", BUDGETS)
def test_rate(race, portal, scale, valkey, url, backend):
    operations = whole_turns(scale.batched_operations // 2, peers.SESSIONS)
    state = peers.on_redis(valkey)
    with (
        portal.wrap_async_context_manager(peers.our_turns(url)) as ours,
        portal.wrap_async_context_manager(peers.chat_sdk_turns(state)) as theirs,
    ):
        best = race.run(
            portal,
            rounds=scale.store_rounds,
            ours=Contender(ours, peers.make_inputs(), operations),
            chat_sdk=Contender(theirs, peers.make_messages(), operations),
        )
    race.add(rate_row(backend, best, "chat-sdk, Valkey", BUDGETS[backend]))


def rate_row(backend: str, best: dict[str, float], against: str, budget: float) -> Row:
    return Row(
        section=f"turns, {backend}",
        work=f"accept, empty handler, finish; {peers.SESSIONS} sessions",
        figure=best["ours"],
        unit="ns",
        per_second=True,
        against=against,
        peer=best["chat_sdk"],
        speedup=True,
        budget=budget,
    )


# -- how soon one begins ---------------------------------------------------------------------------


def new_keys() -> Iterator[SessionKey]:
    return (SessionKey("telegram", "support_bot", str(number)) for number in count())


@asynccontextmanager
async def in_this_process(url: str) -> AsyncGenerator[Callable[[], Awaitable[int]], None]:
    """How long it takes from `accept` to the first line of the handler, in ns."""
    keys, begun = new_keys(), []
    done = anyio.Event()

    async def handler(turn: object) -> None:
        begun.append(monotonic_ns())
        done.set()

    async def lap() -> int:
        nonlocal done
        done = anyio.Event()
        started = monotonic_ns()
        await inbox.accept(next(keys), "hi")
        await done.wait()
        await turns.idle()
        return begun.pop() - started

    async with Inbox(url) as inbox, Turns(inbox, handler) as turns:
        yield lap


@asynccontextmanager
async def in_another_process(url: str) -> AsyncGenerator[Callable[[], Awaitable[int]], None]:
    """The same with the turns in a process of their own."""
    keys = new_keys()
    command = [sys.executable, "-m", "benchmarks.turn_worker", url]
    async with Inbox(url) as inbox, await anyio.open_process(command, stderr=None) as process:
        assert process.stdout is not None
        lines = _lines(TextReceiveStream(process.stdout))

        async def lap() -> int:
            started = monotonic_ns()
            await inbox.accept(next(keys), "hi")
            took = int(await anext(lines)) - started
            await anyio.sleep(0.01)  # until it is idle
            return took

        assert await anext(lines) == "ready"
        yield lap
        process.terminate()


async def _lines(stream: TextReceiveStream) -> AsyncGenerator[str, None]:
    rest = ""
    async for chunk in stream:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield line


async def laps_of(lap: Callable[[], Awaitable[int]], times: int) -> list[int]:
    await lap()
    return sorted([await lap() for _ in range(times)])


@pytest.mark.parametrize(
    ("backend", "place"),
    [(backend, in_this_process) for backend in BACKENDS]
    + [(backend, in_another_process) for backend in BUDGETS],
)
def test_latency(race, portal, scale, disk, url, backend, place):
    times = scale.durable_operations // 2
    with portal.wrap_async_context_manager(place(url)) as lap:
        rounds = race.repeat(
            lambda: (portal.call(laps_of, lap, times), time_fdatasync(disk, times)),
            times=min(scale.store_rounds, 5),
        )
    elsewhere = place is in_another_process
    for percent in (50, 99):
        race.add(
            Row(
                section=f"turns, {backend}",
                work=f"accept → handler{' elsewhere' if elsewhere else ''}, {backend}: p{percent}",
                figure=min(laps[(len(laps) - 1) * percent // 100] for laps, _ in rounds),
                unit="ns",
                against="fdatasync, p50",
                peer=min(synced[(len(synced) - 1) // 2] for _, synced in rounds),
                budget=(
                    LATENCY_BUDGET
                    if backend == "SQLite" and percent == 50 and not elsewhere
                    else None
                ),
            )
        )


# -- many sessions, many processes -----------------------------------------------------------------


@asynccontextmanager
async def waiting_inbox(url: str, sessions: int) -> AsyncGenerator[Inbox, None]:
    """An inbox in which so many sessions wait."""
    async with Inbox(url, namespace=f"of {sessions}") as inbox:
        keys = new_keys()

        async def accept_some() -> None:
            for _ in range(sessions // CLAIMED):
                await inbox.accept(next(keys), "hi")

        async with anyio.create_task_group() as task_group:
            for _ in range(CLAIMED):
                task_group.start_soon(accept_some)
        yield inbox


@pytest.mark.parametrize("backend", BACKENDS)
def test_claim(race, portal, scale, url, backend):
    claims = min(10, scale.store_rounds)
    few = claims * CLAIMED * (scale.store_rounds + 1)
    many = 10 * scale.slow_operations

    def claims_of(inbox: Inbox) -> Callable[[list[Any]], Awaitable[None]]:
        async def claim(owners: list[str]) -> None:
            for owner in owners:
                claimant = Claimant(owner)
                claimed = await inbox.ask(None, InboxAdapter.claim, claimant, CLAIMED)
                assert len(claimed.begun) == CLAIMED

        return claim

    with (
        portal.wrap_async_context_manager(waiting_inbox(url, many)) as long,
        portal.wrap_async_context_manager(waiting_inbox(url, few)) as short,
    ):
        owners = (str(number) for number in count())
        best = race.run(
            portal,
            rounds=scale.store_rounds,
            ours=Contender(claims_of(long), owners, claims),
            short=Contender(claims_of(short), owners, claims),
        )
    race.add(
        Row(
            section=f"turns, {backend}",
            work=f"claim of {CLAIMED}, {many:,} sessions wait, {backend}",
            figure=best["ours"],
            unit="ns",
            against=f"{few:,} wait",
            peer=best["short"],
        )
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_heartbeat(race, portal, scale, url, backend):
    """What one process pays with each of its heartbeats, beside so many others."""

    def beats_of(inbox: Inbox) -> Callable[[list[str]], Awaitable[None]]:
        async def beat(owners: list[str]) -> None:
            for owner in owners:
                found = await inbox.ask(None, InboxAdapter.beat, owner)
                assert found.is_alive

        return beat

    async def register(inbox: Inbox, owners: list[str]) -> None:
        for owner in owners:
            await inbox.ask(None, InboxAdapter.register, Owner(owner, 0, 10_000, "elsewhere"))

    names = [f"process {number}" for number in range(PROCESSES)]
    with (
        portal.wrap_async_context_manager(Inbox(url, namespace="many")) as many,
        portal.wrap_async_context_manager(Inbox(url, namespace="one")) as one,
    ):
        portal.call(register, many, names)
        portal.call(register, one, names[:1])
        best = race.run(
            portal,
            rounds=scale.store_rounds,
            ours=Contender(beats_of(many), names, PROCESSES),
            alone=Contender(beats_of(one), names[:1], PROCESSES),
        )
    race.add(
        Row(
            section=f"turns, {backend}",
            work=f"heartbeat beside {PROCESSES - 1} other processes, {backend}",
            figure=best["ours"],
            unit="ns",
            against="of the only process",
            peer=best["alone"],
        )
    )
