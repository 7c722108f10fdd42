"""What an operator does with a database: look into it, and copy it to another.

Both work on a URL, beside a bot that runs or without one, and on all the stores that share it.
"""

from trunkline.admin.copying import CopyReport, ShelfCopy, TargetNotEmpty, copy_database
from trunkline.admin.inspection import (
    Contents,
    Conversations,
    FSMContents,
    Inspection,
    NewestMessage,
    PersistenceContents,
    SignalContents,
    inspect_database,
)

__all__ = (
    "Contents",
    "Conversations",
    "CopyReport",
    "FSMContents",
    "Inspection",
    "NewestMessage",
    "PersistenceContents",
    "ShelfCopy",
    "SignalContents",
    "TargetNotEmpty",
    "copy_database",
    "inspect_database",
)
