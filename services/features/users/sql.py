"""The statement that MySQL and SQLite spell differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import mysql, sqlite

Changes = Callable[[Any], Mapping[str, Any]]


def upsert(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], changes: Changes | Sequence[str]
) -> None:
    """Inserts `rows`; where the primary key exists, sets what `changes` makes of the offered row's columns, or the
    named columns as they were offered. Expressions only: PyMySQL fills parameters of a bulk insert's VALUES, and of
    nothing behind them."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        lite = sqlite.insert(table)
        chosen = _chosen(changes, lite.excluded)
        connection.execute(lite.on_conflict_do_update(index_elements=list(table.primary_key), set_=chosen), list(rows))
        return
    insert = mysql.insert(table)
    connection.execute(insert.on_duplicate_key_update(_chosen(changes, insert.inserted)), list(rows))


def _chosen(changes: Changes | Sequence[str], offered: Any) -> dict[str, Any]:
    return dict(changes(offered)) if callable(changes) else {name: offered[name] for name in changes}
