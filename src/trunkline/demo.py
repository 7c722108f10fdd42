"""The demo: an hour of generated chat on three platforms, and what a router does with it.

The chat is generated; the router, the crash and the answers that are shown are real.
"""

from __future__ import annotations

import random

import anyio
from anyio.abc import TaskGroup
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, TextColumn
from rich.table import Table
from rich.text import Text

from trunkline.actors import RestartPolicy
from trunkline.actors.task_group import open_task_group
from trunkline.commands.console import progress_bar
from trunkline.errors import NoRoute, PartitionUnavailable
from trunkline.observe import Event
from trunkline.routing import Resolution, Route, RouterStats, SessionKey, SessionRouter
from trunkline.routing.events import PartitionRestarted
from trunkline.testing import ManualClock, crash

__all__ = ("demo",)

_MINUTE_MS = 60_000

#: How much of the chat's time passes in a turn of the demo, and how many turns there are.
_TURN_MS, _TURNS = _MINUTE_MS // 6, 360

#: A room of each platform: the room id, as it comes from there.
_ROOM_IDS = {"telegram": "-1001{:03}", "discord": "77{:03}", "matrix": "!room{}:example.org"}

#: Rooms on each platform; some are busy, most are not.
_ROOMS = 40

_SILENT_ROOM = SessionKey("telegram", "bot", "-1002001")
_HELP_ROOM = SessionKey("discord", "bot", "help-desk")
_OWNER = Route("owner", channel_type="telegram")


async def demo(
    console: Console, *, turn_seconds: float = 0.01, outage_ms: int = 500
) -> RouterStats:
    """Show what a router does.

    Args:
        console: where to show it.
        turn_seconds: how long a turn takes, in which ten seconds of chat go by.
        outage_ms: how long the partition that crashes is down.

    Returns:
        The router's counts at the end.
    """
    clock = ManualClock()
    router = SessionRouter(
        partition_count=4,
        ttl_ms=30 * _MINUTE_MS,
        max_entries_per_partition=300,
        stale_retention_ms=10 * _MINUTE_MS,
        clock=clock,
        name="demo",
        restart_policy=RestartPolicy(min_backoff_ms=outage_ms, jitter=0.0),
    )
    async with router:
        async with open_task_group() as task_group:
            show = _Show(router, clock, console, task_group)
            columns = BarColumn(), TextColumn("{task.fields[messages]:,} messages")
            with progress_bar(console, TextColumn("an hour of chat"), *columns) as progress:
                bar = progress.add_task("", total=_TURNS, messages=0)
                for turn in range(_TURNS):
                    await show.play(turn)
                    progress.update(bar, completed=turn + 1, messages=show.messages)
                    await anyio.sleep(turn_seconds)
                await show.partition_is_back.wait()
        return show.report()


class _Show:
    """The chat, and the scenes in it."""

    def __init__(
        self,
        router: SessionRouter,
        clock: ManualClock,
        console: Console,
        task_group: TaskGroup,
    ) -> None:
        #: Messages that came in so far.
        self.messages = 0
        #: Set when the partition that crashed is up again.
        self.partition_is_back = anyio.Event()
        self._router = router
        self._clock = clock
        self._console = console
        self._task_group = task_group
        self._waiting = 0
        self._chance = random.Random(2)
        self._scenes = {
            0: self._introduction,
            20: self._last_message_of_a_room,
            50: self._thread_without_a_route,
            150: self._crash,
            210: self._silent_room_again,
            280: self._flood,
        }
        router.events.subscribe(self._on_event)

    async def play(self, turn: int) -> None:
        self._clock.advance_ms(_TURN_MS)
        if turn in self._scenes:
            await self._scenes[turn]()
        for platform in _ROOM_IDS:
            for _ in range(3):
                self._task_group.start_soon(self._answer, self._someone_writes(platform))
        self._task_group.start_soon(self._remind, self._someone_writes("telegram"))

    # -- the chat --------------------------------------------------------------------------------

    def _someone_writes(self, platform: str) -> SessionKey:
        number = min(int(self._chance.expovariate(0.1)), _ROOMS - 1)
        thread_id = self._chance.choice((None, None, "topic-1", "topic-2"))
        return _room(platform, number)._replace(thread_id=thread_id)

    async def _answer(self, key: SessionKey) -> None:
        """What a bot does with a message."""
        self.messages += 1
        self._waiting += 1
        await self._router.set(key.room_scope, _route(key.room_scope))
        if key.thread_id is not None:
            await self._router.set(key, _route(key))
        self._waiting -= 1
        await self._remind(key)

    async def _remind(self, key: SessionKey) -> None:
        """What a bot does to send a message by itself."""
        try:
            await self._router.resolve(key)
        except (NoRoute, PartitionUnavailable):
            pass

    # -- the scenes ------------------------------------------------------------------------------

    async def _introduction(self) -> None:
        config = self._router.config
        self._print(
            "A bot is on Telegram, Discord and Matrix",
            "A message sets the route of its room, and of its thread if it is in one. An answer"
            " is resolved: where does it go? One second here is a quarter of an hour there."
            f" The router has {config.partition_count} partitions; a route is fresh for"
            f" {config.ttl_ms // _MINUTE_MS} minutes.",
        )

    async def _last_message_of_a_room(self) -> None:
        await self._router.set(_SILENT_ROOM, _route(_SILENT_ROOM))

    async def _thread_without_a_route(self) -> None:
        await self._router.set(_HELP_ROOM, _route(_HELP_ROOM))
        thread = _HELP_ROOM._replace(thread_id="ticket-7")
        self._print(
            "A thread falls back to its room",
            "The bot has something to say in a thread in which nobody has written yet. It goes to"
            " the room, which lives in the same partition; and the next answer finds it at once.",
            await self._resolve(thread, times=2),
        )

    async def _crash(self) -> None:
        index = self._router.route_partition(_HELP_ROOM)
        partition = self._router.partition(index)
        assert partition is not None
        lost = self._router.stats().partitions[index].entries
        await crash(partition)
        elsewhere = next(
            key
            for number in range(_ROOMS)
            if self._router.route_partition(key := _room("matrix", number)) != index
        )
        await self._router.set(elsewhere, _route(elsewhere))
        self._print(
            f"A bug crashes partition {index}",
            f"It loses its {lost} routes; the others are unaffected. Until it is back, resolves"
            " of its rooms take the fallback of the caller, and new messages wait.",
            await self._resolve(_HELP_ROOM, _OWNER),
            await self._resolve(elsewhere, _OWNER),
        )

    def _on_event(self, event: Event) -> None:
        if isinstance(event, PartitionRestarted):
            self.partition_is_back.set()
            self._print(
                f"Partition {event.partition} is back by itself",
                f"It is empty. The {self._waiting} messages that waited for it set their routes"
                " now; every other room is known again with its next message.",
            )

    async def _silent_room_again(self) -> None:
        self._print(
            "Routes expire",
            "A Telegram room has been silent for more than half an hour. Its route is stale: the"
            " answer takes the fallback, the bot's owner, and that is remembered.",
            await self._resolve(_SILENT_ROOM, _OWNER, times=2),
        )

    async def _flood(self) -> None:
        rooms = [SessionKey("matrix", "bot", f"!spam{n}:example.org") for n in range(10_000)]
        before = self._router.stats().total
        await self._router.set_many({room: _route(room) for room in rooms})
        after = self._router.stats().total
        self._print(
            "Memory is bounded",
            f"Somebody opens {len(rooms):,} rooms. {after.evicted - before.evicted:,} routes are"
            f" evicted, the least recently used first; {after.entries:,} of"
            f" at most {after.capacity:,} are held.",
        )

    async def _resolve(self, key: SessionKey, *fallbacks: Route, times: int = 1) -> Text:
        """Resolve, and describe the result."""
        answers = [_in_words(await self._router.resolve(key, fallbacks)) for _ in range(times)]
        return Text("\n  ".join((f"resolve {key}", *answers)), style="green")

    def _print(self, title: str, text: str, *details: Text) -> None:
        minutes, seconds = divmod(self._clock() // 1_000, 60)
        time = f"{minutes:02}:{seconds:02}  "
        self._console.print(Text.assemble((time, "dim"), (title, "bold cyan")))
        for paragraph in (Text(text), *details):
            self._console.print(Padding(paragraph, (0, 0, 0, 7), expand=False))
        self._console.print()

    # -- the end ---------------------------------------------------------------------------------

    def report(self) -> RouterStats:
        stats = self._router.stats()
        self._print("That was it", f"{self.messages:,} messages, and what the router counted:")
        self._console.print(_table(stats))
        self._console.print()
        self._console.print("Now with your own chats:  trunkline replay --help", style="bold")
        return stats


def _room(platform: str, number: int) -> SessionKey:
    return SessionKey(platform, "bot", _ROOM_IDS[platform].format(number))


def _route(key: SessionKey) -> Route:
    return Route(key.room_id, channel_type=key.channel, thread_id=key.thread_id)


def _in_words(resolution: Resolution) -> str:
    words: list[str] = [resolution.source]
    if resolution.fallback_reason is not None:
        words.append(resolution.fallback_reason)
    return f"-> {resolution.external_room_id}  ({', '.join(words)})"


_COUNTS = {
    "entries": "routes held now",
    "sets": "routes set",
    "hits": "own route found",
    "thread_fallbacks": "room's route found",
    "provided_fallbacks": "caller's route taken",
    "misses": "no route found",
    "stale": "expired route found",
    "evicted": "least recently used, removed",
    "pruned": "expired, removed",
    "restarts": "after a crash",
}


def _table(stats: RouterStats) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("partition")
    for index in range(len(stats.partitions)):
        table.add_column(str(index), justify="right")
    table.add_column("all", justify="right", style="bold")
    table.add_column("", style="dim")
    for name, meaning in _COUNTS.items():
        counts = [getattr(one, name) for one in (*stats.partitions, stats.total)]
        table.add_row(name.replace("_", " "), *(f"{count:,}" for count in counts), meaning)
    return table
