"""What goes into an inbox and comes out of it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from trunkline.routing.key import SessionKey

__all__ = ("InboxCounts", "Item", "ItemState", "Outcome", "Receipt")

Outcome: TypeAlias = Literal["accepted", "duplicate", "dropped"]
ItemState: TypeAlias = Literal["waiting", "running", "failed"]


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a session has to handle: a message, a command, a reminder."""

    #: A UUIDv7.
    id: str
    session_key: SessionKey
    payload: Any
    #: The platform's id of it, which tells what comes twice; `None` if it has none.
    external_id: str | None = None
    #: When it was accepted, by the store's clock: milliseconds since 1970.
    accepted_at_ms: int
    #: How often it was tried, this attempt included; 0 before the first.
    attempt: int = 0
    #: Whether it is a turn of its own in every mode.
    alone: bool = False
    #: Whether it runs at once beside a running turn.
    urgent: bool = False


class Receipt(msgspec.Struct, frozen=True):
    """What became of an item that was to be accepted."""

    #: Of a duplicate, that of the item which came first.
    item_id: str
    #: `duplicate`: it came before. `dropped`: a turn runs, and nothing was stored.
    outcome: Outcome
    #: How many items of the session wait now.
    waiting: int


class InboxCounts(msgspec.Struct, frozen=True):
    """How much an inbox holds."""

    #: Sessions with an item that waits or runs.
    sessions: int = 0
    waiting: int = 0
    running: int = 0
    failed: int = 0
