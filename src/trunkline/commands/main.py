"""The parser of the command line, and how a command starts and ends.

Each subcommand is a function that takes the parsed arguments and returns an exit status; its work
is done by a module of its own. Results go to standard output, all else to standard error.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from trunkline import __version__
from trunkline.commands.console import (
    BROKEN_PIPE,
    NOTHING_USABLE,
    USAGE,
    discard_output,
    print_error,
    replace_unencodable,
    terse_log,
)
from trunkline.commands.copy import add_copy
from trunkline.commands.demo import add_demo
from trunkline.commands.inbox import add_inbox
from trunkline.commands.inspect import add_inspect
from trunkline.commands.replay import add_replay
from trunkline.errors import NotFound, TrunklineError

__all__ = ("run",)


def run(argv: Sequence[str] | None) -> int:
    """Run one command, as `trunkline.cli.main` does.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: after `--help` and `--version`, and for wrong usage.
    """
    if sys.stderr is None:  # closed by the parent process
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        for stream in (sys.stdout, sys.stderr):
            replace_unencodable(stream)
        try:
            return _run_command(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return BROKEN_PIPE
    except OSError as error:
        discard_output()
        print_error(f"standard output: {error.strerror or error}")
        return NOTHING_USABLE


def _run_command(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.run is None:
        parser.print_help(sys.stderr)
        return USAGE
    with terse_log():
        try:
            status: int = arguments.run(arguments)
        except TrunklineError as error:
            print_error(str(error).partition("\n")[0])
            return NOTHING_USABLE if isinstance(error, NotFound) else USAGE
    return status


_EXAMPLES = """\
examples:
  trunkline demo                       see in a few seconds what a router does
  trunkline replay chat.jsonl          which TTL and capacity does my bot need?
  trunkline inspect sqlite:///bot.db   what does this database hold?
  trunkline copy sqlite:///bot.db postgresql://me@localhost/bot
  trunkline inbox sqlite:///bot.db     which messages wait, run, or have failed?
  trunkline copy --help                the options of a command
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trunkline",
        description="Durable turns and a session router for async bots.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trunkline {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    add_demo(commands)
    add_replay(commands)
    add_inspect(commands)
    add_copy(commands)
    add_inbox(commands)
    return parser
