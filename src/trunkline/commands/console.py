"""What every command shares: standard output and error, exit statuses, Ctrl-C, the log."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.text import Text

from trunkline.commands.rendering import printable

__all__ = (
    "BROKEN_PIPE",
    "NOTHING_USABLE",
    "OK",
    "USAGE",
    "StandardOutput",
    "add_command",
    "discard_output",
    "interruptible_reads",
    "print_error",
    "progress_bar",
    "replace_unencodable",
    "terse_log",
    "whole_number",
)

T = TypeVar("T")

#: Exit statuses.
OK, NOTHING_USABLE, USAGE = 0, 1, 2

#: What a shell reports for a program that a closed pipe has ended.
BROKEN_PIPE = 128 + 13


class StandardOutput(Console):
    """Standard output, which may be a pipe whose reader has closed it."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@contextmanager
def progress_bar(console: Console, *columns: ProgressColumn) -> Iterator[Progress]:
    """A progress bar on a terminal, cleared at its end; nothing elsewhere."""
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    # A disabled one prints an empty line when it stops, up to rich 14.2.
    with nullcontext() if progress.disable else progress:
        yield progress


def print_error(text: str, console: Console | None = None) -> None:
    """Print one line to standard error, above the progress bar if `console` shows one."""
    line = f"trunkline: {printable(text)}"
    if console is None:
        print(line, file=sys.stderr)
    else:
        console.print(Text(line), soft_wrap=True)


def replace_unencodable(stream: TextIO) -> None:
    """Write a question mark for a character that the terminal's or file's encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    text: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a subcommand: a function that returns an exit status, and what its help shows."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The `type=` of an argument that is a whole number in this range."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        if most is not None and number > most:
            raise argparse.ArgumentTypeError(f"{text!r} is more than {most:,}")
        return number

    return parse


def discard_output() -> None:
    """Discard what is still buffered, which the interpreter would fail to write at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def interruptible_reads(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """Make Ctrl-C interrupt the blocking read of the next item, inside an event loop.

    The event loop's own handler cancels the task at its next await, and a blocking read has none.
    Outside of these reads its handler stays in force.
    """
    reading = False

    def read() -> Iterator[T]:
        nonlocal reading
        iterator = iter(items)
        while True:
            reading = True
            item = next(iterator, None)
            reading = False
            if item is None:
                return
            yield item

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
def terse_log(level: int = logging.WARNING) -> Iterator[None]:
    """Log to standard error, one line each, without tracebacks."""
    logger = logging.getLogger("trunkline")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("trunkline: %(levelname)s: %(message)s"))
    level_before, propagate_before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)
        logger.propagate = propagate_before


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record).partition("\n")[0])
