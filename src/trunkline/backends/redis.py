"""Redis and Valkey: a client that sends a batch of scripts in one round trip."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from importlib.resources import files
from time import monotonic
from typing import Any, NamedTuple, Self, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from trunkline.backends.adapter import Adapter
from trunkline.backends.errors import ConnectionLost
from trunkline.backends.registry import AdapterOptions
from trunkline.backends.url import hide_password
from trunkline.errors import ConfigurationError, StoreError, StoreUnavailable, TrunklineError

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AuthenticationError,
        AuthorizationError,
        BusyLoadingError,
        ClusterCrossSlotError,
        ClusterDownError,
        MovedError,
        NoPermissionError,
        NoScriptError,
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
    "AnyRedis",
    "Command",
    "RedisAdapter",
    "RedisServer",
    "Script",
    "ScriptCall",
    "load_script",
    "optional",
    "text_or_none",
)

#: A command with its arguments.
Words: TypeAlias = tuple[Any, ...]

#: A URL, or what redis-py makes of one.
AnyRedis: TypeAlias = "str | redis.Redis | redis.ConnectionPool"


class Command(NamedTuple):
    """An idempotent command of the server's own, with its arguments."""

    name: str
    arguments: Sequence[Any]


class Script:
    """A Lua script, which runs alone and wholly, or not at all."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        #: What the server calls it once it knows it.
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class ScriptCall(NamedTuple):
    """A script with its keys and arguments."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Any] = ()


def load_script(package: str, *names: str) -> Script:
    """The script made of the files `lua/<name>.lua` of a package, one behind the other."""
    folder = files(package) / "lua"
    texts = [(folder / f"{name}.lua").read_text(encoding="utf-8") for name in names]
    return Script("".join(texts))


class RedisServer:
    """A connection to a server, made when it is needed and made again when it was lost.

    Args:
        server: `redis://[user:password@]host[:port][/number]`, `valkey://…`, `rediss://…` (TLS) or
            `unix://path`; or a client or connection pool of redis-py, which brings whatever it
            knows of TLS, Sentinel or credentials, and stays the program's to close.
        timeout_ms: how long connecting, and one answer, may take. A client has its own timeouts.

    Raises:
        ConfigurationError: the URL or client cannot work.
    """

    def __init__(self, server: AnyRedis, timeout_ms: int = 5_000) -> None:
        self._timeout_ms = timeout_ms
        self._server = server
        self._is_owned = isinstance(server, str)
        if isinstance(server, str):
            self.shown_url = hide_password(server)
            self._pool = _open_pool(server, self.shown_url, timeout_ms)
        else:
            self._pool = _pool_of(server)
            where = self._pool.connection_kwargs
            self.shown_url = f"redis://{where.get('host', '')}:{where.get('port', '')}"
        # Digests of the scripts that the server should know by now.
        self._loaded: set[str] = set()
        #: The connection that hears notices, once one is waited for.
        self._listener: Any = None

    def sibling(self) -> RedisServer:
        """Another connection to the same server."""
        return RedisServer(self._server, self._timeout_ms)

    def open(self) -> None:
        """Connect.

        Raises:
            ConnectionLost: the server cannot be reached.
            ConfigurationError: wrong user, password or database number, or a cluster.
        """
        try:
            self.call(Command("PING", []))
        except TypeError:
            raise ConfigurationError(f"{self.shown_url!r} has an unknown option") from None
        (info,) = self.call_all([Command("INFO", ["cluster"])])
        if isinstance(info, bytes) and b"cluster_enabled:1" in info:
            raise ConfigurationError(
                f"{self.shown_url} is a node of a cluster, and a store needs a single server"
            )

    def close(self) -> None:
        """Close the connection, unless it is the program's."""
        self._loaded.clear()
        self._stop_listening()
        if self._is_owned:
            self._pool.disconnect()

    def identity(self) -> str:
        """The same for two URLs that lead to one numbered database of a server."""
        info = self.call(Command("INFO", ["server"]))
        run_id = info.partition(b"run_id:")[2].split()[0].decode()
        return f"{run_id}:{self._pool.connection_kwargs.get('db') or 0}"

    def keys(self, pattern: str) -> Iterator[bytes]:
        """The keys that match, some maybe twice."""
        cursor = b"0"
        while True:
            cursor, keys = self.call(Command("SCAN", [cursor, "MATCH", pattern, "COUNT", 1_000]))
            yield from keys
            if cursor == b"0":
                return

    def namespaces(self, pattern: str) -> list[str]:
        """What stands in the first braces of the keys that match, sorted."""
        found = {key[key.index(b"{") + 1 : key.index(b"}")] for key in self.keys(pattern)}
        # Behind a colon stands the shard, where there are some.
        return sorted({unquote(name.partition(b":")[0].decode()) for name in found})

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
        scripts = {call.script.sha for call in calls if isinstance(call, ScriptCall)}
        # All or none by their text: what is missing on the server is missing for all, and so a
        # batch that meets that keeps its order.
        as_text = not scripts <= self._loaded
        results = self._exchange([_words(call, as_text=as_text) for call in calls])
        missing = [isinstance(result, NoScriptError) for result in results]
        if any(missing):
            # The server was restarted, say. Commands may be run twice: they are idempotent.
            first = missing.index(True)
            again = [
                index
                for index in range(first, len(calls))
                if missing[index] or isinstance(calls[index], Command)
            ]
            replies = self._exchange([_words(calls[index], as_text=True) for index in again])
            for index, reply in zip(again, replies, strict=True):
                results[index] = reply
        self._loaded |= scripts
        return [
            self._translate(result) if isinstance(result, RedisError) else result
            for result in results
        ]

    def wait_notice(self, channel: str, sender: bytes, timeout_ms: int) -> bool:
        """Wait for a message on a channel that `sender` has not sent; whether one came.

        True as well when it begins to listen, and after the connection was lost: some may have been
        sent before.
        """
        end = monotonic() + timeout_ms / 1000
        try:
            if self._listener is None:
                client: Any = redis.Redis(connection_pool=self._pool)
                self._listener = client.pubsub()
                self._listener.subscribe(channel)
            while (left := end - monotonic()) > 0:
                message = self._listener.get_message(timeout=left)
                if message is not None and message["data"] != sender:
                    self._skip_notices()
                    return True
        except RedisError as error:
            self._stop_listening()
            raise self._translate(error) from None
        return False

    def _skip_notices(self) -> None:
        """One look answers all that were sent until now."""
        while self._listener.get_message() is not None:
            pass

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _exchange(self, commands: Sequence[Words]) -> list[Any]:
        """Send commands in one go and read as many replies.

        A pipeline of the client takes a third longer: it looks at every command and reply.
        """
        try:
            connection: Any = self._pool.get_connection()
            try:
                connection.send_packed_command([b"".join(map(_pack, commands))])
                return [_reply(connection) for _ in commands]
            except BaseException:
                self._loaded.clear()
                connection.disconnect()  # there may be replies left on it
                raise
            finally:
                self._pool.release(connection)
        except RedisError as error:
            raise self._translate(error) from None

    def _translate(self, error: RedisError) -> TrunklineError:
        if isinstance(error, redis.TimeoutError):
            return ConnectionLost(f"{self.shown_url}: no answer within {self._timeout_ms} ms")
        where = f"{self.shown_url}: {error}"
        if isinstance(error, _MISTAKES) or any(text in str(error) for text in _MISTAKE_TEXTS):
            return ConfigurationError(where)
        if isinstance(error, MovedError | ClusterCrossSlotError):
            return ConfigurationError(f"{where}: a store needs a single server, not a cluster")
        if isinstance(error, ReadOnlyError):
            # It was the primary, and its name may lead to the new one.
            self._pool.disconnect()
            return StoreUnavailable(where)
        if isinstance(error, _UNAVAILABLE) or str(error).startswith(_UNAVAILABLE_CODES):
            return StoreUnavailable(where)
        # Any other reply is the answer to its call alone: a foreign key of another type, say.
        return StoreError(where) if isinstance(error, ResponseError) else ConnectionLost(where)


def _words(call: Command | ScriptCall, *, as_text: bool = False) -> Words:
    """The words of a command; a script goes by its digest, or `as_text`."""
    if isinstance(call, Command):
        return (call.name, *call.arguments)
    head = ("EVAL", call.script.text) if as_text else ("EVALSHA", call.script.sha)
    return (*head, len(call.keys), *call.keys, *call.arguments)


def _packed(words: Words) -> bytes:
    """A command as the protocol has it, where the client has no parser in C that can do that."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        encoded = word if type(word) is bytes else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(encoded), encoded))
    return b"".join(parts)


_pack: Callable[[Any], bytes]
try:
    # Not by the client's `pack_commands`, which takes twice as long as the function above.
    from hiredis import pack_command as _pack
except ModuleNotFoundError:
    _pack = _packed


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _open_pool(url: str, shown_url: str, timeout_ms: int) -> redis.ConnectionPool:
    if "decode_responses" in url.partition("?")[2]:
        raise ConfigurationError(f"{shown_url!r}: a store keeps bytes: no decode_responses")
    try:
        _check(url)
        return redis.ConnectionPool.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            socket_timeout=timeout_ms / 1000,
            socket_connect_timeout=timeout_ms / 1000,
            # One for calls, and one for notices where they are waited for.
            max_connections=2,
            # What was sent may have been run, and must not be run a second time. A connection
            # that was closed meanwhile is noticed and replaced before anything is sent.
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):
        # What these say may quote the password.
        raise ConfigurationError(
            f"{shown_url!r} is not a Redis URL: in a password, '/', '?', '#' and '@' are"
            " written %2F, %3F, %23 and %40"
        ) from None


def _pool_of(client: object) -> redis.ConnectionPool:
    """The pool of a client that a program has made."""
    pool = getattr(client, "connection_pool", client)
    if not isinstance(pool, redis.ConnectionPool):
        raise ConfigurationError(
            "a store takes a redis.Redis or redis.ConnectionPool, neither asyncio's nor a"
            f" cluster's: not {type(client).__name__}"
        )
    if pool.connection_kwargs.get("decode_responses"):
        raise ConfigurationError("a store keeps bytes: a client without decode_responses")
    if pool.connection_kwargs.get("socket_timeout") is None:
        raise ConfigurationError("a store must not wait for ever: a client with socket_timeout=")
    return pool


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


class RedisAdapter(Adapter):
    """Base of the adapters of a `RedisServer`, with locks: keys that expire if not renewed.

    Args:
        server: `redis://…` or `valkey://…`; or a client or connection pool of redis-py.
        namespace: leads every key.
        timeout_ms: how long connecting, and one answer, may take.

    Source: the single-instance lock of the Redis documentation (`SET NX PX` with a random token).
    """

    lease_ms = 10_000

    def __init__(
        self,
        server: AnyRedis,
        *,
        namespace: str = "default",
        timeout_ms: int = 5_000,
    ) -> None:
        self.namespace = namespace
        #: What every key begins with. The server hashes what is in braces: all of a namespace is on
        #: one node of a cluster.
        self.prefix = f"trunkline:{{{quote(namespace, safe='')}}}:{self.store}"
        self.server = RedisServer(server, timeout_ms)
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

    def share(self, other: Adapter) -> bool:
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

    def _lock_call(self, script: Script, key: str, token: str) -> ScriptCall:
        return ScriptCall(script, [self._lock_name(key)], [token, self.lease_ms])

    def _lock_name(self, key: str) -> str:
        return f"{self.prefix}-lock:{key}"


_TRY_LOCK = load_script(__package__, "try_lock")
_RENEW_LOCK = load_script(__package__, "renew_lock")
_UNLOCK = load_script(__package__, "unlock")


def optional(value: str | None) -> str:
    """A string that may be missing, as one argument of a script."""
    return "" if value is None else f"={value}"


def text_or_none(raw: bytes | None) -> str | None:
    """What `optional` was given."""
    return raw[1:].decode() if raw else None
