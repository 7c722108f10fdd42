"""Bots that run turns in processes of their own, to be killed, frozen and watched there."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import anyio

from tests.servers.writer import Journal, processes, read_journal
from trunkline import Inbox, TurnPolicy, Turns
from trunkline.errors import InboxFull, StoreUnavailable, TurnLost

__all__ = ("Bot", "Histories", "accept_at_random", "session")


def session(name: object) -> tuple[str, str, str]:
    return ("test", "bot", str(name))


class Bot:
    """A process that runs turns and notes them, inside `with`.

    Args:
        url: of the inbox.
        journal: what it notes: see `serve`.
        kind: what its handler does: see `_HANDLERS`.
        policy: fields of its `TurnPolicy`.
        namespace: of the inbox.
        backend: the event loop.
        options: of its `Turns`.
    """

    def __init__(
        self,
        url: str,
        journal: Path,
        kind: str = "brief",
        *,
        policy: dict[str, Any] | None = None,
        namespace: str = "default",
        backend: str = "asyncio",
        **options: Any,
    ) -> None:
        self.journal = journal
        self._ready = processes.Event()
        self._process = processes.Process(
            target=serve,
            args=(url, journal, kind, self._ready, policy or {}, namespace, backend, options),
        )
        self.ended_at: float | None = None

    def __enter__(self) -> Bot:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process.start()
        assert self._ready.wait(30), "it never came up"

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self.ended_at = self.ended_at or monotonic()

    def signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The process stands still inside."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def join(self, seconds: float = 30) -> int | None:
        self._process.join(seconds)
        return self._process.exitcode

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()


def serve(
    url: str,
    path: Path,
    kind: str,
    ready: Any,
    policy: dict[str, Any],
    namespace: str,
    backend: str,
    options: dict[str, Any],
) -> None:
    """Run turns until SIGTERM, and note each: when its handler began and ended, and its end."""

    async def main() -> None:
        journal = Journal(path)

        async def handle(turn: Any) -> None:
            payloads = [item.payload for item in turn.items]
            key = turn.session_key.room_id
            journal.write("begin", key, turn.id, payloads, turn.attempt, monotonic())
            returned = False
            try:
                await _HANDLERS[kind](turn, journal)
                returned = True
            finally:
                journal.write("end", key, turn.id, payloads, turn.attempt, monotonic(), returned)

        def note(event: Any) -> None:
            if event.name in ("finished", "failed", "lost", "stuck", "taken_over"):
                room, turn_items = event.session_key.room_id, list(event.items)
                journal.write(event.name, room, turn_items, event.attempt, monotonic())

        def on_failed(turn: Any, error: Exception) -> None:
            payloads = [item.payload for item in turn.items]
            journal.write("on_failed", turn.session_key.room_id, payloads, repr(error))

        async with Inbox(url, namespace=namespace) as inbox:
            inbox.events.subscribe(note)
            async with Turns(
                inbox, handle, TurnPolicy(**policy), on_failed=on_failed, **options
            ) as turns:
                ready.set()
                await turns.serve()
        journal.close()

    anyio.run(main, backend=backend)


async def _brief(_turn: Any, _journal: Journal) -> None:
    await anyio.sleep(random.uniform(0.0, 0.02))


async def _slow(_turn: Any, _journal: Journal) -> None:
    await anyio.sleep(0.5)


async def _endless_at_first(turn: Any, _journal: Journal) -> None:
    """The first attempt at item 0 never ends."""
    if turn.attempt == 1 and turn.items[0].payload == 0:
        await anyio.sleep_forever()


async def _poison(turn: Any, _journal: Journal) -> None:
    """An item that kills its process, beside others that take a while."""
    if any(item.payload == "poison" for item in turn.items):
        await anyio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    await anyio.sleep(0.12)


async def _late(turn: Any, journal: Journal) -> None:
    """The first attempt at "hi" lasts until it is cancelled, and then does a step."""
    if turn.attempt > 1 or turn.items[0].payload != "hi":
        return
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            try:
                await turn.step("late", _text, "late")
            except TurnLost:
                journal.write("refused", turn.session_key.room_id)
            else:
                journal.write("allowed", turn.session_key.room_id)


async def _late_return(turn: Any, _journal: Journal) -> None:
    """The first attempt at "hi" swallows its cancellation, and returns as if nothing had been."""
    if turn.attempt == 1 and turn.items[0].payload == "hi":
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()


async def _until_cancelled(turn: Any, _journal: Journal) -> None:
    """The first attempt at an item "long" lasts until it is cancelled."""
    if turn.items[0].payload == "long" and turn.attempt == 1 and not turn.resumed:
        await anyio.sleep_forever()


async def _steered(turn: Any, journal: Journal) -> None:
    """It lasts until an item "stop" has joined it."""
    while True:
        for item in await turn.receive():
            journal.write("joined", turn.session_key.room_id, item.payload, monotonic())
            if item.payload == "stop":
                return


async def _blocking(_turn: Any, _journal: Journal) -> None:
    """It blocks the event loop for two leases of a second."""
    sleep(2.0)  # noqa: ASYNC251 (that is the point)


async def _text(text: str) -> str:
    return text


_HANDLERS = {
    "brief": _brief,
    "slow": _slow,
    "endless at first": _endless_at_first,
    "poison": _poison,
    "late": _late,
    "until cancelled": _until_cancelled,
    "steered": _steered,
    "late return": _late_return,
    "blocking": _blocking,
}


async def accept_at_random(
    url: str, journal: Journal, sessions: int, items: int, seconds: float, seed: int
) -> None:
    """Accept `items` of each session in their order, spread over `seconds`; note each."""
    chance = random.Random(seed)

    async with Inbox(url, call_timeout_ms=20_000) as inbox:

        async def talk(name: str) -> None:
            for number in range(items):
                await anyio.sleep(chance.uniform(0.0, 2 * seconds / items))
                while True:
                    with suppress(StoreUnavailable, InboxFull):
                        await inbox.accept(session(name), number, external_id=number)
                        break
                    await anyio.sleep(0.05)
                journal.write(name, number)

        async with anyio.create_task_group() as talks:
            for index in range(sessions):
                talks.start_soon(talk, f"{seed}-{index}")


class Histories:
    """What the journals of bots say, session by session.

    Args:
        bots: processes that have ended, or run on.
    """

    def __init__(self, bots: list[Bot]) -> None:
        #: session → (begin, end, turn, payloads, attempt, whether its handler ended), by begin.
        self.runs: dict[str, list[tuple[float, float, str, list[Any], int, bool]]] = {}
        #: (session, attempt's number of items, …) of every other entry, by name.
        self.others: dict[str, list[list[Any]]] = {}
        for bot in bots:
            self._read(bot)
        #: Item ids whose turn was reported as finished, each as often as it was.
        self.finished = [one for entry in self.others.get("finished", ()) for one in entry[1]]
        for runs in self.runs.values():
            runs.sort(key=lambda run: run[0])

    def _read(self, bot: Bot) -> None:
        open_: dict[str, tuple[str, list[Any], int, float]] = {}
        for entry in read_journal(bot.journal):
            if entry[0] == "begin":
                _, key, turn_id, payloads, attempt, at = entry
                open_[turn_id] = (key, payloads, attempt, at)
            elif entry[0] == "end":
                _, key, turn_id, payloads, attempt, at, returned = entry
                began = open_.pop(turn_id)[3]
                run = (began, at, turn_id, payloads, attempt, returned)
                self.runs.setdefault(key, []).append(run)
            else:
                self.others.setdefault(entry[0], []).append(entry[1:])
        for turn_id, (key, payloads, attempt, began) in open_.items():
            end = bot.ended_at or monotonic()
            run = (began, end, turn_id, payloads, attempt, False)
            self.runs.setdefault(key, []).append(run)

    def handled(self, key: str) -> list[Any]:
        """The items of a session whose handler ended, each at its last time."""
        last: dict[Any, int] = {}
        for index, run in enumerate(self.runs.get(key, ())):
            if run[5]:
                last.update(dict.fromkeys(run[3], index))
        return sorted(last, key=lambda payload: (last[payload], payload))

    def overlaps(self) -> list[tuple[str, str, str]]:
        """Turns of one session that ran at once."""
        return [
            (key, before[2], after[2])
            for key, runs in self.runs.items()
            for before, after in pairwise(runs)
            if after[0] < before[1]
        ]

    def repeated(self) -> list[tuple[str, Any]]:
        """Items that were handled again after a turn with them ended."""
        found = []
        for key, runs in self.runs.items():
            done: set[Any] = set()
            for run in runs:
                found += [(key, payload) for payload in run[3] if payload in done]
                if run[5]:
                    done.update(run[3])
        return found
