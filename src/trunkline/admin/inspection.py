"""Looking into a database: what its stores hold. Nothing is created, migrated or changed."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import msgspec

from trunkline.admin.side import Side, open_side
from trunkline.errors import NotFound
from trunkline.fsm.adapter import FSMAdapter
from trunkline.persistence import Message, PersistenceAdapter

__all__ = (
    "Contents",
    "Conversations",
    "FSMContents",
    "Inspection",
    "NewestMessage",
    "PersistenceContents",
    "SignalContents",
    "inspect_database",
)


class NewestMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message, with the names of its room and sender where they are known."""

    room_name: str | None
    sender_name: str | None
    message: Message


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """One store of a database."""

    #: The version of its schema, and the one that this trunkline works with; `None` where there
    #: are no schemas. Where the two differ, nothing was looked at.
    version: int | None
    known_version: int | None


class PersistenceContents(Contents, frozen=True, kw_only=True):
    """What persistence holds."""

    #: How many of each kind.
    counts: dict[str, int] | None = None
    #: Those with the highest ids, which are the ones that were made last.
    newest_messages: tuple[NewestMessage, ...] = ()


class Conversations(msgspec.Struct, frozen=True, kw_only=True):
    """Conversations of a bot at one step."""

    bot_name: str
    flow: str | None
    state: str | None
    count: int


class FSMContents(Contents, frozen=True, kw_only=True):
    """What the fsm holds, without conversations whose time is over."""

    conversations: tuple[Conversations, ...] | None = None


class SignalContents(Contents, frozen=True, kw_only=True):
    """What signal holds: never the values."""

    #: How many entries each family has.
    families: dict[str, int] | None = None


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What a database holds; `None` for a store that is not in it."""

    #: Without its password.
    url: str
    persistence: PersistenceContents | None = None
    fsm: FSMContents | None = None
    signal: SignalContents | None = None


def inspect_database(url: str, *, newest: int = 5) -> Inspection:
    """What the database at `url` holds.

    Args:
        url: `sqlite:///bot.db`, `postgresql://…`, `redis://…` or `valkey://…`.
        newest: how many messages to show at most.

    Raises:
        NotFound: it holds none of the stores.
        ConfigurationError: there is no such file, it is no database, or the URL cannot work.
        StoreUnavailable: the server cannot be reached.
    """
    side = open_side(url)
    with closing(side):
        side.open()
        with side.snapshot():
            return _inspect(side, newest)


def _inspect(side: Side, newest: int) -> Inspection:
    contents: dict[str, Any] = {}
    for store, schema in side.stores().items():
        fields = msgspec.structs.asdict(schema)
        if schema.is_known:
            fields |= _look(side, store, newest)
        contents[store] = _CONTENTS[store](**fields)
    if not contents:
        raise NotFound(f"{side.shown_url} holds none of trunkline's stores")
    return Inspection(url=side.shown_url, **contents)


_CONTENTS = {
    "persistence": PersistenceContents,
    "fsm": FSMContents,
    "signal": SignalContents,
}


def _look(side: Side, store: str, newest: int) -> dict[str, Any]:
    adapter = side.adapter(store)
    if store == "persistence":
        return {"counts": adapter.counts(), "newest_messages": _newest_messages(adapter, newest)}
    if store == "fsm":
        return {"conversations": _conversations(adapter)}
    return {"families": dict(sorted(adapter.summary().items()))}


def _newest_messages(adapter: PersistenceAdapter, newest: int) -> tuple[NewestMessage, ...]:
    found = adapter.scan("messages", newest, None, newest_first=True)
    return tuple(_with_names(adapter, one) for _, one in found if isinstance(one, Message))


def _with_names(adapter: PersistenceAdapter, message: Message) -> NewestMessage:
    sender_name = None
    if message.sender_id is not None:
        try:
            name = adapter.get_participant(message.sender_id).identity.get("name")
        except NotFound:
            pass  # what they said stays
        else:
            sender_name = name if isinstance(name, str) else None
    return NewestMessage(
        room_name=adapter.get_room(message.room_id).name, sender_name=sender_name, message=message
    )


def _conversations(adapter: FSMAdapter) -> tuple[Conversations, ...]:
    found = (
        Conversations(bot_name=bot_name, flow=step.flow, state=step.state, count=count)
        for (bot_name, step), count in adapter.summary().items()
    )
    return tuple(sorted(found, key=lambda one: (one.bot_name, one.flow or "", one.state or "")))
