"""The router: keys, routes and fallbacks."""

from __future__ import annotations

from typing import assert_type

from trunkline import PruneResult, Resolution, Route, RouteRecord, SessionKey, SessionRouter


def constructors() -> None:
    SessionRouter()
    SessionRouter(partition_count=4, ttl_ms=60_000, clock=lambda: 0, name="routes")
    SessionRouter(4)  # error: call-arg, misc
    SessionRouter(partitions=4)  # error: call-arg
    SessionRouter(ttl_ms="soon")  # error: arg-type
    SessionRouter(clock=lambda: "now")  # error: arg-type


def keys() -> None:
    key = SessionKey("telegram", "bot", "42")
    assert_type(SessionKey.parse(str(key)), SessionKey)
    assert_type(key.room_scope, SessionKey)
    assert_type(key.same_room(key), bool)
    SessionKey("telegram", "bot", 42)  # error: arg-type
    SessionKey("telegram", "bot")  # error: call-arg


async def routes(router: SessionRouter) -> None:
    key = SessionKey("telegram", "bot", "42")
    await router.set(key, Route("42"))
    await router.set(("telegram", "bot", "42"), {"external_room_id": "42"}, ttl_ms=1_000)
    assert_type(await router.get(key), RouteRecord)
    assert_type(await router.resolve(key), Resolution)
    assert_type(await router.resolve(key, [Route("1"), {"external_room_id": "2"}]), Resolution)
    assert_type(await router.delete(key), bool)
    assert_type(await router.prune(), PruneResult)
    await router.set_many({key: Route("42")})
    await router.resolve_many([key])
    await router.set(key)  # error: call-arg
    await router.set("telegram:bot:42", Route("42"))  # error: arg-type
    await router.set(key, "42")  # error: arg-type
    await router.set(key, Route("42"), ttl=1_000)  # error: call-arg
    await router.resolve(42)  # error: arg-type
    await router.resolve(key, fallback=Route("42"))  # error: call-arg
