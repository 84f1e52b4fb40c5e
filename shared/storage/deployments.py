"""The active deployment: one versioned row that says which release and which shipped settings are in force."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from shared.contracts.manifest import Deployment, Release
from shared.errors import NotFound
from shared.settings.load import SERVING
from shared.storage.tables import deployments

__all__ = ["SERVING", "active", "history", "promote", "roll_back"]


def active(connection: Connection) -> Deployment | None:
    """None before the first promotion."""
    row = connection.execute(select(deployments).order_by(deployments.c.version.desc()).limit(1)).first()
    return None if row is None else _deployment(row)


def history(connection: Connection, limit: int = 20) -> list[Deployment]:
    """Newest first."""
    rows = connection.execute(select(deployments).order_by(deployments.c.version.desc()).limit(limit))
    return [_deployment(row) for row in rows]


def promote(
    connection: Connection, release: Release, *, settings: dict[str, Any] | None, actor: str, note: str = ""
) -> Deployment:
    """Appends a row; `settings` None keeps those in force. The caller owns the transaction."""
    if settings is None:
        current = active(connection)
        settings = dict(current.settings) if current else {}
    now_us = time.time_ns() // 1000
    result = connection.execute(
        insert(deployments).values(
            release=release.release,
            model_version=release.model_version,
            index_version=release.index_version,
            settings=settings,
            actor=actor,
            note=note,
            created_at_us=now_us,
        )
    )
    version = int(result.inserted_primary_key[0]) if result.inserted_primary_key else 0
    return Deployment(version=version, release=release, settings=settings, actor=actor, note=note, created_at_us=now_us)


def roll_back(connection: Connection, *, actor: str, to_version: int | None = None) -> Deployment:
    """Appends the content of an older row: `to_version`, or the newest one with another release. Raises NotFound."""
    query = select(deployments).order_by(deployments.c.version.desc())
    if to_version is not None:
        query = query.where(deployments.c.version == to_version)
    else:
        current = active(connection)
        if current is None:
            raise NotFound("nothing was promoted yet, so there is nothing to roll back to")
        query = query.where(deployments.c.version < current.version, deployments.c.release != current.release.release)
    row = connection.execute(query.limit(1)).first()
    if row is None:
        raise NotFound("there is no older release to roll back to; `silkrec releases list` shows the history")
    older = _deployment(row)
    note = f"roll back to deployment {older.version}"
    return promote(connection, older.release, settings=dict(older.settings), actor=actor, note=note)


def _deployment(row: Row[Any]) -> Deployment:
    release = Release(release=row.release, model_version=row.model_version, index_version=row.index_version)
    return Deployment(
        version=row.version,
        release=release,
        settings=row.settings,
        actor=row.actor,
        note=row.note,
        created_at_us=row.created_at_us,
    )
