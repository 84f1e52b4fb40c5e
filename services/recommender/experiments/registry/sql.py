"""The statements that MySQL and SQLite spell differently, and the lock of all writers of experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select
from sqlalchemy.dialects import mysql, sqlite

from shared.storage.tables import counters, experiment_audit

EXPERIMENTS = "experiments"
DEPLOYMENTS = "deployments"


def raise_counter(connection: Connection, name: str) -> int:
    """The new value. The raised row stays locked until the commit: call it before reading what depends on others."""
    row = {"name": name, "value": 1}
    more = {"value": counters.c.value + 1}
    if connection.dialect.name == "sqlite":
        connection.execute(sqlite.insert(counters).on_conflict_do_update(index_elements=["name"], set_=more), [row])
    else:
        connection.execute(mysql.insert(counters).on_duplicate_key_update(more), [row])
    return int(connection.execute(select(counters.c.value).where(counters.c.name == name)).scalar_one())


def write_audit(
    connection: Connection, key: str, *, at_us: int, actor: str, action: str, detail: Mapping[str, Any]
) -> None:
    connection.execute(
        insert(experiment_audit).values(
            experiment=key, at_us=at_us, actor=actor[:128], action=action, detail=dict(detail)
        )
    )
