"""Actors: a call takes what its handler takes, and returns what it returns."""

from __future__ import annotations

from typing import assert_type

from trunkline.actors import Actor, ActorRef, RestartPolicy, Supervisor


class Counter(Actor):
    value = 0

    def add(self, amount: int, *, twice: bool = False) -> int:
        self.value += 2 * amount if twice else amount
        return self.value

    async def add_slowly(self, amount: int) -> int:
        return self.add(amount)


class Stranger(Actor):
    pass


def describe(counter: Counter, prefix: str) -> str:
    return f"{prefix}{counter.value}"


async def supervised() -> None:
    async with Supervisor(policy=RestartPolicy(max_restarts=3, within_ms=1_000)) as supervisor:
        counter = await supervisor.spawn(Counter)
        assert_type(counter, ActorRef[Counter])


async def calls(counter: ActorRef[Counter], stranger: ActorRef[Stranger]) -> None:
    assert_type(await counter.call(Counter.add, 1), int)
    assert_type(await counter.call(Counter.add, 1, twice=True), int)
    assert_type(await counter.call(Counter.add_slowly, 1), int)
    assert_type(await counter.call(describe, "value: "), str)
    await counter.call(Counter.add)  # error: call-overload
    await counter.call(Counter.add, "1")  # error: call-overload
    await counter.call(Counter.add, 1, thrice=True)  # error: call-arg, call-overload
    await counter.call(describe, 1)  # error: call-overload
    await stranger.call(Counter.add, 1)  # error: call-overload


def calls_from_a_thread(counter: ActorRef[Counter]) -> None:
    counter.call_from_thread(Counter.add, 1)
    counter.call_from_thread(Counter.add, "1")  # error: arg-type


def policies() -> None:
    RestartPolicy(max_restarts=3)
    RestartPolicy(max_restarts="3")  # error: arg-type
    RestartPolicy(maximum=3)  # error: call-arg
