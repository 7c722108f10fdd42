"""Where time comes from."""

from __future__ import annotations

import time

import anyio
import pytest

from tests.actors.conftest import VIRTUAL_TIME, turns
from trunkline.actors import monotonic_ms, sleep_ms
from trunkline.actors.clock import SleepingClock
from trunkline.testing import ManualClock


def test_monotonic_ms_is_the_monotonic_clock_in_whole_milliseconds():
    before = time.monotonic_ns() // 1_000_000
    now = monotonic_ms()
    after = time.monotonic_ns() // 1_000_000
    assert type(now) is int
    assert before <= now <= after


def test_a_manual_clock_can_wake_sleepers_and_a_plain_function_cannot():
    assert isinstance(ManualClock(), SleepingClock)
    assert not isinstance(monotonic_ms, SleepingClock)


async def test_a_sleeper_on_a_manual_clock_wakes_when_the_clock_is_moved_past_his_time():
    clock = ManualClock()
    woken = []

    async def sleeper(duration_ms):
        await sleep_ms(clock, duration_ms)
        woken.append(duration_ms)

    async with anyio.create_task_group() as task_group:
        for duration_ms in (30, 10, 20):
            task_group.start_soon(sleeper, duration_ms)
        await turns(3)
        clock.advance_ms(9)
        await turns(3)
        assert woken == []
        clock.advance_ms(1)
        await turns(3)
        assert woken == [10]
        clock.advance_ms(20)
    assert sorted(woken) == [10, 20, 30]


@pytest.mark.parametrize("anyio_backend", [VIRTUAL_TIME], indirect=True)
async def test_a_sleeper_on_any_other_clock_sleeps_by_the_time_of_the_event_loop():
    before = anyio.current_time()
    await sleep_ms(monotonic_ms, 1_500)
    assert anyio.current_time() - before == pytest.approx(1.5)
