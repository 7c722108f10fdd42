"""`trunkline replay`: measure how a router does on a chat log."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import anyio
import msgspec
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from trunkline.admin import DEFAULT_NAMESPACE
from trunkline.commands.console import (
    NOTHING_USABLE,
    OK,
    USAGE,
    StandardOutput,
    add_command,
    interruptible_reads,
    print_error,
    progress_bar,
    whole_number,
)
from trunkline.commands.rendering import json_line
from trunkline.commands.replay_report import replay_report
from trunkline.persistence import PersistenceStore
from trunkline.replay import ChatLog, ReplayReport, replay
from trunkline.replay.history import History, Stored
from trunkline.routing import RouterConfig

__all__ = ("add_replay",)

_TEXT = """\
Play the messages of a chat log to a router and measure, to learn which TTL and
capacity a bot needs. A message sets the route of its room, and of its thread
if it is in one, and the reply to it is resolved. Since that always finds a
route, a late answer is resolved as well, just before the message comes in: is
the route still there that the conversation's previous message has set? The
clock is that of the log, so that TTL and pruning work as in production.

With --store the log is also saved, as the bot would have saved it: rooms,
participants, threads and messages. Saving it again adds nothing.
"""

_EXAMPLES = """\
a line of the log is one JSON object:
  {"ts": "2024-05-01T12:00:00Z", "channel": "irc", "bridge_id": "libera",
   "room_id": "#python", "thread_id": null, "user_id": "ada", "text": "hello"}
  ts is ISO 8601 or a number of seconds; thread_id may be left out; user_id and
  text are read with --store, other keys never. A file may be gzipped.

examples:
  trunkline replay chat.jsonl.gz
  trunkline replay --ttl-ms 600000 --max-entries 500 chat.jsonl
  zcat 2024-*.gz | trunkline replay -
  trunkline replay --json chat.jsonl | jq .late_answers
  trunkline replay --store sqlite:///bot.db chat.jsonl.gz

exit status:
  0 replayed; 1 no line was a message; 2 a file could not be read, the store
  could not be reached, wrong usage
"""

#: Each partition is an actor with a task of its own: more take seconds to start, and show nothing.
_MAX_PARTITIONS = 4_096


def add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "replay",
        _replay,
        summary="measure how a router does on a chat log",
        text=_TEXT,
        examples=_EXAMPLES,
    )
    defaults = RouterConfig()
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="JSON lines, in the order of time; - is stdin"
    )
    for option, setting, text in (
        ("--partitions", "partition_count", "partitions that share the rooms"),
        ("--ttl-ms", "ttl_ms", "how long a route is fresh"),
        ("--max-entries", "max_entries_per_partition", "entries that one partition holds"),
        ("--prune-interval-ms", "prune_interval_ms", "how often expired routes are removed"),
    ):
        parser.add_argument(
            option,
            dest=setting,
            metavar="N",
            type=whole_number(1, _MAX_PARTITIONS if setting == "partition_count" else None),
            default=getattr(defaults, setting),
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="also save the log in this database: sqlite:///bot.db, postgresql://...",
    )
    parser.add_argument(
        "--namespace",
        metavar="NAME",
        default=DEFAULT_NAMESPACE,
        help="with --store: save it in this namespace (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the report as one line of JSON, and only that"
    )


def _replay(arguments: argparse.Namespace) -> int:
    for file in arguments.files:
        if reason := _why_unreadable(file):
            print_error(f"{file}: {reason}")
            return USAGE
    config = RouterConfig(
        partition_count=arguments.partition_count,
        ttl_ms=arguments.ttl_ms,
        max_entries_per_partition=arguments.max_entries_per_partition,
        prune_interval_ms=arguments.prune_interval_ms,
    )
    problems = _Problems(Console(stderr=True))
    log = ChatLog(
        *arguments.files, contents=arguments.store is not None, on_problem=problems.report
    )
    report, stored = _replay_with_progress(
        log, config, arguments.store, arguments.namespace, problems
    )
    problems.report_rest()
    if not report.messages:
        if log.broken_lines:
            print_error(f"nothing to replay: none of {log.broken_lines:,} lines is a message")
        elif not log.unreadable_files:
            print_error("nothing to replay: the log is empty")
        return USAGE if log.unreadable_files else NOTHING_USABLE
    if arguments.json:
        print(_as_json(report, log, stored))
    else:
        StandardOutput().print(replay_report(report, log, stored))
    return USAGE if log.unreadable_files else OK


def _why_unreadable(file: str) -> str | None:
    """Checked before the replay, so that a typing error does not cost the time of one."""
    if file == "-":
        return None
    try:
        Path(file).stat()
        if Path(file).is_dir():
            return "it is a directory"
        if not os.access(file, os.R_OK):
            return "no permission to read it"
    except OSError as error:
        return error.strerror
    return None


class _Problems:
    """Prints the first problems of a log and counts the rest."""

    def __init__(self, console: Console, limit: int = 10) -> None:
        self.console = console
        self._remaining = limit
        self._more = 0

    def report(self, problem: str) -> None:
        if not self._remaining:
            self._more += 1
            return
        self._remaining -= 1
        print_error(problem, self.console)

    def report_rest(self) -> None:
        if self._more:
            print_error(f"{self._more:,} more such problems", self.console)


def _replay_with_progress(
    log: ChatLog, config: RouterConfig, store_url: str | None, namespace: str, problems: _Problems
) -> tuple[ReplayReport, Stored | None]:
    store = None if store_url is None else PersistenceStore(store_url, namespace=namespace)
    with progress_bar(
        problems.console,
        TextColumn("replaying" if store is None else "replaying and saving"),
        BarColumn(),
        *([TaskProgressColumn()] if log.size else []),
        TextColumn("{task.fields[messages]:,} messages"),
        *([TimeRemainingColumn()] if log.size else []),
    ) as progress:
        task = progress.add_task("", total=log.size, messages=0)

        def on_progress(messages: int) -> None:
            progress.update(task, completed=log.bytes_read if log.size else 0, messages=messages)

        async def play() -> tuple[ReplayReport, Stored | None]:
            with interruptible_reads(log) as messages:
                if store is None:
                    return await replay(messages, config, on_progress=on_progress), None
                async with store, History(store, on_problem=problems.report) as history:
                    report = await replay(
                        messages, config, on_progress=on_progress, on_message=history.save
                    )
                return report, history.stored()

        return anyio.run(play)


def _as_json(report: ReplayReport, log: ChatLog, stored: Stored | None) -> str:
    fields = {
        **msgspec.structs.asdict(report),
        "needed_entries": report.needed_entries,
        "broken_lines": log.broken_lines,
        "unreadable_files": log.unreadable_files,
        "stored": stored,
    }
    return json_line(fields)
