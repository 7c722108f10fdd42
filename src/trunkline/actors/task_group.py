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
    """A task group out of which a single exception comes as itself.

    The caller of `async with SessionRouter()` did not open a task group, and so must not meet an
    `ExceptionGroup` around his own exception. More than one stay in their group.
    """
    raised: BaseExceptionGroup[Any] | None = None
    try:
        async with anyio.create_task_group() as task_group:
            try:
                yield task_group
            except BaseExceptionGroup as group:
                raised = group
                raise
    except BaseExceptionGroup as group:
        # On trio, a cancellation that came at the same time stands beside it.
        cancelled = anyio.get_cancelled_exc_class()
        others = [error for error in group.exceptions if not isinstance(error, cancelled)]
        if len(others) != 1:
            raise
        error = others[0]
        # trio rebuilds what passes through it, and a subclass may lose its class.
        if raised is not None and getattr(error, "exceptions", None) == raised.exceptions:
            error = raised
        context = error.__context__
        try:
            raise error
        finally:
            # Its own, and not the group around it.
            error.__context__ = context
