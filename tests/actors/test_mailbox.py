"""The queue in front of an actor, without an actor."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio
import pytest

from tests.actors.conftest import VIRTUAL_TIME, Bug, Counter, turns, until
from trunkline.actors.mailbox import Call, Mailbox
from trunkline.errors import ActorStopped


@pytest.fixture
async def make_mailbox():
    """Makes a mailbox, and closes it after the test."""
    made = []

    def make(capacity, timeout_ms):
        made.append(Mailbox(capacity, timeout_ms))
        return made[-1]

    make.made = made  # type: ignore[attr-defined]
    yield make
    for mailbox in made:
        mailbox.refuse_all(partial(ActorStopped, "the test is over"))


@pytest.fixture
async def mailbox(make_mailbox):
    """A mailbox for two calls."""
    return make_mailbox(2, timeout_ms=60_000)


def call(amount=0):
    return Call(Counter.add, (amount,), {})


async def ask(mailbox, call):
    """Ask, and drop the reply."""
    await mailbox.ask(call)


# -- a call --------------------------------------------------------------------------------------


def test_a_call_carries_a_result():
    answered = call()
    assert not answered.answered
    answered.answer(42)
    assert answered.answered
    assert answered.result() == 42


def test_a_call_carries_an_error():
    failed = call()
    failed.fail(Bug("no"))
    assert failed.answered
    with pytest.raises(Bug, match="no"):
        failed.result()


def test_the_second_reply_to_a_call_is_dropped():
    answered = call()
    answered.answer(1)
    answered.answer(2)
    answered.fail(Bug())
    assert answered.result() == 1


def test_a_call_shows_its_handler_and_never_its_arguments():
    shown = repr(Call(Counter.add, ("secret token",), {"password": "secret"}))
    assert shown == "<Call of Counter.add>"


def test_a_call_that_was_begun_may_be_run_once_more_while_its_caller_waits():
    begun = call()
    assert begun.begin()
    assert begun.begin()
    begun.give_up()
    assert begun.begun
    assert not begun.begin()


def test_a_call_whose_caller_gave_up_is_never_begun():
    given_up = call()
    given_up.give_up()
    assert not given_up.begin()
    assert not given_up.begun


def test_a_call_whose_time_is_over_is_not_begun_though_its_caller_has_not_noticed_yet():
    late = call()
    late.deadline = time.monotonic()
    assert not late.begin()


def test_either_the_caller_or_the_worker_has_the_call(in_threads):
    for _ in range(200):
        contested = call()
        outcomes = in_threads([contested.begin, contested.give_up])
        assert outcomes.count(True) == contested.begun


@pytest.fixture
def in_threads():
    """Runs functions at the same time, each in a thread of its own; what they returned."""
    with ThreadPoolExecutor(8) as pool:

        def run(functions):
            barrier = threading.Barrier(len(functions))

            def one(function):
                barrier.wait()
                return function()

            return list(pool.map(one, functions))

        yield run


# -- the queue -----------------------------------------------------------------------------------


async def test_calls_come_out_in_the_order_in_which_they_went_in(mailbox):
    calls = [call(n) for n in range(6)]
    taken = []
    async with anyio.create_task_group() as task_group:
        for queued in calls:  # two find room, four wait for it
            task_group.start_soon(ask, mailbox, queued)
            await turns(3)
        assert len(mailbox) == 6
        assert mailbox.awaited
        for _ in calls:
            item = await mailbox.take()
            item.answer(None)
            taken.append(item)
    assert taken == calls
    assert len(mailbox) == 0


async def test_nothing_is_taken_out_of_an_empty_mailbox(mailbox):
    with pytest.raises(anyio.WouldBlock):
        mailbox.take_nowait()


async def test_a_later_caller_does_not_slip_in_before_those_who_wait_for_room(mailbox):
    early = [call(n) for n in range(4)]
    late = call(99)
    taken = []
    async with anyio.create_task_group() as task_group:
        for queued in early:
            task_group.start_soon(ask, mailbox, queued)
            await turns(3)
        taken.append(mailbox.take_nowait())
        taken.append(mailbox.take_nowait())
        # There is room now, and no caller that waits for it has run yet.
        task_group.start_soon(ask, mailbox, late)
        while len(taken) < 5:
            taken.append(await mailbox.take())
        for item in taken:
            item.answer(None)
    assert taken == [*early, late]


async def test_a_call_that_is_handed_to_the_waiting_actor_makes_no_room(mailbox):
    calls, taken = [call(n) for n in range(6)], []

    async def take_all():
        while len(taken) < 6:
            taken.append(await mailbox.take())

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(take_all)
        await turns(3)
        for queued in calls:  # one is handed over, two find room, three wait
            mailbox.put(queued)
    assert taken == calls


async def test_a_caller_who_stops_waiting_for_room_lets_the_next_one_in(mailbox):
    gone, patient = call(), call()
    async with anyio.create_task_group() as task_group:
        for _ in range(2):
            task_group.start_soon(ask, mailbox, call())
        await turns(2)
        async with anyio.create_task_group() as impatient:
            impatient.start_soon(ask, mailbox, gone)
            await turns(3)
            task_group.start_soon(ask, mailbox, patient)
            await turns(3)
            impatient.cancel_scope.cancel()
        assert not gone.awaited
        taken = [await mailbox.take() for _ in range(3)]
        for item in taken:
            item.answer(None)
    assert taken[2] is patient


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_waiting_for_room_and_for_the_reply_have_one_timeout_together(make_mailbox):
    mailbox = make_mailbox(2, timeout_ms=3_000)
    started = anyio.current_time()
    queued = call()
    async with anyio.create_task_group() as task_group:
        for _ in range(2):
            task_group.start_soon(ask, mailbox, call())
        await turns(2)

        async def make_room():
            await anyio.sleep(2)
            (await mailbox.take()).answer(None)
            (await mailbox.take()).answer(None)

        task_group.start_soon(make_room)
        assert await mailbox.ask(queued) is False
        assert anyio.current_time() - started == pytest.approx(3)
        assert mailbox.take_nowait() is queued
        assert not queued.awaited


class LoopTime:
    """The time of asyncio's event loop and of the mailbox, which passes only on request."""

    def __init__(self, monkeypatch):
        self._now = asyncio.get_running_loop().time()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self._now)
        monkeypatch.setattr("trunkline.actors.mailbox.monotonic", lambda: self._now)

    async def pass_by(self, seconds):
        self._now += seconds
        await turns(4)


#: The time of uvloop cannot be set. Older versions of aiogram make it the loop of every program.
on_plain_asyncio = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"loop_factory": asyncio.SelectorEventLoop})], ids=["asyncio"]
)


@pytest.fixture
async def loop_time(monkeypatch):
    return LoopTime(monkeypatch)


@on_plain_asyncio
async def test_every_caller_has_a_time_of_his_own(make_mailbox, loop_time):
    mailbox = make_mailbox(4, timeout_ms=1_000)
    outcomes = {}

    async def caller(number):
        outcomes[number] = await mailbox.ask(call())

    async with anyio.create_task_group() as task_group:
        for number in range(4):
            task_group.start_soon(caller, number)
            await turns(2)
            await loop_time.pass_by(0.1)
        taken = [mailbox.take_nowait() for _ in range(4)]
        taken[2].answer("in time")
        await loop_time.pass_by(0.59)
        assert outcomes == {2: True}
        await loop_time.pass_by(0.02)
        assert outcomes == {2: True, 0: False}
        await loop_time.pass_by(0.1)
        assert outcomes == {2: True, 0: False, 1: False}
        await loop_time.pass_by(0.1)
        assert not taken[3].answered
        await loop_time.pass_by(0.1)
    assert outcomes == {2: True, 0: False, 1: False, 3: False}
    assert [item.awaited for item in taken] == [False, False, True, False]


@on_plain_asyncio
async def test_time_goes_on_being_watched_after_a_quiet_while(make_mailbox, loop_time):
    mailbox = make_mailbox(2, timeout_ms=1_000)
    for _ in range(3):
        queued = call()
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(ask, mailbox, queued)
            await turns(2)
            await loop_time.pass_by(1.1)
        assert not queued.awaited
        assert mailbox.take_nowait() is queued
        await loop_time.pass_by(5)


@on_plain_asyncio
async def test_a_reply_behind_the_end_of_the_time_disturbs_nobody(make_mailbox, loop_time):
    mailbox = make_mailbox(2, timeout_ms=1_000)
    late, in_time = call(), call()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(ask, mailbox, late)
        await turns(2)
        await loop_time.pass_by(1.1)
    mailbox.take_nowait().answer("late")
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(ask, mailbox, in_time)
        (await mailbox.take()).answer("in time")
    assert in_time.result() == "in time"


async def test_a_reply_in_time_is_distinguished_from_none(mailbox):
    queued = call()
    outcome = []

    async def caller():
        outcome.append(await mailbox.ask(queued))

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(caller)
        (await mailbox.take()).answer("yes")
    assert outcome == [True]
    assert queued.result() == "yes"


# -- the end -------------------------------------------------------------------------------------


async def test_what_is_in_a_closed_mailbox_can_still_be_taken_out(mailbox):
    queued = call()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(ask, mailbox, queued)
        await turns(2)
        mailbox.close(partial(ActorStopped, "enough"))
        assert await mailbox.take() is queued
        queued.answer(None)
        with pytest.raises(anyio.EndOfStream):
            mailbox.take_nowait()
        with pytest.raises(anyio.EndOfStream):
            await mailbox.take()


async def test_a_caller_that_waits_for_room_gets_the_reason_why_the_mailbox_was_closed(mailbox):
    refused = []

    async def caller():
        queued = call()
        await mailbox.ask(queued)
        with pytest.raises(ActorStopped) as caught:
            queued.result()
        refused.append(str(caught.value))

    async with anyio.create_task_group() as task_group:
        for _ in range(2):
            task_group.start_soon(ask, mailbox, call())
        await turns(2)
        for _ in range(3):  # one waits in the stream, two wait behind it
            task_group.start_soon(caller)
        await until(lambda: len(mailbox) == 5)
        mailbox.close(partial(ActorStopped, "enough"))
        await until(lambda: len(refused) == 3)
        for _ in range(2):
            mailbox.take_nowait().answer(None)
    assert refused == ["enough"] * 3


async def test_refuse_all_answers_every_call_wherever_it_is(mailbox):
    calls = [call() for _ in range(5)]
    async with anyio.create_task_group() as task_group:
        for queued in calls:
            task_group.start_soon(ask, mailbox, queued)
            await turns(3)
        in_nobodys_hands = mailbox.take_nowait()
        await turns(3)
        mailbox.refuse_all(partial(ActorStopped, "over"))
    assert in_nobodys_hands is calls[0]
    for queued in calls[:3]:  # the two others never got in, and were told so by ask()
        with pytest.raises(ActorStopped, match="over"):
            queued.result()


async def test_a_mailbox_keeps_nothing_of_calls_that_are_over(mailbox):
    async with anyio.create_task_group() as task_group:
        for _ in range(2):
            task_group.start_soon(ask, mailbox, call())
        await turns(2)
        for _ in range(2):
            mailbox.take_nowait().answer(None)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await mailbox.ask(call())
    assert not mailbox._unanswered


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_mailbox_that_is_closed_for_good_leaves_no_timer_behind(make_mailbox):
    mailbox = make_mailbox(2, timeout_ms=60_000)
    secret = Secret()
    gone = weakref.ref(secret)
    queued = Call(Counter.add, (secret,), {})
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(ask, mailbox, queued)
        await turns(2)
        mailbox.refuse_all(partial(ActorStopped, "over"))
    del mailbox, queued, secret
    make_mailbox.made.clear()
    gc.collect()
    assert gone() is None


class Secret:
    """Something whose end can be seen."""
