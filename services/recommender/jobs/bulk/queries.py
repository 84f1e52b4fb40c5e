"""From a job's specification to the Query of each user: what `/v1/recommend` and `/v1/rank` would have built."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from services.recommender.catalogue import Catalogue
from services.recommender.domain import Query, UserFeatures, no_items
from services.recommender.experiments.applying import Asked, apply
from services.recommender.jobs.work import SlateAsk, SlateSpec
from services.recommender.routes.queries import QueryBuilder

PRIORITY = 1
"""The engine's class below online requests."""
FAR_S = 600.0
"""A deadline that no stage feels: the patience with an engine that is away ends long before."""


@dataclass(frozen=True, slots=True)
class UserQueries:
    """Everything that users share, compiled once a call: `retrieving` candidates, and `ranking` given ones."""

    retrieving: Query
    ranking: Query
    seed: int | None

    @classmethod
    def of(
        cls, spec: SlateSpec, builder: QueryBuilder, shipped: Mapping[str, Any], *, now_us: int, begin: float
    ) -> UserQueries:
        """`shipped`: the scene's shipped settings; `begin` on the monotonic clock. Raises NotFound for an unknown
        scene, FilterInvalid."""
        scene = builder.scene(spec.scene)
        common = Query(
            user_key="",
            scene=spec.scene,
            weights=scene.weights,
            count=spec.count,
            deadline=begin + FAR_S,
            now_us=now_us,
            seed=0,
            hide_seen=scene.hide_seen,
            filter=None if spec.filter is None else builder.filter(spec.filter),
            scene_filter=builder.scene_filter(scene),
            diversity=scene.diversity if spec.diversity is None else spec.diversity,
            priority=PRIORITY,
        )
        asked = Asked(begin, diversity=spec.diversity is not None, deadline=True)
        retrieving, ranking = (
            # A slate that is shown all day owes no place to chance.
            replace(apply(query, shipped, asked, builder.filter, shipped=True), exploration=0.0, deadline=begin + FAR_S)
            for query in (common, replace(common, input_list=no_items(), hide_seen=False))
        )
        return cls(retrieving, ranking, spec.seed)

    def of_user(self, ask: SlateAsk, user: UserFeatures, catalogue: Catalogue) -> Query:
        seed = zlib.crc32(ask.user_key.encode()) if self.seed is None else self.seed
        if not ask.item_ids:
            return replace(self.retrieving, user_key=ask.user_key, user=user, seed=seed)
        known = dict.fromkeys(index for item in ask.item_ids if (index := catalogue.index_of(item)) is not None)
        given = np.fromiter(known, np.int32, len(known))
        return replace(self.ranking, user_key=ask.user_key, user=user, seed=seed, input_list=given)
