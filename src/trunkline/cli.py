"""The command line: `python -m trunkline`, or `trunkline`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ("main",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments, without the program's name; by default those of the process.

    Returns:
        The exit status: 0 done; 1 nothing usable in the input, a copy that differs, or an output
        that cannot be written; 2 wrong usage, or a file or database that cannot be read; 130
        interrupted by Ctrl-C; 141 the reader of the output has closed it.

    Raises:
        SystemExit: after `--help` and `--version`, and for wrong usage.
    """
    try:
        # Imported here: it takes a moment, in which Ctrl-C must end the program as it does later.
        from trunkline.commands.main import run

        return run(argv)
    except KeyboardInterrupt:
        print("trunkline: interrupted", file=sys.stderr)
        return 130  # what a shell reports for a program that SIGINT has ended
