"""Good manners of a command: where it says what, and how it ends."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO, TypeVar

import structlog
from rich.console import Console
from rich.text import Text

__all__ = (
    "BROKEN_PIPE",
    "INTERRUPTED",
    "NOTHING_USABLE",
    "OK",
    "USAGE",
    "StandardOutput",
    "complain",
    "ctrl_c_ends_reads",
    "discard_output",
    "never_fail_on_a_character",
    "terse_log",
)

T = TypeVar("T")

#: Exit statuses.
OK, NOTHING_USABLE, USAGE = 0, 1, 2

#: What a shell tells of a program that Ctrl-C or a closed pipe has ended.
INTERRUPTED, BROKEN_PIPE = 128 + 2, 128 + 13


class StandardOutput(Console):
    """Standard output, which may be a pipe whose reader has gone away."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def complain(text: str, console: Console | None = None) -> None:
    """Say it on standard error, above the progress bar if `console` shows one."""
    line = f"trunkline: {text}"
    if console is None:
        print(line, file=sys.stderr)
    else:
        console.print(Text(line), soft_wrap=True)


def never_fail_on_a_character(stream: TextIO) -> None:
    """Let a terminal or file that cannot show a character get a question mark."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def discard_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not fail on it too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def ctrl_c_ends_reads(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """Let Ctrl-C end the wait for the next of `items`, inside an event loop.

    The event loop's handler cancels the task at its next await, which the read of a pipe has not.
    Everywhere else an exception out of nowhere would do harm.
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
