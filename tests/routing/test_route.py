from __future__ import annotations

from collections import ChainMap
from types import MappingProxyType

import msgspec
import pytest

from trunkline import Resolution, Route, RouteRecord, SessionKey
from trunkline.errors import InvalidRoute
from trunkline.routing.route import first_valid_route, valid_route

KEY = SessionKey("telegram", "bot", "42")


def test_a_route_needs_its_external_room_only():
    route = Route(42)
    assert route.external_room_id == 42
    assert (route.channel_type, route.bridge_id, route.room_id, route.thread_id) == (None,) * 4
    assert route.extra == {}


def test_routes_do_not_share_their_extra():
    one, other = Route(1), Route(1)
    one.extra["seen"] = True
    assert other.extra == {}


@pytest.mark.parametrize("value", [Route(1), RouteRecord(Route(1), 1, 2)])
def test_what_the_router_returns_cannot_be_changed(value):
    field = value.__struct_fields__[0]
    with pytest.raises(AttributeError):
        setattr(value, field, None)


def test_the_fields_of_records_and_resolutions_are_in_their_documented_order():
    assert RouteRecord.__struct_fields__ == ("route", "updated_at_ms", "expires_at_ms")
    assert Resolution.__struct_fields__ == (
        "external_room_id",
        "route",
        "partition",
        "session_key",
        "source",
        "fallback",
        "stale",
        "fallback_reason",
    )


def test_a_resolution_can_be_sent_as_json():
    resolution = Resolution(1, Route(1), 0, KEY, "state_hit", False, False, None)
    sent = msgspec.json.encode(resolution)
    assert msgspec.json.decode(sent, type=Resolution) == resolution


# -- mappings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dict, MappingProxyType, ChainMap])
def test_a_mapping_is_a_route(kind):
    mapping = kind({"external_room_id": 42, "channel_type": "telegram", "thread_id": "7"})
    assert valid_route(KEY, mapping) == Route(42, "telegram", thread_id="7")


def test_unknown_keys_of_a_mapping_go_to_extra():
    route = valid_route(KEY, {"external_room_id": 42, "locale": "de", 7: "seven"})
    assert route == Route(42, extra={"locale": "de", 7: "seven"})


def test_the_extra_of_a_mapping_is_kept_beside_its_unknown_keys():
    route = valid_route(
        KEY, {"external_room_id": 42, "extra": {"locale": "de", "tz": "CET"}, "locale": "fr"}
    )
    assert route.extra == {"locale": "fr", "tz": "CET"}


def test_an_extra_that_is_no_mapping_is_kept_under_its_name():
    assert valid_route(KEY, {"external_room_id": 42, "extra": "x"}).extra == {"extra": "x"}
    assert valid_route(KEY, {"external_room_id": 42, "extra": None}).extra == {}


def test_a_mapping_is_not_changed_and_not_kept():
    mapping = {"external_room_id": 42, "extra": {"a": 1}, "locale": "de"}
    route = valid_route(KEY, mapping)
    route.extra["b"] = 2
    assert mapping == {"external_room_id": 42, "extra": {"a": 1}, "locale": "de"}


@pytest.mark.parametrize("room", [0, "", False, -1001234567890, ("a", 1)])
def test_any_external_room_but_none_will_do(room):
    assert valid_route(KEY, {"external_room_id": room}).external_room_id == room
    assert first_valid_route(Route(room)) == Route(room)


# -- what is no route ----------------------------------------------------------------------------

BAD_ROUTES = [
    ({}, "has no external_room_id"),
    ({"room_id": "42"}, "has no external_room_id"),
    ({"external_room_id": None}, "has no external_room_id"),
    (Route(None), "has no external_room_id"),
    (None, "not NoneType"),
    ("42", "not str"),
    (42, "not int"),
    ([("external_room_id", 42)], "not list"),
]


@pytest.mark.parametrize(("route", "why"), BAD_ROUTES)
def test_what_is_no_route_is_refused_with_its_key_and_the_reason(route, why):
    with pytest.raises(InvalidRoute) as refused:
        valid_route(KEY, route)
    assert "'telegram:bot:42'" in str(refused.value)
    assert why in str(refused.value)


def test_an_error_about_a_route_does_not_show_its_content():
    with pytest.raises(InvalidRoute) as refused:
        valid_route(KEY, {"token": "secret"})
    assert "secret" not in str(refused.value)


def test_a_bad_route_is_a_value_error():
    with pytest.raises(ValueError, match="external_room_id"):
        valid_route(KEY, {})


# -- fallbacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("invalid", [route for route, _ in BAD_ROUTES])
def test_an_invalid_fallback_is_passed_over(invalid):
    assert first_valid_route([invalid, {"external_room_id": 1}, Route(2)]) == Route(1)
    assert first_valid_route([invalid]) is None


def test_the_first_valid_fallback_is_taken():
    assert first_valid_route([Route(1), Route(2)]) == Route(1)


def test_one_fallback_needs_no_list():
    assert first_valid_route(Route(1)) == Route(1)
    assert first_valid_route({"external_room_id": 1}) == Route(1)


def test_fallbacks_may_be_made_as_they_are_needed():
    made = []

    def make():
        for room in (None, 1, 2):
            made.append(room)
            yield Route(room)

    assert first_valid_route(make()) == Route(1)
    assert made == [None, 1]


@pytest.mark.parametrize("fallbacks", [None, 42, object(), (), "42"])
def test_what_holds_no_fallback_gives_none(fallbacks):
    assert first_valid_route(fallbacks) is None
