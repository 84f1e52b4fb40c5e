from __future__ import annotations

from dataclasses import dataclass

from services.recommender.components.matching import locate
from services.recommender.components.stored import last_good_key, unpack_last_good
from services.recommender.domain import Rung
from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Recalled
from shared.contracts.history import Int32


@dataclass(frozen=True, slots=True)
class LastGoodFallback:
    """Probabilities that the same release gave this user not long ago; the scene's weights are applied anew."""

    rung: Rung = Rung.LAST_GOOD

    def recall(self, context: Context, item_index: Int32, actions: int) -> Recalled | None:
        key = last_good_key(context.snapshot.release_name, context.query.user_key)
        stored = unpack_last_good(context.user.extras.get(key))
        if stored is None or stored.scores.shape[1] != actions:
            return None
        found, place = locate(item_index, stored.item_index)
        if not found.any():
            return None
        return Recalled(found, scores=stored.scores[place] * found[:, None])
