"""A task group inside a service, which its user does not see."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup

__all__ = ("open_task_group",)


@asynccontextmanager
async def open_task_group() -> AsyncGenerator[TaskGroup, Any]:
    """A task group that is nobody's business: one exception out of it comes out as itself.

    The caller of `async with SessionRouter()` did not open a task group, and so must not meet an
    `ExceptionGroup` around his own exception. More than one stay in their group.
    """
    try:
        async with anyio.create_task_group() as task_group:
            yield task_group
    except BaseExceptionGroup as group:
        # On trio, a cancellation that came at the same time stands beside it.
        _, others = group.split(anyio.get_cancelled_exc_class())
        exceptions = (others or group).exceptions
        if len(exceptions) > 1:
            raise
        error = exceptions[0]
        context = error.__context__
        try:
            raise error
        finally:
            # Its own, and not the group around it.
            error.__context__ = context
