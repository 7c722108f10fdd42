"""Reads chat messages from files of JSON lines."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from io import BufferedReader
from typing import Annotated, BinaryIO, cast

import msgspec

from trunkline.routing import SessionKey

__all__ = ("ChatLog", "ChatMessage")


class ChatMessage(msgspec.Struct, frozen=True, gc=False):
    """A message, with the fields that routing and saving need."""

    #: When it was written, as Unix time in milliseconds.
    at_ms: int
    #: Where it was written.
    session_key: SessionKey
    #: Who wrote it; read only with `contents`, and optional in a log.
    user_id: str | int | None = None
    #: What was written, likewise.
    text: str | None = None


class ChatLog:
    """The chat messages of files of JSON lines, plain or gzipped, read one at a time.

    A line is an object with `ts`, `channel`, `bridge_id`, `room_id` and, in a thread, `thread_id`;
    with `contents` also `user_id` and `text`, which may be left out. Other keys are ignored. `ts`
    is ISO 8601 (UTC if it has no offset) or a number of seconds since 1970. Empty lines are
    skipped.

    Files are read in the order given, which should be that of time. A log can be read again; its
    counts are those of the latest reading.

    Args:
        sources: paths; `-` is standard input.
        contents: whether to read who wrote what.
        on_problem: called for each broken line and each file that cannot be read (to its end),
            with one line of plain text. Both are skipped.
    """

    #: Lines that are not a message.
    broken_lines: int
    #: Files that could not be read, or not to their end.
    unreadable_files: int
    #: Bytes of all files as they are on disk; `None` if one is a pipe.
    size: int | None

    def __init__(
        self,
        *sources: str | os.PathLike[str],
        contents: bool = False,
        on_problem: Callable[[str], object] = lambda problem: None,
    ) -> None:
        self.broken_lines = 0
        self.unreadable_files = 0
        self.size = _total_size(sources)
        self._sources = sources
        self._decode = _decode_contents if contents else _decode_place
        self._on_problem = on_problem
        self._file: BinaryIO | None = None
        self._closed_bytes = 0

    @property
    def bytes_read(self) -> int:
        """How many bytes of `size` have been read. Meaningless if that is `None`."""
        return self._closed_bytes + (self._file.tell() if self._file is not None else 0)

    def __iter__(self) -> Iterator[ChatMessage]:
        self.broken_lines = self.unreadable_files = self._closed_bytes = 0
        for source in self._sources:
            name = "standard input" if source == "-" else os.fspath(source)
            try:
                with _opened(source) as file:
                    self._file = None if self.size is None else file
                    yield from self._messages(name, _decompressed(name, file))
                    self._closed_bytes = self.bytes_read
            except OSError as error:
                self._note_unreadable(name, error.strerror or str(error))
            except (EOFError, zlib.error) as error:
                self._note_unreadable(name, f"damaged gzip: {error}")
            finally:
                self._file = None

    def _messages(self, name: str, stream: BinaryIO) -> Iterator[ChatMessage]:
        number = 0
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.isspace():
                continue
            try:
                if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    _skip_line(stream)
                    raise ValueError(f"the line is longer than {_LONGEST_LINE >> 20} MiB")
                message = self._message(line)
            # RecursionError: ten thousand opening brackets.
            except (ValueError, RecursionError) as error:
                self.broken_lines += 1
                self._on_problem(f"{name}:{number}: {error}")
            else:
                yield message

    def _message(self, line: bytes) -> ChatMessage:
        if not line.isascii():
            _require_utf8(line)
        fields = self._decode(line)
        at_ms = _instant_ms(fields.ts)
        key = SessionKey(fields.channel, fields.bridge_id, fields.room_id, fields.thread_id)
        if isinstance(fields, _Contents):
            return ChatMessage(at_ms, key, fields.user_id, fields.text)
        return ChatMessage(at_ms, key)

    def _note_unreadable(self, name: str, reason: str) -> None:
        self.unreadable_files += 1
        self._on_problem(f"{name}: {reason}")


#: Bytes of a line at most, so that a file without line ends does not fill the memory.
_LONGEST_LINE = 1 << 24


def _total_size(sources: Iterable[str | os.PathLike[str]]) -> int | None:
    total = 0
    for source in sources:
        if source == "-":
            return None
        try:
            status = os.stat(source)
        except OSError:
            continue
        if not stat.S_ISREG(status.st_mode):
            return None
        total += status.st_size
    return total


def _opened(source: str | os.PathLike[str]) -> AbstractContextManager[BufferedReader]:
    if source != "-":
        return open(source, "rb")
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return nullcontext(cast(BufferedReader, sys.stdin.buffer))


def _decompressed(name: str, file: BufferedReader) -> BinaryIO:
    """`file`, unzipped if its content is gzipped, whatever its name."""
    start = file.peek(2)[:2]
    # A pipe may have only one byte so far; no line of JSON begins with this one.
    if start and b"\x1f\x8b".startswith(start):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if start and name.endswith(".gz"):
        raise gzip.BadGzipFile("not a gzip file")
    return file


def _skip_line(stream: BinaryIO) -> None:
    """Read up to the end of a line."""
    while (rest := stream.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
        pass


_NotEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class _Line(msgspec.Struct, gc=False):
    ts: str | float | int
    channel: _NotEmpty
    bridge_id: _NotEmpty
    room_id: _NotEmpty
    thread_id: str | None = None


class _Contents(_Line, gc=False):
    user_id: str | int | None = None
    text: str | None = None


_decode_place = msgspec.json.Decoder(_Line).decode
_decode_contents = msgspec.json.Decoder(_Contents).decode


def _require_utf8(line: bytes) -> None:
    """Check the fields as well that the JSON decoder skips."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None


#: The first and the last millisecond that ISO 8601 can write.
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999


def _instant_ms(ts: str | float | int) -> int:
    if isinstance(ts, str):
        try:
            instant = datetime.fromisoformat(ts)
        except (ValueError, OverflowError):
            raise ValueError(f"ts {ts!r} is neither ISO 8601 nor a number of seconds") from None
        if instant.tzinfo is None:
            instant = instant.replace(tzinfo=UTC)
        at_ms = instant.timestamp() * 1000
    else:
        at_ms = ts * 1000
    if not _FIRST_MS <= at_ms <= _LAST_MS:
        raise ValueError(f"ts {ts!r} is not within the years 1 to 9999 in UTC; seconds are meant")
    return round(at_ms)
