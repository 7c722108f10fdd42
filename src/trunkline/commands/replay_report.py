"""The report of a replay, for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trunkline.commands.rendering import counted, duration, facts, note, round_up, sections, short
from trunkline.replay import ChatLog, LateAnswers, ReplayReport
from trunkline.replay.history import Stored

__all__ = ("replay_report",)

#: Bars of a chart at most; the fullest partitions are shown.
_MOST_BARS = 32


def replay_report(
    report: ReplayReport, log: ChatLog, stored: Stored | None = None
) -> RenderableType:
    """A report for people; as wide as the terminal."""
    return sections(
        ("The log", _log_section(report, log)),
        ("What resolves found", _outcomes_section(report)),
        ("Late answers without a route of their own", _causes_section(report.late_answers)),
        ("The route tables", _tables_section(report)),
        ("Peak entries per partition", _partitions_section(report)),
        ("Speed", _speed_section(report)),
        ("Which TTL and capacity does this log need?", _advice_section(report)),
        *([("What was saved", _stored_section(stored))] if stored is not None else []),
    )


def _log_section(report: ReplayReport, log: ChatLog) -> RenderableType:
    config = report.config
    table = facts()
    table.add_row("messages", f"{report.messages:,} over {duration(_span_ms(report))}")
    table.add_row(
        "conversations",
        f"{counted(report.rooms, 'room')} and {counted(report.threads, 'thread')}",
    )
    table.add_row(
        "router",
        f"{counted(config.partition_count, 'partition')} of"
        f" {config.max_entries_per_partition:,} entries",
    )
    table.add_row(
        "routes",
        f"fresh for {duration(config.ttl_ms)}, pruned every {duration(config.prune_interval_ms)}",
    )
    if log.broken_lines:
        table.add_row("broken lines", f"[yellow]{log.broken_lines:,}[/], skipped")
    if log.unreadable_files:
        table.add_row(
            "incomplete", f"[red]{counted(log.unreadable_files, 'file')} could not be read whole[/]"
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
    for name in ("replies", "late answers", "all"):
        table.add_column(name, justify="right")
    for name, meaning in (
        ("hits", "the conversation's own route"),
        ("thread_fallbacks", "its room's route instead"),
        ("misses", "no route"),
    ):
        found = (getattr(one, name) for one in (report.replies, report.late_answers, report))
        table.add_row(
            name.replace("_", " "), *(f"{count:,}" for count in found), Text(meaning, style="dim")
        )
    totals = (report.messages, report.messages, report.resolves)
    table.add_row("resolves", *(f"{count:,}" for count in totals))
    return Group(
        table,
        note(
            "A reply leaves just after its message came; a late answer just before the next"
            " message of its conversation, which is the hardest moment."
        ),
    )


def _causes_section(late: LateAnswers) -> RenderableType:
    table = facts(count=True)
    table.add_row("new", f"{late.new:,}", "first message of its conversation; nothing to find yet")
    table.add_row("expired", f"{late.expired:,}", "a longer --ttl-ms would have kept the route")
    table.add_row("evicted", f"{late.evicted:,}", "a larger --max-entries would have kept it")
    return table


def _tables_section(report: ReplayReport) -> RenderableType:
    table = facts(count=True)
    table.add_row("sets", f"{report.sets:,}", "a message in a thread sets its room's route too")
    table.add_row("peak entries", f"{report.peak_entries:,}", "most held at one time")
    table.add_row("evicted", f"{report.evicted:,}", "the least recently used, to make room")
    table.add_row("pruned", f"{report.pruned:,}", "expired, and removed by a prune")
    table.add_row("stale", f"{report.stale:,}", "expired, and found by a resolve before the prune")
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
        notes.append(note(f"and {hidden:,} more that were never fuller than these"))
    if report.rooms < report.config.partition_count:
        notes.append(
            note(
                "A room and its threads share one partition, so"
                f" {counted(report.rooms, 'room')} cannot fill them all."
            )
        )
    return Group(table, *notes)


def _speed_section(report: ReplayReport) -> RenderableType:
    latency = report.resolve
    table = facts()
    table.add_row(
        "messages per second",
        f"{report.messages_per_second:,} ({report.elapsed_ms / 1000:.1f} s, reading included)",
    )
    table.add_row(
        "a resolve took",
        f"p50 {short(latency.p50_ns)}, p99 {short(latency.p99_ns)}, max {short(latency.max_ns)}",
    )
    return table


def _advice_section(report: ReplayReport) -> RenderableType:
    late, needed, config = report.late_answers, report.needed_ttl, report.config
    if late.new == report.messages:
        return Text("No conversation of this log came back: any TTL and capacity will do.")
    table = facts()
    for part, needed_ms in (
        ("a half", needed.p50_ms),
        ("90 %", needed.p90_ms),
        ("95 %", needed.p95_ms),
        ("99 %", needed.p99_ms),
        ("all", needed.max_ms),
    ):
        ttl_ms = round_up(needed_ms)
        table.add_row(f"to keep {part}", f"--ttl-ms {ttl_ms}", f"{duration(ttl_ms)}")
    table.add_row(
        "to evict nothing",
        f"--max-entries {report.needed_entries}",
        f"at a TTL of {duration(config.ttl_ms)}",
    )
    return Group(
        Text(
            f"With these settings {late.kept:.1%} of the routes were still there when their"
            " conversation came back."
        ),
        table,
    )


def _stored_section(stored: Stored) -> RenderableType:
    table = facts(count=True)
    for kind, count, new in (
        ("rooms", stored.rooms, stored.new_rooms),
        ("participants", stored.participants, stored.new_participants),
        ("threads", stored.threads, stored.new_threads),
        ("messages", stored.messages, stored.new_messages),
    ):
        table.add_row(kind, f"{count:,}", "all of them new" if 0 < count == new else f"{new:,} new")
    if stored.refused:
        table.add_row("refused", f"[red]{stored.refused:,}[/]", "messages no database can hold")
    table.add_row(
        "saved per second",
        f"{stored.messages_per_second:,}",
        f"messages; {stored.elapsed_ms / 1000:.1f} s, the replay left out",
    )
    return table
