"""Parts of reports, and numbers in the form in which people read them."""

from __future__ import annotations

import re

import msgspec
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trunkline.turns import InboxCounts

__all__ = (
    "counted",
    "duration",
    "facts",
    "inbox_counts",
    "json_line",
    "note",
    "printable",
    "round_up",
    "sections",
    "short",
)


def sections(*sections: tuple[str, RenderableType]) -> Group:
    """Titles, each with its section below it."""
    lines: list[RenderableType] = []
    for title, section in sections:
        lines += [Text(title, style="bold cyan"), Padding(section, (0, 0, 0, 2)), ""]
    return Group(*lines[:-1])


def facts(*, count: bool = False) -> Table:
    """A table without lines: a name, its value, and a remark."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right" if count else "left")
    table.add_column(style="dim")
    return table


def inbox_counts(counts: InboxCounts) -> Table:
    """How many sessions and items an inbox has."""
    table = facts(count=True)
    for name, count in msgspec.structs.asdict(counts).items():
        table.add_row(name, f"{count:,}")
    return table


def note(text: str) -> Text:
    return Text(text, style="dim")


def printable(text: str) -> str:
    """`text` on one line, with the characters escaped that a terminal could run as commands."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


#: Invisible, harmless, and part of emoji and of words in Persian and Indic scripts.
_JOINERS = "\u200c\u200d"


def json_line(value: object) -> str:
    """`value` as one line of JSON, which has no control characters."""
    text = msgspec.json.encode(value).decode()
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_CONTROLS = re.compile("[\x7f-\x9f]")


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 room`, `2,000 rooms`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


_UNITS = (("y", 31_557_600_000), ("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000))


def duration(ms: int) -> str:
    """A duration in its two largest units: `13 y 65 d`, `30 min`, `1 s 4 ms`."""
    parts = []
    for unit, length_ms in (*_UNITS, ("ms", 1)):
        amount, ms = divmod(ms, length_ms)
        if amount:
            parts.append(f"{amount} {unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 ms"


def round_up(ms: int) -> int:
    """Round up to a whole second, minute, hour or day, which adds less than a tenth."""
    unit_ms = next((length for _, length in _UNITS[1:] if length * 10 <= ms), 1)
    return -(-ms // unit_ms) * unit_ms


def short(ns: int) -> str:
    """A latency, in the unit that leaves few digits."""
    if ns < 1_000:
        return f"{ns} ns"
    return f"{ns / 1e3:.1f} us" if ns < 1_000_000 else f"{ns / 1e6:.1f} ms"
