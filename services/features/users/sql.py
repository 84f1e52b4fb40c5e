"""The two statements that MySQL and SQLite spell differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import mysql, sqlite


def upsert(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], changes: Mapping[str, Any] | Sequence[str]
) -> None:
    """Inserts `rows`; where the primary key exists, sets `changes`: expressions, or names of columns to take from the
    row that was offered."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        offer = sqlite.insert(table)
        chosen = changes if isinstance(changes, Mapping) else {name: offer.excluded[name] for name in changes}
        connection.execute(
            offer.on_conflict_do_update(index_elements=list(table.primary_key), set_=dict(chosen)), list(rows)
        )
        return
    insert = mysql.insert(table)
    chosen = changes if isinstance(changes, Mapping) else {name: insert.inserted[name] for name in changes}
    connection.execute(insert.on_duplicate_key_update(dict(chosen)), list(rows))
