"""How often an actor may crash, and how long it rests."""

from __future__ import annotations

import math

import pytest

from trunkline.actors import RestartPolicy
from trunkline.actors.policy import CrashHistory
from trunkline.errors import ConfigurationError
from trunkline.validation import require_positive


def test_fifteen_crashes_a_minute_are_forgiven_by_default():
    policy = RestartPolicy()
    assert (policy.max_restarts, policy.within_ms) == (15, 60_000)


def test_the_rest_doubles_with_every_crash_up_to_its_maximum():
    policy = RestartPolicy(min_backoff_ms=100, max_backoff_ms=1_000, jitter=0.0)
    assert [policy.backoff_ms(n) for n in range(1, 7)] == [100, 200, 400, 800, 1_000, 1_000]


def test_the_rest_after_very_many_crashes_is_the_maximum():
    assert RestartPolicy(jitter=0.0).backoff_ms(1_000_000) == 5_000


def test_a_minimum_above_the_maximum_yields_to_it():
    policy = RestartPolicy(min_backoff_ms=900, max_backoff_ms=500, jitter=0.0)
    assert policy.backoff_ms(1) == 500


def test_jitter_shortens_the_rest_by_a_part_that_is_left_to_chance():
    policy = RestartPolicy(min_backoff_ms=1_000, jitter=0.25)
    rests = [policy.backoff_ms(1) for _ in range(200)]
    assert all(750 <= rest <= 1_000 for rest in rests)
    assert len(set(rests)) > 100


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_restarts", -1),
        ("max_restarts", 1.0),
        ("max_restarts", True),
        ("within_ms", 0),
        ("within_ms", 60_000.0),
        ("min_backoff_ms", 0),
        ("min_backoff_ms", "100"),
        ("max_backoff_ms", -5),
        ("jitter", -0.1),
        ("jitter", 1.1),
        ("jitter", math.nan),
        ("jitter", "0.25"),
        ("jitter", None),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_name_and_value(name, value):
    with pytest.raises(ConfigurationError, match=f"{name} must .*{value!r}"):
        RestartPolicy(**{name: value})


def test_no_crash_at_all_may_be_forgiven():
    assert RestartPolicy(max_restarts=0).max_restarts == 0


def test_crashes_are_counted_within_the_window():
    crashes = CrashHistory(within_ms=100)
    assert [crashes.add(now_ms) for now_ms in (0, 50, 99)] == [1, 2, 3]


def test_a_crash_is_forgotten_when_the_window_has_passed_over_it():
    crashes = CrashHistory(within_ms=100)
    crashes.add(0)
    crashes.add(60)
    assert crashes.add(100) == 2
    assert crashes.add(1_000) == 1


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None])
def test_a_duration_that_is_not_a_positive_int_is_refused(value):
    with pytest.raises(ConfigurationError, match=f"ttl_ms must be an int of 1 or more.*{value!r}"):
        require_positive("ttl_ms", value)


def test_a_positive_int_is_a_duration():
    assert require_positive("ttl_ms", 1) == 1


@pytest.mark.parametrize("name", RestartPolicy.__struct_fields__)
def test_a_number_that_no_timer_takes_is_refused_by_name(name):
    with pytest.raises(ConfigurationError, match=f"{name} must be"):
        RestartPolicy(**{name: 10**400})
