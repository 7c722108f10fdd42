"""`trunkline inspect`: see what a database holds."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trunkline.admin import (
    DEFAULT_NAMESPACE,
    Contents,
    Inspection,
    NewestMessage,
    inspect_database,
)
from trunkline.commands.console import OK, StandardOutput, add_command, whole_number
from trunkline.commands.rendering import (
    counted,
    facts,
    inbox_counts,
    json_line,
    note,
    printable,
    sections,
)
from trunkline.turns import InboxCounts

__all__ = ("add_inspect",)

_TEXT = """\
See what a database holds in each namespace: how many rooms, messages and so on,
the newest messages, the conversations of each bot by flow and state, how many
keys each family has, and how many items the inbox has by state. Values of
signal, credentials of bridges and payloads of the inbox are never shown.
Nothing is created, migrated or changed, so that it is safe beside a bot.
"""

_EXAMPLES = """\
examples:
  trunkline inspect sqlite:///bot.db
  trunkline inspect valkey://localhost:6379/0
  trunkline inspect --json sqlite:///bot.db | jq .namespaces.default.counts

exit status:
  0 shown; 1 it holds nothing of trunkline's; 2 it does not exist or cannot be
  reached, wrong usage
"""

#: Steps of conversations that are shown at most.
_MOST_STEPS = 30


def add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "inspect",
        _inspect,
        summary="see what a database holds",
        text=_TEXT,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "url", metavar="URL", help="sqlite:///bot.db, postgresql://..., valkey://..."
    )
    parser.add_argument(
        "--newest",
        metavar="N",
        type=whole_number(0, 1_000),
        default=5,
        help="how many of the newest messages to show (default: %(default)s)",
    )
    parser.add_argument("--namespace", metavar="NAME", help="show this namespace (default: all)")
    parser.add_argument(
        "--json", action="store_true", help="print it as one line of JSON, and only that"
    )


def _inspect(arguments: argparse.Namespace) -> int:
    inspection = inspect_database(
        arguments.url, newest=arguments.newest, namespace=arguments.namespace
    )
    if arguments.json:
        print(json_line(inspection))
    else:
        StandardOutput().print(sections(*_report(inspection)))
    return OK


# -- how it looks ------------------------------------------------------------------------------

_Sections: TypeAlias = Iterator[tuple[str, RenderableType]]


def _report(inspection: Inspection) -> _Sections:
    shown = {"persistence": _persistence, "fsm": _fsm, "signal": _signal, "inbox": _inbox}
    several = [*inspection.namespaces] != [DEFAULT_NAMESPACE]
    for store, schema in inspection.stores.items():
        version = "" if schema.version is None else f", schema version {schema.version}"
        title = f"{store.capitalize()}{version}"
        if not schema.is_known:
            yield (
                title,
                Text(
                    f"This trunkline works with schema version {schema.known_version} and did not"
                    f" look inside: {schema.advice}."
                ),
            )
        elif store in shown:
            for namespace, contents in inspection.namespaces.items():
                name = f", namespace {printable(namespace)}" if several else ""
                yield from shown[store](f"{title}{name}", contents)


def _persistence(title: str, contents: Contents) -> _Sections:
    table = facts(count=True)
    for kind, count in (contents.counts or {}).items():
        table.add_row(kind.replace("_", " "), f"{count:,}")
    yield title, table
    if contents.newest_messages:
        yield "Newest messages", _messages(contents.newest_messages)


def _messages(messages: Iterable[NewestMessage]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False, expand=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, max_width=20)
    table.add_column(no_wrap=True, max_width=20, style="cyan")
    table.add_column(no_wrap=True, ratio=1)
    for one in messages:
        content = one.message.content
        text = content if isinstance(content, str) else msgspec.json.encode(content).decode()
        cells = (
            f"{one.message.inserted_at:%Y-%m-%d %H:%M:%S}",
            one.room_name or one.message.room_id,
            one.sender_name or one.message.sender_id or one.message.role,
            text,
        )
        table.add_row(*(Text(printable(cell), overflow="ellipsis") for cell in cells))
    return table


def _fsm(title: str, contents: Contents) -> _Sections:
    found = contents.conversations or ()
    bots = len({one.bot_name for one in found})
    total = sum(one.count for one in found)
    summary = Text(f"{counted(total, 'conversation')} of {counted(bots, 'bot')}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("bot", "flow", "state"):
        table.add_column(name, overflow="fold")
    table.add_column("conversations", justify="right")
    for one in found[:_MOST_STEPS]:
        names = (one.bot_name, one.flow, one.state)
        table.add_row(
            *(Text("-" if name is None else printable(name)) for name in names), f"{one.count:,}"
        )
    rest = found[_MOST_STEPS:]
    yield (
        title,
        Group(
            summary,
            *([table] if found else []),
            *([note(f"and {counted(len(rest), 'more step')}; --json gives all")] if rest else []),
        ),
    )


def _signal(title: str, contents: Contents) -> _Sections:
    table = facts(count=True)
    for family, count in (contents.families or {}).items():
        table.add_row(Text(printable(family)), f"{count:,}", "entry" if count == 1 else "entries")
    yield title, table if contents.families else Text("no entries")


def _inbox(title: str, contents: Contents) -> _Sections:
    yield title, inbox_counts(contents.inbox or InboxCounts())
