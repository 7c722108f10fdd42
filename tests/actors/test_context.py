"""Context variables: a handler sees its caller's, whichever way its call takes."""

from __future__ import annotations

from contextvars import ContextVar

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from tests.actors.conftest import Bug, Counter, Gate, until, use_up_local_turns
from trunkline.actors import Actor, Supervisor
from trunkline.errors import ActorCrashed, ActorStopped

USER = ContextVar("USER", default="nobody")


class Greeter(Actor):
    def greet(self):
        return USER.get()

    async def greet_slowly(self):
        before = USER.get()
        await checkpoint()
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        assert USER.get() == before
        return before

    async def greet_in_a_thread(self):
        return await anyio.to_thread.run_sync(USER.get)

    async def rename_slowly(self):
        USER.set("somebody else")
        await checkpoint()
        return USER.get()


@pytest.mark.parametrize("way", ["local", "queued"])
@pytest.mark.parametrize(
    "handler", [Greeter.greet, Greeter.greet_slowly, Greeter.greet_in_a_thread]
)
async def test_a_handler_sees_the_context_variables_of_its_caller(handler, way):
    USER.set("the actor's own")
    async with Supervisor() as supervisor:
        greeter = await supervisor.spawn(Greeter)
        for user in ("Ada", "Grace"):
            USER.set(user)
            if way == "queued":
                use_up_local_turns(greeter)
            assert await greeter.call(handler) == user


async def test_none_of_300_calls_in_a_row_sees_the_context_of_the_actor():
    async with Supervisor() as supervisor:
        greeter = await supervisor.spawn(Greeter)
        USER.set("Ada")
        seen = {await greeter.call(Greeter.greet) for _ in range(300)}
        assert greeter.queued_calls == 2
    assert seen == {"Ada"}


async def test_what_an_async_handler_sets_is_seen_by_no_other_call():
    async with Supervisor() as supervisor:
        greeter = await supervisor.spawn(Greeter)
        USER.set("Ada")
        assert await greeter.call(Greeter.rename_slowly) == "somebody else"
        assert USER.get() == "Ada"
        assert await greeter.call(Greeter.greet_slowly) == "Ada"


async def test_a_handler_of_a_thread_sees_the_context_variables_of_the_thread():
    async with Supervisor() as supervisor:
        greeter = await supervisor.spawn(Greeter)

        def work():
            USER.set("a worker")
            return greeter.call_from_thread(Greeter.greet_slowly)

        assert await anyio.to_thread.run_sync(work) == "a worker"


async def test_an_actor_that_is_stopped_cancels_a_handler_that_waits_in_its_callers_context():
    gate, cleaned_up = Gate(), []

    async def wait(_):
        try:
            await gate.pass_through()
        finally:
            cleaned_up.append(USER.get())

    async def caller():
        USER.set("Ada")
        with pytest.raises(ActorStopped):
            await counter.call(wait)

    async with anyio.create_task_group() as task_group, Supervisor(stop_timeout_ms=1) as supervisor:
        counter = await supervisor.spawn(Counter)
        task_group.start_soon(caller)
        await gate.reached.wait()
    assert cleaned_up == ["Ada"]


async def test_a_handler_may_raise_what_it_caught_while_it_waited():
    async def wait(_):
        try:
            with anyio.fail_after(0):
                await anyio.sleep_forever()
        except TimeoutError as error:
            raise Bug from error

    async with Supervisor() as supervisor:
        counter = await supervisor.spawn(Counter)
        with pytest.raises(ActorCrashed) as caught:
            await counter.call(wait)
        assert isinstance(caught.value.__cause__.__cause__, TimeoutError)
        await until(lambda: counter.is_up)
