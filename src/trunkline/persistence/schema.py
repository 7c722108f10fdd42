"""The tables of persistence: real columns for what is searched or sorted, the model as JSON.

A model is stored whole in `document`; the columns beside it are what its look-ups need. A namespace
leads every key and index. Instants are microseconds since 1970 in UTC, external ids are text.
Changing a table means a further migration, never a change of one that was released.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from trunkline.errors import ConfigurationError
from trunkline.persistence.adapter import hashed_key, inbound_key
from trunkline.persistence.documents import UNREADABLE
from trunkline.persistence.validation import folded

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


def _key(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, _TEXT, primary_key=True) for name in ("namespace", *names)]


def _table(name: str, *items: sa.schema.SchemaItem) -> sa.Table:
    """A table of models."""
    document = sa.Column("document", _TEXT, nullable=False)
    return sa.Table(f"trunkline_{name}", _metadata, *items, document)


def _text(name: str, *, nullable: bool = True) -> sa.Column[str]:
    return sa.Column(name, _TEXT, nullable=nullable)


def _instant() -> sa.Column[int]:
    return sa.Column("inserted_at_us", sa.BigInteger, nullable=False)


def _belongs_to(table: str, column: str) -> sa.ForeignKeyConstraint:
    parent = [f"trunkline_{table}.namespace", f"trunkline_{table}.id"]
    return sa.ForeignKeyConstraint(["namespace", column], parent, ondelete="CASCADE")


def _index(name: str, *columns: str, unique: bool = False, without_null: str = "") -> sa.Index:
    where = sa.text(f"{without_null} IS NOT NULL") if without_null else None
    return sa.Index(
        f"trunkline_{name}",
        "namespace",
        *columns,
        unique=unique,
        sqlite_where=where,
        postgresql_where=where,
    )


rooms = _table(
    "rooms",
    *_key("id"),
    _text("type", nullable=False),
    #: The name, case-folded, for the directory.
    _text("folded_name"),
    _index("rooms_by_type", "type", "id"),
)

participants = _table("participants", *_key("id"), _text("folded_name"))

participant_external_ids = sa.Table(
    "trunkline_participant_external_ids",
    _metadata,
    *_key("participant_id", "channel"),
    _text("external_id", nullable=False),
    #: 1 for the one that get_or_create finds, NULL for others saved later with the same id.
    sa.Column("holder", sa.Integer),
    _belongs_to("participants", "participant_id"),
    _index("participants_by_external_id", "channel", "external_id", "holder", unique=True),
)

messages = _table(
    "messages",
    *_key("id"),
    _text("room_id", nullable=False),
    _text("thread_id"),
    _text("channel"),
    _text("bridge_id"),
    _text("external_id"),
    #: `Inbound.key` of a message that came in; stays when the message is saved again.
    sa.Column("inbound_key", _TEXT, info={"kept_on_update": True}),
    _instant(),
    _belongs_to("rooms", "room_id"),
    _index("messages_by_room", "room_id", "inserted_at_us", "id"),
    _index(
        "messages_by_thread",
        "room_id",
        "thread_id",
        "inserted_at_us",
        "id",
        without_null="thread_id",
    ),
    # An index of PostgreSQL has no place for all five ids.
    _index(
        "messages_by_external_id",
        "external_id",
        "room_id",
        "inserted_at_us",
        without_null="external_id",
    ),
    _index("messages_that_came_in", "inbound_key", unique=True, without_null="inbound_key"),
)

threads = _table(
    "threads",
    *_key("id"),
    _text("room_id", nullable=False),
    _text("external_thread_id"),
    _text("root_message_id"),
    _text("status", nullable=False),
    _instant(),
    _belongs_to("rooms", "room_id"),
    _index("threads_by_room", "room_id", "inserted_at_us", "id"),
    _index("threads_by_external_id", "room_id", "external_thread_id"),
    _index("threads_by_root", "room_id", "root_message_id"),
)

room_bindings = _table(
    "room_bindings",
    *_key("id"),
    _text("room_id", nullable=False),
    _text("channel", nullable=False),
    _text("bridge_id", nullable=False),
    _text("external_room_id", nullable=False),
    _instant(),
    _belongs_to("rooms", "room_id"),
    _index("rooms_by_external_id", "channel", "bridge_id", "external_room_id", unique=True),
    _index("room_bindings_by_room", "room_id", "inserted_at_us", "id"),
)

onboarding_flows = _table("onboarding_flows", *_key("id"))

bridge_configs = _table(
    "bridge_configs",
    *_key("id"),
    sa.Column("enabled", sa.Boolean, nullable=False),
)

routing_policies = _table(
    "routing_policies",
    *_key("room_id"),
    _belongs_to("rooms", "room_id"),
)

ingress_subscriptions = _table(
    "ingress_subscriptions",
    #: The subscription id is an empty string for a subscription without one.
    *_key("bridge_id", "subscription_id"),
    _text("status", nullable=False),
)

#: Every table, those that others refer to first.
tables = tuple(_metadata.sorted_tables)


def _create(connection: sa.Connection) -> None:
    """The present tables, in a database that has none."""
    inspector = sa.inspect(connection)
    for table in tables:
        if inspector.has_table(table.name):
            found = {column["name"] for column in inspector.get_columns(table.name)}
            if found != set(table.columns.keys()):
                raise ConfigurationError(
                    f"the database has a table {table.name} that trunkline did not make: its"
                    f" columns are {', '.join(sorted(found))}"
                )
    _metadata.create_all(connection)


def _add_namespace(connection: sa.Connection) -> None:
    """From version 1, of trunkline 0.1, to 2: rows get the namespace `default`."""
    inspector = sa.inspect(connection)
    columns = {
        table: [column["name"] for column in inspector.get_columns(table.name)] for table in tables
    }
    if "namespace" in columns[rooms]:
        return  # `_create` has just made them
    for table in tables:
        for index in inspector.get_indexes(table.name):
            if "duplicates_constraint" not in index:
                connection.exec_driver_sql(f"DROP INDEX {index['name']}")
        connection.exec_driver_sql(f"ALTER TABLE {table.name} RENAME TO {table.name}_1")
    _metadata.create_all(connection)
    for table in tables:
        names = values = ", ".join(columns[table])
        if table is messages:
            # What came in had its key as its id, a UUID of version 5.
            names = f"{names}, inbound_key"
            values += ", CASE WHEN external_id <> '' AND substr(id, 15, 1) = '5' THEN id END"
        connection.exec_driver_sql(
            f"INSERT INTO {table.name} (namespace, {names})"
            f" SELECT 'default', {values} FROM {table.name}_1"
        )
    for table in reversed(tables):
        connection.exec_driver_sql(f"DROP TABLE {table.name}_1")
    for table in (rooms, participants):
        _fold_names(connection, table)
    _name_inbound_keys(connection)


def _name_inbound_keys(connection: sa.Connection) -> None:
    """Give messages that came in the key of which their id is the hash."""
    last = ""
    of_page = (
        sa.select(messages.c.id, messages.c.document)
        # Without the namespace, which leads the primary key, each page would read every message.
        .where(messages.c.namespace == "default", messages.c.id > sa.bindparam("last"))
        .where(messages.c.inbound_key.is_not(None))
        .order_by(messages.c.id)
        .limit(1_000)
    )
    while page := connection.execute(of_page, {"last": last}).all():
        last = page[-1].id
        keys = {message_id: _inbound_key_of(document) for message_id, document in page}
        right = {one: key for one, key in keys.items() if hashed_key(key) == one}
        _update(connection, messages.c.inbound_key, right)


def _inbound_key_of(document: str) -> str:
    """The key of a message, if it came in; empty if its document cannot be read."""
    try:
        fields = msgspec.json.decode(document)
        scope = fields["metadata"]
        parts = (
            scope["channel"],
            scope["bridge_id"],
            str(fields["delivery_external_room_id"]),
            str(fields["external_id"]),
        )
        return inbound_key(*parts)
    except (*UNREADABLE, LookupError, AttributeError):
        return ""


def _fold_names(connection: sa.Connection, table: sa.Table) -> None:
    """Names were folded without being normalised, which changes none in ASCII."""
    rows = connection.execute(sa.select(table.c.id, table.c.folded_name)).all()
    names = {
        row.id: folded(row.folded_name)
        for row in rows
        if row.folded_name is not None and not row.folded_name.isascii()
    }
    _update(connection, table.c.folded_name, names)


def _update(connection: sa.Connection, column: sa.Column[Any], values: Mapping[str, str]) -> None:
    """Store values of one column by the ids of their rows."""
    table: Any = column.table
    statement = (
        sa.update(table)
        # Without the namespace, which leads the primary key, each would read every row.
        .where(table.c.namespace == "default", table.c.id == sa.bindparam("of_id"))
        .values({column.name: sa.bindparam("value")})
    )
    if values:
        rows = [{"of_id": row_id, "value": value} for row_id, value in values.items()]
        connection.execute(statement, rows)


#: The steps that lead to the present schema. Their number is its version.
MIGRATIONS = (_create, _add_namespace)
