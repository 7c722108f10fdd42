"""The command line: `python -m trunkline`, or `trunkline`.

Each subcommand is a function that takes the parsed arguments and returns an exit status; its work
is done by a module of its own. Results go to standard output, all else to standard error.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import anyio
import msgspec
import structlog
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trunkline import __version__
from trunkline.demo import demo
from trunkline.replay import ChatLog, ChatMessage, LateAnswers, ReplayReport, replay
from trunkline.routing import RouterConfig

__all__ = ("main",)

#: Exit statuses.
OK, NOTHING_USABLE, USAGE = 0, 1, 2

#: What a shell tells of a program that Ctrl-C or a closed pipe has ended.
INTERRUPTED, BROKEN_PIPE = 128 + 2, 128 + 13


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments, without the program's name; by default those of the process.

    Returns:
        The exit status: 0 done; 1 nothing usable in the input; 2 wrong usage, or a file that
        cannot be read; 130 interrupted by Ctrl-C; 141 the reader of the output has gone away.

    Raises:
        SystemExit: after `--help` and `--version`, and for wrong usage.
    """
    for stream in (sys.stdout, sys.stderr):
        _never_fail_on_a_character(stream)
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except OSError as error:
        _discard_output()
        _complain(f"standard output: {error.strerror or error}")
        return NOTHING_USABLE


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.run is None:
        parser.print_help(sys.stderr)
        return USAGE
    with _terse_log():
        status: int = arguments.run(arguments)
    return status


# -- the arguments -----------------------------------------------------------------------------

_EXAMPLES = """\
examples:
  trunkline demo                see in a few seconds what a router does
  trunkline replay chat.jsonl   which TTL and capacity does my bot need?
  trunkline replay --help       the options of a command
"""

_DEMO_TEXT = """\
An hour of made-up chat on three platforms runs through a router in a few
seconds: threads fall back to their rooms, routes expire, a partition crashes
and comes back, and memory stays bounded. It reads no files and leaves none.
"""

_DEMO_EXAMPLES = """\
examples:
  trunkline demo
  trunkline demo > demo.txt     without colours and progress bar
"""

_REPLAY_TEXT = """\
Play the messages of a chat log to a router and measure, to learn which TTL and
capacity a bot needs. A message sets the route of its room, and of its thread
if it is in one, and the reply to it is resolved. Since that always finds a
route, a late answer is resolved as well, just before the message is heard: does
what the conversation's previous message has set still stand? Time is the log's
own, so that TTL and pruning mean what they mean in production.
"""

_REPLAY_EXAMPLES = """\
a line of the log is one JSON object:
  {"ts": "2024-05-01T12:00:00Z", "channel": "irc", "bridge_id": "libera",
   "room_id": "#python", "thread_id": null, "user_id": "ada", "text": "hello"}
  ts is ISO 8601 or a number of seconds; thread_id may be left out; user_id,
  text and other keys are not looked at. A file may be gzipped.

examples:
  trunkline replay chat.jsonl.gz
  trunkline replay --ttl-ms 600000 --max-entries 500 chat.jsonl
  zcat 2024-*.gz | trunkline replay -
  trunkline replay --json chat.jsonl | jq .late_answers

exit status:
  0 replayed; 1 no line was a message; 2 a file could not be read, wrong usage
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trunkline",
        description="A session router for async bots: where does the answer go?",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trunkline {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_replay(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="see in a few seconds what a router does",
        description=_DEMO_TEXT,
        epilog=_DEMO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_demo)


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "replay",
        help="measure how a router does on a chat log",
        description=_REPLAY_TEXT,
        epilog=_REPLAY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
            type=_positive,
            default=getattr(defaults, setting),
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--json", action="store_true", help="print the report as one line of JSON, and only that"
    )
    parser.set_defaults(run=_replay)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


# -- the commands ------------------------------------------------------------------------------


def _demo(_arguments: argparse.Namespace) -> int:
    with _terse_log(logging.CRITICAL):  # It tells of its crash itself.
        anyio.run(demo, _Console())
    return OK


def _replay(arguments: argparse.Namespace) -> int:
    for file in arguments.files:
        if reason := _why_unreadable(file):
            _complain(f"{file}: {reason}")
            return USAGE
    config = RouterConfig(
        partition_count=arguments.partition_count,
        ttl_ms=arguments.ttl_ms,
        max_entries_per_partition=arguments.max_entries_per_partition,
        prune_interval_ms=arguments.prune_interval_ms,
    )
    problems = _Problems(Console(stderr=True))
    log = ChatLog(*arguments.files, on_problem=problems.tell)
    report = _replay_with_progress(log, config, problems.console)
    problems.tell_rest()
    if not report.messages:
        if log.broken_lines:
            _complain(f"nothing to replay: none of {log.broken_lines:,} lines is a message")
        elif not log.unreadable_files:
            _complain("nothing to replay: the log is empty")
        return USAGE if log.unreadable_files else NOTHING_USABLE
    if arguments.json:
        print(_as_json(report, log))
    else:
        _Console().print(_report(report, log))
    return USAGE if log.unreadable_files else OK


def _why_unreadable(file: str) -> str | None:
    """Found out before the replay, so that a typing error does not cost the time of one."""
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
    """Tells of the first problems of a log and counts the rest."""

    def __init__(self, console: Console, limit: int = 10) -> None:
        self.console = console
        self._remaining = limit
        self._untold = 0

    def tell(self, problem: str) -> None:
        if not self._remaining:
            self._untold += 1
            return
        self._remaining -= 1
        _complain(problem, self.console)

    def tell_rest(self) -> None:
        if self._untold:
            _complain(f"{self._untold:,} more such problems", self.console)


def _replay_with_progress(log: ChatLog, config: RouterConfig, console: Console) -> ReplayReport:
    progress = Progress(
        TextColumn("replaying"),
        BarColumn(),
        *([TaskProgressColumn()] if log.size else []),
        TextColumn("{task.fields[messages]:,} messages"),
        *([TimeRemainingColumn()] if log.size else []),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task("", total=log.size, messages=0)

        def on_progress(messages: int) -> None:
            progress.update(task, completed=log.bytes_read if log.size else 0, messages=messages)

        async def replay_log() -> ReplayReport:
            with _ctrl_c_ends_reads(log) as messages:
                return await replay(messages, config, on_progress=on_progress)

        return anyio.run(replay_log)


def _as_json(report: ReplayReport, log: ChatLog) -> str:
    fields = {
        **msgspec.structs.asdict(report),
        "needed_entries": report.needed_entries,
        "broken_lines": log.broken_lines,
        "unreadable_files": log.unreadable_files,
    }
    return msgspec.json.encode(fields).decode()


# -- how a report looks ------------------------------------------------------------------------

#: Bars of a chart at most; the fullest partitions are shown.
_MOST_BARS = 32


def _report(report: ReplayReport, log: ChatLog) -> RenderableType:
    sections: list[tuple[str, RenderableType]] = [
        ("The log", _log_section(report, log)),
        ("What resolves found", _outcomes_section(report)),
        ("Late answers without a route of their own", _causes_section(report.late_answers)),
        ("The route tables", _tables_section(report)),
        ("Peak entries per partition", _partitions_section(report)),
        ("Speed", _speed_section(report)),
        ("Which TTL and capacity does this log need?", _advice_section(report)),
    ]
    lines: list[RenderableType] = []
    for title, section in sections:
        lines += [Text(title, style="bold cyan"), Padding(section, (0, 0, 0, 2)), ""]
    return Group(*lines[:-1])


def _log_section(report: ReplayReport, log: ChatLog) -> RenderableType:
    config = report.config
    table = _facts()
    table.add_row("messages", f"{report.messages:,} over {_duration(_span_ms(report))}")
    table.add_row(
        "conversations",
        f"{_count(report.rooms, 'room')} and {_count(report.threads, 'thread')}",
    )
    table.add_row(
        "router",
        f"{_count(config.partition_count, 'partition')} of"
        f" {config.max_entries_per_partition:,} entries",
    )
    table.add_row(
        "routes",
        f"fresh for {_duration(config.ttl_ms)}, pruned every {_duration(config.prune_interval_ms)}",
    )
    if log.broken_lines:
        table.add_row("broken lines", f"[yellow]{log.broken_lines:,}[/], skipped")
    if log.unreadable_files:
        table.add_row(
            "incomplete", f"[red]{_count(log.unreadable_files, 'file')} could not be read whole[/]"
        )
    if report.out_of_order:
        table.add_row(
            "out of order",
            f"[yellow]{report.out_of_order:,}[/] messages older than one above them; time stood"
            " still for them",
        )
    return table


def _span_ms(report: ReplayReport) -> int:
    return report.last_ms - report.first_ms


def _outcomes_section(report: ReplayReport) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("replies", justify="right")
    table.add_column("late answers", justify="right")
    table.add_column("all", justify="right")
    replies, late = report.replies, report.late_answers
    for name, reply_count, late_count, total, meaning in (
        ("hits", replies.hits, late.hits, report.hits, "the conversation's own route"),
        (
            "thread fallbacks",
            replies.thread_fallbacks,
            late.thread_fallbacks,
            report.thread_fallbacks,
            "its room's route instead",
        ),
        ("misses", replies.misses, late.misses, report.misses, "no route"),
        ("resolves", report.messages, report.messages, report.resolves, ""),
    ):
        table.add_row(
            name, f"{reply_count:,}", f"{late_count:,}", f"{total:,}", Text(meaning, style="dim")
        )
    return Group(
        table,
        _note(
            "A reply leaves just after its message came; a late answer just before the next"
            " message of its conversation, which is the hardest moment."
        ),
    )


def _causes_section(late: LateAnswers) -> RenderableType:
    table = _facts(count=True)
    table.add_row("new", f"{late.new:,}", "first message of its conversation; nothing to find yet")
    table.add_row("expired", f"{late.expired:,}", "a longer --ttl-ms would have kept the route")
    table.add_row("evicted", f"{late.evicted:,}", "a larger --max-entries would have kept it")
    return table


def _tables_section(report: ReplayReport) -> RenderableType:
    table = _facts(count=True)
    table.add_row("sets", f"{report.sets:,}", "a message in a thread sets its room's route too")
    table.add_row("peak entries", f"{report.peak_entries:,}", "most held at one time")
    table.add_row("evicted", f"{report.evicted:,}", "made room for others")
    table.add_row("pruned", f"{report.pruned:,}", "expired, and removed by a prune")
    table.add_row("stale", f"{report.stale:,}", "expired, and met by a resolve before the prune")
    return table


def _partitions_section(report: ReplayReport) -> RenderableType:
    shown = sorted(enumerate(report.partitions), key=lambda item: (-item[1].peak_entries, item[0]))[
        :_MOST_BARS
    ]
    fullest = max(1, shown[0][1].peak_entries)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim")
    table.add_column(justify="right")
    table.add_column()
    table.add_column(style="yellow")
    for index, partition in sorted(shown):
        table.add_row(
            f"{index}",
            f"{partition.peak_entries:,}",
            ProgressBar(fullest, partition.peak_entries, width=44, finished_style="bar.complete"),
            f"{partition.evicted:,} evicted" if partition.evicted else "",
        )
    notes: list[RenderableType] = []
    if hidden := len(report.partitions) - len(shown):
        notes.append(_note(f"and {hidden:,} more that were never fuller than these"))
    if report.rooms < report.config.partition_count:
        notes.append(
            _note(
                "A room and its threads share one partition, so"
                f" {_count(report.rooms, 'room')} cannot fill them all."
            )
        )
    return Group(table, *notes)


def _speed_section(report: ReplayReport) -> RenderableType:
    latency = report.resolve
    table = _facts()
    table.add_row(
        "messages per second",
        f"{report.messages_per_second:,} ({report.elapsed_ms / 1000:.1f} s, reading included)",
    )
    table.add_row(
        "a resolve took",
        f"p50 {_short(latency.p50_ns)}, p99 {_short(latency.p99_ns)}, max {_short(latency.max_ns)}",
    )
    return table


def _advice_section(report: ReplayReport) -> RenderableType:
    late, needed, config = report.late_answers, report.needed_ttl, report.config
    if late.new == report.messages:
        return Text("No conversation of this log came back: any TTL and capacity will do.")
    table = _facts()
    for part, needed_ms in (
        ("a half", needed.p50_ms),
        ("90 %", needed.p90_ms),
        ("95 %", needed.p95_ms),
        ("99 %", needed.p99_ms),
        ("all", needed.max_ms),
    ):
        ttl_ms = _round_up(needed_ms)
        table.add_row(f"to keep {part}", f"--ttl-ms {ttl_ms}", f"{_duration(ttl_ms)}")
    table.add_row(
        "to evict nothing",
        f"--max-entries {report.needed_entries}",
        f"at a TTL of {_duration(config.ttl_ms)}",
    )
    return Group(
        Text(
            f"With these settings {late.kept:.1%} of the routes were still there when their"
            " conversation came back."
        ),
        table,
    )


def _facts(*, count: bool = False) -> Table:
    """A table without lines: a name, what there is to say of it, and a remark."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right" if count else "left")
    table.add_column(style="dim")
    return table


def _note(text: str) -> Text:
    return Text(text, style="dim")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


_UNITS = (("y", 31_557_600_000), ("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000))


def _duration(ms: int) -> str:
    """A duration in its two largest units: `13 y 65 d`, `30 min`, `1 s 4 ms`."""
    parts = []
    for unit, length_ms in (*_UNITS, ("ms", 1)):
        amount, ms = divmod(ms, length_ms)
        if amount:
            parts.append(f"{amount} {unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 ms"


def _round_up(ms: int) -> int:
    """To the whole second, minute, hour or day, whichever adds less than a tenth."""
    unit_ms = next((length for _, length in _UNITS[1:] if length * 10 <= ms), 1)
    return -(-ms // unit_ms) * unit_ms


def _short(ns: int) -> str:
    """A latency, in the unit that leaves few digits."""
    if ns < 1_000:
        return f"{ns} ns"
    return f"{ns / 1e3:.1f} us" if ns < 1_000_000 else f"{ns / 1e6:.1f} ms"


# -- good manners ------------------------------------------------------------------------------


class _Console(Console):
    """Standard output, which may be a pipe whose reader has gone away."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _complain(text: str, console: Console | None = None) -> None:
    """Say it on standard error, above the progress bar if `console` shows one."""
    line = f"trunkline: {text}"
    if console is None:
        print(line, file=sys.stderr)
    else:
        console.print(Text(line), soft_wrap=True)


def _never_fail_on_a_character(stream: TextIO) -> None:
    """Let a terminal or file that cannot show a character get a question mark."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _discard_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not fail on it too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _ctrl_c_ends_reads(messages: Iterable[ChatMessage]) -> Iterator[Iterator[ChatMessage]]:
    """Let Ctrl-C end the wait for the next of `messages`, inside an event loop.

    The event loop's handler cancels the task at its next await, which the read of a pipe has not.
    Everywhere else an exception out of nowhere would do harm.
    """
    reading = False

    def read() -> Iterator[ChatMessage]:
        nonlocal reading
        iterator = iter(messages)
        while True:
            reading = True
            message = next(iterator, None)
            reading = False
            if message is None:
                return
            yield message

    def interrupt(number: int, frame: FrameType | None) -> None:
        if reading:
            raise KeyboardInterrupt
        if callable(cancel):
            cancel(number, frame)

    cancel = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield read()
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield read()
    finally:
        signal.signal(signal.SIGINT, cancel)


@contextmanager
def _terse_log(level: int = logging.WARNING) -> Iterator[None]:
    """Log to standard error, one line each: a traceback would drown what a command says."""
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.add_log_level, _one_line],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _one_line(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> str:
    level, event = fields.pop("level"), fields.pop("event")
    if isinstance(error := fields.pop("exc_info", None), BaseException):
        fields["error"] = repr(error)
    words = [event, *(f"{name}={value}" for name, value in fields.items())]
    return f"trunkline: {level}: {' '.join(words)}"
