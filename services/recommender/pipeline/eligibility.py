"""After ranking: what may no longer be shown goes, and what is missing is filled up from behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.recommender.domain import CandidateBatch, Rung
from services.recommender.pipeline.context import Context
from services.recommender.pipeline.filtering import passing
from services.recommender.pipeline.protocols import Filter, Ranked, Source

# So many items are looked through for what a short slate lacks, popular ones first, the next depth only while the slate
# is short and there is time: a filter that one item in a thousand passes needs all, which is 2 ms for 100,000 items.
DEPTHS = (2000, 20_000, 1_000_000)
LEAST_S = 0.003


def still_eligible(context: Context, ranked: Ranked, filters: Sequence[Filter]) -> Ranked:
    kept = passing(context, ranked.batch.item_index, [one for one in filters if one.late])
    if kept.all():
        return ranked
    return replace(ranked, batch=ranked.batch.take(kept), score=ranked.score[kept])


@dataclass(frozen=True, slots=True)
class Backfill:
    """`reserve` are candidates beyond the cut, which passed the filters; then come popular items, filtered here."""

    source: Source
    bit: int
    filters: Sequence[Filter]

    async def fill(self, context: Context, ranked: Ranked, reserve: CandidateBatch) -> Ranked:
        """At least `count` items if there are any. Items are put behind, with score 0 and no probabilities."""
        lacking = context.query.count - len(ranked.batch)
        if lacking <= 0:
            return ranked
        late = [one for one in self.filters if one.late]
        reserve = reserve.take(passing(context, reserve.item_index, late)) if len(reserve) else reserve
        ranked = _behind(ranked, reserve.take(np.arange(min(lacking, len(reserve)))))
        lacking = context.query.count - len(ranked.batch)
        if lacking <= 0 or context.query.input_list is not None:
            return ranked
        return _behind(ranked, await self._popular(context, ranked, lacking))

    async def _popular(self, context: Context, ranked: Ranked, lacking: int) -> CandidateBatch:
        chosen, seen = np.empty(0, np.int32), 0
        try:
            for depth in DEPTHS:
                hits = await self.source.retrieve(context, depth)
                unseen = hits.item_index[seen:]
                unused = unseen[~np.isin(unseen, ranked.batch.item_index)]
                chosen = np.concatenate([chosen, unused[_uncounted(context, self.filters, unused)]])
                seen = len(hits)
                if len(chosen) >= lacking or seen < depth or context.budget.remaining() < LEAST_S:
                    break
        except Exception as error:  # noqa: BLE001  (any component may fail; the slate must not)
            context.report.failed(f"source.{self.source.name}", error, "short_slate")
        chosen = chosen[:lacking].astype(np.int32)
        bits = np.full(len(chosen), np.int64(1) << self.bit)
        return CandidateBatch(chosen, bits, np.zeros(len(chosen), np.float32))


def _uncounted(context: Context, filters: Sequence[Filter], item_index: np.ndarray) -> np.ndarray:
    """Items that were never candidates are not listed as removed ones."""
    kept = np.ones(len(item_index), np.bool_)
    for one in filters:
        mask = one.mask(context, item_index)
        if mask is not None:
            kept &= mask
    return kept


def _behind(ranked: Ranked, more: CandidateBatch) -> Ranked:
    if len(more) == 0:
        return ranked
    batch = ranked.batch
    scores = scored = None
    if batch.scores is not None:
        rows = np.zeros((len(more), batch.scores.shape[1]), np.float32)
        scores = np.concatenate([batch.scores, rows])
        scored = np.concatenate([batch.scored, np.zeros(len(more), np.bool_)])
    joined = CandidateBatch(
        np.concatenate([batch.item_index, more.item_index]).astype(np.int32),
        np.concatenate([batch.source_bits, more.source_bits]),
        np.concatenate([batch.retrieval, more.retrieval]),
        {},
        scores,
        scored,
    )
    score = np.concatenate([ranked.score, np.zeros(len(more), np.float32)]).astype(np.float32)
    rung = Rung.POPULAR if ranked.rung is Rung.NOTHING else ranked.rung
    return replace(ranked, batch=joined, score=score, rung=rung)
