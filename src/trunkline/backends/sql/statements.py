"""Statements that are made once, in the dialects of SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

__all__ = ("find", "insert_absent", "sqlite_rows", "sqlite_text", "upsert")


@cache
def sqlite_text(statement: sa.Executable) -> tuple[str, Sequence[tuple[str, bool, Any]]]:
    """What SQLite's driver takes: the text, and its parameters in their order.

    Of each parameter: the name, whether its value has to be given, and else what it is.
    """
    compiled: Any = cast(Any, statement).compile(dialect=_SQLITE)
    names = compiled.positiontup
    return str(compiled), [
        (name, compiled.binds[name].required, compiled.params[name]) for name in names
    ]


_SQLITE = sqlite.dialect(paramstyle="qmark")


@cache
def sqlite_rows(statement: Callable[..., Any], table: sa.Table, size: int) -> str:
    """`upsert` or `insert_absent` of `size` rows, the values in the order of the columns."""
    text, _ = sqlite_text(statement(table, sqlite=True))
    row = f"({', '.join('?' for _ in table.columns)})"
    return text.replace(row, ", ".join([row] * size), 1)


@cache
def find(table: sa.Table, columns: tuple[sa.Column[Any], ...], *, sqlite: bool) -> str:
    """Takes the keys as one parameter each part on PostgreSQL, and all as JSON on SQLite."""
    keys = [column.name for column in table.primary_key]
    if sqlite:
        parts = ", ".join(f"json_extract(value, '$[{i}]') AS {key}" for i, key in enumerate(keys))
        wanted = f"(SELECT {parts} FROM json_each(?)) AS wanted"
    else:
        parts = ", ".join(f"CAST(:{key} AS text[])" for key in keys)
        wanted = f"unnest({parts}) AS wanted ({', '.join(keys)})"
    given = ", ".join(f"one.{column.name}" for column in columns or table.columns)
    same = " AND ".join(f"one.{key} = wanted.{key}" for key in keys)
    # Tells SQLite to go by what is wanted, and to look each up.
    join = "CROSS JOIN" if sqlite else "JOIN"
    return f"SELECT {given} FROM {wanted} {join} {table.name} AS one ON {same}"


@cache
def upsert(table: sa.Table, *, sqlite: bool) -> Any:
    """`INSERT … ON CONFLICT DO UPDATE` of a whole row of `table`, by its primary key."""
    insert = _insert(table, sqlite)
    keys = [column.name for column in table.primary_key]
    changed = {
        column.name: insert.excluded[column.name]
        for column in table.c
        if column.name not in keys and not column.info.get("kept_on_update")
    }
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)


@cache
def insert_absent(table: sa.Table, *, sqlite: bool) -> Any:
    """`INSERT … ON CONFLICT DO NOTHING`, whichever of the constraints it meets; returns keys."""
    return _insert(table, sqlite).on_conflict_do_nothing().returning(*table.primary_key)


def _insert(table: sa.Table, sqlite: bool) -> Any:
    return sqlite_insert(table) if sqlite else postgresql_insert(table)
