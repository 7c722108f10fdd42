"""Looking into a database: what its stores hold. Nothing is created, migrated or changed."""

from __future__ import annotations

from contextlib import suppress

import msgspec
from msgspec.structs import replace

from trunkline.admin.endpoint import Endpoint
from trunkline.backends import Schema
from trunkline.errors import NotFound
from trunkline.fsm.adapter import FSMAdapter
from trunkline.persistence import Message, PersistenceAdapter
from trunkline.signal.adapter import SignalAdapter
from trunkline.turns import InboxAdapter, InboxCounts

__all__ = ("Contents", "Conversations", "Inspection", "NewestMessage", "inspect_database")


class NewestMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message, with the names of its room and sender where they are known."""

    room_name: str | None
    sender_name: str | None
    message: Message


class Conversations(msgspec.Struct, frozen=True, kw_only=True):
    """Conversations of a bot at one step."""

    bot_name: str
    flow: str | None
    state: str | None
    count: int


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What one namespace holds; `None` for a store that is missing or of an unknown version."""

    #: How many rooms, messages and so on persistence has.
    counts: dict[str, int] | None = None
    #: Those with the latest `inserted_at`, newest first.
    newest_messages: tuple[NewestMessage, ...] = ()
    #: The fsm, without conversations that have expired.
    conversations: tuple[Conversations, ...] | None = None
    #: How many entries each family of signal has: never the values.
    families: dict[str, int] | None = None
    #: Sessions and items of the inbox.
    inbox: InboxCounts | None = None


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What a database holds."""

    #: Without its password.
    url: str
    #: The stores that are there. One whose version is not the known one was not looked into.
    stores: dict[str, Schema]
    #: Contents by namespace.
    namespaces: dict[str, Contents]


def inspect_database(url: str, *, newest: int = 5, namespace: str | None = None) -> Inspection:
    """What the database at `url` holds.

    Args:
        url: `sqlite:///bot.db`, `postgresql://…`, `redis://…` or `valkey://…`, or a scheme that
            the program has registered.
        newest: how many messages to show at most of each namespace.
        namespace: look into this one; by default into all.

    Raises:
        NotFound: it holds none of the stores, or nothing in the namespace.
        ConfigurationError: there is no such file, it is no database, or the URL cannot work.
        StoreUnavailable: the server cannot be reached.
    """
    with Endpoint(url) as endpoint, endpoint.snapshot():
        schemas = endpoint.schemas()
        if not schemas:
            raise NotFound(f"{endpoint.shown_url} holds none of trunkline's stores")
        stores = [store for store, schema in schemas.items() if schema.is_known]
        names = endpoint.namespaces(stores, namespace)
        if not names:
            raise NotFound(f"{endpoint.shown_url} holds nothing in the namespace {namespace!r}")
        contents = {name: _contents(endpoint, stores, name, newest) for name in names}
        return Inspection(url=endpoint.shown_url, stores=schemas, namespaces=contents)


def _contents(endpoint: Endpoint, stores: list[str], namespace: str, newest: int) -> Contents:
    contents = Contents()
    for adapter in (endpoint.adapter(store, namespace) for store in stores):
        if isinstance(adapter, PersistenceAdapter):
            messages = tuple(_with_names(adapter, one) for one in adapter.newest_messages(newest))
            contents = replace(contents, counts=adapter.counts(), newest_messages=messages)
        elif isinstance(adapter, FSMAdapter):
            contents = replace(contents, conversations=_conversations(adapter))
        elif isinstance(adapter, SignalAdapter):
            contents = replace(contents, families=adapter.summary())
        elif isinstance(adapter, InboxAdapter):
            contents = replace(contents, inbox=adapter.counts())
    return contents


def _with_names(adapter: PersistenceAdapter, message: Message) -> NewestMessage:
    sender_name = None
    if message.sender_id is not None:
        with suppress(NotFound):  # what they said stays
            sender_name = adapter.get_participant(message.sender_id).identity.get("name")
    return NewestMessage(
        room_name=adapter.get_room(message.room_id).name,
        sender_name=sender_name if isinstance(sender_name, str) else None,
        message=message,
    )


def _conversations(adapter: FSMAdapter) -> tuple[Conversations, ...]:
    found = (
        Conversations(bot_name=bot_name, flow=step.flow, state=step.state, count=count)
        for (bot_name, step), count in adapter.summary().items()
    )
    return tuple(sorted(found, key=lambda one: (one.bot_name, one.flow or "", one.state or "")))
