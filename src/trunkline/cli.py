"""The command line: `python -m trunkline`, or `trunkline`.

Each subcommand is a function that takes the parsed arguments and returns an exit status; its work
is done by a module of its own. Results go to standard output, all else to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trunkline import __version__
from trunkline.commands.copy import add_copy
from trunkline.commands.demo import add_demo
from trunkline.commands.inspect import add_inspect
from trunkline.commands.manners import (
    BROKEN_PIPE,
    INTERRUPTED,
    NOTHING_USABLE,
    USAGE,
    complain,
    discard_output,
    never_fail_on_a_character,
    terse_log,
)
from trunkline.commands.replay import add_replay
from trunkline.errors import NotFound, TrunklineError

__all__ = ("main",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments, without the program's name; by default those of the process.

    Returns:
        The exit status: 0 done; 1 nothing usable in the input, or a copy that differs; 2 wrong
        usage, or a file or database that cannot be read; 130 interrupted by Ctrl-C; 141 the reader
        of the output has gone away.

    Raises:
        SystemExit: after `--help` and `--version`, and for wrong usage.
    """
    for stream in (sys.stdout, sys.stderr):
        never_fail_on_a_character(stream)
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return BROKEN_PIPE
    except OSError as error:
        discard_output()
        complain(f"standard output: {error.strerror or error}")
        return NOTHING_USABLE


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.run is None:
        parser.print_help(sys.stderr)
        return USAGE
    with terse_log():
        try:
            status: int = arguments.run(arguments)
        except TrunklineError as error:
            complain(str(error).partition("\n")[0])
            return NOTHING_USABLE if isinstance(error, NotFound) else USAGE
    return status


_EXAMPLES = """\
examples:
  trunkline demo                       see in a few seconds what a router does
  trunkline replay chat.jsonl          which TTL and capacity does my bot need?
  trunkline inspect sqlite:///bot.db   what does this database hold?
  trunkline copy sqlite:///bot.db postgresql://me@localhost/bot
  trunkline copy --help                the options of a command
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trunkline",
        description="A session router for async bots: where does the answer go?",
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
    return parser
