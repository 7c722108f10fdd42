"""`trunkline demo`: see what a router does."""

from __future__ import annotations

import argparse
import logging

import anyio

from trunkline.commands.console import OK, StandardOutput, add_command, terse_log
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
    add_command(
        commands,
        "demo",
        _demo,
        summary="see in a few seconds what a router does",
        text=_TEXT,
        examples=_EXAMPLES,
    )


def _demo(_arguments: argparse.Namespace) -> int:
    with terse_log(logging.CRITICAL):  # It reports its crash itself.
        anyio.run(demo, StandardOutput())
    return OK
