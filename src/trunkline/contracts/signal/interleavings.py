"""Random transactions that run step by step in a random order, and what they may leave."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeAlias

import anyio

from trunkline.contracts.signal.samples import Handle, everything
from trunkline.errors import TransactionConflict
from trunkline.signal import SignalStore

__all__ = ("INITIAL", "Player", "interleave", "one_after_another", "state_of")

State: TypeAlias = dict[tuple[str, str], str]

INITIAL = {"session": {"ann": "initial", "bob": "initial"}, "pre-key": {"1": "initial"}}
_NAMES = [("session", "ann"), ("session", "bob"), ("pre-key", "1"), ("pre-key", "2")]


class _Step:
    """One thing that a transaction does, and what it saw if it read."""

    def __init__(self, kind: str, name: tuple[str, str], value: str) -> None:
        self.kind = kind
        self.name = name
        self.value = value
        self.found: str | None = None

    def __repr__(self) -> str:
        return f"{self.kind} {self.name} {self.found if self.kind == 'read' else self.value}"

    async def run(self, handle: Handle) -> None:
        family, entry_id = self.name
        if self.kind == "read":
            self.found = (await handle.get(family, [entry_id])).get(entry_id)
        elif self.kind == "clear":
            await handle.clear()
        else:
            value = self.value if self.kind == "write" else None
            await handle.set({family: {entry_id: value}})

    def replay(self, state: State) -> bool:
        """Do it to `state`; whether a read finds what it found."""
        if self.kind == "read":
            return state.get(self.name) == self.found
        if self.kind == "clear":
            state.clear()
        elif self.kind == "write":
            state[self.name] = self.value
        else:
            state.pop(self.name, None)
        return True


class Player:
    """A transaction of one interleaving, or a plain `set` if it has one step and is `plain`."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self.key = f"key {number}"
        self.plain = chance.random() < 0.15
        kinds = ["write"] if self.plain else chance.choices(_KINDS, k=chance.randint(2, 5))
        self.steps = [
            _Step(kind, chance.choice(_NAMES), f"{number}.{index}")
            for index, kind in enumerate(kinds)
        ]
        self.committed = False
        self.send, self._turns = anyio.create_memory_object_stream[anyio.Event]()

    def __repr__(self) -> str:
        return f"<{self.key}: {self.steps}>"

    @property
    def turns(self) -> int:
        return 1 if self.plain else len(self.steps) + 2

    async def play(self, store: SignalStore) -> None:
        async with self._turns:
            done = await self._turns.receive()
            if self.plain:
                await self.steps[0].run(store)
                self.committed = True
                done.set()
                return
            try:
                async with store.transaction(self.key) as tx:
                    for step in self.steps:
                        done.set()
                        done = await self._turns.receive()
                        await step.run(tx)
                    done.set()
                    done = await self._turns.receive()
                self.committed = True
            except TransactionConflict:
                pass
            done.set()


_KINDS = [*["read"] * 10, *["write"] * 7, *["delete"] * 2, "clear"]


async def interleave(store: SignalStore, chance: random.Random) -> list[Player]:
    """Run a few random transactions, one step at a time, in a random order."""
    players = [Player(number, chance) for number in range(chance.randint(2, 4))]
    order = [player for player in players for _ in range(player.turns)]
    chance.shuffle(order)
    async with anyio.create_task_group() as task_group:
        for player in players:
            task_group.start_soon(player.play, store)
        for player in order:
            done = anyio.Event()
            await player.send.send(done)
            await done.wait()
    for player in players:
        player.send.close()
    return players


def one_after_another(players: Sequence[Player]) -> State | None:
    """What is stored after these transactions ran in this order; `None` if one saw otherwise."""
    state = {
        (family, id_): value for family, values in INITIAL.items() for id_, value in values.items()
    }
    if all(step.replay(state) for player in players for step in player.steps):
        return state
    return None


async def state_of(store: SignalStore) -> State:
    found = await everything(store)
    return {
        (family, id_): value for family, values in found.items() for id_, value in values.items()
    }
