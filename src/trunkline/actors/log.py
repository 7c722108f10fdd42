"""The log of the library: one line an event, through the standard library's `logging`.

A library neither configures logging nor prints. Without any configuration Python writes warnings
and errors to standard error.
"""

from __future__ import annotations

import logging

__all__ = ("Log", "safe_repr")


class Log:
    """Writes events with their fields to the logger of one package, such as `trunkline.actors`.

    A record's message is the event with its fields as `name=value`. For formatters that write JSON,
    the record has them as `record.event` (str) and `record.fields` (dict) as well.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._write(logging.ERROR, event, fields)

    def _write(self, level: int, event: str, fields: dict[str, object]) -> None:
        if not self._logger.isEnabledFor(level):
            return
        words = [event, *(f"{name}={fields[name]!r}" for name in fields if name != "exception")]
        message = " ".join(words)
        # A traceback is passed as text: a handler that renders it itself may show the local
        # variables of every frame, and secrets with them.
        if "exception" in fields:
            message += f"\n{fields['exception']}"
        try:
            extra = {"event": event, "fields": fields}
            self._logger.log(level, "%s", message, extra=extra, stacklevel=3)
        except Exception:
            # A handler of the program failed. That is no reason for an actor to crash.
            pass


def safe_repr(error: BaseException) -> str:
    """`repr(error)`, or the name of its class if its repr is a bug as well."""
    try:
        return repr(error)
    except Exception:
        return f"{type(error).__name__} (its repr() raised)"
