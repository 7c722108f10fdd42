"""The session router: where does the answer of this conversation go?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any, NoReturn, Self, TypeVar, TypeVarTuple

import msgspec
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from trunkline.actors import (
    NOT_LOCAL,
    ActorRef,
    Clock,
    RestartPolicy,
    Service,
    Supervisor,
    monotonic_ms,
    sleep_ms,
)
from trunkline.actors.task_group import open_task_group
from trunkline.errors import (
    ActorCrashed,
    ActorStopped,
    CallTimeout,
    ConfigurationError,
    PartitionUnavailable,
    RestartIntensityExceeded,
)
from trunkline.observe import Event, Events
from trunkline.routing.events import (
    PartitionCrashed,
    PartitionRestarted,
    RouteResolved,
    RouterGaveUp,
    RoutesPruned,
    publish_resolution,
)
from trunkline.routing.key import (
    AnySessionKey,
    SessionKey,
    locate,
    partition_of,
    plain_partition,
)
from trunkline.routing.partition import Partition
from trunkline.routing.route import (
    AnyRoute,
    Fallbacks,
    Resolution,
    Route,
    RouteRecord,
    first_valid_route,
    valid_route,
)
from trunkline.routing.stats import Counters, PartitionStats, RouterStats
from trunkline.validation import require_non_negative, require_positive

__all__ = ("PruneResult", "RouterConfig", "SessionRouter")

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

# The handlers of the hot path. Looking them up in the class each time would cost some nanoseconds.
_RESOLVE, _SET = Partition.resolve_held, Partition.set

#: Keys that are checked or pruned, in a millisecond or two, before the event loop runs.
_KEYS_PER_TURN = 500

#: Keys of `set_many` or `resolve_many` for one call of a handler, which takes a few milliseconds.
_MANY_SLICE = 2_048


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a router.

    Raises:
        ConfigurationError: a setting that can never work, by name and value.
    """

    #: Partitions that share the rooms. Each is an actor; a crash costs one of them its records.
    partition_count: int = 8
    #: How long a route is fresh, in milliseconds.
    ttl_ms: int = 1_800_000
    #: Records that one partition holds; above that, the least recently used is evicted.
    max_entries_per_partition: int = 10_000
    #: How often expired records are removed, in milliseconds.
    prune_interval_ms: int = 30_000
    #: How long a prune leaves an expired record in place, so that `resolve` can tell stale from
    #: absent, in milliseconds.
    stale_retention_ms: int = 0
    #: How long a call may wait for its partition, in milliseconds.
    call_timeout_ms: int = 5_000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            (require_non_negative if name == "stale_retention_ms" else require_positive)(
                name, value
            )


class PruneResult(msgspec.Struct, frozen=True):
    """What a prune did."""

    #: Expired records that it removed.
    pruned: int
    #: Partitions of the router.
    partitions: int


class SessionRouter(Service):
    """Routes of conversations: set by what comes in, resolved for what goes out.

    A route is fresh for its time to live. Memory is bounded: every partition holds so many records
    and evicts the least recently used. A thread falls back to its room, whose records live in the
    same partition. A bug costs one partition its records and affects no other.

    Args:
        partition_count: partitions that share the rooms.
        ttl_ms: how long a route is fresh by default.
        max_entries_per_partition: records that one partition holds.
        prune_interval_ms: how often expired records are removed.
        stale_retention_ms: how long a prune leaves an expired record in place.
        call_timeout_ms: how long a call may wait for its partition.
        clock: returns milliseconds of a monotonic clock, so that jumps of the wall clock do not
            matter.
        name: the router's name in events, logs and errors.
        restart_policy: how many crashes are allowed, and the delay after each.

    Raises:
        ConfigurationError: a setting that can never work.
        RestartIntensityExceeded: out of `async with` when partitions crashed too often, and out of
            every call from then on.

    Source: Jido.Messaging's SessionManager, with two changes: the thread is left out of the hash,
    and eviction is by use instead of by age.

    Example:
        >>> import anyio
        >>> from trunkline import SessionKey, SessionRouter
        >>> async def main() -> str:
        ...     async with SessionRouter() as router:
        ...         room = SessionKey("telegram", "support_bot", "42")
        ...         await router.set(room, {"external_room_id": 42})
        ...         answer = await router.resolve(room._replace(thread_id="7"))
        ...         return answer.source
        >>> anyio.run(main)
        'partition_fallback'
    """

    def __init__(
        self,
        *,
        partition_count: int = 8,
        ttl_ms: int = 1_800_000,
        max_entries_per_partition: int = 10_000,
        prune_interval_ms: int = 30_000,
        stale_retention_ms: int = 0,
        call_timeout_ms: int = 5_000,
        clock: Clock = monotonic_ms,
        name: str = "router",
        restart_policy: RestartPolicy | None = None,
    ) -> None:
        self.name = name
        #: The settings, as they are in force.
        self.config = RouterConfig(
            partition_count=partition_count,
            ttl_ms=ttl_ms,
            max_entries_per_partition=max_entries_per_partition,
            prune_interval_ms=prune_interval_ms,
            stale_retention_ms=stale_retention_ms,
            call_timeout_ms=call_timeout_ms,
        )
        #: Partitions that share the rooms.
        self.partition_count = partition_count
        #: What happens in the router: `router.events.subscribe(function)`.
        self.events = Events()
        if not isinstance(clock(), int):
            raise ConfigurationError(f"clock must return milliseconds as an int, not {clock()!r}")
        self._clock = clock
        self._restart_policy = restart_policy
        self._counters = tuple(Counters() for _ in range(partition_count))
        self._refs: tuple[ActorRef[Partition] | None, ...] = (None,) * partition_count
        self._gave_up: RestartIntensityExceeded | None = None

    # -- one key ---------------------------------------------------------------------------------

    async def resolve(self, key: AnySessionKey, fallbacks: Fallbacks = ()) -> Resolution:
        """Where the answer goes.

        Tried in order: the fresh record of `key`; for a key with a thread, the fresh record of its
        room; the first valid of `fallbacks`. The route is stored under `key`, so that the next
        resolve is a hit: a room's for as long as the room has this record, a fallback for the
        router's `ttl_ms`. While the partition is down, the first valid of `fallbacks` is returned
        and nothing is stored.

        Args:
            key: the conversation.
            fallbacks: a route, or routes in the order of preference. They are read only if one is
                needed; invalid ones are skipped.

        Raises:
            NoRoute: there is no route.
            PartitionUnavailable: the partition is down and there is no valid fallback.
            InvalidSessionKey: `key` is not a session key.
        """
        if type(key) is not SessionKey or (index := plain_partition(key, self.partition_count)) < 0:
            key, index = locate(key, self.partition_count)
        ref = self._refs[index]
        if ref is not None:
            resolution = ref.call_local(_RESOLVE, key)
            if type(resolution) is Resolution:
                return resolution
        # Read here and not in the partition: reading them may run any code.
        fallback = first_valid_route(fallbacks) if fallbacks else None
        return await self._resolve_queued(index, key, fallback)

    async def set(self, key: AnySessionKey, route: AnyRoute, ttl_ms: int | None = None) -> None:
        """Store the route of a conversation, fresh for `ttl_ms`, by default the router's.

        If the partition is down after a crash, the call waits for it, up to `call_timeout_ms`.

        Raises:
            InvalidSessionKey: `key` is not a session key.
            InvalidRoute: `route` names no external room.
            ConfigurationError: `ttl_ms` is not an int of 1 or more.
            PartitionUnavailable: the partition is down and did not come back in time.
        """
        if type(key) is not SessionKey or (index := plain_partition(key, self.partition_count)) < 0:
            key, index = locate(key, self.partition_count)
        if type(route) is not Route or route.external_room_id is None:
            route = valid_route(key, route)
        if ttl_ms is not None:
            require_positive("ttl_ms", ttl_ms)
        ref = self._refs[index]
        if ref is None or ref.call_local(_SET, key, route, ttl_ms) is NOT_LOCAL:
            await self._call(index, Partition.set, key, route, ttl_ms)

    async def get(self, key: AnySessionKey) -> RouteRecord:
        """The fresh record of `key` itself, without any fallback.

        Raises:
            RouteNotFound: there is no record.
            RouteExpired: the record has expired. It is removed: the next `get` raises
                `RouteNotFound`.
            PartitionUnavailable: the partition is down.
            InvalidSessionKey: `key` is not a session key.
        """
        key, index = locate(key, self.partition_count)
        await self._require_up(index)
        return await self._call(index, Partition.get, key)

    async def delete(self, key: AnySessionKey) -> bool:
        """Remove the record of `key`; whether there was one, expired or not.

        Raises:
            InvalidSessionKey: `key` is not a session key.
            PartitionUnavailable: the partition is down and did not come back in time.
        """
        key, index = locate(key, self.partition_count)
        return await self._call(index, Partition.delete, key)

    # -- many keys -------------------------------------------------------------------------------

    async def set_many(self, routes: Mapping[Any, AnyRoute], ttl_ms: int | None = None) -> None:
        """`set` for every key of `routes`, with one call a partition.

        Everything is checked before anything is stored. The event loop runs after every 500 keys
        that are checked and 2,048 that are stored. Changes of `routes` after the call do not count.

        Raises:
            InvalidSessionKey, InvalidRoute, ConfigurationError: as `set`; nothing was stored.
            PartitionUnavailable: as `set`; other partitions may have stored theirs.
        """
        if ttl_ms is not None:
            require_positive("ttl_ms", ttl_ms)
        # Copying a dict takes a tenth of the time of a tuple of its items.
        pairs = routes.copy().items() if type(routes) is dict else tuple(routes.items())
        groups: dict[int, dict[SessionKey, Route]] = {}
        for count, (any_key, route) in enumerate(pairs, start=1):
            key, index = locate(any_key, self.partition_count)
            groups.setdefault(index, {})[key] = valid_route(key, route)
            if not count % _KEYS_PER_TURN:
                await checkpoint()
        crowded = len(pairs) > _KEYS_PER_TURN
        for index, group in groups.items():
            remaining = iter(group.items())
            while part := dict(islice(remaining, _MANY_SLICE)):
                await self._call(index, Partition.set_many, part, ttl_ms)
                if crowded:
                    await checkpoint()

    async def resolve_many(
        self, keys: Iterable[AnySessionKey], fallbacks: Fallbacks = ()
    ) -> dict[Any, Resolution]:
        """`resolve` for every key, with one call a partition and the same fallbacks for all.

        The event loop runs as it does in `set_many`. Changes of a collection of keys after the call
        do not count; an iterator is read while other tasks run.

        Returns:
            The resolutions under the keys as they were passed in. A key without a route is left
            out; so is one whose partition is down, unless there is a valid fallback.

        Raises:
            InvalidSessionKey: one of `keys` is not a session key.
        """
        fallback = first_valid_route(fallbacks) if fallbacks else None
        if isinstance(keys, Collection):
            keys = tuple(keys)
        groups: dict[int, dict[Any, SessionKey]] = {}
        count = 0
        for count, any_key in enumerate(keys, start=1):
            key, index = locate(any_key, self.partition_count)
            groups.setdefault(index, {})[any_key] = key
            if not count % _KEYS_PER_TURN:
                await checkpoint()
        resolutions: dict[Any, Resolution] = {}
        for index, group in groups.items():
            remaining = iter(group.items())
            while part := dict(islice(remaining, _MANY_SLICE)):
                found = await self._resolve_part(index, part.values(), fallback)
                resolutions.update((k, found[key]) for k, key in part.items() if key in found)
                if count > _KEYS_PER_TURN:
                    await checkpoint()
        return resolutions

    async def prune(self) -> PruneResult:
        """Remove every expired record. Also done every `prune_interval_ms`.

        It takes time for what has expired, and not for what is held. The event loop runs after
        every 500 records. Partitions that are down have nothing to prune and are left out.
        """
        if self._gave_up is not None:
            await self._unavailable(0)
        pruned = since_turn = 0
        for index, ref in enumerate(self._refs):
            if ref is None or not ref.is_up:
                continue
            try:
                removed = await self._prune_partition(index, ref)
            except (ActorCrashed, ActorStopped, CallTimeout):
                continue
            pruned += removed
            since_turn += removed
            if since_turn >= _KEYS_PER_TURN:
                since_turn = 0
                await checkpoint()
        return PruneResult(pruned, self.partition_count)

    # -- partitions and counts --------------------------------------------------------------------

    def route_partition(self, key: AnySessionKey) -> int:
        """The index of the partition that holds `key`, the same in every process and release.

        Raises:
            InvalidSessionKey: `key` is not a session key.
        """
        return partition_of(key, self.partition_count)

    def partition(self, key_or_index: AnySessionKey | int) -> ActorRef[Partition] | None:
        """The handle of a partition, by a key that it holds or by its index.

        Returns:
            `None` while the partition is down, or for an index that no partition has.
        """
        index = (
            key_or_index if isinstance(key_or_index, int) else self.route_partition(key_or_index)
        )
        if not 0 <= index < self.partition_count:
            return None
        ref = self._refs[index]
        return ref if ref is not None and ref.is_up else None

    def stats(self) -> RouterStats:
        """The counts at this moment."""
        partitions = tuple(map(self._partition_stats, range(self.partition_count)))
        return RouterStats(PartitionStats.sum(partitions), partitions)

    def _partition_stats(self, index: int) -> PartitionStats:
        ref, counted = self._refs[index], asdict(self._counters[index])
        capacity = self.config.max_entries_per_partition
        if ref is None:
            return PartitionStats(capacity=capacity, **counted)
        return PartitionStats(
            entries=ref.peek(len, 0),
            capacity=capacity,
            mailbox_depth=ref.mailbox_depth,
            restarts=ref.restarts,
            local_calls=ref.local_calls,
            queued_calls=ref.queued_calls,
            **counted,
        )

    # -- inside ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, Any]:
        supervisor = Supervisor(
            policy=self._restart_policy, name=self.name, listener=_Listener(self)
        )
        async with supervisor, open_task_group() as task_group:
            self._gave_up = None
            self._counters = tuple(Counters() for _ in range(self.partition_count))
            self._refs = tuple(
                [
                    await supervisor.spawn(
                        self._partition_factory(index),
                        name=_partition_name(self.name, index),
                        call_timeout_ms=self.config.call_timeout_ms,
                    )
                    for index in range(self.partition_count)
                ]
            )
            # Awaited, so that the pruning is already asleep if the program moves its clock at once.
            await task_group.start(self._prune_forever, name=f"{self.name}: prune")
            try:
                yield self
            finally:
                task_group.cancel_scope.cancel("the router is closing")

    def _partition_factory(self, index: int) -> partial[Partition]:
        return partial(
            Partition,
            index,
            instance=self.name,
            capacity=self.config.max_entries_per_partition,
            ttl_ms=self.config.ttl_ms,
            stale_retention_ms=self.config.stale_retention_ms,
            clock=self._clock,
            counters=self._counters[index],
            events=self.events,
        )

    async def _prune_forever(self, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        while True:
            await sleep_ms(self._clock, self.config.prune_interval_ms)
            await self.prune()

    async def _prune_partition(self, index: int, ref: ActorRef[Partition]) -> int:
        pruned, more = 0, True
        while more:
            removed, more = await ref.call(Partition.prune, _KEYS_PER_TURN)
            pruned += removed
            if more:
                await checkpoint()
        if pruned:
            entries = ref.peek(len, 0)
            self._publish(RoutesPruned, partition=index, count=pruned, entries=entries)
        return pruned

    async def _resolve_queued(
        self, index: int, key: SessionKey, fallback: Route | None
    ) -> Resolution:
        """`resolve` through the mailbox, or without the partition if that is down."""
        try:
            await self._require_up(index)
            return await self._call(index, Partition.resolve, key, fallback)
        except PartitionUnavailable:
            if fallback is None:
                self._note_unavailable(index, key)
                raise
            return self._resolve_without(index, key, fallback)

    async def _resolve_part(
        self, index: int, keys: Iterable[SessionKey], fallback: Route | None
    ) -> dict[SessionKey, Resolution]:
        try:
            await self._require_up(index)
            return await self._call(index, Partition.resolve_many, tuple(keys), fallback)
        except PartitionUnavailable:
            if fallback is None:
                for key in keys:
                    self._note_unavailable(index, key)
                return {}
            return {key: self._resolve_without(index, key, fallback) for key in keys}

    def _resolve_without(self, index: int, key: SessionKey, fallback: Route) -> Resolution:
        """`resolve` while the partition is down."""
        self._counters[index].provided_fallbacks += 1
        resolution = Resolution(
            fallback.external_room_id,
            fallback,
            index,
            key,
            "provided_fallback",
            True,
            False,
            "session_unavailable",
        )
        if self.events.subscribers:
            publish_resolution(self.events, self.name, resolution)
        return resolution

    def _note_unavailable(self, index: int, key: SessionKey) -> None:
        self._counters[index].misses += 1
        why = {"outcome": "miss", "reason": "session_unavailable"}
        self._publish(RouteResolved, partition=index, session_key=key, **why)

    def _publish(self, kind: type[Event], **fields: Any) -> None:
        if self.events.subscribers:
            self.events.publish(kind(instance=self.name, **fields))

    async def _call(self, index: int, handler: Callable[[Partition, *Ts], R], *args: *Ts) -> R:
        """Call a partition; raise `PartitionUnavailable` if it does not answer."""
        ref = self._refs[index] or await self._unavailable(index)
        try:
            return await ref.call(handler, *args)
        except (ActorStopped, CallTimeout) as error:
            raise PartitionUnavailable(str(error)) from error

    async def _require_up(self, index: int) -> None:
        ref = self._refs[index]
        if ref is None or not ref.is_up:
            await self._unavailable(index)

    async def _unavailable(self, index: int) -> NoReturn:
        # A tight loop of calls must not keep the partition from coming back.
        await checkpoint()
        if self._gave_up is not None:
            raise RestartIntensityExceeded(str(self._gave_up))
        if self._refs[index] is None:
            why = f"{self.name} does not run: enter it with 'async with', or await start()"
        else:
            why = f"{_partition_name(self.name, index)} is down"
        raise PartitionUnavailable(why)


class _Listener:
    """Publishes crashes and restarts of a router's partitions, and notes when it gives up."""

    def __init__(self, router: SessionRouter) -> None:
        self._router = router
        self._indexes = {
            _partition_name(router.name, index): index for index in range(router.partition_count)
        }

    def actor_crashed(self, name: str, error: Exception) -> None:
        self._router._publish(PartitionCrashed, partition=self._indexes[name], error=error)

    def actor_restarted(self, name: str, restarts: int) -> None:
        self._router._publish(PartitionRestarted, partition=self._indexes[name], restarts=restarts)

    def supervisor_gave_up(self, error: RestartIntensityExceeded) -> None:
        self._router._gave_up = error
        self._router._publish(RouterGaveUp, error=error)


def _partition_name(router_name: str, index: int) -> str:
    return f"{router_name}/partition-{index}"
