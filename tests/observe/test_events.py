from __future__ import annotations

import logging
from asyncio import CancelledError
from functools import partial

import pytest

from trunkline.errors import ConfigurationError
from trunkline.observe import Event, Events, log_event

EVENT = Event(name="happened", instance="mine")


class Detailed(Event, frozen=True, kw_only=True):
    name: str = "detailed"
    amount: int
    reason: str | None = None


@pytest.fixture
def events():
    return Events()


def test_every_subscriber_hears_in_the_order_of_subscription(events):
    heard = []
    for name in ("first", "second", "third"):
        events.subscribe(lambda event, name=name: heard.append((name, event)))
    events.publish(EVENT)
    assert heard == [("first", EVENT), ("second", EVENT), ("third", EVENT)]


def test_without_a_subscriber_there_is_nobody_to_ask(events):
    assert not events.subscribers
    events.publish(EVENT)
    assert events.failures == 0


def test_who_unsubscribed_hears_no_more(events):
    heard = []
    unsubscribe = events.subscribe(heard.append)
    events.publish(EVENT)
    unsubscribe()
    events.publish(EVENT)
    assert heard == [EVENT]
    assert not events.subscribers


def test_unsubscribing_again_does_nothing(events):
    unsubscribe, other = events.subscribe(print), []
    events.subscribe(other.append)
    unsubscribe()
    unsubscribe()
    events.publish(EVENT)
    assert other == [EVENT]


def test_a_function_may_subscribe_twice_and_each_subscription_ends_on_its_own(events):
    heard = []
    first, second = events.subscribe(heard.append), events.subscribe(heard.append)
    events.publish(EVENT)
    assert len(heard) == 2
    second()
    events.publish(EVENT)
    assert len(heard) == 3
    first()
    events.publish(EVENT)
    assert len(heard) == 3


def test_a_subscriber_may_unsubscribe_itself_and_nobody_is_skipped(events):
    heard = []

    def once(event: Event) -> None:
        heard.append("once")
        unsubscribe()

    unsubscribe = events.subscribe(once)
    events.subscribe(lambda _event: heard.append("always"))
    events.publish(EVENT)
    events.publish(EVENT)
    assert heard == ["once", "always", "always"]


def test_a_subscriber_may_subscribe_another_for_the_next_event(events):
    heard = []

    def bring_a_friend(event: Event) -> None:
        unsubscribe()
        events.subscribe(heard.append)

    unsubscribe = events.subscribe(bring_a_friend)
    events.publish(EVENT)
    assert heard == []
    events.publish(EVENT)
    assert heard == [EVENT]


def test_a_subscriber_that_raises_is_logged_and_counted_and_the_others_hear(events, log):
    heard = []

    def broken(event: Event) -> None:
        raise ZeroDivisionError("a bug")

    events.subscribe(broken)
    events.subscribe(heard.append)
    for _ in range(3):
        events.publish(EVENT)
    assert heard == [EVENT] * 3
    assert events.failures == 3
    assert len(log) == 3
    entry = log[0]
    assert (entry["event"], entry["log_level"]) == ("subscriber_failed", "error")
    assert (entry["event_name"], entry["instance"]) == ("happened", "mine")
    assert "in broken" in entry["exception"]
    assert "ZeroDivisionError: a bug" in entry["exception"]


def test_a_log_that_fails_fails_nobody_else(events):
    def broken(_record):
        raise BrokenPipeError("nobody reads this")

    logger, heard = logging.getLogger("trunkline.events"), []
    logger.addFilter(broken)
    try:
        events.subscribe(log_event)
        events.subscribe(heard.append)
        events.publish(EVENT)
    finally:
        logger.removeFilter(broken)
    assert heard == [EVENT]
    assert events.failures == 0


async def hear(event: Event) -> None:
    raise AssertionError("nobody awaits this")


class Listener:
    async def __call__(self, event: Event) -> None:
        raise AssertionError("nobody awaits this")


def test_a_subscriber_that_meets_something_cancelled_cancels_nobody(events, log):
    def look(_event: Event) -> None:
        raise CancelledError  # as the result() of a cancelled future does

    events.subscribe(look)
    events.publish(EVENT)
    assert events.failures == 1
    assert log[0]["event"] == "subscriber_failed"


@pytest.mark.parametrize(
    "subscriber", [None, "print", hear, partial(hear), Listener(), partial(Listener())]
)
def test_what_is_no_plain_function_is_refused_by_its_name(events, subscriber):
    with pytest.raises(ConfigurationError) as refused:
        events.subscribe(subscriber)
    assert repr(subscriber) in str(refused.value)
    assert not events.subscribers


def test_an_exit_is_no_failure_of_a_subscriber(events):
    events.subscribe(lambda _event: exit(3))
    with pytest.raises(SystemExit):
        events.publish(EVENT)
    assert events.failures == 0


def test_log_event_logs_the_fields_that_are_there_at_debug(log):
    log_event(Detailed(instance="mine", amount=3))
    log_event(Detailed(instance="mine", amount=0, reason="told"))
    assert log == [
        {"event": "detailed", "log_level": "debug", "instance": "mine", "amount": 3},
        {
            "event": "detailed",
            "log_level": "debug",
            "instance": "mine",
            "amount": 0,
            "reason": "told",
        },
    ]


def test_an_event_cannot_be_changed():
    with pytest.raises(AttributeError):
        EVENT.name = "other"
