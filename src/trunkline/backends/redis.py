"""Redis and Valkey: a client that sends a batch of scripts in one round trip."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from trunkline.backends.adapter import Adapter
from trunkline.backends.dump import Dumpable
from trunkline.backends.errors import ConnectionLost
from trunkline.backends.registry import AdapterOptions
from trunkline.backends.url import hide_password
from trunkline.errors import ConfigurationError, StoreUnavailable, TrunklineError

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AuthenticationError,
        AuthorizationError,
        BusyLoadingError,
        ClusterDownError,
        NoPermissionError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisError,
        ResponseError,
    )
    from redis.retry import Retry
except ModuleNotFoundError:
    raise ConfigurationError(
        "redis:// and valkey:// need redis: pip install 'trunkline[redis]'"
    ) from None

__all__ = (
    "Command",
    "RedisAdapter",
    "RedisServer",
    "ScriptCall",
    "load_script",
    "optional",
    "text_or_none",
)


class Command(NamedTuple):
    """A command of the server's own, with its arguments."""

    name: str
    arguments: Sequence[Any]


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
        if "decode_responses" in url.partition("?")[2]:
            raise ConfigurationError(
                f"{self.shown_url!r}: a store keeps bytes: no decode_responses"
            )
        try:
            _check(url)
            self._client = redis.Redis.from_url(
                url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
                socket_timeout=seconds,
                socket_connect_timeout=seconds,
                max_connections=1,
                # What was sent may have been run, and must not be run a second time. A connection
                # that was closed meanwhile is noticed and replaced before anything is sent.
                retry=Retry(NoBackoff(), 0),
            )
        except (ValueError, TypeError):
            # What these say may quote the password.
            raise ConfigurationError(
                f"{self.shown_url!r} is no Redis URL: in a password, '/', '?', '#' and '@' are"
                " written %2F, %3F, %23 and %40"
            ) from None

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
        except TypeError:
            raise ConfigurationError(f"{self.shown_url!r} has an unknown option") from None

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def identity(self) -> str:
        """The same for two URLs that lead to one numbered database of a server."""
        info = self.call(Command("INFO", ["server"]))
        run_id = info.partition(b"run_id:")[2].split()[0].decode()
        return f"{run_id}:{self._client.connection_pool.connection_kwargs.get('db') or 0}"

    def namespaces(self, pattern: str) -> list[str]:
        """What stands in the first braces of the keys that match, sorted."""
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, keys = self.call(Command("SCAN", [cursor, "MATCH", pattern, "COUNT", 1_000]))
            found.update(key[key.index(b"{") + 1 : key.index(b"}")] for key in keys)
            if cursor == b"0":
                return sorted(unquote(name.decode()) for name in found)

    def call(self, call: Command | ScriptCall) -> Any:
        """Run one command or script; what it returned."""
        result = self.call_all([call])[0]
        if isinstance(result, Exception):
            raise result
        return result

    def call_all(self, calls: Sequence[Command | ScriptCall]) -> list[Any]:
        """Run commands and scripts in one round trip, in their order.

        Returns:
            What each returned, or the error in the place of one that failed.

        Raises:
            ConnectionLost: the connection broke; some may have been run.
        """
        try:
            results = self._exchange(b"".join(map(_packed, calls)), len(calls))
        except RedisError as error:
            raise self._translate(error) from None
        return [
            self._translate(result) if isinstance(result, RedisError) else result
            for result in results
        ]

    def _exchange(self, packed: bytes, count: int) -> list[Any]:
        """Send commands and read as many replies.

        A pipeline of the client does the same in twice the time: it looks at every command.
        """
        pool = self._client.connection_pool
        connection: Any = pool.get_connection()
        try:
            connection.send_packed_command([packed])
            return [_reply(connection) for _ in range(count)]
        except BaseException:
            connection.disconnect()  # there may be replies left on it
            raise
        finally:
            pool.release(connection)

    def _translate(self, error: RedisError) -> Exception:
        if isinstance(error, redis.TimeoutError):
            return ConnectionLost(f"{self.shown_url}: no answer within {self._timeout_ms} ms")
        where = f"{self.shown_url}: {error}"
        if isinstance(error, _MISTAKES) or any(text in str(error) for text in _MISTAKE_TEXTS):
            return ConfigurationError(where)
        if isinstance(error, ReadOnlyError):
            # It was the primary, and its name may lead to the new one.
            self._client.connection_pool.disconnect()
            return StoreUnavailable(where)
        if isinstance(error, _UNAVAILABLE) or str(error).startswith(_UNAVAILABLE_CODES):
            return StoreUnavailable(where)
        return error if isinstance(error, ResponseError) else ConnectionLost(where)


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _packed(call: Command | ScriptCall) -> bytes:
    """A command as it goes over the wire: an array of bulk strings (RESP).

    A script goes with its text, and not by its digest: a server that was started anew knows none,
    and to send some calls again would change their order.
    """
    if isinstance(call, ScriptCall):
        parts = [*call.keys, *call.arguments]
        packed = [_packed_head(len(parts), "EVAL", call.script, len(call.keys))]
    else:
        parts = [*call.arguments]
        packed = [_packed_head(len(parts), call.name)]
    for part in parts:
        raw = part if type(part) is bytes else str(part).encode()
        packed.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(packed)


@lru_cache(maxsize=1_024)
def _packed_head(more: int, *head: str | int) -> bytes:
    """The parts of a command that are the same in many, before `more` others."""
    raws = [str(one).encode() for one in head]
    bulk = b"".join(b"$%d\r\n%b\r\n" % (len(raw), raw) for raw in raws)
    return b"*%d\r\n%b" % (len(raws) + more, bulk)


def _check(url: str) -> None:
    """Raise `ValueError` for what the client would leave out, and go to another place instead."""
    parts = urlsplit(url)
    if parts.query:
        parse_qsl(parts.query, strict_parsing=True)
    if parts.fragment or (parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path)):
        raise ValueError(url)


_MISTAKES = (AuthenticationError, AuthorizationError, NoPermissionError)
#: Those of which the client makes no classes: no such database; no right to a command in a script.
_MISTAKE_TEXTS = ("DB index", "ACL failure in script")
_UNAVAILABLE = (BusyLoadingError, ClusterDownError, OutOfMemoryError)
#: Errors of which the client makes no classes, by the code that they begin with.
_UNAVAILABLE_CODES = ("MISCONF", "NOREPLICAS", "BUSY")


def load_script(package: str, name: str) -> str:
    """The Lua script `name` in the folder `lua` of a package, such as `trunkline.signal`."""
    return files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")


class RedisAdapter(Adapter):
    """Base of the adapters of a `RedisServer`, with locks: keys that expire if not renewed.

    Args:
        url: `redis://…` or `valkey://…`.
        timeout_ms: how long connecting, and one answer, may take.

    Source: the single-instance lock of the Redis documentation (`SET NX PX` with a random token).
    """

    lease_ms = 10_000

    def __init__(self, url: str, *, namespace: str = "default", timeout_ms: int = 5_000) -> None:
        self.namespace = namespace
        #: What every key begins with. The server hashes what is in braces: all of a namespace is on
        #: one node of a cluster.
        self.prefix = f"trunkline:{{{quote(namespace, safe='')}}}:{self.store}"
        self.server = RedisServer(url, timeout_ms)
        #: token → key of the locks that may be held.
        self._held: dict[str, str] = {}

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls(url, namespace=options.namespace, timeout_ms=options.timeout_ms)

    def sibling(self) -> Self:
        other = copy(self)
        other.server = self.server.sibling()
        other._held = {}
        return other

    def open(self) -> None:
        self.server.open()

    def close(self) -> None:
        try:
            if self._held:
                # A lease would keep other processes waiting for seconds.
                self.server.call_all([self._unlock(key, one) for one, key in [*self._held.items()]])
        except TrunklineError:
            pass
        finally:
            self.server.close()

    def share(self, other: Dumpable) -> bool:
        if isinstance(other, RedisAdapter):
            self.server = other.server
        return isinstance(other, RedisAdapter)

    def identity(self) -> str:
        return self.server.identity()

    def try_lock(self, key: str, token: str) -> bool:
        return bool(self.server.call(self._try_lock(key, token)))

    def renew_lock(self, key: str, token: str) -> bool:
        return bool(self.server.call(self._renew_lock(key, token)))

    def unlock(self, key: str, token: str) -> bool:
        return bool(self.server.call(self._unlock(key, token)))

    def _try_lock(self, key: str, token: str) -> ScriptCall:
        self._held[token] = key
        return self._lock_call(_TRY_LOCK, key, token)

    def _renew_lock(self, key: str, token: str) -> ScriptCall:
        return self._lock_call(_RENEW_LOCK, key, token)

    def _unlock(self, key: str, token: str) -> ScriptCall:
        self._held.pop(token, None)
        return self._lock_call(_UNLOCK, key, token)

    def _lock_call(self, script: str, key: str, token: str) -> ScriptCall:
        return ScriptCall(script, [self._lock_name(key)], [token, self.lease_ms])

    def _lock_name(self, key: str) -> str:
        return f"{self.prefix}-lock:{key}"


_TRY_LOCK, _RENEW_LOCK, _UNLOCK = (
    load_script("trunkline.backends", name) for name in ("try_lock", "renew_lock", "unlock")
)


def optional(value: str | None) -> str:
    """A string that may be missing, as one argument of a script."""
    return "" if value is None else f"={value}"


def text_or_none(raw: bytes | None) -> str | None:
    """What `optional` was given."""
    return raw[1:].decode() if raw else None
