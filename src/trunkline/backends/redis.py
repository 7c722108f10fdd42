"""Redis and Valkey: a client that sends a batch of scripts in one round trip."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from trunkline.backends.adapter import Adapter
from trunkline.backends.url import hide_password
from trunkline.backends.workers import ConnectionLost
from trunkline.errors import ConfigurationError, StoreUnavailable

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AuthenticationError,
        AuthorizationError,
        BusyLoadingError,
        NoScriptError,
        RedisError,
        ResponseError,
    )
    from redis.retry import Retry
except ModuleNotFoundError:
    raise ConfigurationError(
        "redis:// and valkey:// need redis: pip install 'trunkline[redis]'"
    ) from None

__all__ = ("LeaseLocks", "RedisServer", "ScriptCall", "optional", "text_or_none")


class ScriptCall(NamedTuple):
    """A Lua script with its keys and arguments. It runs alone and wholly, or not at all."""

    script: str
    keys: Sequence[str]
    arguments: Sequence[Any] = ()


class RedisServer:
    """A connection to a server, made when it is needed and made again when it was lost.

    Args:
        url: `redis://[user:password@]host[:port][/number]`, `valkey://…`, `rediss://…` (TLS), or
            `unix://path`.
        timeout_ms: how long connecting, and one answer, may take.

    Raises:
        ConfigurationError: the URL cannot work.
    """

    def __init__(self, url: str, timeout_ms: int = 5_000) -> None:
        self.url = url
        self.shown_url = hide_password(url)
        self._timeout_ms = timeout_ms
        seconds = timeout_ms / 1000
        try:
            self._client = redis.Redis.from_url(
                url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
                socket_timeout=seconds,
                socket_connect_timeout=seconds,
                single_connection_client=False,
                max_connections=1,
                retry=Retry(NoBackoff(), 1),
            )
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{self.shown_url!r} is no Redis URL: {error}") from None

    def sibling(self) -> RedisServer:
        """Another connection to the same server."""
        return RedisServer(self.url, self._timeout_ms)

    def open(self) -> None:
        """Connect.

        Raises:
            ConnectionLost: the server cannot be reached.
            ConfigurationError: wrong user, password or database number.
        """
        try:
            self._client.ping()
        except RedisError as error:
            raise self._translate(error) from None

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def call(self, call: ScriptCall) -> Any:
        """Run one script; what it returned."""
        result = self.call_all([call])[0]
        if isinstance(result, Exception):
            raise result
        return result

    def call_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run scripts in one round trip, in their order.

        Returns:
            What each returned, or the error in the place of one that failed.

        Raises:
            ConnectionLost: the connection broke; some may have been run.
        """
        results = self._evaluate(calls)
        unknown = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
        if unknown:
            # The server has not seen these scripts, or has forgotten them in a restart.
            try:
                for script in {calls[i].script for i in unknown}:
                    self._client.script_load(script)
            except RedisError as error:
                raise self._translate(error) from None
            again = self._evaluate([calls[i] for i in unknown])
            for i, result in zip(unknown, again, strict=True):
                results[i] = result
        return [
            self._translate(result) if isinstance(result, RedisError) else result
            for result in results
        ]

    def scan(self, pattern: str) -> list[bytes]:
        """Every key that matches a glob pattern."""
        try:
            return list(self._client.scan_iter(match=pattern, count=1_000))
        except RedisError as error:
            raise self._translate(error) from None

    def _evaluate(self, calls: Sequence[ScriptCall]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            digest = _digest(call.script)
            pipeline.evalsha(digest, len(call.keys), *call.keys, *call.arguments)
        try:
            results: list[Any] = pipeline.execute(raise_on_error=False)
        except RedisError as error:
            raise self._translate(error) from None
        return results

    def _translate(self, error: RedisError) -> Exception:
        where = f"{self.shown_url}: {error}"
        if isinstance(error, AuthenticationError | AuthorizationError) or "NOAUTH" in str(error):
            return ConfigurationError(where)
        if isinstance(error, BusyLoadingError):
            return StoreUnavailable(where)
        if not isinstance(error, ResponseError):
            return ConnectionLost(where)
        if "DB index" in str(error):
            return ConfigurationError(where)
        if str(error).startswith(
            ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "BUSY", "CLUSTERDOWN")
        ):
            return StoreUnavailable(where)
        return error


class LeaseLocks(Adapter):
    """Locks among processes for adapters of a `RedisServer`: keys that expire if not renewed.

    Source: the single-instance lock of the Redis documentation (`SET NX PX` with a random token).
    """

    server: RedisServer
    #: What the keys of the locks begin with.
    lock_prefix: str
    lease_ms = 10_000

    def try_lock(self, key: str, token: str) -> bool:
        return self._ask(_TRY_LOCK, key, token)

    def renew_lock(self, key: str, token: str) -> bool:
        return self._ask(_RENEW_LOCK, key, token)

    def unlock(self, key: str, token: str) -> None:
        self._ask(_UNLOCK, key, token)

    def _ask(self, script: str, key: str, token: str) -> bool:
        name = f"{self.lock_prefix}:{key}"
        return bool(self.server.call(ScriptCall(script, [name], [token, self.lease_ms])))


_TRY_LOCK = """
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
"""

_RENEW_LOCK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

_UNLOCK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


@cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode()).hexdigest()


def optional(value: str | None) -> str:
    """A string that may be missing, as one argument of a script."""
    return "" if value is None else f"={value}"


def text_or_none(raw: bytes) -> str | None:
    """What `optional` was given."""
    return raw[1:].decode() if raw else None
