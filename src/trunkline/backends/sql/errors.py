"""What the errors of SQLite and PostgreSQL mean to a caller."""

from __future__ import annotations

import re
import sqlite3

from sqlalchemy.exc import DataError, DBAPIError, OperationalError

from trunkline.backends.errors import Conflict, ConnectionLost
from trunkline.errors import ConfigurationError, InvalidModel, StoreUnavailable

__all__ = ("first_line", "is_broken", "translate")

#: SQLite's names of errors, by how they begin: what is no database, or cannot be written to;
#: another connection holds a lock; a bug in a statement; a file that should be opened anew.
_SQLITE_MISTAKES = ("SQLITE_NOTADB", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_AUTH")
_SQLITE_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
_SQLITE_BUGS = ("SQLITE_ERROR", "SQLITE_RANGE", "SQLITE_MISMATCH", "SQLITE_MISUSE")
_SQLITE_BROKEN = ("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CANTOPEN")

#: PostgreSQL's SQLSTATEs, by how they begin: wrong user, password, database or schema, or missing
#: rights; a session that is over, or leads to a server that only reads; another transaction holds
#: a lock or was first; a server that cannot do it now.
_POSTGRES_MISTAKES = ("28", "3D", "3F", "42501")
_POSTGRES_LOST = ("08", "57P", "25006", "25P03")
_POSTGRES_CONFLICTS = ("40001", "40P01", "55P03")
_POSTGRES_UNAVAILABLE = ("53", "57", "58")
#: A server that refuses a connection sends no SQLSTATE along.
_POSTGRES_REFUSALS = re.compile(
    "authentication failed|no password supplied|no pg_hba.conf entry|not permitted to log in"
    "|(role|database) .* does not exist|permission denied"
)


def translate(error: DBAPIError, where: str) -> Exception:
    """What `error` means to a caller. Never the statement's parameters: they may be secrets."""
    if isinstance(error.orig, sqlite3.Error):
        return _translate_sqlite(error, where)
    return _translate_postgres(error, where)


def _translate_sqlite(error: DBAPIError, where: str) -> Exception:
    cause, code = error.orig, _sqlite_code(error)
    if isinstance(cause, sqlite3.IntegrityError | sqlite3.ProgrammingError):
        return error
    if code.startswith(_SQLITE_BUGS):
        return error
    # A text that is no UTF-8 is quoted, and may be a secret.
    reason = str(cause).partition(" with text ")[0]
    text = f"{where}: {reason} ({code or type(cause).__name__})"
    if code.startswith(_SQLITE_MISTAKES):
        return ConfigurationError(text)
    if code.startswith(_SQLITE_BUSY):
        return Conflict(text)
    if code.startswith("SQLITE_TOOBIG"):
        return InvalidModel(text)
    return StoreUnavailable(text)


def _translate_postgres(error: DBAPIError, where: str) -> Exception:
    state = getattr(error.orig, "sqlstate", None) or ""
    text = f"{where}: {first_line(error.orig)}"
    if isinstance(error, DataError):
        return InvalidModel(text)
    if state.startswith(_POSTGRES_MISTAKES):
        return ConfigurationError(text)
    if not state and _POSTGRES_REFUSALS.search(text):
        return ConfigurationError(text)
    if error.connection_invalidated or (isinstance(error, OperationalError) and not state):
        return ConnectionLost(text)
    if state.startswith(_POSTGRES_LOST):
        return ConnectionLost(f"{text} ({state})")
    if state.startswith(_POSTGRES_CONFLICTS):
        return Conflict(f"{text} ({state})")
    if state.startswith(_POSTGRES_UNAVAILABLE):
        return StoreUnavailable(f"{text} ({state})")
    # What follows the first line quotes stored values.
    error.args = (str(error.args[0]).partition("\n")[0],)
    return error


def is_broken(error: DBAPIError, failure: Exception) -> bool:
    """Whether the connection is of no more use after `error`, which means `failure`."""
    return isinstance(failure, ConnectionLost) or _sqlite_code(error).startswith(_SQLITE_BROKEN)


def _sqlite_code(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlite_errorname", None) or ""


def first_line(error: BaseException | None) -> str:
    """The message of a PostgreSQL error without its DETAIL, which quotes stored values."""
    diagnostics = getattr(error, "diag", None)
    primary = getattr(diagnostics, "message_primary", None)
    return str(primary or error).strip().partition("\n")[0]
