from __future__ import annotations

from dataclasses import dataclass

from services.recommender.domain import CandidateFilter
from services.recommender.pipeline.context import Context
from shared.contracts.history import Bool, Int32


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """The request's own `filter`."""

    stage: str = "filter"
    late: bool = False

    def mask(self, context: Context, item_index: Int32) -> Bool | None:
        return _mask(context, context.query.filter, item_index)

    def rule(self, context: Context) -> str:
        return _text(context.query.filter)


@dataclass(frozen=True, slots=True)
class SceneFilter:
    """What every slate of the scene obeys."""

    stage: str = "scene_filter"
    late: bool = False

    def mask(self, context: Context, item_index: Int32) -> Bool | None:
        return _mask(context, context.query.scene_filter, item_index)

    def rule(self, context: Context) -> str:
        return _text(context.query.scene_filter)


def _mask(context: Context, expression: CandidateFilter | None, item_index: Int32) -> Bool | None:
    if expression is None:
        return None
    query, catalogue = context.query, context.snapshot.catalogue
    return expression.mask(catalogue, item_index, context.user.profile, query.filter_values, query.now_us)


def _text(expression: CandidateFilter | None) -> str:
    return "" if expression is None else expression.text
