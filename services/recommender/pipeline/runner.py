"""One request from query to slate. `run` reads as the specification; each line is a stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.recommender.domain import CandidateBatch, Query, Rung, Slate, UserFeatures
from services.recommender.pipeline.budget import Budget, Clock, Shares
from services.recommender.pipeline.context import Context, Snapshot
from services.recommender.pipeline.eligibility import Backfill, still_eligible
from services.recommender.pipeline.filtering import keep_passing
from services.recommender.pipeline.ladder import Ladder
from services.recommender.pipeline.protocols import Draft, Ranked, Source, Stages
from services.recommender.pipeline.quality import QualityFactor
from services.recommender.pipeline.report import Report
from services.recommender.pipeline.retrieval import Retrieval
from services.recommender.pipeline.selection import hydrate, select, slate_items
from services.recommender.pipeline.waiting import Stragglers
from shared.contracts.history import UserHistory

# Whoever reads features ends by itself a little earlier than we stop it: then it still gives what one store had, names
# the other, and learns to leave that alone.
OWN_SHARE = 0.9
_BY_MODEL = frozenset({Rung.MODEL, Rung.PARTIAL, Rung.LAST_GOOD})


@dataclass(frozen=True, slots=True)
class Limits:
    """`candidates` after the cut, `per_source` before the merge; `usual_s` is the deadline that most requests have."""

    candidates: int
    per_source: int
    reserve_s: float
    usual_s: float


class RecommendPipeline:
    """One a process, shared by all requests; never raises for a component, never later than deadline - reserve by more
    than what its own arithmetic takes (below 3 ms at 500 candidates). An empty slate has `Rung.NOTHING`."""

    def __init__(
        self,
        stages: Stages,
        *,
        current: Callable[[Query], Snapshot],
        limits: Limits,
        shares: Shares | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._stages = stages
        self._current = current
        self._limits = limits
        self._shares = shares or Shares()
        self._clock = clock
        self.stragglers = Stragglers()
        self.quality = QualityFactor(usual_s=0.5 * (limits.usual_s - limits.reserve_s))
        self._retrieval = Retrieval(stages.encoder, self.stragglers)
        self._ladder = Ladder(stages.scorer, stages.fallbacks, self.quality, self.stragglers, self._shares)

    async def run(self, query: Query) -> Slate:
        context = self._begin(query)
        sources = self._sources(query)
        await self._read_user(context)
        found = await self._retrieve(context, sources)
        allowed = self._filter(context, found)
        chosen, reserve = self._cut(query, allowed, _bits(sources, lambda source: source.protected))
        ranked = await self._ladder.rank(context, chosen, _bits(sources, lambda source: source.personal))
        self._after(context, ranked)
        eligible = await self._eligible(context, ranked, reserve, len(sources) - 1)
        draft = self._select(context, eligible)
        return _slate(context, draft, sources, candidates=len(allowed))

    def _begin(self, query: Query) -> Context:
        budget = Budget(query.deadline, self._limits.reserve_s, self._clock)
        user = UserFeatures(UserHistory(query.user_key))
        return Context(query, self._current(query), budget, Report(self._clock), user)

    def _sources(self, query: Query) -> Sequence[Source]:
        """Backfill stands last and proposes nothing in retrieval; its bit marks what it added."""
        first = self._stages.sources if query.input_list is None else (self._stages.input_source,)
        return (*first, self._stages.backfill)

    async def _read_user(self, context: Context) -> None:
        if not context.query.personalized:
            return
        if context.query.user is not None:
            context.user = context.query.user
            context.report.stage_ms["features"] = context.query.user_ms
        else:
            await self._hydrate(context)
        for miss in context.user.misses:
            if miss.cause != "absent":  # a visitor that nobody knows yet is no failure
                fallback = "database" if miss.store == "redis" else "defaults"
                context.report.gave_up(f"features.{miss.store}.{miss.what}", miss.cause, fallback)

    async def _hydrate(self, context: Context) -> None:
        timeout_s = context.budget.share(self._shares.features)
        try:
            with context.report.timed("features"):
                work = self._stages.user.hydrate(context.query, context.snapshot, OWN_SHARE * timeout_s)
                context.user = await self.stragglers.within(work, timeout_s, patience_s=timeout_s)
        except Exception as error:  # noqa: BLE001  (any component may fail; the slate must not)
            context.report.failed("features", error, "defaults")

    async def _retrieve(self, context: Context, sources: Sequence[Source]) -> CandidateBatch:
        timeout_s = context.budget.share(self._shares.retrieval)
        per_source = context.query.per_source or self._limits.per_source
        with context.report.timed("retrieve"):
            return await self._retrieval.run(context, sources[:-1], per_source, timeout_s)

    def _filter(self, context: Context, batch: CandidateBatch) -> CandidateBatch:
        with context.report.timed("filter"):
            return keep_passing(context, batch, self._stages.filters)

    def _cut(self, query: Query, batch: CandidateBatch, protected_bits: int) -> tuple[CandidateBatch, CandidateBatch]:
        """The best by retrieval, with all that are protected; and the reserve behind them."""
        limit = query.candidates or self._limits.candidates
        if len(batch) <= limit:
            return batch, batch.take(np.empty(0, np.int64))
        protected = (batch.source_bits & protected_bits) != 0
        room = max(0, limit - int(protected.sum()))
        inside = protected | (np.cumsum(~protected) <= room)
        return batch.take(inside), batch.take(~inside)

    def _after(self, context: Context, ranked: Ranked) -> None:
        for effect in self._stages.side_effects:
            try:
                effect.after(context, ranked)
            except Exception as error:  # noqa: BLE001  (any component may fail; the slate must not)
                context.report.failed(f"after.{effect.name}", error, "left_out")

    async def _eligible(self, context: Context, ranked: Ranked, reserve: CandidateBatch, bit: int) -> Ranked:
        with context.report.timed("eligible"):
            ranked = still_eligible(context, ranked, self._stages.filters)
            backfill = Backfill(self._stages.backfill, bit, self._stages.filters)
            return await backfill.fill(context, ranked, reserve)

    def _select(self, context: Context, ranked: Ranked) -> Draft:
        with context.report.timed("select"):
            hydrated = hydrate(context, ranked, self._stages.hydrators)
            return select(context, hydrated, self._stages.selectors)


def _bits(sources: Sequence[Source], chosen: Callable[[Source], bool]) -> int:
    return sum(1 << number for number, source in enumerate(sources) if chosen(source))


def _slate(context: Context, draft: Draft, sources: Sequence[Source], *, candidates: int) -> Slate:
    snapshot, report, rung = context.snapshot, context.report, draft.ranked.rung
    items = slate_items(draft, sources)
    by_model = rung in _BY_MODEL or context.user_vector is not None
    return Slate(
        items=items,
        rung=rung if len(items) else Rung.NOTHING,
        stage_ms=dict(report.stage_ms),  # a cancelled stage may still write its time
        degraded=tuple(report.degraded),
        filtered=dict(report.filtered),
        removed=tuple(report.removed),
        exploration=draft.exploration,
        release=snapshot.release_name or None,
        model_version=snapshot.model_version if by_model else None,
        index_version=snapshot.index_version,
        last_event_id=context.user.history.last_event_id,
        candidates=candidates,
    )
