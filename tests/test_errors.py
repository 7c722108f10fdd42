from __future__ import annotations

import pickle

import pytest

from trunkline import errors
from trunkline.errors import TrunklineError

#: The documented names, and the built-in or the name above it that a program may catch as well.
ALSO = {
    "TrunklineError": Exception,
    "ConfigurationError": ValueError,
    "InvalidSessionKey": ValueError,
    "InvalidRoute": ValueError,
    "NotFound": LookupError,
    "RouteNotFound": LookupError,
    "RouteExpired": LookupError,
    "NoRoute": LookupError,
    "AmbiguousMatch": LookupError,
    "AlreadyBound": TrunklineError,
    "TransactionConflict": TrunklineError,
    "TransitionError": TrunklineError,
    "ActorCrashed": TrunklineError,
    "ActorStopped": TrunklineError,
    "CallTimeout": TimeoutError,
    "RestartIntensityExceeded": TrunklineError,
    "PartitionUnavailable": TrunklineError,
    "StoreUnavailable": TrunklineError,
}


def test_the_documented_names_are_public():
    assert set(ALSO) <= set(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_there_is_one_tree(name):
    assert issubclass(getattr(errors, name), TrunklineError)


@pytest.mark.parametrize("name", ALSO)
def test_every_error_is_a_trunkline_error_and_what_else_fits(name):
    error = getattr(errors, name)
    assert issubclass(error, TrunklineError)
    assert issubclass(error, ALSO[name])
    assert error.__doc__


@pytest.mark.parametrize("name", ALSO)
def test_an_error_shows_its_message_and_survives_pickling(name):
    error = getattr(errors, name)("what went wrong")
    assert str(error) == "what went wrong"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), "what went wrong")


def test_an_ambiguous_match_has_what_matched():
    error = errors.AmbiguousMatch("two rooms", matches=["a", "b"])
    assert error.matches == ["a", "b"]
    assert pickle.loads(pickle.dumps(error)).matches == ["a", "b"]
    assert errors.AmbiguousMatch("none told").matches == ()


def test_a_binding_that_exists_names_its_room():
    error = errors.AlreadyBound("bound to room r1", room_id="r1")
    assert error.room_id == "r1"
    assert errors.AlreadyBound("bound").room_id is None
