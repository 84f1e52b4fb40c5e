"""Small index folders, written as the builder writes them."""

from __future__ import annotations

from datetime import UTC, datetime

import faiss
import numpy as np

from services.recommender.retrieval.index import ITEM_FILE, ROWS_FILE, USER_FILE, VECTORS_FILE
from shared.contracts.manifest import IndexManifest, ManifestAction, ModelManifest, Space
from shared.storage.artifacts import ArtifactStore

DIM = 8


def put_index(
    store: ArtifactStore,
    version: str,
    *,
    items: int = 20,
    model_version: str | None = None,
    created_at: datetime | None = None,
) -> None:
    """Unit vectors; a user space as well when it is a model's."""
    vectors = np.random.default_rng(len(version)).normal(size=(items, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    spaces = {"item": Space(file=ITEM_FILE, dim=DIM, count=items, kind="Flat")}
    if model_version is not None:
        spaces["user"] = Space(file=USER_FILE, dim=DIM, count=items, kind="Flat")
    with store.staging(IndexManifest, version) as folder:
        for space in spaces.values():
            index = faiss.IndexFlatIP(DIM)
            index.add(vectors)
            faiss.write_index(index, str(folder / space.file))
        np.save(folder / ROWS_FILE, np.arange(items, dtype=np.int32))
        np.save(folder / VECTORS_FILE, vectors)
        manifest = IndexManifest(
            version=version,
            created_at=created_at or datetime.now(UTC),
            catalogue_version=1,
            model_version=model_version,
            spaces=spaces,
        )
        store.publish(folder, manifest)


def put_model(store: ArtifactStore, version: str) -> None:
    """Its manifest; the recommender reads nothing else of a model."""
    with store.staging(ModelManifest, version) as folder:
        manifest = ModelManifest(
            version=version,
            created_at=datetime.now(UTC),
            catalogue_version=1,
            architecture={},
            actions=(ManifestAction(name="click", code=2),),
            vocabulary=20,
            vector_dim=DIM,
            feature_schema="f",
        )
        store.publish(folder, manifest)
