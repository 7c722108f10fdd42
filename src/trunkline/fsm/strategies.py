"""Key strategies: which conversation an update belongs to.

They read session keys and arrivals of a line, which stand for any platform, updates of aiogram and
of python-telegram-bot, and plain dictionaries of the Telegram Bot API, by attribute or key, and
import none of them.

In the key of a session, channel, bridge and room take the place of Telegram's chat id, and the
participant's id that of the user id; a missing thread is `""`. A session key names no participant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeGuard

from trunkline.backends.codec import Key

__all__ = ("Chat", "ChatTopic", "ChatTopicUser", "ChatUser", "KeyStrategy", "User")

#: The parts of an update that contain who speaks where.
_EVENTS = (
    "message",
    "edited_message",
    "channel_post",
    "edited_channel_post",
    "business_message",
    "edited_business_message",
    "guest_message",
    "callback_query",
    "inline_query",
    "chosen_inline_result",
    "shipping_query",
    "pre_checkout_query",
    "purchased_paid_media",
    "poll_answer",
    "message_reaction",
    "message_reaction_count",
    "my_chat_member",
    "chat_member",
    "chat_join_request",
    "chat_boost",
    "removed_chat_boost",
    "business_connection",
    "deleted_business_messages",
    "managed_bot",
    "subscription",
    "stopped_message_generation",
)
#: An event has one of these, and the update around it none.
_PARTS_OF_EVENTS = ("chat", "from_user", "from", "user")


class KeyStrategy(Protocol):
    """Makes the key of a conversation out of an update."""

    @staticmethod
    def extract(update: object) -> Key | None:
        """The key; `None` if the update lacks what the strategy needs, which no store accepts."""


class ChatUser:
    """One conversation a user in each chat: `(chat_id, user_id)`; chat 0 where there is none."""

    @staticmethod
    def extract(update: object) -> tuple[int | str, ...] | None:
        where = _where(update)
        return None if where.user_id is None else (*(where.chat or (0,)), where.user_id)


class User:
    """One conversation a user, wherever they are: `(user_id,)`."""

    @staticmethod
    def extract(update: object) -> tuple[int | str, ...] | None:
        where = _where(update)
        return None if where.user_id is None else (where.user_id,)


class Chat:
    """One conversation a chat, shared by all in it: `(chat_id,)`."""

    @staticmethod
    def extract(update: object) -> tuple[int | str, ...] | None:
        return _where(update).chat


class ChatTopic:
    """One conversation a topic of a forum: `(chat_id, thread_id)`; thread 0 where there is none."""

    @staticmethod
    def extract(update: object) -> tuple[int | str, ...] | None:
        where = _where(update)
        return None if where.chat is None else (*where.chat, where.thread_id)


class ChatTopicUser:
    """One conversation a user in each topic of a forum: `(chat_id, thread_id, user_id)`.

    The thread is 0 where there is none.
    """

    @staticmethod
    def extract(update: object) -> tuple[int | str, ...] | None:
        where = _where(update)
        if where.chat is None or where.user_id is None:
            return None
        return (*where.chat, where.thread_id, where.user_id)


class _Where(NamedTuple):
    chat: tuple[int | str, ...] | None = None
    thread_id: int | str = 0
    user_id: int | str | None = None


def _where(update: object) -> _Where:
    """Chat, thread and user of an update, of the event inside it, or of a session."""
    session_key = _part(update, "session_key") or update
    if _is_session_key(session_key):
        channel, bridge_id, room_id, *thread = session_key
        participant_id = _part(_part(update, "participant"), "id")
        return _Where((channel, bridge_id, room_id), (thread and thread[0]) or "", participant_id)
    event = update
    if all(_part(update, name) is None for name in _PARTS_OF_EVENTS):
        event = next((part for name in _EVENTS if (part := _part(update, name)) is not None), None)
    # A callback query has its chat and thread in the message whose button was pressed.
    message = _part(event, "message")
    place = event if _part(event, "chat") is not None or message is None else message
    user = _part(event, "from_user") or _part(event, "from") or _part(event, "user")
    chat_id = _number(_part(_part(place, "chat"), "id") or _part(event, "user_chat_id"))
    return _Where(
        None if chat_id is None else (chat_id,),
        _number(_thread(place)) or 0,
        _number(_part(user, "id")),
    )


def _is_session_key(value: object) -> TypeGuard[tuple[str, ...]]:
    """Whether it is a SessionKey, or a plain tuple that is one."""
    return (
        isinstance(value, tuple)
        and len(value) in (3, 4)
        and all(isinstance(part, str) for part in value[:3])
        and (len(value) == 3 or value[3] is None or isinstance(value[3], str))
    )


def _thread(message: object) -> object:
    """The forum topic of a message. A reply in a plain group has a thread id that is no topic."""
    is_topic = _part(message, "is_topic_message")
    if is_topic is None:
        is_topic = _part(message, "reply_to_message") is None
    return _part(message, "message_thread_id") if is_topic else None


def _part(thing: object, name: str) -> Any:
    if isinstance(thing, Mapping):
        return thing.get(name)
    return getattr(thing, name, None)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
