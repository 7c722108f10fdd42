"""Steps: run once, and given again to another attempt."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.turns.bots import KEY, running
from trunkline import TurnPolicy
from trunkline.errors import ConfigurationError

SOON = TurnPolicy(retry_delay_ms=1)


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'bot.db'}"


class Calls:
    """A function for a step, which returns what it was called with, and counts."""

    def __init__(self):
        self.made = []

    async def __call__(self, *args):
        await checkpoint()
        self.made.append(args)
        return args


async def handle(url, answer, policy=SOON, **options):
    """Have one item handled; how many have failed."""
    async with running(url, answer, policy, **options) as (inbox, turns):
        await inbox.accept(KEY, "1")
        await turns.idle()
        return (await inbox.counts()).failed


async def test_another_attempt_gets_what_a_step_returned_and_does_not_run_it_again(url):
    calls, results = Calls(), []

    async def answer(turn):
        results.append(await turn.step("greet", calls, "hi", {"n": (1, None)}))
        results.append(await turn.step("other", calls, turn.attempt))
        if turn.attempt < 3:
            raise ValueError("no answer")

    assert await handle(url, answer) == 0
    assert calls.made == [("hi", {"n": (1, None)}), (1,)]
    assert results == [("hi", {"n": (1, None)}), (1,)] * 3


async def test_the_second_use_of_a_name_is_a_step_of_its_own(url):
    calls, results = Calls(), []

    async def answer(turn):
        results.extend([await turn.step("greet", calls, number) for number in range(3)])
        # This very name is taken by the second of the others.
        results.append(await turn.step("greet#2", calls, "literally"))
        if turn.attempt == 1:
            raise ValueError("no answer")

    assert await handle(url, answer) == 0
    assert calls.made == [(0,), (1,), (2,), ("literally",)]
    assert results == calls.made * 2


async def test_a_step_that_raised_is_tried_again_under_its_name(url):
    calls, results = Calls(), []

    async def answer(turn):
        async def generate():
            await calls()
            if len(calls.made) == 1:
                raise ValueError("busy")
            return "text"

        if turn.attempt == 1:
            with pytest.raises(ValueError, match="busy"):
                await turn.step("generate", generate)
        results.append(await turn.step("generate", generate))
        if turn.attempt == 1:
            raise ValueError("no answer")

    assert await handle(url, answer) == 0
    assert len(calls.made) == 2
    assert results == ["text", "text"]


async def test_the_same_name_at_once_is_refused(url):
    begun = anyio.Event()

    async def slow():
        begun.set()
        await anyio.sleep(0.01)
        return 1

    async def answer(turn):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(turn.step, "greet", slow)
            await begun.wait()
            with pytest.raises(RuntimeError, match="runs already"):
                await turn.step("greet", slow)
            assert await turn.step("other", slow) == 1

    assert await handle(url, answer, TurnPolicy(max_attempts=1)) == 0


@pytest.mark.parametrize(("value", "message"), [("x" * 1_000_001, "1000000"), (object(), "stored")])
async def test_a_result_that_cannot_be_stored_fails_the_turn_at_once(url, value, message):
    attempts, errors = [], []

    async def make():
        return value

    async def answer(turn):
        attempts.append(turn.attempt)
        with pytest.raises(ConfigurationError, match=message):
            await turn.step("generate", make)  # also if the handler lives on

    options = {"on_failed": lambda _, error: errors.append(str(error))}
    assert await handle(url, answer, **options) == 1
    assert attempts == [1]
    assert len(errors) == 1
    assert message in errors[0]
    assert "'generate'" in errors[0]


async def test_a_result_of_a_megabyte_is_stored(url):
    attempts = []

    async def make():
        attempts.append(1)
        return "x" * 999_000

    async def answer(turn):
        assert len(await turn.step("generate", make)) == 999_000
        if turn.attempt == 1:
            raise ValueError("no answer")

    assert await handle(url, answer) == 0
    assert attempts == [1]


@pytest.mark.parametrize("name", ["", "naïve ☃ 𝄞", "'; DROP TABLE x; --", "a" * 1_000, "#2", "a:b"])
async def test_a_name_may_have_any_character(url, name):
    calls = Calls()

    async def answer(turn):
        await turn.step(name, calls)
        if turn.attempt == 1:
            raise ValueError("no answer")

    assert await handle(url, answer) == 0
    assert len(calls.made) == 1


@pytest.mark.parametrize("name", ["nul \0", "\ud800", "a" * 1_001, None, 7, b"greet"])
async def test_a_name_that_cannot_be_stored_is_refused(name):
    calls = Calls()

    async def answer(turn):
        with pytest.raises(ConfigurationError, match="name of a step"):
            await turn.step(name, calls)

    assert await handle("memory://", answer, TurnPolicy(max_attempts=1)) == 0
    assert calls.made == []


async def test_an_interrupted_turn_loses_its_steps(url):
    calls, results = Calls(), []
    begun = anyio.Event()

    async def answer(turn):
        results.append(await turn.step("greet", calls, len(turn.items)))
        begun.set()
        if len(turn.items) == 1:
            await anyio.sleep_forever()

    async with running(url, answer, TurnPolicy(while_busy="interrupt")) as (inbox, _):
        await inbox.accept(KEY, "1")
        await begun.wait()
        await inbox.accept(KEY, "2")
    assert results == [(1,), (2,)]
