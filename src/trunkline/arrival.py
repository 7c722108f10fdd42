"""Arrivals: inbound messages, as a line has stored them and as its inbox holds them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from trunkline.actors.task_group import open_task_group
from trunkline.errors import NotFound
from trunkline.persistence import Inbound, Message, Participant, PersistenceStore, Room
from trunkline.routing import Route, SessionKey
from trunkline.turns import Item

__all__ = ("Accepted", "Arrival", "accepted", "load_arrivals", "new_arrival", "payload_of")

T = TypeVar("T")


class Arrival(msgspec.Struct, frozen=True):
    """An inbound message, as `ingest` has stored it."""

    #: The conversation: its route is set.
    session_key: SessionKey
    #: Where the message came from, and where its answer goes if no newer route is set.
    origin: Route
    #: As it is stored; not stored, if the line has no persistence.
    message: Message
    room: Room
    participant: Participant | None
    #: Whether the same message, by its external id, was ingested before.
    duplicate: bool


class Accepted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an inbox holds of an arrival. The message itself is in the persistence."""

    message_id: str
    room_id: str
    participant_id: str | None = None
    origin: Route
    #: The line that accepted it.
    line: str
    #: The arrival as JSON, of a line that stores no messages.
    whole: bytes | None = None


def new_arrival(inbound: Inbound, *, is_stored: bool) -> Arrival:
    """The arrival of an inbound message."""
    binding, thread = inbound.binding, inbound.thread
    # A room that is not stored has no id that others know.
    room_id = inbound.room.id if is_stored else str(binding.external_room_id)
    thread_id = None if thread is None else str(thread.external_thread_id)
    key = SessionKey(binding.channel, binding.bridge_id, room_id, thread_id)
    return Arrival(
        key,
        Route(
            binding.external_room_id,
            channel_type=key.channel,
            bridge_id=key.bridge_id,
            room_id=key.room_id,
            thread_id=key.thread_id,
        ),
        inbound.message,
        inbound.room,
        inbound.participant,
        inbound.duplicate,
    )


def payload_of(arrival: Arrival, *, line: str, is_stored: bool) -> dict[str, Any]:
    """The payload of an arrival's item in the inbox of `line`."""
    reference = Accepted(
        message_id=arrival.message.id,
        room_id=arrival.room.id,
        participant_id=None if arrival.participant is None else arrival.participant.id,
        origin=arrival.origin,
        line=line,
        whole=None if is_stored else msgspec.json.encode(arrival),
    )
    return {"arrival": msgspec.to_builtins(reference, builtin_types=(bytes,))}


def accepted(item: Item) -> Accepted | None:
    """What `item` holds of an arrival; `None` if it is something else."""
    payload = item.payload.get("arrival") if isinstance(item.payload, dict) else None
    try:
        return msgspec.convert(payload, Accepted)
    except msgspec.ValidationError:
        return None


async def load_arrivals(
    items: Sequence[Item], persistence: PersistenceStore | None
) -> tuple[Arrival, ...]:
    """The arrivals of those items that are messages which are still stored, in their order."""
    references = [(item, one) for item in items if (one := accepted(item)) is not None]
    messages: dict[str, Message] = {}
    rooms: dict[str, Room] = {}
    participants: dict[str, Participant] = {}
    stored = [one for _, one in references if one.whole is None]
    if persistence is not None and stored:
        # Together, so that the store reads them in one batch.
        async with open_task_group() as tasks:
            for message_id in {one.message_id for one in stored}:
                tasks.start_soon(_load, messages, persistence.get_message, message_id)
            for room_id in {one.room_id for one in stored}:
                tasks.start_soon(_load, rooms, persistence.get_room, room_id)
            for sender_id in {one.participant_id for one in stored if one.participant_id}:
                tasks.start_soon(_load, participants, persistence.get_participant, sender_id)
    arrivals = []
    for item, one in references:
        if one.whole is not None:
            arrivals.append(msgspec.json.decode(one.whole, type=Arrival))
        elif one.message_id in messages and one.room_id in rooms:
            message, room = messages[one.message_id], rooms[one.room_id]
            sender = participants.get(one.participant_id or "")
            arrivals.append(Arrival(item.session_key, one.origin, message, room, sender, False))
    return tuple(arrivals)


async def _load(found: dict[str, T], get: Callable[[str], Awaitable[T]], record_id: str) -> None:
    with suppress(NotFound):
        found[record_id] = await get(record_id)
