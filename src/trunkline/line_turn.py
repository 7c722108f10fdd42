"""Turns on a line: the messages of a turn, and replies that are sent once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias

import anyio
import msgspec
from msgspec.structs import replace

from trunkline.actors import RestartPolicy
from trunkline.arrival import Arrival, accepted, load_arrivals
from trunkline.delivery import Delivery, Send, new_answer, send_answer
from trunkline.errors import (
    ConfigurationError,
    NotFound,
    NotRecorded,
    PartitionUnavailable,
    RouteExpired,
    RouteNotFound,
    StoreUnavailable,
    TurnLost,
)
from trunkline.persistence import Message
from trunkline.persistence.models import now
from trunkline.turns import Inbox, Item, Turn, TurnPolicy, Turns
from trunkline.turns.adapter import Begun
from trunkline.turns.runner import OnFailed, Runner

__all__ = ("LineTurn", "LineTurns")

LineHandler: TypeAlias = Callable[["LineTurn"], Awaitable[object]]

#: Between two attempts to read what a turn needs, in seconds.
_PAUSE = 0.5

#: How long the end of a turn waits for replies that are being recorded, in seconds.
_LONGEST_SETTLING = 10.0

#: What the step of a reply is called, and what the one that begins it ends with.
_REPLY, _BEGUN = "trunkline.reply", ":begun"

#: What it is called in `on_failed`, which may be called without the handler, and so without the
#: replies that were counted before.
_LAST_REPLY = "trunkline.reply of on_failed"


class LineTurn(Turn):
    """What a handler of `line.turns` gets: a `Turn` with its messages, which it can answer."""

    #: The inbound messages among `items`, in their order. One that was deleted meanwhile is left
    #: out, and so is an item that the program put into `line.inbox` itself.
    arrivals: tuple[Arrival, ...]
    #: Replies that an earlier attempt began and never recorded, in that order: they may have been
    #: sent. `reply` sends each again, with the id of the same message as a nonce.
    unsure: tuple[Message, ...]

    def __init__(self, runner: Runner, begun: Begun, delivery: Delivery, send: Send | None) -> None:
        super().__init__(runner, begun)
        self.arrivals = ()
        self._delivery = delivery
        self._send = send
        self._reply_step = _REPLY
        #: Replies whose recording goes on in the background.
        self._recording: list[anyio.Event] = []
        self.unsure = self._find_unsure()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages of `arrivals`."""
        return tuple([arrival.message for arrival in self.arrivals])

    async def arrivals_of(self, items: Sequence[Item]) -> tuple[Arrival, ...]:
        """The inbound messages among other items: those of `take`, `receive` or `skipped`."""
        return await load_arrivals(items, self._delivery.persistence)

    async def reply(
        self,
        content: Any,
        send: Send | None = None,
        *,
        sender_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Message:
        """Answer the newest message of the turn: store the answer, send it, record it, as a step.

        Another attempt of the turn does not send a recorded reply again, and gets what was
        recorded. One that was begun and never recorded, because the process died or was stopped,
        may have been sent: it is sent again, as it was, with the id of the same stored message as
        a nonce, by which a platform can know it. Replies are told apart by their order.

        A turn without a message, such as a reminder, replies to its conversation.

        Args:
            content: the answer.
            send: sends it: takes the route and the content, returns the id that the platform gave
                to the answer, or `None`. If it has a parameter `nonce`, it gets the id of the
                stored answer as that keyword: `async def send(route, content, *, nonce)`. By
                default the one that was given to `line.turns`.
            sender_id: the participant that answers.
            metadata: kept with the answer.

        Returns:
            The answer as it is stored: `sent`, with its external id.

        Raises:
            TurnLost: the turn was cancelled, interrupted or taken over; nothing was sent, unless
                that happened while it was being sent.
            NotRecorded: the answer was sent and could not be recorded. Recording goes on until it
                is recorded or the turn is lost.
            StoreUnavailable: a database was away beforehand; nothing was sent.
            NoRoute: there is no message, and no route of the conversation.
            ConfigurationError: there is no `send`.
            RuntimeError: another reply of this turn is on its way at this moment.
            Exception: what `send` raised; the answer is stored as `failed`.
        """
        send = send or self._send
        if send is None:
            raise ConfigurationError("give send= to turn.reply or to line.turns")
        step = self._reply_step
        name = self._name_of(step)
        self._under_way.add(step)
        try:
            with self._delivery.under_way():
                begun = self._begun_reply(name)
                if name in self._steps and begun is not None:
                    return await self._recorded(name, begun)
                return await self._send_reply(name, begun, content, send, sender_id, metadata)
        finally:
            self._under_way.discard(step)

    # -- for LineTurns -----------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Load the messages, and have the router know where their answers go."""
        while True:
            try:
                self.arrivals = await load_arrivals(self.items, self._delivery.persistence)
                break
            except StoreUnavailable:
                await anyio.sleep(_PAUSE)  # not a fault of the handler, and no attempt of it
        if self.arrivals:
            await self._set_route(self.arrivals[-1])

    async def prepare_for_failure(self) -> None:
        """Have the messages for `on_failed`, also if the handler was never called."""
        self._reply_step = _LAST_REPLY
        if not self.arrivals:
            await self.prepare()

    async def settle(self) -> None:
        """Wait for replies that are being recorded: the end of the turn would lose them."""
        with anyio.move_on_after(_LONGEST_SETTLING, shield=True):
            for recording in self._recording:
                await recording.wait()

    # -- inside ------------------------------------------------------------------------------------

    async def _set_route(self, arrival: Arrival) -> None:
        """Set the route of the newest message, unless this line has set it and still knows it."""
        newest = [found for item in self.items if (found := accepted(item)) is not None][-1]
        with suppress(PartitionUnavailable):  # the origin is the fallback
            if newest.line == self._delivery.id:
                with suppress(RouteNotFound, RouteExpired):
                    await self._delivery.router.get(arrival.session_key)
                    return
            await self._delivery.set_routes(arrival.session_key, arrival.origin)

    async def _send_reply(
        self,
        name: str,
        begun: _Begun | None,
        content: Any,
        send: Send,
        sender_id: str | None,
        metadata: Mapping[str, Any] | None,
    ) -> Message:
        arrival = self.arrivals[-1] if self.arrivals else None
        delivery = self._delivery
        self.require_held()
        resolution = await delivery.resolve(self.session_key, arrival)
        if begun is not None:
            answer = begun.answer
        else:
            answer = new_answer(self.session_key, arrival, resolution, content, sender_id, metadata)
        # The store refuses this if the turn is lost, whatever this process has slept through.
        await self._record(_begun(name), msgspec.json.encode(_Begun(answer)))
        try:
            await delivery.save(answer)
        except anyio.get_cancelled_exc_class():
            await self._record_unsent(answer)  # it may be stored already
            raise
        self.require_held()
        try:
            sent = await send_answer(answer, resolution.route, send)
        except BaseException as error:
            await self._record_unsent(answer)
            if isinstance(error, Exception):
                await self._record_failure(name, answer)
            raise
        await self._record_sent(name, sent)
        return sent

    async def _record_sent(self, name: str, sent: Message) -> None:
        store = partial(self._store_sent, name, sent)
        try:
            await self._delivery.record(sent, store)
        except NotRecorded as error:
            if isinstance(error.__cause__, TurnLost):
                raise error.__cause__ from None
            if isinstance(error.__cause__, StoreUnavailable):
                self._recording.append(self._delivery.record_later(store))
            raise

    async def _store_sent(self, name: str, sent: Message) -> None:
        external_id = sent.external_id
        # One that no store takes is refused with the message; that it was sent is recorded.
        known = external_id if type(external_id) in (str, int) else None
        if name not in self._steps:
            await self._record(name, msgspec.json.encode(_Sent(known, sent.updated_at)))
        await self._delivery.save(sent)

    async def _record_failure(self, name: str, answer: Message) -> None:
        """Note that `send` has raised: another attempt is not unsure about this reply."""
        with suppress(TurnLost, StoreUnavailable):
            await self._record(_begun(name), msgspec.json.encode(_Begun(answer, has_failed=True)))

    async def _record_unsent(self, answer: Message) -> None:
        """Store the message of a reply as failed, unless another attempt has recorded it."""
        with suppress(NotRecorded):
            await self._delivery.record(answer, partial(self._store_unsent, answer))

    async def _store_unsent(self, answer: Message) -> None:
        persistence = self._delivery.persistence
        if persistence is None:
            return
        with suppress(NotFound):
            stored = await persistence.get_message(answer.id)
            if stored.status == "sending":
                await persistence.save_message(replace(stored, status="failed", updated_at=now()))

    async def _recorded(self, name: str, begun: _Begun) -> Message:
        """A reply that an earlier attempt has sent."""
        sent = msgspec.json.decode(self._step(name), type=_Sent)
        answer = replace(
            begun.answer, status="sent", external_id=sent.external_id, updated_at=sent.updated_at
        )
        persistence = self._delivery.persistence
        if persistence is not None:
            with suppress(NotFound):
                stored = await persistence.get_message(answer.id)
                if stored.status not in ("sending", "failed"):
                    return stored
                await persistence.save_message(answer)  # the process died before it was
        return answer

    def _begun_reply(self, name: str) -> _Begun | None:
        key = _begun(name)
        if key not in self._steps:
            return None
        return msgspec.json.decode(self._step(key), type=_Begun)

    def _step(self, key: str) -> bytes:
        stored: bytes = self._runner.inbox.decode(f"step {key!r}", self._steps[key])
        return stored

    def _find_unsure(self) -> tuple[Message, ...]:
        names = (key.removesuffix(_BEGUN) for key in self._steps if _is_begun(key))
        open_replies = [name for name in names if name not in self._steps]
        found = [self._begun_reply(name) for name in open_replies]
        unsure = [one.answer for one in found if one is not None and not one.has_failed]
        return tuple(sorted(unsure, key=lambda answer: answer.id))


class LineTurns(Turns):
    """The turns of a line. `line.turns` makes them.

    Args:
        delivery: that of the line.
        inbox: that of the line.
        handler: an async function of a `LineTurn`.
        policy: this and what follows as for `Trunkline.turns`.
        send: see there.
        max_running: see there.
        lease_ms: see there.
        stop_timeout_ms: see there.
        on_failed: see there.
        name: see there.
        restart_policy: see there.
    """

    def __init__(
        self,
        delivery: Delivery,
        inbox: Inbox,
        handler: LineHandler,
        policy: TurnPolicy | None,
        *,
        send: Send | None,
        max_running: int,
        lease_ms: int,
        stop_timeout_ms: int,
        on_failed: OnFailed | None,
        name: str,
        restart_policy: RestartPolicy | None,
    ) -> None:
        if not callable(handler):
            raise ConfigurationError(f"a handler is an async function of a turn, not {handler!r}")
        if on_failed is not None:
            on_failed = _prepared(on_failed)

        async def handle(turn: LineTurn) -> None:
            await turn.prepare()
            try:
                await handler(turn)
            finally:
                await turn.settle()

        super().__init__(
            inbox,
            handle,
            policy,
            max_running=max_running,
            lease_ms=lease_ms,
            stop_timeout_ms=stop_timeout_ms,
            on_failed=on_failed,
            name=name,
            restart_policy=restart_policy,
        )
        self._delivery = delivery
        self._send = send

    def make_turn(self, runner: Runner, begun: Begun) -> LineTurn:
        """What the handler gets."""
        return LineTurn(runner, begun, self._delivery, self._send)


class _Begun(msgspec.Struct, frozen=True):
    """The step that a reply is begun with."""

    answer: Message
    #: Whether `send` has raised.
    has_failed: bool = False


class _Sent(msgspec.Struct, frozen=True):
    """The step that a reply is recorded with."""

    external_id: str | int | None
    updated_at: datetime


def _begun(name: str) -> str:
    return f"{name}{_BEGUN}"


def _is_begun(step: str) -> bool:
    return step.startswith(_REPLY) and step.endswith(_BEGUN)


def _prepared(on_failed: OnFailed) -> OnFailed:
    """`on_failed` for a turn that has its messages, and whose replies are recorded at the end."""

    async def prepared(turn: LineTurn, error: Exception) -> None:
        await turn.prepare_for_failure()
        try:
            result = on_failed(turn, error)
            if result is not None:
                await result  # type: ignore[misc]
        finally:
            await turn.settle()

    return prepared
