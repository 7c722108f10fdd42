"""`trunkline demo`: see what a router does."""

from __future__ import annotations

import argparse
import logging

import anyio

from trunkline.commands.console import OK, StandardOutput, terse_log
from trunkline.demo import demo

__all__ = ("add_demo",)

_TEXT = """\
An hour of made-up chat on three platforms runs through a router in a few
seconds: threads fall back to their rooms, routes expire, a partition crashes
and comes back, and memory stays bounded. It reads no files and leaves none.
"""

_EXAMPLES = """\
examples:
  trunkline demo
  trunkline demo > demo.txt     without colours and progress bar
"""


def add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="see in a few seconds what a router does",
        description=_TEXT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_demo)


def _demo(_arguments: argparse.Namespace) -> int:
    with terse_log(logging.CRITICAL):  # It tells of its crash itself.
        anyio.run(demo, StandardOutput())
    return OK
