"""The statements that MySQL and SQLite spell differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, select, tuple_
from sqlalchemy.dialects import mysql, sqlite

from shared.storage.tables import counters

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


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts the rows that break no unique key; the others are there already. Not INSERT IGNORE: on MySQL that would
    also cut values that do not fit."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.execute(sqlite.insert(table).on_conflict_do_nothing(), list(rows))
        return
    same = next(iter(table.primary_key))
    connection.execute(mysql.insert(table).on_duplicate_key_update({same.name: same}), list(rows))


def delete_rows(connection: Connection, table: Table, keys: Sequence[Sequence[Any]]) -> int:
    """Rows by primary key, each key in the order of its columns; how many there were. Keep `keys` to a thousand."""
    if not keys:
        return 0
    columns = list(table.primary_key)
    if len(columns) == 1:
        chosen = columns[0].in_([key[0] for key in keys])
    else:
        chosen = tuple_(*columns).in_([tuple(key) for key in keys])
    return connection.execute(delete(table).where(chosen)).rowcount


def raise_counter(connection: Connection, name: str) -> int:
    """The new value. The raised row stays locked until the commit: call it before reading what depends on others."""
    upsert(connection, counters, [{"name": name, "value": 1}], lambda _: {"value": counters.c.value + 1})
    return int(connection.execute(select(counters.c.value).where(counters.c.name == name)).scalar_one())


def _chosen(changes: Changes | Sequence[str], offered: Any) -> dict[str, Any]:
    return dict(changes(offered)) if callable(changes) else {name: offered[name] for name in changes}
