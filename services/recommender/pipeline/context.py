"""What every component of one request sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.recommender.catalogue import Catalogue
from services.recommender.domain import Query, UserFeatures
from services.recommender.fresh import FreshTable
from services.recommender.pipeline.budget import Budget
from services.recommender.pipeline.report import Report
from services.recommender.popular import PopularTable
from services.recommender.retrieval.hits import Hits
from shared.contracts.history import Float32, Int32
from shared.contracts.manifest import ModelManifest


class Index(Protocol):
    """`services.recommender.retrieval.index.RetrievalIndex`."""

    @property
    def rows_searched(self) -> int: ...
    @property
    def model_version(self) -> str | None: ...
    @property
    def has_user_space(self) -> bool: ...
    def by_user_vector(self, vector: Float32, k: int, /) -> Hits: ...
    def by_items(self, item_index: Int32, k: int, /) -> Hits: ...
    def vectors(self, item_index: Int32) -> Float32: ...


class Snapshot(Protocol):
    """`services.recommender.serving.ServingState`: what belongs together, taken once a request."""

    @property
    def release_name(self) -> str: ...
    @property
    def model(self) -> ModelManifest | None: ...
    @property
    def index(self) -> Index | None: ...
    @property
    def catalogue(self) -> Catalogue: ...
    @property
    def popular(self) -> PopularTable: ...
    @property
    def fresh(self) -> FreshTable: ...
    @property
    def model_version(self) -> str | None: ...
    @property
    def index_version(self) -> str | None: ...


@dataclass(slots=True)
class Context:
    """`user` is empty until features were read; `user_vector [D]` is None until encoded."""

    query: Query
    snapshot: Snapshot
    budget: Budget
    report: Report
    user: UserFeatures
    user_vector: Float32 | None = None

    @property
    def model_user_key(self) -> str:
        """Whom inference shall cache latents for. Without personalization the history is empty; under the user's own
        key it would throw out what is cached of the real one. 64 names spread such requests over the engines."""
        query = self.query
        return query.user_key if query.personalized else f"v:~anyone-{query.seed % 64}"
