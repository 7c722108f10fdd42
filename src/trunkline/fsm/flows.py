"""Flows: the steps of a dialogue and which may follow which, checked when a user takes one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from inspect import isawaitable
from typing import Any, Literal, TypeAlias

import msgspec

from trunkline.actors.log import Log
from trunkline.backends.codec import Key
from trunkline.errors import ConfigurationError, TransitionError
from trunkline.fsm.state import FSMState
from trunkline.fsm.store import FSMStore

__all__ = ("FSMContext", "Flow", "InvalidTransition", "TransitionPolicy")

_log = Log("trunkline.fsm")


class Flow:
    """A named dialogue: its states, and which states may follow each.

    Args:
        name: the flow's name.
        transitions: the states that may follow each state. One that is only mentioned as a
            follower ends the dialogue. A member of an enum with the mixin `str` counts as its
            value.
        initial: the state in which it starts.

    Raises:
        ConfigurationError: no name, a state that is not a string, or an unknown `initial`.

    Example:
        >>> flow = Flow("register", {"get_name": ["get_email"], "get_email": ["done"]}, "get_name")
        >>> flow.allows("get_name", "get_email"), flow.allows("get_name", "done")
        (True, False)
    """

    def __init__(self, name: str, transitions: Mapping[str, Iterable[str]], initial: str) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"a flow's name is a non-empty str, not {name!r}")
        if not isinstance(transitions, Mapping):
            raise ConfigurationError(f"flow {name!r}: transitions are a map, not {transitions!r}")
        self.name = str.__str__(name)
        #: state → the states that may follow it.
        self.transitions: dict[str, frozenset[str]] = {}
        for state, following in transitions.items():
            if isinstance(following, str) or not isinstance(following, Iterable):
                raise ConfigurationError(
                    f"flow {name!r}: the states after {state!r} are a list, not {following!r}"
                )
            self.transitions[self._state(state)] = frozenset(map(self._state, following))
        for followers in list(self.transitions.values()):
            for state in sorted(followers):
                self.transitions.setdefault(state, frozenset())
        if not isinstance(initial, str) or initial not in self.transitions:
            raise ConfigurationError(f"flow {name!r} has no state {initial!r} to start in")
        self.initial = str.__str__(initial)

    def _state(self, state: object) -> str:
        if not isinstance(state, str) or not state:
            raise ConfigurationError(
                f"flow {self.name!r}: a state is a non-empty str, not {state!r}"
            )
        return str.__str__(state)

    def __repr__(self) -> str:
        return f"<Flow {self.name!r}: {', '.join(self.transitions)}>"

    def allows(self, state: str | None, following: str) -> bool:
        """Whether `following` may come after `state`."""
        return state is not None and following in self.transitions.get(state, ())


class InvalidTransition(msgspec.Struct, frozen=True):
    """A step that no flow declares: the argument of a policy function."""

    flow: str | None
    from_state: str | None
    to_state: str
    key: Key
    #: The flow that was to be started; `None` for a step within a flow.
    to_flow: str | None = None

    def __str__(self) -> str:
        if self.to_flow is not None:
            return f"cannot start flow {self.to_flow!r} for {self.key!r}: {self.flow!r} is active"
        if self.flow is None:
            return f"no flow is active for {self.key!r}: cannot go to {self.to_state!r}"
        return (
            f"flow {self.flow!r} does not allow {self.from_state!r} → {self.to_state!r}"
            f" for {self.key!r}"
        )


#: What happens on a step that is not declared: `TransitionError`, a warning in the log, nothing, or
#: a call of a function, plain or async, with the `InvalidTransition`. The step is not taken.
TransitionPolicy: TypeAlias = (
    Literal["raise", "log", "ignore"] | Callable[[InvalidTransition], Awaitable[object] | object]
)


class FSMContext:
    """One conversation and the flows it may be in.

    Args:
        store: where it is kept.
        bot_name: an initialised bot.
        key: the conversation.
        flows: the flows that may be started.
        on_invalid_transition: what happens on a step that is not declared, and on a start while
            another flow is active.

    Raises:
        ConfigurationError: two flows of one name, or an unknown policy.

    Source: ExGram.FSM. New is that a step is compare-and-set: of two updates at once, only one
    takes it.

    Example:
        >>> import anyio
        >>> from trunkline.fsm import Flow, FSMContext, FSMStore
        >>> register = Flow("register", {"get_name": ["get_email"]}, initial="get_name")
        >>> async def main() -> str | None:
        ...     async with FSMStore("memory://") as store:
        ...         await store.init("bot")
        ...         context = FSMContext(store, "bot", (42, 7), [register])
        ...         await context.start_flow("register")
        ...         await context.update_data({"name": "Ada"})
        ...         await context.transition("get_email")
        ...         return await context.get_state()
        >>> anyio.run(main)
        'get_email'
    """

    def __init__(
        self,
        store: FSMStore,
        bot_name: str,
        key: Key,
        flows: Iterable[Flow] = (),
        *,
        on_invalid_transition: TransitionPolicy = "raise",
    ) -> None:
        if not callable(on_invalid_transition) and on_invalid_transition not in (
            "raise",
            "log",
            "ignore",
        ):
            raise ConfigurationError(
                "on_invalid_transition is 'raise', 'log', 'ignore' or a function,"
                f" not {on_invalid_transition!r}"
            )
        self.store = store
        self.bot_name = bot_name
        self.key = key
        self._flows: dict[str, Flow] = {}
        for flow in flows:
            if flow.name in self._flows:
                raise ConfigurationError(f"there are two flows named {flow.name!r}")
            self._flows[flow.name] = flow
        self._policy = on_invalid_transition

    async def start_flow(self, name: str, data: Mapping[Any, Any] | None = None) -> bool:
        """Begin a flow in its initial state, with `data` alone.

        Returns:
            Whether it was begun; not if another flow is active and the policy does not raise.
            Beginning the active flow again starts it anew.

        Raises:
            TransitionError: another flow is active, and the policy is to raise.
            ConfigurationError: no such flow.
        """
        flow = self._flow(name)
        begun = FSMState(flow.initial, flow.name, dict(data or {}))
        standing = await self._stored()
        while standing.flow in (None, name):
            changed = await self.store.compare_and_set(
                self.bot_name, self.key, standing, begun, keep_data=False
            )
            if changed is None:
                return True
            standing = changed
        await self._refuse(
            InvalidTransition(standing.flow, standing.state, flow.initial, self.key, name)
        )
        return False

    async def transition(self, state: str) -> bool:
        """Take a step that the active flow declares. The data stays.

        Returns:
            Whether the step was taken; of two updates at once that take the same step, one is
            refused, unless the flow allows the step from where the other has led.

        Raises:
            TransitionError: the step is not declared, and the policy is to raise.
        """
        standing = await self._stored()
        while standing.flow in self._flows and self._flows[standing.flow].allows(
            standing.state, state
        ):
            changed = await self.store.compare_and_set(
                self.bot_name, self.key, standing, FSMState(state, standing.flow)
            )
            if changed is None:
                return True
            standing = changed
        await self._refuse(InvalidTransition(standing.flow, standing.state, state, self.key))
        return False

    async def set_state(self, state: str | None) -> None:
        """Set the state, whether declared or not. Flow and data stay."""
        await self.store.set_state(self.bot_name, self.key, state)

    async def get_state(self) -> str | None:
        """The state; `None` where there is none."""
        return (await self._stored()).state

    async def get_flow(self) -> str | None:
        """The name of the active flow; `None` where there is none."""
        return (await self._stored()).flow

    async def get_data(self) -> dict[Any, Any]:
        """The data; empty where there is none."""
        return await self.store.get_data(self.bot_name, self.key) or {}

    async def update_data(
        self, data: Mapping[Any, Any] | None = None, **named: Any
    ) -> dict[Any, Any]:
        """Merge into the data, atomically; the data after it."""
        return await self.store.update_data(self.bot_name, self.key, {**(data or {}), **named})

    async def clear(self) -> None:
        """End the flow: no flow, no state, no data."""
        await self.store.clear(self.bot_name, self.key)

    async def _stored(self) -> FSMState:
        return await self.store.get_state(self.bot_name, self.key) or FSMState()

    def _flow(self, name: str) -> Flow:
        try:
            return self._flows[name]
        except KeyError:
            known = ", ".join(map(repr, self._flows)) or "none"
            raise ConfigurationError(f"no flow {name!r}: known are {known}") from None

    async def _refuse(self, invalid: InvalidTransition) -> None:
        if self._policy == "raise":
            raise TransitionError(str(invalid))
        if self._policy == "log":
            _log.warning(
                "invalid_transition",
                bot_name=self.bot_name,
                flow=invalid.flow,
                from_state=invalid.from_state,
                to_flow=invalid.to_flow,
                to_state=invalid.to_state,
            )
        elif callable(self._policy):
            result = self._policy(invalid)
            if isawaitable(result):
                await result
