"""The tables of persistence: real columns for what is searched or sorted, the model as JSON.

A model is stored whole in `document`; the columns beside it are what its look-ups need. Instants
are microseconds since 1970 in UTC, external ids are text. Changing a table means a further
migration, never a change of one that was released.
"""

from __future__ import annotations

import sqlalchemy as sa

__all__ = (
    "MIGRATIONS",
    "bridge_configs",
    "ingress_subscriptions",
    "messages",
    "onboarding_flows",
    "participant_external_ids",
    "participants",
    "room_bindings",
    "rooms",
    "routing_policies",
    "tables",
    "threads",
)

_metadata = sa.MetaData()

#: Sorted by code points everywhere, whatever the locale of a PostgreSQL database.
_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _of_room(*, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(
        "room_id",
        _TEXT,
        sa.ForeignKey("trunkline_rooms.id", ondelete="CASCADE"),
        primary_key=primary_key,
        nullable=False,
    )


def _document() -> sa.Column[str]:
    return sa.Column("document", _TEXT, nullable=False)


rooms = sa.Table(
    "trunkline_rooms",
    _metadata,
    sa.Column("id", _TEXT, primary_key=True),
    sa.Column("type", _TEXT, nullable=False),
    #: The name, case-folded, for the directory.
    sa.Column("folded_name", _TEXT),
    _document(),
    sa.Index("trunkline_rooms_by_type", "type", "id"),
)

participants = sa.Table(
    "trunkline_participants",
    _metadata,
    sa.Column("id", _TEXT, primary_key=True),
    sa.Column("folded_name", _TEXT),
    _document(),
)

participant_external_ids = sa.Table(
    "trunkline_participant_external_ids",
    _metadata,
    sa.Column(
        "participant_id",
        _TEXT,
        sa.ForeignKey("trunkline_participants.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("channel", _TEXT, primary_key=True),
    sa.Column("external_id", _TEXT, nullable=False),
    #: 1 for the one that get_or_create finds, NULL for others saved later with the same id.
    sa.Column("holder", sa.Integer),
    sa.UniqueConstraint("channel", "external_id", "holder", name="trunkline_participant_holder"),
)

messages = sa.Table(
    "trunkline_messages",
    _metadata,
    sa.Column("id", _TEXT, primary_key=True),
    _of_room(),
    sa.Column("thread_id", _TEXT),
    sa.Column("channel", _TEXT),
    sa.Column("bridge_id", _TEXT),
    sa.Column("external_id", _TEXT),
    sa.Column("inserted_at_us", sa.BigInteger, nullable=False),
    _document(),
    sa.Index("trunkline_messages_by_room", "room_id", "inserted_at_us", "id"),
)
sa.Index(
    "trunkline_messages_by_thread",
    messages.c.room_id,
    messages.c.thread_id,
    messages.c.inserted_at_us,
    messages.c.id,
    sqlite_where=messages.c.thread_id.is_not(None),
    postgresql_where=messages.c.thread_id.is_not(None),
)
sa.Index(
    "trunkline_messages_by_external_id",
    messages.c.channel,
    messages.c.bridge_id,
    messages.c.external_id,
    messages.c.inserted_at_us,
    sqlite_where=messages.c.external_id.is_not(None),
    postgresql_where=messages.c.external_id.is_not(None),
)

threads = sa.Table(
    "trunkline_threads",
    _metadata,
    sa.Column("id", _TEXT, primary_key=True),
    _of_room(),
    sa.Column("external_thread_id", _TEXT),
    sa.Column("root_message_id", _TEXT),
    sa.Column("status", _TEXT, nullable=False),
    sa.Column("inserted_at_us", sa.BigInteger, nullable=False),
    _document(),
    sa.Index("trunkline_threads_by_room", "room_id", "inserted_at_us", "id"),
    sa.Index("trunkline_threads_by_external_id", "room_id", "external_thread_id"),
    sa.Index("trunkline_threads_by_root", "room_id", "root_message_id"),
)

room_bindings = sa.Table(
    "trunkline_room_bindings",
    _metadata,
    sa.Column("id", _TEXT, primary_key=True),
    _of_room(),
    sa.Column("channel", _TEXT, nullable=False),
    sa.Column("bridge_id", _TEXT, nullable=False),
    sa.Column("external_room_id", _TEXT, nullable=False),
    sa.Column("inserted_at_us", sa.BigInteger, nullable=False),
    _document(),
    sa.UniqueConstraint(
        "channel", "bridge_id", "external_room_id", name="trunkline_room_bindings_once"
    ),
    sa.Index("trunkline_room_bindings_by_room", "room_id", "inserted_at_us", "id"),
)

onboarding_flows = sa.Table(
    "trunkline_onboarding_flows",
    _metadata,
    sa.Column("id", _TEXT, primary_key=True),
    _document(),
)

bridge_configs = sa.Table(
    "trunkline_bridge_configs",
    _metadata,
    sa.Column("id", _TEXT, primary_key=True),
    sa.Column("enabled", sa.Boolean, nullable=False),
    _document(),
)

routing_policies = sa.Table(
    "trunkline_routing_policies", _metadata, _of_room(primary_key=True), _document()
)

ingress_subscriptions = sa.Table(
    "trunkline_ingress_subscriptions",
    _metadata,
    sa.Column("bridge_id", _TEXT, primary_key=True),
    #: An empty string for a subscription without an id.
    sa.Column("subscription_id", _TEXT, primary_key=True),
    sa.Column("status", _TEXT, nullable=False),
    _document(),
)

#: Every table, those that others refer to first.
tables = tuple(_metadata.sorted_tables)


def _create(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


#: The steps that lead to the present schema. Their number is its version.
MIGRATIONS = (_create,)
