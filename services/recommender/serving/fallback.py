"""The last rung, made without any await: popular items that may be shown, from the snapshot alone."""

from __future__ import annotations

import numpy as np

from services.recommender.domain import Degradation, Query, Rung, Slate, SlateItems
from services.recommender.serving.state import ServingState
from shared.contracts.history import Bool, Float32, Int32

SOURCES = ("popular", "fresh")
# 2,000 items through servable and one filter take 0.1 ms; deeper than that a filter is answered short.
POOL = 2000


def popular_slate(query: Query, state: ServingState, *, cause: str) -> Slate:
    """`cause`: why the pipeline gave none. Of `input_list` when the query ranks one. The user's profile is unknown
    here, so what a filter says of `user.…` counts as missing."""
    pool, score, bits = _ranked_input(query, state) if query.input_list is not None else _pool(state)
    chosen = np.flatnonzero(may_show(query, state, pool))[: query.count]
    items = SlateItems(
        item_index=pool[chosen],
        score=score[chosen],
        scores=np.empty((len(chosen), 0), np.float32),
        source_bits=bits[chosen].astype(np.int64),
        propensity=np.ones(len(chosen)),
        reasons=(("popular",),) * len(chosen),
        sources=SOURCES,
    )
    return Slate(
        items=items,
        rung=Rung.POPULAR if len(chosen) else Rung.NOTHING,
        stage_ms={},
        degraded=(Degradation("pipeline", cause, "popular"),),
        filtered={},
        release=state.release_name or None,
        model_version=None,
        index_version=state.index_version,
        candidates=len(pool),
    )


def may_show(query: Query, state: ServingState, item_index: Int32) -> Bool:
    """[N] servable, not excluded, and past both filters."""
    catalogue = state.catalogue
    allowed = catalogue.servable(query.now_us, item_index) & ~np.isin(item_index, query.exclude)
    if query.input_list is None:
        allowed &= ~np.isin(item_index, query.context_items)  # the page's own items
    for chosen in (query.scene_filter, query.filter):
        if chosen is not None:
            allowed &= chosen.mask(catalogue, item_index, {"segments": ()}, query.filter_values, query.now_us)
    result: Bool = allowed
    return result


def _pool(state: ServingState) -> tuple[Int32, Float32, Int32]:
    """Popular first; fresh ones behind, for a catalogue without events."""
    popular = state.popular.top(POOL)
    fresh = state.fresh.item_index[: max(0, POOL - len(popular))]
    fresh = fresh[~np.isin(fresh, popular.item_index)]
    item_index = np.concatenate([popular.item_index, fresh])
    score = np.concatenate([popular.score, np.zeros(len(fresh), np.float32)])
    bits = np.repeat(np.array([1, 2], np.int32), [len(popular), len(fresh)])
    return item_index, score, bits


def _ranked_input(query: Query, state: ServingState) -> tuple[Int32, Float32, Int32]:
    given = query.input_list if query.input_list is not None else np.empty(0, np.int32)
    score = state.popular.scores(given)
    order = np.argsort(-score, kind="stable")
    return given[order], score[order].astype(np.float32), np.ones(len(given), np.int32)
