from __future__ import annotations

from dataclasses import dataclass

from services.recommender.components.matching import locate
from services.recommender.components.stored import batch_slate_key, unpack_batch_slate
from services.recommender.domain import Rung
from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Recalled
from shared.contracts.history import Int32


@dataclass(frozen=True, slots=True)
class BatchSlateFallback:
    """The order that a batch job computed for this user, scene and release."""

    rung: Rung = Rung.BATCH

    def recall(self, context: Context, item_index: Int32, _actions: int) -> Recalled | None:
        query = context.query
        stored = unpack_batch_slate(
            context.user.extras.get(batch_slate_key(context.snapshot.release_name, query.scene, query.user_key))
        )
        if stored is None:
            return None
        found, place = locate(item_index, stored.item_index)
        return Recalled(found, score=stored.score[place]) if found.any() else None
