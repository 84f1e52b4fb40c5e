from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from services.recommender.catalogue import Catalogue
from services.recommender.components.columns import SHORTLIST, VECTOR
from services.recommender.domain import CandidateBatch
from services.recommender.pipeline.context import Context
from shared.contracts.history import Float32, Int32


@dataclass(frozen=True, slots=True)
class ItemVectorHydrator:
    """`vector [N, D]` of the shortlist for diversity, zero behind it: of the index, or categories without one."""

    name: str = "item_vectors"

    def wanted(self, context: Context) -> bool:
        return context.query.diversity > 0

    def columns(self, context: Context, batch: CandidateBatch) -> Mapping[str, npt.NDArray[Any]]:
        snapshot, shortlist = context.snapshot, batch.item_index[:SHORTLIST]
        index = snapshot.index
        vectors = category_vectors(snapshot.catalogue, shortlist) if index is None else index.vectors(shortlist)
        column = np.zeros((len(batch), vectors.shape[1]), np.float32)
        column[: len(shortlist)] = vectors
        return {VECTOR: column}


def category_vectors(catalogue: Catalogue, item_index: Int32) -> Float32:
    """[N, C] 1 where the item has the category, C being those that occur: cosine = shared / sqrt(own x other's)."""
    codes, owner = catalogue.column("categories").flat(item_index)
    present, column = np.unique(codes, return_inverse=True)
    vectors = np.zeros((len(item_index), len(present)), np.float32)
    vectors[owner, column] = 1.0
    return vectors
