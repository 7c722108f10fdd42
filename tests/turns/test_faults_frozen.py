"""Processes that stand still in the middle of a turn, and go on after others have taken it over."""

from __future__ import annotations

import signal
from time import sleep

import anyio
import pytest

from tests.turns.faults import accept, begun, counts, finished, noted, wait_until
from tests.turns.worker import Bot, Histories
from trunkline.turns import InboxCounts

pytestmark = pytest.mark.slow

LEASE_MS = 1_000


@pytest.mark.parametrize("kind", ["late", "late return"])
def test_what_a_process_does_that_was_frozen_for_three_leases_does_not_stand(
    shared_url, tmp_path, kind
):
    first = Bot(shared_url, tmp_path / "first", kind, lease_ms=LEASE_MS)
    second = Bot(shared_url, tmp_path / "second", kind, lease_ms=LEASE_MS)
    with first:
        anyio.run(accept, shared_url, "hi")
        wait_until(lambda: begun(first))
        with second:
            with first.frozen():
                wait_until(lambda: finished(second))
                sleep(2 * LEASE_MS / 1000)
            # Its turn is cancelled, and whatever its handler does then is refused.
            wait_until(lambda: noted(first, "lost"))
            if kind == "late":
                assert noted(first, "refused")
            # It goes on as another owner.
            anyio.run(accept, shared_url, "more")
            wait_until(lambda: len([*finished(first), *finished(second)]) == 2)
            for one in (first, second):
                one.signal(signal.SIGTERM)
                assert one.join() == 0
    assert noted(first, "allowed") == []
    assert begun(second)[0][3:5] == [["hi"], 2]
    histories = Histories([first, second])
    assert len(histories.finished) == len(set(histories.finished)) == 2
    assert anyio.run(counts, shared_url) == InboxCounts()


def test_a_handler_that_blocks_the_event_loop_for_two_leases_keeps_its_turn(shared_url, tmp_path):
    first = Bot(shared_url, tmp_path / "first", "blocking", lease_ms=LEASE_MS)
    second = Bot(shared_url, tmp_path / "second", "blocking", lease_ms=LEASE_MS)
    with first:
        anyio.run(accept, shared_url, "hi")
        wait_until(lambda: begun(first))
        with second:
            wait_until(lambda: finished(first))
            sleep(0.5)
    assert begun(second) == []
    assert [entry[4] for entry in begun(first)] == [1]
    assert noted(first, "lost") == []
