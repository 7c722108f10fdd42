"""The budget of local calls, over all actors of an event loop."""

from __future__ import annotations

import pytest

from tests.actors.conftest import Counter, use_up_local_turns
from trunkline import SessionRouter
from trunkline.actors import NOT_LOCAL, Supervisor


def local_calls_in_a_row(refs, rounds=200):
    """Calls that run without the event loop, while every actor is called in turn."""
    return sum(ref.call_local(Counter.add) is not NOT_LOCAL for _ in range(rounds) for ref in refs)


@pytest.mark.parametrize("actors", [1, 8, 64, 200])
async def test_no_more_than_1024_local_calls_are_made_in_a_row_however_many_actors_there_are(
    actors,
):
    async with Supervisor() as supervisor:
        refs = [await supervisor.spawn(Counter) for _ in range(actors)]
        for _ in range(3):  # each time after the event loop has run
            assert local_calls_in_a_row(refs, rounds=129 if actors <= 8 else 3) <= 1_024
            use_up_local_turns(refs[0])
            await refs[0].call(Counter.add)


async def test_actors_of_several_supervisors_share_the_budget():
    async with Supervisor() as one, Supervisor() as other:
        refs = [await supervisor.spawn(Counter) for supervisor in (one, other) * 8]
        assert local_calls_in_a_row(refs) == 1_024


async def test_the_budget_is_whole_again_once_the_event_loop_has_run():
    async with Supervisor() as supervisor:
        refs = [await supervisor.spawn(Counter) for _ in range(8)]
        for _ in range(5):
            assert local_calls_in_a_row(refs) == 1_024
            await refs[3].call(Counter.add)


async def test_turns_that_an_actor_borrowed_and_did_not_use_are_lent_to_others():
    async with Supervisor() as supervisor:
        refs = [await supervisor.spawn(Counter) for _ in range(8)]
        for _ in range(24):
            # Borrows more than one, and gives the rest back for the call that is queued.
            assert refs[0].call_local(Counter.add) == 1
            await refs[0].call(Counter.reset_slowly)
        assert local_calls_in_a_row(refs) > 900


async def test_a_tight_loop_over_many_partitions_lets_other_tasks_run():
    async with SessionRouter(partition_count=200) as router:
        keys = [("irc", "net", str(n)) for n in range(4_096)]
        for key in keys:
            await router.set(key, {"external_room_id": 1})
        longest = in_a_row = 0
        for key in keys:
            partition = router.partition(key)
            queued_before = partition.queued_calls
            await router.resolve(key)
            in_a_row = in_a_row + 1 if partition.queued_calls == queued_before else 0
            longest = max(longest, in_a_row)
    assert longest <= 1_024
