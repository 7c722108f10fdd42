"""`trunkline inbox`: see what waits, runs and has failed, and retry or discard it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from time import time
from typing import TypeAlias

import msgspec
from msgspec.structs import replace
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from trunkline.admin import (
    DEFAULT_NAMESPACE,
    ITEM_STATES,
    InboxInspection,
    InboxItem,
    discard_items,
    inspect_inbox,
    retry_items,
)
from trunkline.commands.console import (
    NOTHING_USABLE,
    OK,
    USAGE,
    StandardOutput,
    add_command,
    print_error,
    whole_number,
)
from trunkline.commands.rendering import (
    counted,
    duration,
    inbox_counts,
    json_line,
    note,
    printable,
    sections,
)

__all__ = ("add_inbox",)

_TEXT = """\
See what was accepted and is not handled yet: how many items wait, run and have
failed, and for each its session, age, attempts and last error. Payloads are
shown with --show-content alone. Looking creates, migrates and changes nothing,
so that it is safe beside a bot.

With --retry a failed item waits again, with all of its attempts; a bot that
runs takes it at once. With --discard an item that waits or has failed is
removed.
"""

_EXAMPLES = """\
examples:
  trunkline inbox sqlite:///bot.db
  trunkline inbox --state failed --show-content postgresql://me@localhost/bot
  trunkline inbox --retry 019ab6c4-6a2e-7d31-8f0e-2b8f6f0a9f11 sqlite:///bot.db

exit status:
  0 shown or done; 1 there is no inbox or no such item, or the item runs;
  2 it does not exist or cannot be reached, wrong usage
"""


def add_inbox(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "inbox",
        _inbox,
        summary="see what waits or has failed; retry or discard it",
        text=_TEXT,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "url", metavar="URL", help="sqlite:///bot.db, postgresql://..., valkey://..."
    )
    parser.add_argument(
        "--namespace", metavar="NAME", help="look into this namespace (default: all)"
    )
    parser.add_argument(
        "--state", choices=ITEM_STATES, help="show the items in this state (default: all)"
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=whole_number(1, 10_000),
        default=20,
        help="how many items of each state to show (default: %(default)s)",
    )
    parser.add_argument("--after", metavar="ID", help="show items behind this one; needs --state")
    parser.add_argument("--show-content", action="store_true", help="show payloads as well")
    action = parser.add_mutually_exclusive_group()
    for name, text in (("retry", "let a failed item wait again"), ("discard", "remove an item")):
        action.add_argument(
            f"--{name}",
            metavar="ID",
            action="append",
            default=[],
            help=f"{text}; may be repeated",
        )
    parser.add_argument(
        "--json", action="store_true", help="print it as one line of JSON, and only that"
    )


def _inbox(arguments: argparse.Namespace) -> int:
    if arguments.retry or arguments.discard:
        return _change(arguments)
    if arguments.after is not None and arguments.state is None:
        print_error("--after needs --state")
        return USAGE
    found = inspect_inbox(
        arguments.url,
        states=ITEM_STATES if arguments.state is None else (arguments.state,),
        limit=arguments.limit,
        after=arguments.after,
        namespace=arguments.namespace,
        show_content=arguments.show_content,
    )
    inspection = _for_json(found)
    if arguments.json:
        print(json_line(inspection))
    else:
        StandardOutput().print(sections(*_report(inspection, arguments.limit)))
    return OK


def _change(arguments: argparse.Namespace) -> int:
    """Retry or discard items."""
    running: list[str] = []
    if arguments.retry:
        retry_items(arguments.url, arguments.retry, namespace=arguments.namespace)
    else:
        running = discard_items(arguments.url, arguments.discard, namespace=arguments.namespace)
    done = [item_id for item_id in arguments.retry + arguments.discard if item_id not in running]
    verb = "retried" if arguments.retry else "discarded"
    if arguments.json:
        print(json_line({verb: done}))
    else:
        for item_id in done:
            print(f"{printable(item_id)} {verb}")
    for item_id in running:
        print_error(f"item {item_id!r} runs now, and was not discarded")
    return NOTHING_USABLE if running else OK


# -- how it looks ------------------------------------------------------------------------------

_Sections: TypeAlias = Iterator[tuple[str, RenderableType]]


def _report(inspection: InboxInspection, limit: int) -> _Sections:
    several = [*inspection.namespaces] != [DEFAULT_NAMESPACE]
    for namespace, contents in inspection.namespaces.items():
        name = f", namespace {printable(namespace)}" if several else ""
        yield f"Inbox{name}", inbox_counts(contents.counts)
        for state, items in contents.items.items():
            if items:
                yield f"{state.capitalize()}{name}", _items(items, limit)


def _items(items: Sequence[InboxItem], limit: int) -> RenderableType:
    now_ms = int(time() * 1000)
    lines: list[RenderableType] = []
    for item in items:
        age = duration(max(now_ms - item.accepted_at_ms, 0))
        lines.append(Text(f"{item.id}  {age}  {printable(item.session_key)}", overflow="fold"))
        lines += [Padding(Text(one, overflow="fold"), (0, 0, 0, 4)) for one in _remarks(item)]
    if len(items) == limit:
        lines.append(note(f"--after {items[-1].id} shows what follows"))
    return Group(*lines)


def _remarks(item: InboxItem) -> Iterator[str]:
    """What else there is to say about an item, a line each."""
    facts = [counted(item.attempt, "attempt")] if item.attempt else []
    facts += ["alone"] if item.alone else []
    facts += ["urgent"] if item.urgent else []
    facts += [f"external id {item.external_id}"] if item.external_id is not None else []
    if facts:
        yield printable(", ".join(facts))
    if item.error is not None:
        yield printable(item.error)
    if item.unreadable is not msgspec.UNSET:
        yield f"payload: {item.unreadable}"
    elif item.payload is not msgspec.UNSET:
        yield printable(msgspec.json.encode(item.payload).decode())


def _for_json(inspection: InboxInspection) -> InboxInspection:
    """With payloads that JSON can have: those with other keys than texts as Python shows them."""
    namespaces = {}
    for name, contents in inspection.namespaces.items():
        items = {state: tuple(map(_item_for_json, some)) for state, some in contents.items.items()}
        namespaces[name] = replace(contents, items=items)
    return replace(inspection, namespaces=namespaces)


def _item_for_json(item: InboxItem) -> InboxItem:
    try:
        msgspec.json.encode(item)
    except TypeError:
        return replace(item, payload=repr(item.payload))
    return item
