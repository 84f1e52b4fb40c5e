"""From candidates to an order, by the best means that are left: the degradation ladder.

all scored by the model → fewer, in retrieval order → last good scores → batch slate → retrieval scores → popular
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.recommender.domain import CandidateBatch, Rung
from services.recommender.pipeline.budget import Shares
from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Fallback, Ranked, Recalled, Scored, Scorer
from services.recommender.pipeline.quality import QualityFactor
from services.recommender.pipeline.report import DEADLINE, cause_of
from services.recommender.pipeline.waiting import Stragglers
from services.recommender.ranking.blending import blend, order_by, weight_vector
from shared.contracts.history import Bool, Float32

STAGE = "rank"
FEWER = "fewer_candidates"
# Below this a trip to inference and back cannot succeed (0.3 ms on a Unix socket, plus any forward pass).
LEAST_S = 0.002


@dataclass(frozen=True, slots=True)
class Ladder:
    scorer: Scorer
    fallbacks: Sequence[Fallback]
    quality: QualityFactor
    stragglers: Stragglers
    shares: Shares

    async def rank(self, context: Context, batch: CandidateBatch, personal_bits: int) -> Ranked:
        """Best first. `personal_bits`: sources whose order is more than popularity."""
        if len(batch) == 0:
            return Ranked(batch, np.empty(0, np.float32), Rung.NOTHING)
        if context.query.ranker == "retrieval":
            return self._retrieved(context, batch, personal_bits, "")
        actions = self.scorer.actions(context)
        cause = "no_model"
        if actions:
            scored, cause = await self._score(context, batch, len(actions))
            if scored is not None:
                rung = Rung.PARTIAL if cause else Rung.MODEL
                if cause:
                    context.report.gave_up(STAGE, cause, FEWER)
                known = Recalled(scored.scored, scored.scores)
                return _ranked(context, batch, known, rung, actions)
            for fallback in self.fallbacks:
                recalled = _recall(context, fallback, batch, len(actions))
                if recalled is not None:
                    context.report.gave_up(STAGE, cause, fallback.rung)
                    return _ranked(context, batch, recalled, fallback.rung, actions)
        return self._retrieved(context, batch, personal_bits, cause)

    async def _score(self, context: Context, batch: CandidateBatch, actions: int) -> tuple[Scored | None, str]:
        """`(None, cause)` when nothing was scored; the cause of a partial one; "" when all were."""
        limit = self.quality.limit(len(batch))
        timeout_s = context.budget.all_but(self.shares.select_s)
        if timeout_s < LEAST_S:
            return None, DEADLINE
        clock = context.budget.clock
        begin = clock()
        try:
            with context.report.timed(STAGE):
                work = self.scorer.score(context, batch.item_index[:limit], timeout_s)
                answer = await self.stragglers.within(work, timeout_s)
        except TimeoutError as error:
            self.quality.observe(timeout_s, timeout_s)
            return None, cause_of(error, STAGE)
        except Exception as error:  # noqa: BLE001  (any component may fail; the slate must not)
            return None, cause_of(error, STAGE)
        ran_out = answer.reason in {DEADLINE, "overloaded"}
        self.quality.observe(timeout_s if ran_out else clock() - begin, timeout_s)
        return _widened(answer, len(batch), limit, actions)

    def _retrieved(self, context: Context, batch: CandidateBatch, personal_bits: int, cause: str) -> Ranked:
        personal = context.query.input_list is not None or bool((batch.source_bits & personal_bits).any())
        rung = Rung.RETRIEVAL if personal else Rung.POPULAR
        if cause:  # none: a variant asked for this order, so nothing was given up
            context.report.gave_up(STAGE, cause, rung)
        return Ranked(batch, batch.retrieval, rung)


def _widened(answer: Scored, count: int, limit: int, actions: int) -> tuple[Scored | None, str]:
    """From the `limit` candidates that were sent to all `count`. A row that is not finite counts as unscored."""
    if answer.scores.shape != (limit, actions) or answer.scored.shape != (limit,):
        return None, "wrong_shape"
    finite = np.isfinite(answer.scores).all(axis=1)
    scored = np.zeros(count, np.bool_)
    scored[:limit] = answer.scored & finite
    if not scored.any():
        return None, answer.reason or ("unscored" if finite.all() else "not_finite")
    scores = np.zeros((count, actions), np.float32)
    scores[:limit] = np.where(scored[:limit, None], answer.scores, 0)
    cause = ""
    if not scored.all():
        cause = answer.reason or ("not_finite" if not finite.all() else "latency" if limit < count else "unscored")
    return Scored(scores, scored), cause


def _recall(context: Context, fallback: Fallback, batch: CandidateBatch, actions: int) -> Recalled | None:
    try:
        return fallback.recall(context, batch.item_index, actions)
    except Exception as error:  # noqa: BLE001  (any component may fail; the slate must not)
        context.report.failed(f"fallback.{fallback.rung}", error, "next_rung")
        return None


def _ranked(
    context: Context, batch: CandidateBatch, recalled: Recalled, rung: Rung, actions: tuple[str, ...]
) -> Ranked:
    """Known ones by score, the others behind them in retrieval order."""
    known: Bool = recalled.known
    if recalled.scores is None:
        score: Float32 = np.zeros(len(batch), np.float32) if recalled.score is None else recalled.score
        order = order_by(score, known)
        return Ranked(batch.take(order), np.where(known, score, 0)[order].astype(np.float32), rung)
    with context.report.timed("blend"):
        weights = weight_vector(context.query.weights, actions)
        if not weights.any():
            context.report.gave_up("blend", "no_trained_action", "retrieval_order")
        score = np.where(known, blend(recalled.scores, weights), 0).astype(np.float32)
        order = order_by(score, known)
        ranked = batch.with_scores(recalled.scores, known).take(order)
    return Ranked(ranked, score[order], rung, actions)
