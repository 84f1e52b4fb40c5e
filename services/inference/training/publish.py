"""A trained ranker becomes an immutable model folder, and a row in `models`."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from sqlalchemy import insert

from services.inference.model import checkpoint
from services.inference.training.content import schema_hash
from services.inference.training.loop import Trained
from shared.actions import ActionTable
from shared.contracts.manifest import ManifestAction, ModelManifest
from shared.schema import Schema
from shared.storage.artifacts import ArtifactStore, new_version
from shared.storage.database import Database
from shared.storage.tables import models

TOKENS = "content_tokens.json"


def publish(
    trained: Trained, store: ArtifactStore, database: Database, schema: Schema, *, catalogue_version: int
) -> ModelManifest:
    """Folder first, then the row: a row always names a folder that is whole. Raises DatabaseUnavailable, OSError."""
    config = trained.ranker.config
    names = ActionTable.from_schema(schema).by_code
    manifest = ModelManifest(
        version=new_version("m"),
        created_at=datetime.now(UTC),
        catalogue_version=catalogue_version,
        metrics={**trained.metrics, "train_s": round(trained.seconds, 3), "epochs": round(trained.epochs, 2)},
        architecture=config.to_dict(),
        actions=tuple(ManifestAction(name=names[code].name, code=code) for code in trained.actions),
        vocabulary=config.vocabulary,
        vector_dim=config.vector_dim,
        feature_schema=schema_hash(schema),
    )
    with store.staging(ModelManifest, manifest.version) as folder:
        checkpoint.save(folder, trained.ranker)
        (folder / TOKENS).write_text(trained.content.tokeniser.dumps(), "utf-8")
        manifest = store.publish(folder, manifest)
    with database.write() as connection:
        connection.execute(
            insert(models).values(
                version=manifest.version,
                kind="model",
                created_at_us=time.time_ns() // 1000,
                manifest=manifest.model_dump(mode="json"),
            )
        )
    return manifest
