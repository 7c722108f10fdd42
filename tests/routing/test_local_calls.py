"""`set` and `resolve` give the same answer in the caller's task and through the mailbox."""

from __future__ import annotations

import asyncio

import anyio
import anyio.to_thread
import pytest

from trunkline import SessionKey, SessionRouter
from trunkline.actors import NOT_LOCAL, RestartPolicy
from trunkline.errors import ActorCrashed, ConfigurationError

ROOM = SessionKey("telegram", "bot", "42")
ROUTE = {"external_room_id": 42}


class Clock:
    """A program's own, which may be broken."""

    error = None

    def __call__(self):
        if self.error is not None:
            raise self.error
        return 0


def choose(router, way):
    """Let the next call run in its caller's task, or through the mailbox."""
    partition = router.partition(ROOM)
    if way == "queued":
        while partition.call_local(lambda _: None) is not NOT_LOCAL:
            pass


@pytest.mark.parametrize("way", ["local", "queued"])
@pytest.mark.parametrize("operation", ["set", "resolve"])
@pytest.mark.parametrize(
    ("error", "raised", "restarts"),
    [
        (ConfigurationError("no clock"), ConfigurationError, 0),
        (asyncio.CancelledError(), ActorCrashed, 1),
        (ZeroDivisionError(), ActorCrashed, 1),
    ],
    ids=["answer", "stray-cancellation", "bug"],
)
async def test_an_error_in_a_partition_has_one_answer(way, operation, error, raised, restarts):
    clock = Clock()
    policy = RestartPolicy(min_backoff_ms=1, max_backoff_ms=1)
    async with SessionRouter(partition_count=1, clock=clock, restart_policy=policy) as router:
        await router.set(ROOM, ROUTE)
        choose(router, way)
        clock.error = error
        with pytest.raises(raised):
            await (router.set(ROOM, ROUTE) if operation == "set" else router.resolve(ROOM))
        clock.error = None
        await router.set(ROOM, ROUTE)
        assert router.stats().total.restarts == restarts


async def test_a_router_in_an_event_loop_of_another_thread_says_so_at_once():
    async with SessionRouter() as router:
        await router.set(ROOM, ROUTE)
        await anyio.wait_all_tasks_blocked()

        def elsewhere(operation, *args):
            with pytest.raises(RuntimeError, match="call_from_thread"):
                anyio.run(operation, *args)

        await anyio.to_thread.run_sync(elsewhere, router.set, ROOM, ROUTE)
        await anyio.to_thread.run_sync(elsewhere, router.resolve, ROOM)
        await anyio.to_thread.run_sync(elsewhere, router.get, ROOM)
        assert (await router.resolve(ROOM)).source == "state_hit"
        assert router.stats().total.restarts == 0
