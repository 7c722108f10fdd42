"""An inbox as an operator sees it: what it holds, and failed items to retry or to discard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar, get_args

import anyio
import msgspec

from trunkline.admin.endpoint import Endpoint
from trunkline.errors import NotFound, TrunklineError
from trunkline.turns import Inbox, InboxAdapter, InboxCounts
from trunkline.turns.adapter import ItemRow
from trunkline.turns.inbox import decode_payload
from trunkline.turns.item import ItemState

__all__ = (
    "ITEM_STATES",
    "InboxContents",
    "InboxInspection",
    "InboxItem",
    "discard_items",
    "inspect_inbox",
    "retry_items",
)

R = TypeVar("R")

ITEM_STATES: tuple[ItemState, ...] = get_args(ItemState)


class InboxItem(msgspec.Struct, frozen=True, kw_only=True):
    """An item, whatever its state."""

    id: str
    session_key: str
    external_id: str | None
    accepted_at_ms: int
    #: How often it was tried; a running attempt included.
    attempt: int
    alone: bool
    urgent: bool
    #: Of a failed item: what its last attempt raised.
    error: str | None
    #: What was accepted, if it is asked for.
    payload: Any | msgspec.UnsetType = msgspec.UNSET
    #: Why the payload cannot be shown: it is encrypted.
    unreadable: str | msgspec.UnsetType = msgspec.UNSET


class InboxContents(msgspec.Struct, frozen=True, kw_only=True):
    """What the inbox of one namespace holds."""

    counts: InboxCounts
    #: Items of each state that is asked for, in the order of their ids.
    items: dict[ItemState, tuple[InboxItem, ...]]


class InboxInspection(msgspec.Struct, frozen=True, kw_only=True):
    """What the inboxes of a database hold."""

    #: Without its password.
    url: str
    namespaces: dict[str, InboxContents]


def inspect_inbox(
    url: str,
    *,
    states: Sequence[ItemState] = ITEM_STATES,
    limit: int = 20,
    after: str | None = None,
    namespace: str | None = None,
    show_content: bool = False,
) -> InboxInspection:
    """What the inbox at `url` holds. Nothing is created, migrated or changed.

    Args:
        url: `sqlite:///bot.db`, `postgresql://…`, `redis://…` or `valkey://…`, or a scheme that
            the program has registered.
        states: `waiting`, `running`, `failed`; by default all.
        limit: how many items to show at most of each state.
        after: only items behind this id.
        namespace: look into this one; by default into all.
        show_content: whether to show payloads, as far as they are not encrypted.

    Raises:
        NotFound: there is no inbox, or none in the namespace.
        ConfigurationError: there is no such file, it is no database, its schema has another
            version, or the URL cannot work.
        StoreUnavailable: the server cannot be reached.
    """
    with Endpoint(url) as endpoint, endpoint.snapshot():
        namespaces = {}
        for name in _namespaces(endpoint, namespace):
            adapter = _adapter(endpoint, name)
            items = {
                state: tuple(
                    _item(row, show_content=show_content)
                    for row in adapter.list_items(state, limit, after)
                )
                for state in states
            }
            namespaces[name] = InboxContents(counts=adapter.counts(), items=items)
        return InboxInspection(url=endpoint.shown_url, namespaces=namespaces)


def retry_items(url: str, item_ids: Collection[str], *, namespace: str | None = None) -> None:
    """Let failed items wait again, as if they had just come. A bot that runs takes them at once.

    It runs an event loop of its own: in one that runs already, use `Inbox.retry`.

    Raises:
        NotFound: there is no failed item with one of these ids; nothing was changed, unless it
            ceased to be failed meanwhile.
        ConfigurationError, StoreUnavailable: as of `inspect_inbox`.
    """
    found = _find(url, item_ids, namespace)
    for item_id, (_, row) in found.items():
        if row.error is None:
            raise NotFound(f"item {item_id!r} has not failed")
    anyio.run(_change, url, found, Inbox.retry)


def discard_items(
    url: str, item_ids: Collection[str], *, namespace: str | None = None
) -> list[str]:
    """Remove items that wait or have failed.

    It runs an event loop of its own: in one that runs already, use `Inbox.discard`.

    Returns:
        The ids of those that run now, and so were not removed.

    Raises:
        NotFound: there is no item with one of these ids; nothing was changed, unless it was
            handled meanwhile.
        ConfigurationError, StoreUnavailable: as of `inspect_inbox`.
    """
    done = anyio.run(_change, url, _find(url, item_ids, namespace), Inbox.discard)
    return [item_id for item_id, is_done in done.items() if not is_done]


def _find(
    url: str, item_ids: Collection[str], namespace: str | None
) -> dict[str, tuple[str, ItemRow]]:
    """Item id → the namespace in which it is, and the item."""
    found = {}
    with Endpoint(url) as endpoint, endpoint.snapshot():
        names = _namespaces(endpoint, namespace)
        for item_id in item_ids:
            rows = ((name, _adapter(endpoint, name).row(item_id)) for name in names)
            item = next(((name, row) for name, row in rows if row is not None), None)
            if item is None:
                raise NotFound(f"there is no item {item_id!r} in {endpoint.shown_url}")
            found[item_id] = item
    return found


async def _change(
    url: str,
    found: dict[str, tuple[str, ItemRow]],
    method: Callable[[Inbox, str], Awaitable[R]],
) -> dict[str, R]:
    """Call a method of `Inbox` for each item; what it returned."""
    done = {}
    for name in dict.fromkeys(name for name, _ in found.values()):
        async with Inbox(url, namespace=name) as inbox:
            for item_id, (its_name, _) in found.items():
                if its_name == name:
                    done[item_id] = await method(inbox, item_id)
    return done


def _namespaces(endpoint: Endpoint, wanted: str | None) -> list[str]:
    adapter = endpoint.adapter(InboxAdapter.store)
    schema = adapter.schema()
    if schema is None:
        raise NotFound(f"{endpoint.shown_url} holds no inbox")
    endpoint.require_known({adapter.store: schema})
    names = endpoint.namespaces([adapter.store], wanted)
    if not names:
        raise NotFound(f"{endpoint.shown_url} holds no inbox in the namespace {wanted!r}")
    return names


def _adapter(endpoint: Endpoint, namespace: str) -> InboxAdapter:
    adapter = endpoint.adapter(InboxAdapter.store, namespace)
    assert isinstance(adapter, InboxAdapter)
    return adapter


def _item(row: ItemRow, *, show_content: bool) -> InboxItem:
    item = InboxItem(
        id=row.id,
        session_key=row.session,
        external_id=row.external_id,
        accepted_at_ms=row.accepted_at_ms,
        attempt=row.attempts,
        alone=row.alone,
        urgent=row.urgent,
        error=row.error,
    )
    if not show_content:
        return item
    try:
        payload = decode_payload("the payload", row.payload)
    except TrunklineError:
        return msgspec.structs.replace(item, unreadable="it is encrypted or damaged")
    return msgspec.structs.replace(item, payload=payload)
