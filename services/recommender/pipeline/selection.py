"""The ordered batch becomes a slate: selectors, then columns of what was placed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from services.recommender.domain import SlateItems
from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Draft, Hydrator, Ranked, Selector, Source
from services.recommender.ranking.exploration import explore
from services.recommender.ranking.promotions import FREE


def hydrate(context: Context, ranked: Ranked, hydrators: Sequence[Hydrator]) -> Ranked:
    """A hydrator that fails leaves its columns out; who needs them then does without."""
    batch = ranked.batch
    for hydrator in hydrators:
        if len(batch) == 0 or not hydrator.wanted(context):
            continue
        try:
            batch = batch.with_features(hydrator.columns(context, batch))
        except Exception as error:  # noqa: BLE001  (any component may fail; the slate must not)
            context.report.failed(f"hydrate.{hydrator.name}", error, "left_out")
    return Ranked(batch, ranked.score, ranked.rung, ranked.actions)


def select(context: Context, ranked: Ranked, selectors: Sequence[Selector]) -> Draft:
    slots = min(context.query.count, len(ranked.batch))
    draft = Draft(ranked, np.arange(len(ranked.batch)), np.full(slots, FREE, np.int64))
    for selector in selectors:
        try:
            draft = selector.select(context, draft)
        except Exception as error:  # noqa: BLE001  (any component may fail; the slate must not)
            context.report.failed(f"select.{selector.name}", error, "left_out")
    if len(draft.rows) == slots:
        return draft
    drawn = explore(draft.order, draft.pinned, 0.0, context.query.seed)
    return Draft(ranked, draft.order, draft.pinned, draft.notes, drawn.rows, drawn.propensity)


def slate_items(draft: Draft, sources: Sequence[Source]) -> SlateItems:
    ranked, rows = draft.ranked, draft.rows
    bits = ranked.batch.source_bits[rows]
    scores = ranked.batch.scores
    return SlateItems(
        item_index=ranked.batch.item_index[rows],
        score=ranked.score[rows],
        scores=np.empty((len(rows), 0), np.float32) if scores is None else scores[rows],
        source_bits=bits,
        propensity=draft.propensity,
        reasons=_reasons(bits.tolist(), rows.tolist(), draft.notes, sources),
        actions=ranked.actions if scores is not None else (),
        sources=tuple(source.name for source in sources),
    )


def _reasons(
    bits: list[int], rows: list[int], notes: Mapping[int, tuple[str, ...]], sources: Sequence[Source]
) -> tuple[tuple[str, ...], ...]:
    """Notes first. The items of a slate share a few sets of sources."""
    by_bits = {
        mask: tuple(dict.fromkeys(source.reason for number, source in enumerate(sources) if mask >> number & 1))
        for mask in set(bits)
    }
    return tuple(
        tuple(dict.fromkeys((*notes[row], *by_bits[mask]))) if row in notes else by_bits[mask]
        for mask, row in zip(bits, rows, strict=True)
    )
