"""Session keys: the name of a conversation, and the partition that it belongs to."""

from __future__ import annotations

from operator import is_
from typing import NamedTuple, Self, TypeAlias

from xxhash import xxh3_64_intdigest

from trunkline.errors import InvalidSessionKey

__all__ = (
    "AnySessionKey",
    "SessionKey",
    "locate",
    "partition_of",
    "plain_partition",
    "session_key",
)


class SessionKey(NamedTuple):
    """The name of one conversation: a room of a bridge of a channel, or a thread in that room.

    A key is checked where it is used, not where it is made. A plain tuple of three or four strings
    is accepted wherever a key is.

    Example:
        >>> key = SessionKey("matrix", "home", "!r:example.org", "t1")
        >>> str(key)
        'matrix:home:!r%3Aexample.org:t1'
        >>> SessionKey.parse(str(key)) == key
        True
        >>> key.room_scope
        SessionKey(channel='matrix', bridge_id='home', room_id='!r:example.org', thread_id=None)
    """

    #: The platform: `telegram`, `discord`, `irc`. Not empty.
    channel: str
    #: Which of the bot's connections to that platform. Not empty.
    bridge_id: str
    #: The room, chat or direct conversation. Not empty.
    room_id: str
    #: The thread or topic in the room; `None` for the room itself.
    thread_id: str | None = None

    def __str__(self) -> str:
        """`channel:bridge:room[:thread]`, with `%` and `:` inside a part percent-escaped."""
        return ":".join(_escaped(part) for part in self if part is not None)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key whose `str` is `text`.

        Raises:
            InvalidSessionKey: `text` is not the `str` of a valid key.
        """
        parts = text.split(":") if isinstance(text, str) else []
        if not 3 <= len(parts) <= 4:
            raise InvalidSessionKey(
                f"session key {text!r} is not of the form channel:bridge:room[:thread]"
            )
        # "%3A" first: the "%25" of an escaped percent sign must not be joined with a "3A" after it.
        key = cls(*(part.replace("%3A", ":").replace("%25", "%") for part in parts))
        if str(key) != text:
            raise InvalidSessionKey(
                f"session key {text!r} has a '%' that is not an escape: only %25 and %3A are used"
            )
        session_key(key)
        return key

    @property
    def room_scope(self) -> Self:
        """The key of the room: this key without its thread."""
        return self if self.thread_id is None else type(self)(self[0], self[1], self[2])

    def same_room(self, other: AnySessionKey) -> bool:
        """Whether `other` is this room or a thread of it."""
        return self[:3] == other[:3]


def _escaped(part: str) -> str:
    # The str() of a (str, Enum) member is not its text. A part that is not a string is printed as
    # well, since keys are printed before they are checked.
    text = part if isinstance(part, str) else str(part)
    return text.replace("%", "%25").replace(":", "%3A")


#: What is accepted wherever a session key is taken.
AnySessionKey: TypeAlias = (
    SessionKey | tuple[str, str, str] | tuple[str, str, str, str | None] | tuple[str | None, ...]
)


def session_key(key: AnySessionKey) -> SessionKey:
    """`key` as a valid `SessionKey` of plain strings; `key` itself if it is one.

    A part of a subclass of `str`, such as an enum member, becomes its text, so that no comparison
    or hash of the program's own runs inside a partition.

    Raises:
        InvalidSessionKey: `key` is not a session key; the message says why.
    """
    if not isinstance(key, tuple):
        raise InvalidSessionKey(
            f"a session key is a tuple of strings, not {type(key).__name__}: {_shown(key)}"
        )
    if not 3 <= len(key) <= 4:
        raise InvalidSessionKey(f"session key {_shown(key)} has {len(key)} parts instead of 3 or 4")
    parts: list[str | None] = []
    for name, part in zip(SessionKey._fields, key, strict=False):
        if name == "thread_id" and part is None:
            parts.append(None)
            continue
        if not isinstance(part, str):
            raise InvalidSessionKey(
                f"{name} of session key {_shown(key)} is of type {type(part).__name__}, not str"
            )
        if type(part).__hash__ is None or type(key).__hash__ is None:
            raise InvalidSessionKey(f"{name} of session key {_shown(key)} is not hashable")
        text = str.__str__(part)
        if not text and name != "thread_id":
            raise InvalidSessionKey(f"{name} of session key {_shown(key)} is empty")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidSessionKey(
                f"{name} of session key {_shown(key)} is not valid Unicode: {error.reason}"
            ) from None
        parts.append(text)
    if type(key) is SessionKey and all(map(is_, parts, key)):
        return key
    return SessionKey(*parts)  # type: ignore[arg-type]


def _shown(key: object) -> str:
    try:
        return repr(key)
    except Exception:  # of the caller's own class, or nested too deep
        return f"<{type(key).__name__} whose repr() fails>"


def partition_of(key: AnySessionKey, partition_count: int) -> int:
    """The partition of `key`: xxh3_64 of its room, modulo `partition_count`.

    The thread is left out, so that a thread lives beside its room. The hash is taken over the
    UTF-8 of `channel`, `bridge_id` and `room_id` with a NUL between them; it is the same in every
    process and release.

    Raises:
        InvalidSessionKey: `key` is not a session key.
    """
    return locate(key, partition_count)[1]


def locate(key: AnySessionKey, partition_count: int) -> tuple[SessionKey, int]:
    """`key` as `session_key` returns it, and its partition.

    Raises:
        InvalidSessionKey: `key` is not a session key.
    """
    if type(key) is not SessionKey or (index := plain_partition(key, partition_count)) < 0:
        key = session_key(key)
        index = plain_partition(key, partition_count)
    return key, index


def plain_partition(key: SessionKey, partition_count: int) -> int:
    """`partition_of` for the hot path; -1 for a key that `session_key` refuses or changes."""
    channel, bridge_id, room_id, thread_id = key
    if not (
        type(channel) is type(bridge_id) is type(room_id) is str
        and (thread_id is None or type(thread_id) is str)
        and channel
        and bridge_id
        and room_id
    ):
        return -1
    try:
        room = f"{channel}\0{bridge_id}\0{room_id}".encode()
        if thread_id is not None and not thread_id.isascii():
            thread_id.encode()
    except UnicodeEncodeError:
        return -1
    return xxh3_64_intdigest(room) % partition_count
