"""`trunkline copy`: copy a database to another."""

from __future__ import annotations

import argparse
from collections import Counter

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from trunkline.admin import DEFAULT_NAMESPACE, CopyReport, TargetNotEmpty, copy_database
from trunkline.commands.console import (
    NOTHING_USABLE,
    OK,
    USAGE,
    StandardOutput,
    add_command,
    print_error,
    progress_bar,
)
from trunkline.commands.rendering import counted, sections

__all__ = ("add_copy",)

_TEXT = """\
Copy all that a database holds to another: persistence, fsm, signal and inbox,
in all namespaces. Rows are copied as they are: encrypted values stay encrypted
with the same key, versions and the times at which conversations expire stay.
At the end the rows of both databases are counted.

A SQL database is copied as it is when the copy begins. What a bot stores after
that is not copied: stop it before, or let it write to TO from then on.
"""

_EXAMPLES = """\
examples:
  trunkline copy sqlite:///bot.db postgresql://me@localhost/bot
  trunkline copy --resume sqlite:///bot.db postgresql://me@localhost/bot
  trunkline copy --only fsm sqlite:///bot.db valkey://localhost:6379/0

exit status:
  0 copied, and all counts agree; 1 nothing to copy, or the counts differ;
  2 TO is not empty, a database cannot be reached, wrong usage
"""


def add_copy(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "copy",
        _copy,
        summary="copy a database to another",
        text=_TEXT,
        examples=_EXAMPLES,
    )
    for name in ("FROM", "TO"):
        parser.add_argument(
            name.lower(),
            metavar=name,
            help="sqlite:///bot.db, postgresql://..., valkey://..., redis://...",
        )
    parser.add_argument(
        "--only",
        metavar="STORE",
        action="append",
        default=[],
        help="copy persistence, fsm, signal or inbox; may be repeated (default: all)",
    )
    parser.add_argument("--namespace", metavar="NAME", help="copy this namespace (default: all)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--resume",
        action="store_true",
        help="continue a copy that was interrupted: keep the rows that TO has",
    )
    choice.add_argument(
        "--force",
        action="store_true",
        help="if TO is not empty, first delete what these stores hold there",
    )


def _copy(arguments: argparse.Namespace) -> int:
    try:
        report = _copy_with_progress(arguments)
    except TargetNotEmpty as error:
        print_error(f"{error}; --resume continues a copy, --force deletes first what is there")
        return USAGE
    if not report.tables:
        print_error(f"nothing to copy: {report.source_url} is empty")
        return NOTHING_USABLE
    StandardOutput().print(_report(report))
    for table in report.tables:
        if table.source != table.target:
            named = table.namespace != DEFAULT_NAMESPACE
            where = f" in namespace {table.namespace}" if named else ""
            print_error(
                f"the counts of {_name(table.name)}{where} differ: {table.source:,} in FROM,"
                f" {table.target:,} in TO"
            )
    return OK if report.agrees else NOTHING_USABLE


def _copy_with_progress(arguments: argparse.Namespace) -> CopyReport:
    with progress_bar(
        Console(stderr=True),
        TextColumn("copying {task.fields[name]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,} of {task.total:,} rows"),
        TimeRemainingColumn(),
    ) as progress:
        task = progress.add_task("", total=0, name="")

        def on_progress(name: str, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, name=_name(name))

        return copy_database(
            getattr(arguments, "from"),
            arguments.to,
            only=arguments.only,
            namespace=arguments.namespace,
            resume=arguments.resume,
            force=arguments.force,
            on_progress=on_progress,
        )


def _report(report: CopyReport) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for name in ("copied", "were there", "in FROM", "in TO"):
        table.add_column(name, justify="right")
    totals: dict[str, Counter[str]] = {}
    for one in report.tables:
        counts = {"copied": one.copied, "kept": one.kept, "from": one.source, "to": one.target}
        totals.setdefault(one.name, Counter()).update(counts)
    for name, total in totals.items():
        style = None if total["from"] == total["to"] else "red"
        table.add_row(_name(name), *(f"{count:,}" for count in total.values()), style=style)
    verdict = "All counts agree." if report.agrees else "The counts differ."
    return sections(
        ("From", Text(report.source_url)),
        ("To", Text(report.target_url)),
        ("Rows", Group(table, Text(verdict, style="green" if report.agrees else "red"))),
        (
            "Speed",
            Text(
                f"{counted(report.copied, 'row')} in {report.elapsed_ms / 1000:.1f} s,"
                f" {report.rows_per_second:,} a second, counting included"
            ),
        ),
    )


def _name(table: str) -> str:
    return {"fsm": "conversations", "signal": "signal keys"}.get(table, table.replace("_", " "))
