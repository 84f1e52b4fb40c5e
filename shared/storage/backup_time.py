"""When the newest good backup was made: a row that `silkrec backup create` writes, wherever it runs, and the features
service exports."""

from __future__ import annotations

from sqlalchemy import Connection, select

from shared.storage.statements import upsert
from shared.storage.tables import counters

_NAME = "backup_at_us"


def tell(connection: Connection, at_us: int) -> None:
    upsert(connection, counters, [{"name": _NAME, "value": at_us}], ["value"])


def told(connection: Connection) -> int | None:
    """Microseconds since 1970 UTC; None: nobody makes backups here."""
    return connection.scalar(select(counters.c.value).where(counters.c.name == _NAME))
