"""What a run found: tables for the terminal, and a plot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import matplotlib as mpl
import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from rich.console import Console
from rich.table import Table

from benchmarks.rows import SECTIONS, Row

OURS, THEIRS, BUDGET = "tab:blue", "tab:gray", "tab:red"


class Report:
    """Reads the file that `pytest --benchmark-json` wrote."""

    def __init__(self, path: Path) -> None:
        self._run = json.loads(path.read_text())
        self._notes = [benchmark["extra_info"] for benchmark in self._run["benchmarks"]]
        rows = [msgspec.convert(row, Row) for notes in self._notes for row in notes.get("rows", ())]
        self.rows = sorted(rows, key=lambda row: SECTIONS.index(row.section))

    @property
    def missed(self) -> list[Row]:
        """Rows whose budget was not kept."""
        return [row for row in self.rows if row.kept is False]

    def print(self, console: Console) -> None:
        machine = self._run["machine_info"]
        console.print(
            f"{machine['python_implementation']} {machine['python_version']}"
            f" on {machine['cpu'].get('brand_raw', machine['machine'])}"
        )
        if self._run["disk"] is not None:
            console.print(f"files of the stores on {self._run['disk']}")
        console.print(_table("Budgets", [row for row in self.rows if row.budget is not None]))
        console.print(_table("Beside them", [row for row in self.rows if row.budget is None]))
        for row in self.missed:
            console.print(
                f"[bold red]missed:[/] {row.section}: {row.work}: {_measured(row)},"
                f" not {_budget(row)}"
            )
        for reason in self._run["skipped"]:
            console.print(f"[bold]left out:[/] {reason}")

    def plot(self, path: Path) -> None:
        """Write a PNG."""
        panels = {
            "other libraries": self._plot_libraries,
            "sessions": self._plot_sessions,
            "callers": self._plot_callers,
            "partitions": self._plot_partitions,
            "memory": self._plot_memory,
            "messages, SQLite": self._plot_messages,
            "fsm, SQLite": partial(self._plot_acts, "fsm, SQLite"),
            "fsm, Valkey": partial(self._plot_acts, "fsm, Valkey"),
        }
        measured = [draw for section, draw in panels.items() if self._section(section)]
        rows = -(-len(measured) // 2)
        with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
            figure = Figure(figsize=(16, 4.5 * rows), layout="constrained")
            grid = figure.add_gridspec(rows, 3)
            self._plot_budgets(figure.add_subplot(grid[:, 0]))
            for place, draw in enumerate(measured):
                draw(figure.add_subplot(grid[place // 2, 1 + place % 2]))
            figure.savefig(path, dpi=100)

    def _section(self, section: str) -> list[Row]:
        return [row for row in self.rows if row.section == section]

    def _plot_budgets(self, axes: Axes) -> None:
        rows = [row for row in reversed(self.rows) if row.budget is not None]
        used = [min(_budget_used(row), 200) for row in rows]
        colors = [OURS if row.kept else BUDGET for row in rows]
        axes.barh([_label(row) for row in rows], used, color=colors)
        axes.axvline(100, color=BUDGET, linestyle="--")
        for at, (row, percent) in enumerate(zip(rows, used, strict=True)):
            axes.text(max(percent, 100) + 3, at, f"{_measured(row)} ({_budget(row)})", va="center")
        axes.set(title="Budgets", xlabel="% of the budget", xlim=(0, 1.7 * max(*used, 100)))
        axes.set_xticks(range(0, 101, 20))
        axes.margins(y=0.01)

    def _plot_libraries(self, axes: Axes) -> None:
        rows = self._section("other libraries")
        ours = min(row.figure for row in rows)
        bars = axes.barh(
            ["trunkline resolve", *(str(row.against) for row in rows)],
            [ours, *(row.peer for row in rows)],
            color=[OURS, *(THEIRS for _ in rows)],
        )
        axes.bar_label(bars, [f" {_time(bar.get_width())}" for bar in bars])
        axes.invert_yaxis()
        axes.set(title="One value under a key, one caller", xlabel="ns, log scale", xscale="log")
        axes.set_xlim(100, 10 * max(bar.get_width() for bar in bars))

    def _plot_sessions(self, axes: Axes) -> None:
        rows = self._section("sessions")
        sessions = [row.x for row in rows]
        axes.plot(sessions, [row.figure for row in rows], "o-", color=OURS, label="resolve hit")
        axes.plot(sessions, [row.peer for row in rows], "o-", color=THEIRS, label="bare tables")
        axes.set(title="Sessions", xlabel="sessions", xscale="log", ylabel="ns")
        axes.set_ylim(bottom=0)
        axes.legend()

    def _plot_callers(self, axes: Axes) -> None:
        rows = self._section("callers")
        callers = [row.x for row in rows]
        for label, color, times in (
            ("resolve hit", OURS, [row.figure for row in rows]),
            (rows[0].against, THEIRS, [row.peer for row in rows]),
        ):
            per_second = [1e9 / ns for ns in times if ns]
            axes.plot(callers, per_second, "o-", color=color, label=label)
        _many_callers(axes, [x for x in callers if x])
        axes.set_title("Throughput")
        axes.set_ylim(bottom=0)

    def _plot_partitions(self, axes: Axes) -> None:
        rows = self._section("partitions")
        bars = axes.bar([str(row.x) for row in rows], [row.figure for row in rows], color=OURS)
        axes.bar_label(bars, fmt="%.0f")
        axes.set(title="Partitions", xlabel="partitions", ylabel="ns of a resolve hit")

    def _plot_memory(self, axes: Axes) -> None:
        routes, sizes = zip(*self._note("bytes_per_route"), strict=True)
        budget = next(row.budget for row in self._section("memory"))
        axes.plot(routes, sizes, color=OURS, label="measured")
        axes.axhline(budget or 0, color=BUDGET, linestyle="--", label="budget")
        axes.set(title="Memory of a route", xlabel="routes in one partition", xscale="log")
        axes.set(ylabel="bytes beyond the caller's own")
        axes.set_ylim(bottom=0)
        axes.legend()

    def _plot_messages(self, axes: Axes) -> None:
        rows = [row for row in self._section("messages, SQLite") if row.per_second]
        callers = sorted({row.x for row in rows if row.x})
        ours = [next(row.figure for row in rows if row.x == x) for x in callers]
        axes.plot(callers, [1e9 / ns for ns in ours], "o-", color=OURS, label="save_message")
        axes.set_prop_cycle(color=["tab:gray", "tab:olive", "tab:brown", "tab:green"])
        for against in dict.fromkeys(row.against for row in rows):
            peer = [(row.x, 1e9 / row.peer) for row in rows if row.against == against and row.peer]
            axes.plot(*zip(*peer, strict=True), "o-", label=against)
        _many_callers(axes, callers)
        axes.set(title="Durable messages, SQLite", yscale="log")

    def _plot_acts(self, section: str, axes: Axes) -> None:
        rows = self._section(section)
        places = [2 * place for place in range(len(rows))]
        for shift, color, label, times in (
            (0.0, OURS, "trunkline", [row.figure for row in rows]),
            (0.7, THEIRS, rows[0].against, [row.peer for row in rows]),
        ):
            at = [place + shift for place in places]
            axes.barh(at, [1e9 / ns for ns in times if ns], 0.7, color=color, label=label)
        axes.set_yticks([place + 0.35 for place in places], [row.work for row in rows])
        axes.invert_yaxis()
        axes.set(title=section, xlabel="calls a second")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.legend()

    def _note(self, name: str) -> list[tuple[float, float]]:
        return next(notes[name] for notes in self._notes if name in notes)


def _many_callers(axes: Axes, callers: list[int]) -> None:
    axes.set(xlabel="callers at once", ylabel="calls a second")
    axes.set_xscale("log", base=2)
    axes.set_xticks(callers, [str(x) for x in callers])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.legend()


def _table(title: str, rows: list[Row]) -> Table:
    budgets = bool(rows) and rows[0].budget is not None
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("work")
    table.add_column("ours", justify="right")
    table.add_column("against")
    table.add_column("theirs", justify="right")
    table.add_column("ratio", justify="right")
    if budgets:
        table.add_column("budget", justify="right")
        table.add_column("")
    for section, members in _by_section(rows):
        for row in members:
            cells = [
                section if row is members[0] else "",
                row.work,
                _figure(row, row.figure),
                row.against or "",
                "" if row.peer is None else _figure(row, row.peer),
                "" if row.ratio is None else _measured(row),
            ]
            if budgets:
                cells += [_budget(row), "[green]kept[/]" if row.kept else "[bold red]missed[/]"]
            table.add_row(*cells, end_section=row is members[-1])
    return table


def _by_section(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    for section in SECTIONS:
        members = [row for row in rows if row.section == section]
        if members:
            yield section, members


def _figure(row: Row, figure: float) -> str:
    if row.per_second:
        return f"{1e9 / figure:,.0f}/s"
    if row.unit == "ns":
        return _time(figure)
    return f"{figure:,.0f} B" if row.unit == "B" else f"{figure:.1f} ms"


def _time(ns: float) -> str:
    if ns < 10_000:
        return f"{ns:.0f} ns"
    return f"{ns / 1e3:,.1f} µs" if ns < 10_000_000 else f"{ns / 1e6:,.1f} ms"


def _measured(row: Row) -> str:
    """What a budget is held against."""
    if row.ratio is None:
        return _figure(row, row.figure)
    if not row.speedup:
        return f"{row.ratio:.2f} x"
    return f"{row.ratio:.1f} x faster" if row.ratio >= 1 else f"{1 / row.ratio:.1f} x slower"


def _budget(row: Row) -> str:
    assert row.budget is not None
    if row.ratio is None:
        return f"≤ {row.budget:,g} {row.unit}"
    return f"≥ {row.budget:g} x" if row.speedup else f"≤ {row.budget:g} x"


def _budget_used(row: Row) -> float:
    assert row.budget is not None
    if row.ratio is None:
        return 100 * row.figure / row.budget
    return 100 * (row.budget / row.ratio if row.speedup else row.ratio / row.budget)


def _label(row: Row) -> str:
    return row.work if row.peer is None else f"{row.work}\nagainst {row.against}"
