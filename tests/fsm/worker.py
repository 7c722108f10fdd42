"""What processes do to an fsm that they share, to be run beside each other and to be killed."""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from tests.servers.writer import Journal, processes
from trunkline.fsm import Flow, FSMContext, FSMState, FSMStore

BOT, KEY = "bot", (42, 7)

STEPS = Flow("steps", {"start": ["end"]}, initial="start")


def run_processes(target: Any, url: str, *arguments: Any) -> None:
    """Run `target` in four processes at once, two on asyncio and two on trio."""
    start = processes.Barrier(4)
    workers = [
        processes.Process(
            target=target, args=(url, start, ("asyncio", "trio")[number % 2], number, *arguments)
        )
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0


async def _together(function: Any, tasks: int) -> None:
    async with anyio.create_task_group() as task_group:
        for number in range(tasks):
            task_group.start_soon(function, number)


def add_names(url: str, start: Any, backend: str, number: int) -> None:
    """Sixteen tasks that add a name each to the data of one conversation."""

    async def main() -> None:
        async with FSMStore(url, call_timeout_ms=30_000) as store:
            await store.init(BOT)
            start.wait(120)

            async def add(task: int) -> None:
                await store.update_data(BOT, KEY, {f"{number}-{task}": task})

            await _together(add, 16)

    anyio.run(main, backend=backend)


def take_steps(url: str, start: Any, backend: str, number: int, folder: Path, size: int) -> None:
    """Take one step of many conversations, and note of which ones it was taken here."""

    async def main() -> None:
        journal = Journal(folder / str(number))
        async with FSMStore(url, call_timeout_ms=30_000) as store:
            await store.init(BOT)
            start.wait(120)

            async def step(key: int) -> None:
                context = FSMContext(store, BOT, key, [STEPS], on_invalid_transition="ignore")
                if await context.transition("end"):
                    journal.write(key)

            await _together(step, size)
        journal.close()

    anyio.run(main, backend=backend)


def count_visits(url: str, start: Any, backend: str, _number: int, path: Path, visits: int) -> None:
    """Add to the number in a file, which only holds if nobody else does so meanwhile."""

    async def main() -> None:
        async with FSMStore(url, call_timeout_ms=30_000) as store:
            await store.init(BOT)
            start.wait(120)

            async def visit(_task: int) -> None:
                async with store.lock(BOT, KEY):
                    visited = read_count(path)
                    await checkpoint()
                    write_count(path, visited + 1)

            await _together(visit, visits)

    anyio.run(main, backend=backend)


def read_count(path: Path) -> int:
    return int(path.read_text() or 0)


def write_count(path: Path, count: int) -> None:
    path.write_text(str(count))


def own_for_ever(url: str, ready: Any, lease_ms: int | None) -> None:
    """Hold a lock until the process is killed or stopped."""

    async def main() -> None:
        async with open_store(url, lease_ms) as store:
            await store.init(BOT)
            async with store.lock(BOT, KEY):
                await store.update_data(BOT, KEY, {"owned": True})
                ready.set()
                await anyio.sleep_forever()

    anyio.run(main)


def open_store(url: str, lease_ms: int | None = None) -> FSMStore:
    """A store whose leases end sooner than those of users."""
    if lease_ms is None:
        return FSMStore(url)
    from trunkline.fsm.redis import RedisFSMAdapter

    return FSMStore(adapter=type("Adapter", (RedisFSMAdapter,), {"lease_ms": lease_ms})(url))


def talk_for_ever(url: str, path: Path, ready: Any, backend: str, seed: int) -> None:
    """Eight conversations that go on, and are noted, until the process is killed."""

    async def main() -> None:
        journal = Journal(path)
        async with FSMStore(url) as store, anyio.create_task_group() as task_group:
            await store.init(BOT)
            for key in range(8):
                task_group.start_soon(talk, store, journal, f"{seed}-{key}")
            ready.set()

    anyio.run(main, backend=backend)


async def talk(store: FSMStore, journal: Any, key: str, turns: int | None = None) -> None:
    """Change a conversation again and again, and note the number of each change that is stored.

    Flow and state are the number of the last whole change, and every datum that of the last one.
    """
    chance = random.Random(key)
    standing = FSMState()
    for number in count(1) if turns is None else range(1, turns + 1):
        data = dict.fromkeys("abc", number)
        whole = FSMState(str(number), str(number), data)
        choice = chance.random()
        if choice < 0.4:
            await store.update_data(BOT, key, data)
        elif choice < 0.7:
            await store.set_state(BOT, key, whole)
            standing = whole
        else:
            refusal = await store.compare_and_set(BOT, key, standing, whole, keep_data=False)
            assert refusal is None
            standing = whole
        journal.write(key, number)


def check_conversation(state: FSMState | None, acknowledged: int) -> None:
    """Whether a conversation is whole, and not older than what was acknowledged."""
    assert state is not None
    assert state.flow == state.state
    newest = state.data["a"]
    assert state.data == dict.fromkeys("abc", newest)
    # The change that was under way may be stored or not.
    assert newest in (acknowledged, acknowledged + 1)
    assert int(state.state or 0) <= newest
