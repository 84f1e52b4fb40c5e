"""Applies filters and counts what each took away; the first rule that removes a candidate is the one that is named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.recommender.domain import CandidateBatch
from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Filter
from shared.contracts.history import Bool, Int32

NOTHING_PASSES = "nothing_passes"


def passing(context: Context, item_index: Int32, filters: Sequence[Filter]) -> Bool:
    """[N] True where every filter lets the candidate through."""
    kept = np.ones(len(item_index), np.bool_)
    for one in filters:
        mask = _mask(context, item_index, one)
        if mask is None:
            continue
        taken = kept & ~mask
        if taken.any():
            rule = one.rule(context)
            context.report.take_away(one.stage, rule, item_index[taken], explain=context.query.explain)
            kept &= mask
    return kept


def keep_passing(context: Context, batch: CandidateBatch, filters: Sequence[Filter]) -> CandidateBatch:
    kept = passing(context, batch.item_index, filters)
    return batch if kept.all() else batch.take(kept)


def _mask(context: Context, item_index: Int32, one: Filter) -> Bool | None:
    try:
        return one.mask(context, item_index)
    except Exception as error:  # noqa: BLE001  (any component may fail; the slate must not)
        # Unlike every other component a filter cannot be left out: a slate that shows what it forbids (a hidden item,
        # adult content) is worse than a short one.
        context.report.failed(one.stage, error, NOTHING_PASSES)
        return np.zeros(len(item_index), np.bool_)
