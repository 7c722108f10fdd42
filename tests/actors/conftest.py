"""What the tests of the kernel share: every event loop, an actor to call, and ways to wait."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint
from trio.testing import MockClock

from tests.conftest import BACKENDS, UVLOOP
from trunkline.actors import NOT_LOCAL, Actor, ActorRef, RestartPolicy
from trunkline.errors import TrunklineError

#: trio on a clock that jumps to the next deadline whenever every task waits, so that a test can
#: live through minutes: `@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)`.
VIRTUAL_TIME = pytest.param("virtual time", id="virtual-time")

#: For what only asyncio has; with its own event loop and with uvloop's.
on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"), UVLOOP],
    indirect=True,
)

#: Forgives a thousand crashes and rests for a millisecond after each.
FORGIVING = RestartPolicy(max_restarts=1_000, min_backoff_ms=1, max_backoff_ms=1, jitter=0.0)

#: Forgives a thousand crashes, and rests for longer than any test takes.
NEVER_BACK = RestartPolicy(max_restarts=1_000, min_backoff_ms=600_000, max_backoff_ms=600_000)


@pytest.fixture(params=[*BACKENDS, UVLOOP])
def anyio_backend(request):
    if request.param == "virtual time":
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    return request.param


class Refused(TrunklineError):
    """An answer that is an error."""


class Bug(Exception):
    """A bug in a handler."""


class Gate:
    """A place where a handler waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.opened = anyio.Event()

    async def pass_through(self) -> None:
        self.reached.set()
        await self.opened.wait()


class Counter(Actor):
    """An actor with a handler of each kind."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    async def add_slowly(self, amount: int = 1) -> int:
        before = self.value
        await checkpoint()
        self.value = before + amount
        return self.value

    async def reset_slowly(self) -> None:
        await checkpoint()
        self.value = 0

    def read(self) -> int:
        return self.value

    async def hold(self, gate: Gate) -> None:
        await gate.pass_through()

    def fail(self, error: BaseException) -> None:
        raise error

    async def fail_slowly(self, error: BaseException) -> None:
        await checkpoint()
        raise error


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until `condition` holds."""
    with anyio.fail_after(60):
        while not condition():
            await checkpoint()


async def turns(count: int) -> None:
    """Let the event loop run `count` times."""
    for _ in range(count):
        await checkpoint()


def use_up_local_turns(ref: ActorRef) -> None:
    """Make the next call take the mailbox."""
    while ref.call_local(lambda _: None) is not NOT_LOCAL:
        pass
