"""Session keys: the name of a conversation, and the partition that it belongs to."""

from __future__ import annotations

from typing import NamedTuple, Self, TypeAlias

from xxhash import xxh3_64_intdigest

from trunkline.errors import InvalidSessionKey

__all__ = ("AnySessionKey", "SessionKey", "partition_of", "session_key")


class SessionKey(NamedTuple):
    """The name of one conversation: a room of a bridge of a channel, or a thread in that room.

    A key is checked where it is used, not where it is made. A plain tuple of three or four strings
    does as well wherever a key is taken.

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
            InvalidSessionKey: `text` is not what `str` makes of a valid key.
        """
        parts = text.split(":") if isinstance(text, str) else []
        if not 3 <= len(parts) <= 4:
            raise InvalidSessionKey(
                f"session key {text!r} is not of the form channel:bridge:room[:thread]"
            )
        # "%3A" first: the "%25" of an escaped percent sign must not meet a "3A" behind it.
        key = cls(*(part.replace("%3A", ":").replace("%25", "%") for part in parts))
        if str(key) != text:
            raise InvalidSessionKey(
                f"session key {text!r} has a '%' that is no escape: only %25 and %3A are used"
            )
        session_key(key)
        return key

    @property
    def room_scope(self) -> Self:
        """The key of the room: this key without its thread."""
        return self if self.thread_id is None else self._replace(thread_id=None)

    def same_room(self, other: AnySessionKey) -> bool:
        """Whether `other` is this room or a thread of it."""
        return self[:3] == other[:3]


def _escaped(part: str) -> str:
    # The str() of an enum member that is a string is not that string; and a part that is no
    # string at all still shows, as this also prints keys that were never checked.
    text = part if isinstance(part, str) else str(part)
    return text.replace("%", "%25").replace(":", "%3A")


#: What is accepted wherever a session key is taken.
AnySessionKey: TypeAlias = (
    SessionKey | tuple[str, str, str] | tuple[str, str, str, str | None] | tuple[str | None, ...]
)


def session_key(key: AnySessionKey) -> SessionKey:
    """`key` as a valid `SessionKey`.

    Raises:
        InvalidSessionKey: it is none, and why.
    """
    if not isinstance(key, tuple):
        raise InvalidSessionKey(
            f"a session key is a tuple of strings, not {type(key).__name__}: {key!r}"
        )
    if not 3 <= len(key) <= 4:
        raise InvalidSessionKey(f"session key {key!r} has {len(key)} parts instead of 3 or 4")
    for name, part in zip(SessionKey._fields, key, strict=False):
        if name == "thread_id" and part is None:
            continue
        if not isinstance(part, str):
            raise InvalidSessionKey(
                f"{name} of session key {key!r} is of type {type(part).__name__}, not str"
            )
        if not part and name != "thread_id":
            raise InvalidSessionKey(f"{name} of session key {key!r} is empty")
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise InvalidSessionKey(
                f"{name} of session key {key!r} is not valid Unicode: {error.reason}"
            ) from None
    return key if type(key) is SessionKey else SessionKey(*key)  # type: ignore[arg-type]


def partition_of(key: SessionKey, partition_count: int) -> int:
    """The partition of `key`: xxh3_64 of its room, modulo `partition_count`.

    The thread is left out, so that a thread lives beside its room. The hash is taken over the
    UTF-8 of `channel`, `bridge_id` and `room_id` with a NUL between them; it is the same in every
    process and release.

    Raises:
        InvalidSessionKey: the key is not valid.
    """
    channel, bridge_id, room_id, thread_id = key
    # This runs on every call of the router, and so asks only what it must to let a valid key
    # pass; session_key() finds out what is wrong with any other.
    if not (channel and bridge_id and room_id) or not (
        thread_id is None or thread_id.__class__ is str
    ):
        session_key(key)
    try:
        room = "\0".join((channel, bridge_id, room_id)).encode()
        if thread_id is not None and not thread_id.isascii():
            thread_id.encode()
    except (TypeError, UnicodeEncodeError):
        session_key(key)
        raise
    return xxh3_64_intdigest(room) % partition_count
