"""The database's clock. Leases of several machines are compared by it and by no machine's own."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, text

Clock = Callable[[Connection], int]
"""Microseconds since 1970 UTC. Tests bring their own."""
_SQLITE = text("SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)")
# UNIX_TIMESTAMP would read the session's time zone, which has an hour twice a year.
_MYSQL = text("SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))")


def database_clock(connection: Connection) -> int:
    return int(connection.execute(_SQLITE if connection.dialect.name == "sqlite" else _MYSQL).scalar_one())
