"""A turn: one run of the bot's handler over one or more items of a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, TypeVarTuple

import anyio

from trunkline.errors import ConfigurationError, TurnLost
from trunkline.routing.key import SessionKey
from trunkline.turns.adapter import Begun, InboxAdapter
from trunkline.turns.inbox import Inbox, parse_key
from trunkline.turns.item import Item
from trunkline.validation import text_problem

__all__ = ("Turn",)

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

#: The largest result of a step, in bytes as it is stored.
_LARGEST_STEP = 1_000_000

#: Longer names would not fit into the index of every database.
_LONGEST_NAME = 1_000


class TurnRunner(Protocol):
    """What runs a turn, as the turn sees it."""

    inbox: Inbox

    def journal(self, turn: Turn) -> None: ...

    def lose(self, turn: Turn, loss: TurnLost) -> None: ...


class Turn:
    """What a handler gets. `Turns` makes it.

    What a turn does after it was cancelled, interrupted or taken over raises `TurnLost`, and its
    handler is cancelled.
    """

    #: The conversation.
    session_key: SessionKey
    #: What is to be handled, in the order in which it was accepted.
    items: tuple[Item, ...]
    #: Older items that are done with this turn, in the mode `latest`.
    skipped: tuple[Item, ...]
    #: 1 at first.
    attempt: int
    #: Those of `items` that come from a turn which was interrupted.
    resumed: tuple[Item, ...]

    def __init__(self, runner: TurnRunner, begun: Begun) -> None:
        inbox = runner.inbox
        self._runner = runner
        self._begun = begun
        self.id = begun.id
        self.session_key = parse_key(begun.session)
        self.attempt = begun.attempt
        self.items = inbox.items(begun.items, begun.attempt)
        self.skipped = inbox.items(begun.skipped, begun.attempt)
        resumed = begun.resumed
        self.resumed = tuple([one for one in self.items if one.id in resumed]) if resumed else ()
        # Results of steps by name, as they are stored.
        self._steps = dict(begun.steps)
        # How often this attempt used a name, and what its steps are stored under.
        self._uses: dict[str, int] = {}
        self._used: set[str] = set()
        self._under_way: set[str] = set()
        # Items that may join: those that an earlier attempt took come first.
        self._journal = [*inbox.items(begun.taken, begun.attempt)]
        self._joining: list[Item] = []
        self._taken: list[Item] = []
        self._unstored: list[str] = []
        self._joined: anyio.Event | None = None
        #: Why the turn cannot go on, if it cannot.
        self._loss: TurnLost | None = None
        #: What makes another attempt useless.
        self.fatal: Exception | None = None

    def __repr__(self) -> str:
        return f"<Turn {self.id} of {self.session_key} with {len(self.items)} items>"

    async def step(self, name: str, function: Callable[[*Ts], Awaitable[R]], *args: *Ts) -> R:
        """Run `function(*args)` and store what it returned, under `name`.

        Another attempt of this turn gets the stored result, and does not run it again. It may run
        twice if the process dies between its effect and the record. The second use of a name in a
        turn is `name#2`; one that raised is no use.

        Args:
            name: what the result is stored under.
            function: an async function. What it returns is as a payload, and at most 1 MB.
            *args: what it takes.

        Raises:
            TurnLost: the turn was cancelled, interrupted or taken over.
            RuntimeError: a step of this name runs at this moment.
            ConfigurationError: the name or the result cannot be stored; because of a result, the
                turn fails at once.
            StoreUnavailable: the result could not be stored.
        """
        key = self._name_of(name)
        if key in self._steps:
            result: R = self._runner.inbox.decode(f"step {key!r}", self._steps[key])
            return result
        self.require_held()
        self._under_way.add(name)
        try:
            result = await function(*args)
            await self._record(key, result)
        except BaseException:
            self._uses[name] -= 1
            self._used.discard(key)
            raise
        finally:
            self._under_way.discard(name)
        return result

    def take(self) -> tuple[Item, ...]:
        """The items that came for this turn since the last call, in the mode `steer`.

        They belong to this turn now: they are done when it is, and another attempt gets them again.

        Raises:
            TurnLost: the turn was cancelled, interrupted or taken over.
            ConfigurationError: the mode is another one.
        """
        self._require_steer()
        self.require_held()
        again, self._journal = self._journal, []
        joined, self._joining = self._joining, []
        self._taken += [*again, *joined]
        if joined:
            self._unstored += [item.id for item in joined]
            self._runner.journal(self)
        return (*again, *joined)

    async def receive(self, timeout_ms: int | None = None) -> tuple[Item, ...]:
        """Wait for items that join this turn, in the mode `steer`.

        Args:
            timeout_ms: how long to wait; for ever by default.

        Returns:
            The items; none if `timeout_ms` is over.

        Raises:
            TurnLost: the turn was cancelled, interrupted or taken over.
            ConfigurationError: the mode is another one.
        """
        self._require_steer()
        seconds = None if timeout_ms is None else timeout_ms / 1000
        with anyio.move_on_after(seconds):
            while not (self._journal or self._joining):
                self.require_held()
                self._joined = anyio.Event()
                await self._joined.wait()
        return self.take()

    # -- for the runner ----------------------------------------------------------------------------

    @property
    def begun(self) -> Begun:
        return self._begun

    @property
    def every_item_id(self) -> list[str]:
        return [item.id for item in (*self.items, *self.skipped, *self._taken)]

    def unstored(self) -> list[str]:
        """Items that were taken, which the store does not know yet."""
        return [*self._unstored]

    def stored(self, item_ids: list[str]) -> None:
        """The store knows that these were taken."""
        self._unstored = [one for one in self._unstored if one not in item_ids]

    def join(self, items: list[Item]) -> None:
        """These items wait and may join."""
        known = {item.id for item in (*self._taken, *self._journal)}
        self._joining = [item for item in items if item.id not in known]
        if self._joining and self._joined is not None:
            self._joined.set()

    def lose(self, loss: TurnLost) -> None:
        """From now on nothing of this turn stands."""
        self._loss = self._loss or loss
        if self._joined is not None:
            self._joined.set()

    def early_loss(self, loss: TurnLost | None) -> None:
        """Take note of a loss that came before the handler began."""
        if loss is not None:
            self.lose(loss)

    def require_held(self) -> None:
        """Raise `TurnLost` if it is known to be lost."""
        if self._loss is not None:
            raise TurnLost(str(self._loss))

    # -- inside ------------------------------------------------------------------------------------

    def _name_of(self, name: str) -> str:
        if name in self._under_way:
            raise RuntimeError(f"step {name!r} runs already: give steps at once names of their own")
        problem = text_problem(name) if isinstance(name, str) else "is no str"
        if problem is None and len(name.encode()) > _LONGEST_NAME:
            problem = f"is longer than {_LONGEST_NAME} bytes"
        if problem is not None:
            raise ConfigurationError(f"the name of a step {name!r:.80} {problem}")
        self._uses[name] = uses = self._uses.get(name, 0) + 1
        key = name if uses == 1 else f"{name}#{uses}"
        while key in self._used:  # another step has this very name
            uses += 1
            key = f"{name}#{uses}"
        self._used.add(key)
        return key

    async def _record(self, key: str, result: object) -> None:
        inbox = self._runner.inbox
        try:
            value = inbox.encode(f"the result of step {key!r}", result)
            if len(value) > _LARGEST_STEP:
                raise ConfigurationError(
                    f"the result of step {key!r} has {len(value)} bytes, more than {_LARGEST_STEP}"
                )
        except ConfigurationError as error:
            self.fatal = error
            raise
        taken = self.unstored()
        try:
            await inbox.ask(
                self._begun.session,
                InboxAdapter.step,
                self._begun.session,
                self.id,
                taken,
                key,
                value,
            )
        except TurnLost as loss:
            self._runner.lose(self, loss)
            raise
        self.stored(taken)
        self._steps[key] = value

    def _require_steer(self) -> None:
        if self._runner.inbox.policy.while_busy != "steer":
            raise ConfigurationError("take() and receive() need while_busy='steer'")
