from __future__ import annotations

from dataclasses import dataclass

from services.features.reader import FeatureReader
from services.recommender.components.stored import batch_slate_key, last_good_key
from services.recommender.domain import FeatureMiss, Query, UserFeatures
from services.recommender.pipeline.context import Snapshot


@dataclass(frozen=True, slots=True)
class UserFeaturesHydrator:
    """History, profile, last good scores and batch slate in one round trip."""

    reader: FeatureReader

    async def hydrate(self, query: Query, snapshot: Snapshot, timeout_s: float) -> UserFeatures:
        keys = list(query.extra_keys)
        release = snapshot.release_name
        if release:
            keys += [last_good_key(release, query.user_key), batch_slate_key(release, query.scene, query.user_key)]
        view = await self.reader.user(query.user_key, extra_keys=keys, timeout_s=timeout_s)
        return UserFeatures(
            history=view.history,
            properties=view.properties,
            segments=view.segments,
            extras={key: value for key, value in view.extras.items() if value is not None},
            misses=tuple(FeatureMiss(miss.store, miss.what, miss.cause) for miss in view.misses),
        )
