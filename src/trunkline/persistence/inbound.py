"""A message that came in, as models: what is made of it if it is not stored yet."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from trunkline.errors import InvalidModel
from trunkline.persistence.adapter import Inbound
from trunkline.persistence.models import (
    ExternalId,
    Message,
    Participant,
    Room,
    RoomBinding,
    Thread,
)
from trunkline.persistence.validation import (
    checked_json,
    require_external_id,
    require_id,
    require_mapping,
    shown,
)

__all__ = ("new_inbound", "new_participant", "new_room")


def new_inbound(
    *,
    channel: str,
    bridge_id: str,
    external_room_id: ExternalId,
    content: Any,
    external_message_id: ExternalId | None = None,
    external_user_id: ExternalId | None = None,
    external_thread_id: ExternalId | None = None,
    external_reply_to_id: ExternalId | None = None,
    room: Mapping[str, Any] | None = None,
    participant: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    sent_at: datetime | None = None,
) -> Inbound:
    """Checked models for the arguments of `Trunkline.ingest`.

    What a caller passed in is checked here, and nowhere else on its way to the database.

    Raises:
        InvalidModel: an argument that cannot be stored.
    """
    channel, bridge_id = require_id("channel", channel), require_id("bridge_id", bridge_id)
    external_room_id = require_external_id("external_room_id", external_room_id)
    if sent_at is not None and not isinstance(sent_at, datetime):
        raise InvalidModel(f"sent_at is a datetime, not {shown(sent_at)}")
    new = new_room(channel, bridge_id, external_room_id, room)
    sender = thread = None
    if external_user_id is not None:
        external_user_id = require_external_id("external_user_id", external_user_id)
        sender = new_participant(channel, external_user_id, participant)
    if external_thread_id is not None:
        external_thread_id = require_external_id("external_thread_id", external_thread_id)
        thread = Thread(room_id=new.id, external_thread_id=external_thread_id)
    given = dict(require_mapping("metadata", metadata))
    message = Message(
        room_id=new.id,
        sender_id=None if sender is None else sender.id,
        thread_id=None if thread is None else thread.id,
        content=checked_json("content", content),
        external_id=_optional("external_message_id", external_message_id),
        external_thread_id=external_thread_id,
        external_reply_to_id=_optional("external_reply_to_id", external_reply_to_id),
        delivery_external_room_id=external_room_id,
        status="delivered",
        metadata=checked_json("metadata", given) if given else given,
    )
    if sent_at is not None:
        message.metadata.setdefault("sent_at", sent_at.isoformat())
    message.metadata.update(channel=channel, bridge_id=bridge_id)
    binding = RoomBinding(
        room_id=new.id,
        channel=channel,
        bridge_id=bridge_id,
        external_room_id=external_room_id,
    )
    return Inbound(new, sender, message, binding, thread)


def new_room(
    channel: str, bridge_id: str, external_id: ExternalId, attrs: Mapping[str, Any] | None
) -> Room:
    """A room with the fields `attrs` that stands for an external room, whose ids are checked."""
    if attrs is None:
        return Room(external_bindings={channel: {bridge_id: external_id}})
    fields = require_mapping("attrs", attrs)
    bindings = dict(require_mapping("external_bindings", fields.get("external_bindings")))
    of_channel = require_mapping(f"external_bindings[{channel!r}]", bindings.get(channel))
    bindings[channel] = {**of_channel, bridge_id: external_id}
    return Room.new(**{**fields, "external_bindings": bindings})


def new_participant(
    channel: str, external_id: ExternalId, attrs: Mapping[str, Any] | None
) -> Participant:
    """A participant with the fields `attrs` and an external id, which is checked."""
    if attrs is None:
        return Participant(external_ids={channel: external_id})
    fields = require_mapping("attrs", attrs)
    ids = {**require_mapping("external_ids", fields.get("external_ids")), channel: external_id}
    return Participant.new(**{**fields, "external_ids": ids})


def _optional(name: str, value: ExternalId | None) -> ExternalId | None:
    return None if value is None else require_external_id(name, value)
