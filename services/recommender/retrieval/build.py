"""From events and items to a published index folder: place, choose, build, tune, write.

An item that is placed but may not be found becomes a seed: it is started from, never retrieved (`stock.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from services.recommender.retrieval.choose import FLAT, POINTS_A_CLUSTER, kind_for
from services.recommender.retrieval.cooccurrence import Cooccurrence, EventColumns
from services.recommender.retrieval.index import (
    ITEM_FILE,
    ROWS_FILE,
    SEED_ROWS_FILE,
    SEED_VECTORS_FILE,
    USER_FILE,
    VECTORS_FILE,
)
from services.recommender.retrieval.placing import Placed, place
from services.recommender.retrieval.stock import Stock
from services.recommender.retrieval.tune import exact_top, tune
from shared.actions import ActionTable
from shared.contracts.history import Bool, Float32, Int32
from shared.contracts.manifest import IndexManifest, ModelManifest, Space
from shared.errors import ArtifactError, NotFound
from shared.storage.artifacts import ArtifactStore, new_version

RECALL_GOAL = 0.95
QUERIES = 500
_SEED = 1234
_WORTHLESS_SHARE = 0.25
# Of a model's folder: [V, D] float32 by item_index.
MODEL_VECTORS = "item_vectors.npy"
SpaceName = Literal["item", "user"]
Tell = Callable[[str, float], None]
"""Told the phase and the share of it that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Model:
    """What an index takes of a published model: `vectors` [V, D] float32 by item_index."""

    version: str
    vectors: Float32

    @classmethod
    def open(cls, store: ArtifactStore, version: str) -> Model:
        """Raises ArtifactError when it is missing or damaged."""
        folder, manifest = store.open_folder(ModelManifest, version)
        try:
            vectors = np.load(folder / MODEL_VECTORS)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder / MODEL_VECTORS} cannot be read: {error}; train the model again") from None
        if vectors.ndim != 2 or vectors.shape[1] != manifest.vector_dim or not np.isfinite(vectors).all():
            raise ArtifactError(
                f"{folder / MODEL_VECTORS} is no finite [V, {manifest.vector_dim}], as its manifest says; train again"
            )
        return cls(version, np.asarray(vectors, np.float32))


@dataclass(frozen=True, slots=True)
class Built:
    """A FAISS index over rows in the folder's order, and what the manifest says of it."""

    index: Any
    space: Space


@dataclass(frozen=True, slots=True)
class IndexBuilder:
    """`recall`: share of the exact 100 best that a search must find."""

    store: ArtifactStore
    actions: ActionTable
    recall: float = RECALL_GOAL
    cooccurrence: Cooccurrence = field(default_factory=Cooccurrence)
    tell: Tell = lambda _phase, _share: None

    def build(self, events: EventColumns, stock: Stock, model: Model | None) -> IndexManifest:
        """Publishes a folder; the caller registers it. Raises NotFound when no item could ever be found."""
        vectors = None if model is None else model.vectors
        placed = place(
            events, self.actions, stock.size, vectors, self.cooccurrence, lambda share: self.tell("placing", share)
        )
        found, seeds = rows_of(stock, placed)
        if not len(found):
            raise NotFound(
                "no item can be retrieved yet: send events of two items by the same user, or train a model first"
            )
        self.tell("clustering", 0.0)
        spaces = build_spaces(placed, found, self.recall)
        self.tell("clustering", 1.0)
        manifest = IndexManifest(
            version=new_version("i"),
            created_at=datetime.now(UTC),
            catalogue_version=stock.catalogue_version,
            model_version=None if model is None else model.version,
            spaces={name: built.space for name, built in spaces.items()},
            metrics={"items_without_vector": float((stock.found & ~placed.is_placed).sum())},
        )
        return publish(self.store, manifest, spaces, (found, placed.item[found]), (seeds, placed.item[seeds]))


def rows_of(stock: Stock, placed: Placed) -> tuple[Int32, Int32]:
    """item_index, rising: of what can be found, and of what can only be started from."""
    there: Bool = stock.exists & placed.is_placed
    return (
        np.flatnonzero(there & stock.found).astype(np.int32),
        np.flatnonzero(there & ~stock.found).astype(np.int32),
    )


def build_spaces(placed: Placed, rows: Int32, recall: float) -> dict[SpaceName, Built]:
    """Each space is tuned with its own vectors as queries. User vectors need the model, and items are the harder
    queries: tuned with items to 0.95, IVF found 0.961 (MovieLens-100K) and 0.987 (Amazon Beauty) of the exact 100 best
    of real user vectors; tuned with means of histories 0.924 and 0.994."""
    spaces: dict[SpaceName, Built] = {"item": build_space(placed.item[rows], ITEM_FILE, goal=recall)}
    if placed.user is not None:
        spaces["user"] = build_space(placed.user[rows], USER_FILE, goal=recall)
    return spaces


def build_space(vectors: Float32, file: str, *, kind: str | None = None, goal: float = RECALL_GOAL) -> Built:
    """`vectors` [n, D], by inner product; the same vectors give the same index. Raises ArtifactError for vectors that
    are not finite.

    Without `kind` it is chosen by count; vectors without clusters, where IVF would look into a quarter, stay Flat."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise ArtifactError(f"vectors for {file} hold numbers that are not finite; train the model again")
    count, dim = vectors.shape
    is_given = kind is not None
    kind = kind or kind_for(count)
    index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(_SEED)
    if kind == FLAT:
        index.add(vectors)
        return Built(index, Space(file=file, dim=dim, count=count, kind=kind))
    cells = faiss.extract_index_ivf(index)
    cells.cp.seed = _SEED
    index.train(vectors[rng.choice(count, min(count, cells.nlist * POINTS_A_CLUSTER), replace=False)])
    index.add(vectors)
    queries = vectors[rng.choice(count, min(QUERIES, count), replace=False)]
    tuned = tune(index, queries, exact_top(vectors, queries), goal)
    if tuned.nprobe > _WORTHLESS_SHARE * cells.nlist and not is_given:
        return build_space(vectors, file, kind=FLAT)
    space = Space(file=file, dim=dim, count=count, kind=kind, nprobe=tuned.nprobe, recall_at_100=round(tuned.recall, 4))
    return Built(index, space)


def publish(
    store: ArtifactStore,
    manifest: IndexManifest,
    spaces: dict[SpaceName, Built],
    items: tuple[Int32, Float32],
    seeds: tuple[Int32, Float32],
) -> IndexManifest:
    """`items` and `seeds` are (item_index [n], vectors [n, D] of the item space)."""
    with store.staging(IndexManifest, manifest.version) as folder:
        for built in spaces.values():
            faiss.write_index(built.index, str(folder / built.space.file))
        _save(folder, ROWS_FILE, VECTORS_FILE, items)
        if len(seeds[0]):
            _save(folder, SEED_ROWS_FILE, SEED_VECTORS_FILE, seeds)
        return store.publish(folder, manifest)


def _save(folder: Path, rows_file: str, vectors_file: str, kept: tuple[Int32, Float32]) -> None:
    np.save(folder / rows_file, kept[0])
    np.save(folder / vectors_file, np.ascontiguousarray(kept[1], np.float32))
