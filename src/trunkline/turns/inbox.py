"""The inbox: what was accepted and is not handled yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Protocol, Self, TypeVar, get_args

import anyio
from uuid_utils import uuid7

from trunkline.actors import RestartPolicy, sleep_ms
from trunkline.actors.clock import wall_clock_ms
from trunkline.actors.task_group import open_task_group
from trunkline.backends import AdapterOptions, ConnectionLost, Store, resolve_adapter
from trunkline.backends.cipher import Cipher, EncryptionKey
from trunkline.backends.codec import Unstorable, decode, encode
from trunkline.errors import (
    ConfigurationError,
    TrunklineError,
    UnreadableRecord,
)
from trunkline.routing.key import AnySessionKey, SessionKey, session_key
from trunkline.turns.adapter import (
    Accepted,
    Happening,
    InboxAdapter,
    ItemRow,
    mark_of,
    short_mark,
)
from trunkline.turns.events import TurnEvent
from trunkline.turns.item import InboxCounts, Item, ItemState, Receipt
from trunkline.turns.policy import LONGEST_DELAY_MS, TurnPolicy
from trunkline.turns.session import Claimant, NewItem
from trunkline.validation import require_non_negative, require_positive, text_problem

__all__ = ("Inbox", "decode_payload")

R = TypeVar("R")

#: Marks that one call removes at most.
_SWEEP_LIMIT = 1_000

#: Longer ids would not fit into the index of every database.
_LONGEST_KEY, _LONGEST_ID = 1_000, 1_000

#: What an encoded payload begins with.
_PLAIN, _ENCRYPTED = b"0", b"1"


class InboxRunner(Protocol):
    """What runs the turns of this process, as the inbox sees it."""

    def reserve(self, key: str) -> Claimant | None: ...

    def settle(self, claimant: Claimant, accepted: Accepted | None) -> None: ...

    def cancel_turns(self, turn_ids: Sequence[str]) -> None: ...

    async def refresh(self, turn_ids: Sequence[str]) -> None: ...

    def refresh_soon(self, turn_ids: Sequence[str]) -> None: ...

    def find_orphans(self) -> None: ...

    def wake(self) -> None: ...


class Inbox(Store[InboxAdapter]):
    """What was accepted and is not handled yet, in the order in which each session got it.

    An item that was accepted is on disk. It is handled by a `Turns`, in this process or another; a
    process may have the inbox alone and only accept.

    Args:
        url: `sqlite:///bot.db`, `postgresql://…`, `redis://…`, `valkey://…`, or `memory://`.
        adapter: an adapter of your own, instead of a URL.
        namespace: inboxes of two namespaces never see each other's items: 1 to 100 characters.
        policy: how items become turns. By default that of the `Turns` which was started last, in
            any process.
        dedupe_ms: how long an `external_id` is known after it was accepted.
        encryption_key: a Fernet key, or several, with which payloads and steps are encrypted at
            rest: the first encrypts, all decrypt. It needs the extra `crypto`.
        clock: milliseconds since 1970, in memory and SQLite. Servers use their own.
        sweep_interval_ms: how often what is not needed any more is removed.
        name: stands in events, logs and errors.
        call_timeout_ms: how long a call may take, waiting included.
        mailbox_size: calls that may wait for one worker; more make their callers wait for room.
        max_batch: calls that are committed together at most.
        restart_policy: how many crashes are forgiven, and the pause after each.

    Raises:
        ConfigurationError: a URL or option that can never work.
        StoreUnavailable: out of `async with`, when the database cannot be reached.

    Every method raises `StoreUnavailable` while the database is unavailable, within
    `call_timeout_ms`.

    Example:
        >>> import anyio
        >>> from trunkline import Inbox, Turns
        >>> async def main() -> None:
        ...     async def answer(turn) -> None:
        ...         print([item.payload for item in turn.items])
        ...     async with Inbox("memory://") as inbox:
        ...         await inbox.accept(("telegram", "bot", "42"), "hi")
        ...         await inbox.accept(("telegram", "bot", "42"), "are you there?")
        ...         async with Turns(inbox, answer) as turns:
        ...             await turns.idle()
        >>> anyio.run(main)
        ['hi', 'are you there?']
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        adapter: InboxAdapter | None = None,
        namespace: str = "default",
        policy: TurnPolicy | None = None,
        dedupe_ms: int = 86_400_000,
        encryption_key: EncryptionKey | None = None,
        clock: Callable[[], int] = wall_clock_ms,
        sweep_interval_ms: int = 10_000,
        name: str = "inbox",
        call_timeout_ms: int = 5_000,
        mailbox_size: int = 4_096,
        max_batch: int = 512,
        restart_policy: RestartPolicy | None = None,
    ) -> None:
        options = AdapterOptions(namespace=namespace, timeout_ms=call_timeout_ms, clock=clock)
        super().__init__(
            resolve_adapter(InboxAdapter, url, adapter, options),
            name=name,
            call_timeout_ms=call_timeout_ms,
            mailbox_size=mailbox_size,
            max_batch=max_batch,
            restart_policy=restart_policy,
        )
        self._clock = clock
        self._policy = policy
        self._adapter.dedupe_ms = require_positive("dedupe_ms", dedupe_ms)
        if policy is not None:
            self._adapter.policy = policy
        self._sweep_interval_ms = require_positive("sweep_interval_ms", sweep_interval_ms)
        self._cipher = None if encryption_key is None else Cipher(encryption_key)
        #: The turns of this process, while they run.
        self._runner: InboxRunner | None = None
        #: event → how often it happened.
        self._counts: Counter[str] = Counter()

    @property
    def own_policy(self) -> TurnPolicy | None:
        """The policy that it was given."""
        return self._policy

    @property
    def policy(self) -> TurnPolicy:
        """How items become turns: its own, or that of the `Turns` which was started last."""
        return self._adapter.policy

    async def accept(
        self,
        session_key: AnySessionKey,
        payload: Any,
        *,
        external_id: str | int | None = None,
        alone: bool = False,
        urgent: bool = False,
        delay_ms: int = 0,
        replace: bool = False,
    ) -> Receipt:
        """Store an item to be handled. It is on disk when this returns.

        Args:
            session_key: the conversation. Its items are handled in the order of these calls.
            payload: None, bools, numbers, strings, bytes, dates, Decimals, UUIDs, and lists,
                tuples, sets and dicts of these.
            external_id: the platform's id of the item. The same again within `dedupe_ms`, in the
                same session, is a duplicate, whether it was handled or not.
            alone: it is a turn of its own in every mode, and nothing overtakes it.
            urgent: it runs at once beside a running turn.
            delay_ms: not before then. It holds up no other item.
            replace: if the item with this `external_id` still waits, replace its payload.

        Raises:
            InboxFull: as many items wait as the policy allows; nothing was stored.
            InvalidSessionKey, ConfigurationError: an argument that cannot be stored.
            StoreUnavailable: the database is away; nothing was stored unless the error says that it
                may have been.
        """
        key = _key_text(session_key)
        external = None if external_id is None else _external_text(external_id)
        if require_non_negative("delay_ms", delay_ms) > LONGEST_DELAY_MS:
            raise ConfigurationError(f"delay_ms is up to {LONGEST_DELAY_MS}")
        item_id = str(uuid7())
        item = NewItem(
            item_id,
            self.encode("the payload", payload),
            external,
            short_mark(item_id) if external is None else mark_of(key, external),
            alone,
            urgent,
            delay_ms,
            replace,
        )
        runner = self._runner
        claimant = None if runner is None else runner.reserve(key)
        accepted: Accepted | None = None
        try:
            accepted = await self._repeated(
                lambda: self._write(key, InboxAdapter.accept, key, item, claimant)
            )
        finally:
            if runner is not None and claimant is not None:
                runner.settle(claimant, accepted)
        self.report(accepted.outcome, key, items=(accepted.item_id,))
        self.report_happened(accepted.happened)
        if runner is not None and (accepted.ended or accepted.joins):
            runner.cancel_turns(accepted.ended)
            try:
                await runner.refresh(accepted.joins)
            except BaseException:
                runner.refresh_soon(accepted.joins)
                raise
        return Receipt(accepted.item_id, accepted.outcome, accepted.waiting)  # type: ignore[arg-type]

    async def waiting(self, session_key: AnySessionKey) -> int:
        """How many items of a session wait."""
        return await self._read(InboxAdapter.waiting, _key_text(session_key))

    async def list(
        self, state: ItemState, limit: int = 100, after: str | None = None
    ) -> list[Item]:
        """Items in the order of their ids.

        Args:
            state: `waiting`, `running` or `failed`.
            limit: how many at most.
            after: only items behind this id.
        """
        if state not in get_args(ItemState):
            raise ConfigurationError(
                f"state is one of {', '.join(get_args(ItemState))}, not {state!r}"
            )
        require_positive("limit", limit)
        rows = await self._read(InboxAdapter.list_items, state, limit, after)
        return [self.item(row, row.attempts) for row in rows]

    async def retry(self, item_id: str) -> None:
        """Let a failed item wait again, as if it had just come.

        Raises:
            NotFound: there is no failed item with this id.
        """
        await self._write(None, InboxAdapter.retry, item_id)
        self._wake()

    async def discard(self, item_id: str) -> bool:
        """Remove an item that waits, also for another attempt, or has failed.

        Returns:
            False if it runs now, and so was not removed.

        Raises:
            NotFound: there is no such item.
        """
        discarded = await self._write(None, InboxAdapter.discard, item_id)
        self.report_happened(discarded.happened)
        self._wake()
        return discarded.count > 0

    async def cancel(self, session_key: AnySessionKey, waiting: bool = True) -> int:
        """End the running turn of a session, in whichever process it runs.

        It does not wait for the end of the handler; nothing that the turn does from now on stands.
        Urgent turns go on.

        Args:
            session_key: the conversation.
            waiting: whether to discard what waits as well.

        Returns:
            How many items were cancelled.
        """
        key = _key_text(session_key)
        cancelled = await self._write(key, InboxAdapter.cancel, key, waiting)
        self.report_happened(cancelled.happened)
        if self._runner is not None:
            self._runner.cancel_turns(cancelled.ended)
        self._wake()
        return cancelled.count

    async def counts(self) -> InboxCounts:
        """How many sessions and items there are, by state."""
        return await self._read(InboxAdapter.counts)

    # -- for turns -------------------------------------------------------------------------------

    async def look(self) -> tuple[InboxCounts, int]:
        """What `counts` returns, and for how many milliseconds the oldest item waits."""
        counts = await self.counts()
        return counts, await self._read(InboxAdapter.oldest_waiting_ms) if counts.waiting else 0

    def encode(self, what: str, value: object) -> bytes:
        """A payload or the result of a step as it is stored.

        Raises:
            ConfigurationError: it cannot be stored.
        """
        try:
            plain = encode(value)
        except Unstorable as error:
            raise ConfigurationError(f"{what} cannot be stored: {error}") from None
        if self._cipher is None:
            return _PLAIN + plain
        return _ENCRYPTED + self._cipher.encrypt(plain).encode()

    def decode(self, what: str, encoded: bytes) -> Any:
        """What `encode` was given.

        Raises:
            UnreadableRecord: it cannot be decoded.
            ConfigurationError: it is encrypted with another key.
        """
        return decode_payload(what, encoded, self._cipher)

    def items(self, rows: Sequence[ItemRow], attempt: int) -> tuple[Item, ...]:
        """The items of a turn, of their rows."""
        return tuple([self.item(row, attempt) for row in rows]) if rows else ()

    def item(self, row: ItemRow, attempt: int) -> Item:
        """An item of its row."""
        return Item(
            id=row.id,
            session_key=parse_key(row.session),
            payload=self.decode(f"the payload of item {row.id}", row.payload),
            external_id=row.external_id,
            accepted_at_ms=row.accepted_at_ms,
            attempt=attempt,
            alone=row.alone,
            urgent=row.urgent,
        )

    async def ask(self, key: str | None, method: Callable[..., R], *args: Any) -> R:
        """Call a method of the adapter; if its reply is lost, once more."""
        return await self._repeated(lambda: self._write(key, method, *args))

    async def ask_once(self, key: str | None, method: Callable[..., R], *args: Any) -> R:
        """Call a method of the adapter."""
        return await self._write(key, method, *args)

    async def _repeated(self, call: Callable[[], Awaitable[R]]) -> R:
        try:
            return await call()
        except ConnectionLost:
            # Ids are made by the caller: what was done already is not done again.
            try:
                return await call()
            finally:
                if self._runner is not None:
                    self._runner.find_orphans()

    def attach(self, runner: InboxRunner) -> None:
        """The turns of this process begin to run.

        Raises:
            ConfigurationError: others run already.
        """
        if self._runner is not None:
            raise ConfigurationError(f"{self.name} has turns already: one Turns an Inbox object")
        self._runner = runner

    def detach(self, runner: InboxRunner) -> None:
        """The turns of this process end."""
        if self._runner is runner:
            self._runner = None

    async def follow(self, policy: TurnPolicy) -> None:
        """Store a policy, which every inbox without one of its own follows."""
        await self._write(None, InboxAdapter.save_policy, policy)
        if self._policy is None:
            self._adapter.policy = policy

    @property
    def counted(self) -> Mapping[str, int]:
        """How often each event happened in this process."""
        return self._counts

    @property
    def adapter(self) -> InboxAdapter:
        """For the threads of the turns, which use siblings of it."""
        return self._adapter

    def report_happened(self, happened: Iterable[Happening]) -> None:
        """Count and publish what an adapter has reported."""
        for one in happened:
            self.report(
                one.name,
                one.session,
                items=one.item_ids,
                attempt=one.attempt,
                waited_ms=one.waited_ms,
            )

    def report(self, name: str, key: str, **fields: Any) -> None:
        """Count an event, and publish it if anybody listens."""
        self._counts[name] += 1
        if self.events.subscribers:
            self.events.publish(
                TurnEvent(name=name, instance=self.name, session_key=parse_key(key), **fields)
            )

    def _wake(self) -> None:
        if self._runner is not None:
            self._runner.wake()

    # -- inside ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, Any]:
        async with super().__asynccontextmanager__(), open_task_group() as task_group:
            await self._refresh_policy()
            task_group.start_soon(self._sweep_forever, name=f"{self.name}: sweep")
            try:
                yield self
            finally:
                task_group.cancel_scope.cancel("the inbox is closing")

    async def _refresh_policy(self) -> None:
        if self._policy is None:
            stored = await self._read(InboxAdapter.load_policy)
            if stored is not None:
                self._adapter.policy = stored

    async def _sweep_forever(self) -> None:
        while True:
            await sleep_ms(self._clock, self._sweep_interval_ms)
            try:
                await self._refresh_policy()
                while await self._write(None, InboxAdapter.sweep, _SWEEP_LIMIT) == _SWEEP_LIMIT:
                    await anyio.lowlevel.checkpoint()
            except TrunklineError:
                continue  # it is tried again


def decode_payload(what: str, encoded: bytes, cipher: Cipher | None = None) -> Any:
    """A payload or the result of a step that is stored as `encoded`; `what` names it in errors.

    Raises:
        UnreadableRecord: it cannot be decoded.
        ConfigurationError: it is encrypted with another key.
    """
    mark, payload = encoded[:1], bytes(encoded[1:])
    if mark == _ENCRYPTED:
        if cipher is None:
            raise ConfigurationError(f"{what} is encrypted: give encryption_key=")
        payload = cipher.decrypt(payload.decode("ascii", "replace"), what)
    try:
        return decode(payload)
    except Exception:
        pass  # its message may quote the value
    raise UnreadableRecord(f"{what} cannot be decoded")


#: The session key that was stored as a text.
parse_key = lru_cache(maxsize=16_384)(SessionKey.parse)


@lru_cache(maxsize=16_384)
def _plain_key_text(key: SessionKey) -> str:
    checked = session_key(key)
    text = str(checked)
    problem = next(filter(None, (text_problem(part) for part in checked if part)), None)
    if problem is None and len(text.encode()) > _LONGEST_KEY:
        problem = f"is longer than {_LONGEST_KEY} bytes"
    if problem is not None:
        raise ConfigurationError(f"session key {text[:80]!r} {problem}, and cannot be stored")
    return text


def _key_text(key: AnySessionKey) -> str:
    """A session key as it is stored."""
    return _plain_key_text(key if type(key) is SessionKey else session_key(key))


def _external_text(external_id: object) -> str:
    if isinstance(external_id, bool) or not isinstance(external_id, str | int):
        raise ConfigurationError(
            f"external_id is a str or an int, not {type(external_id).__name__}"
        )
    text = str.__str__(external_id) if isinstance(external_id, str) else str(int(external_id))
    problem = text_problem(text) if text else "is empty"
    if problem is None and len(text.encode()) > _LONGEST_ID:
        problem = f"is longer than {_LONGEST_ID} bytes"
    if problem is not None:
        raise ConfigurationError(f"external_id {text[:80]!r} {problem}, and cannot be stored")
    return text
