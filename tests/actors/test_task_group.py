"""The task group inside a service: what its user sees of it is nothing but his own exceptions."""

from __future__ import annotations

import anyio
import pytest

from tests.actors.conftest import Bug, Gate
from trunkline.actors.task_group import open_task_group


async def fail() -> None:
    raise Bug("in the shop")


async def test_one_exception_comes_out_of_a_task_group_as_itself():
    bug = Bug("mine")
    with pytest.raises(Bug) as caught:
        async with open_task_group():
            raise bug
    assert caught.value is bug


async def test_one_exception_of_a_task_comes_out_as_itself_through_several_groups():
    async def run():
        async with open_task_group(), open_task_group() as task_group:
            task_group.start_soon(fail)
            await anyio.sleep_forever()

    with pytest.raises(Bug, match="in the shop"):
        await run()


async def test_an_exception_keeps_its_cause():
    async def run():
        async with open_task_group():
            try:
                await fail()
            except Bug as error:
                raise LookupError from error

    with pytest.raises(LookupError) as caught:
        await run()
    assert isinstance(caught.value.__cause__, Bug)


async def test_an_exception_keeps_the_context_in_which_it_was_raised():
    async def run():
        async with open_task_group():
            try:
                await fail()
            finally:
                raise LookupError

    with pytest.raises(LookupError) as caught:
        await run()
    assert isinstance(caught.value.__context__, Bug)
    assert not caught.value.__suppress_context__


async def test_two_exceptions_stay_in_their_group():
    gate = Gate()

    async def fail_later():
        try:
            await gate.pass_through()
        finally:
            raise Bug("on the way out")

    async def run():
        async with open_task_group() as task_group:
            task_group.start_soon(fail_later)
            await gate.reached.wait()
            raise LookupError

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert {type(error) for error in caught.value.exceptions} == {Bug, LookupError}


class MyGroup(ExceptionGroup):
    """A class that means something to its program."""


class Derived(MyGroup):
    def derive(self, exceptions):
        return Derived(self.message, exceptions)


async def test_a_group_that_the_body_raises_comes_out_as_it_is():
    group = MyGroup("mine", [Bug("alone")])
    with pytest.raises(MyGroup) as caught:
        async with open_task_group():
            raise group
    assert caught.value is group


async def test_a_group_that_a_task_raises_comes_out_as_it_is_through_several_groups():
    group = Derived("mine", [Bug("alone"), LookupError()])

    async def fail():
        raise group

    async def run():
        async with open_task_group(), open_task_group() as task_group:
            task_group.start_soon(fail)
            await anyio.sleep_forever()

    with pytest.raises(Derived) as caught:
        await run()
    assert caught.value.exceptions == group.exceptions


async def test_a_cancelled_task_group_ends_without_an_exception():
    async with open_task_group() as task_group:
        task_group.start_soon(anyio.sleep_forever)
        task_group.cancel_scope.cancel()
