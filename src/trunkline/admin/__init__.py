"""What an operator does with a database: look into it, copy it, retry and discard failed items.

All of it works on a URL of any registered scheme, beside a bot that runs or without one.
"""

from trunkline.admin.copying import CopyReport, TableCopy, TargetNotEmpty, copy_database
from trunkline.admin.endpoint import DEFAULT_NAMESPACE
from trunkline.admin.inbox import (
    ITEM_STATES,
    InboxContents,
    InboxInspection,
    InboxItem,
    discard_items,
    inspect_inbox,
    retry_items,
)
from trunkline.admin.inspection import (
    Contents,
    Conversations,
    Inspection,
    NewestMessage,
    inspect_database,
)

__all__ = (
    "DEFAULT_NAMESPACE",
    "ITEM_STATES",
    "Contents",
    "Conversations",
    "CopyReport",
    "InboxContents",
    "InboxInspection",
    "InboxItem",
    "Inspection",
    "NewestMessage",
    "TableCopy",
    "TargetNotEmpty",
    "copy_database",
    "discard_items",
    "inspect_database",
    "inspect_inbox",
    "retry_items",
)
