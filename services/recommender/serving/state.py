"""The snapshot that one request reads from beginning to end, and the one place that replaces it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from services.recommender.catalogue import Catalogue
from services.recommender.fresh import FreshTable
from services.recommender.popular import PopularTable
from services.recommender.retrieval.index import RetrievalIndex
from shared.contracts.manifest import ModelManifest, Release
from shared.contracts.variant_release import VariantRelease


@dataclass(frozen=True, slots=True)
class Beside:
    """What a variant serves in place of the active release."""

    release: Release
    model: ModelManifest | None
    index: RetrievalIndex


@dataclass(frozen=True, slots=True)
class ServingState:
    """Frozen; take it once a request (`holder.current()`), so that release, index and popularity belong together.

    `release`, `model`, `index`: None until one is active and could be opened; the suite then serves popular and fresh.
    `beside` has the variants' releases that can be served now.
    `catalogue` is the one live object in it: grown in place by one thread, each of its `view()`s is consistent.
    """

    release: Release | None
    model: ModelManifest | None
    index: RetrievalIndex | None
    catalogue: Catalogue
    popular: PopularTable
    fresh: FreshTable
    beside: Mapping[VariantRelease, Beside] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def empty(cls, catalogue: Catalogue) -> ServingState:
        """What stands before anything was read."""
        return cls(
            None,
            None,
            None,
            catalogue,
            PopularTable(np.empty(0, np.int32), np.empty(0, np.float32), {}),
            FreshTable.from_catalogue(catalogue),
        )

    def with_release(self, beside: Beside) -> ServingState:
        return replace(self, release=beside.release, model=beside.model, index=beside.index)

    @property
    def release_name(self) -> str:
        """As answers and log rows name it; empty before the first release."""
        return "" if self.release is None else self.release.release

    @property
    def model_version(self) -> str | None:
        return None if self.model is None else self.model.version

    @property
    def index_version(self) -> str | None:
        return None if self.index is None else self.index.version


class StateHolder:
    """Readers call `current()` (one attribute load, any thread); tasks call `swap()`."""

    def __init__(self, state: ServingState) -> None:
        self._state = state
        self._writer = threading.Lock()

    def current(self) -> ServingState:
        return self._state

    def serving(self, release: Any) -> ServingState:
        """Of one request: with what its variant serves (`Query.release`)."""
        state = self._state
        return state if release is None else state.with_release(release)

    def swap(self, **changes: Any) -> ServingState:
        """Replaces the named fields by one assignment: a request sees all of them or none. Tasks that replace different
        fields never undo each other's change."""
        with self._writer:
            self._state = replace(self._state, **changes)
            return self._state
