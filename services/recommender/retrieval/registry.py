"""The `models` table: which artifact folders exist, with their manifests as published; read where a host lacks the
files."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from shared.contracts.manifest import IndexManifest, ModelManifest
from shared.storage.tables import models


def register(connection: Connection, manifest: ModelManifest | IndexManifest) -> None:
    """Once a version; again changes nothing, since what is published never changes. The caller owns the
    transaction."""
    known = connection.scalar(select(models.c.version).where(models.c.version == manifest.version))
    if known is None:
        connection.execute(
            insert(models).values(
                version=manifest.version,
                kind=manifest.kind,
                created_at_us=int(manifest.created_at.timestamp() * 1_000_000),
                manifest=manifest.model_dump(mode="json"),
            )
        )
