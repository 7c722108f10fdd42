"""What an operator does with a database: look into it, and copy it to another.

Both work on a URL of any registered scheme, beside a bot that runs or without one, and on all the
stores that share it.
"""

from trunkline.admin.copying import CopyReport, TableCopy, TargetNotEmpty, copy_database
from trunkline.admin.endpoint import DEFAULT_NAMESPACE
from trunkline.admin.inspection import (
    Contents,
    Conversations,
    Inspection,
    NewestMessage,
    inspect_database,
)

__all__ = (
    "DEFAULT_NAMESPACE",
    "Contents",
    "Conversations",
    "CopyReport",
    "Inspection",
    "NewestMessage",
    "TableCopy",
    "TargetNotEmpty",
    "copy_database",
    "inspect_database",
)
