"""Turns: an inbox a session, and handlers that run over what it holds, once, whatever dies."""

from trunkline.turns.adapter import InboxAdapter
from trunkline.turns.events import TurnEvent, TurnStats
from trunkline.turns.inbox import Inbox
from trunkline.turns.item import InboxCounts, Item, Receipt
from trunkline.turns.policy import TurnPolicy
from trunkline.turns.runner import Turns
from trunkline.turns.turn import Turn

__all__ = (
    "Inbox",
    "InboxAdapter",
    "InboxCounts",
    "Item",
    "Receipt",
    "Turn",
    "TurnEvent",
    "TurnPolicy",
    "TurnStats",
    "Turns",
)
