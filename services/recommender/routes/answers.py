"""From a slate to the answer's JSON and to the journal's record. Names are the public API's, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from services.recommender.catalogue import Catalogue
from services.recommender.domain import Query, Rung, Slate
from services.recommender.journal import ServedSlate
from services.recommender.serving.enroller import NO_ENROLMENT, Enrolment


class AnswerItem(BaseModel):
    item_id: str
    position: int
    score: float
    scores: dict[str, float] = Field(description="probabilities of the model's actions; empty below the model's rungs")
    retrieve_ids: list[str]
    reason: list[str]
    propensity: float
    properties: dict[str, Any]


class DegradedStage(BaseModel):
    stage: str
    cause: str
    fallback: str


class Variant(BaseModel):
    key: str
    variant: str


class FilteredItem(BaseModel):
    item_id: str
    stage: str
    rule: str


class SlateAnswer(BaseModel):
    """Documents the shape; answers are written from columns."""

    recommendation_id: str
    items: list[AnswerItem]
    next_cursor: str | None
    experiments: list[Variant]
    release: str | None
    model_version: str | None
    index_version: str | None
    last_event_id: str | None
    degraded_stages: list[DegradedStage]
    stage_ms: dict[str, float]
    took_ms: float
    filtered: list[FilteredItem] = Field([], description="with `explain`")


class RankAnswer(SlateAnswer):
    unknown_item_ids: list[str] = Field([], description="of input_list; nobody has PUT or clicked them yet")


class BatchAnswer(BaseModel):
    slates: list[SlateAnswer] = Field(description="in the order of `requests`")
    took_ms: float


def item_rows(slate: Slate, catalogue: Catalogue, properties: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "item_id": catalogue.item_id(row.item_index),
            "position": row.position,
            "score": row.score,
            "scores": row.scores,
            "retrieve_ids": row.retrieve_ids,
            "reason": row.reasons,
            "propensity": row.propensity,
            "properties": catalogue.properties(row.item_index, properties) if properties else {},
        }
        for row in slate.items.rows()
    ]


def degraded_rows(slate: Slate) -> list[dict[str, str]]:
    return [{"stage": row.stage, "cause": row.cause, "fallback": row.fallback} for row in slate.degraded]


def answer(
    slate: Slate,
    *,
    recommendation_id: str,
    catalogue: Catalogue,
    properties: Sequence[str],
    explain: bool,
    next_cursor: str | None,
    experiments: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All of it but `took_ms`, which is known last and stands as 0."""
    body: dict[str, Any] = {
        "recommendation_id": recommendation_id,
        "items": item_rows(slate, catalogue, properties),
        "next_cursor": next_cursor,
        "experiments": experiments,
        "release": slate.release,
        "model_version": slate.model_version,
        "index_version": slate.index_version,
        "last_event_id": slate.last_event_id,
        "degraded_stages": degraded_rows(slate),
        "stage_ms": {stage: round(took, 3) for stage, took in slate.stage_ms.items()},
        "took_ms": 0.0,
    }
    if explain:
        body["filtered"] = [
            {"item_id": catalogue.item_id(removal.item_index), "stage": removal.stage, "rule": removal.rule}
            for removal in slate.removed
        ]
    return body


def record(
    slate: Slate,
    query: Query,
    *,
    recommendation_id: str,
    request: Mapping[str, Any],
    page: Mapping[str, Any] | None,
    took_us: int,
    enrolment: Enrolment = NO_ENROLMENT,
    measures: Mapping[str, float | None] | None = None,
) -> ServedSlate:
    """`request` as sent, without tokens; `page` says what a frozen page continues."""
    items = slate.items
    document: dict[str, Any] = {
        "body": request,
        "sources": items.sources,
        "rung": slate.rung,
        "actions": items.actions,
        "scores": items.scores.astype(np.float64),  # as the answer writes them, digit by digit
        "reasons": items.reasons,
        "last_event_id": slate.last_event_id,
    }
    if page is not None:
        document["page"] = page
    if query.explain:
        document["filtered"] = [[row.item_index, row.stage, row.rule] for row in slate.removed]
    if enrolment.assignments:
        document["experiments"] = enrolment.words
    explored = slate.exploration
    if explored is not None:
        document["exploration"] = {"epsilon": explored.epsilon, "pool": np.ascontiguousarray(explored.pool)}
    return ServedSlate(
        recommendation_id=recommendation_id,
        user_key=query.user_key,
        scene=query.scene,
        served_at_us=query.now_us,
        release=slate.release or "",
        model_version=slate.model_version,
        index_version=slate.index_version,
        took_us=took_us,
        degraded=degraded_rows(slate),
        request=document,
        seed=query.seed if explored is None else explored.seed,
        item_index=np.ascontiguousarray(items.item_index),
        score=items.score.astype(np.float64),
        propensity=np.ascontiguousarray(items.propensity),
        source_bits=np.ascontiguousarray(items.source_bits),
        experiments=enrolment.exposures,
        measures=measures or {},
    )


def failed_record(
    query: Query, *, recommendation_id: str, request: Mapping[str, Any], took_us: int, enrolment: Enrolment
) -> ServedSlate:
    """Of a request that ended in a 5xx: no slate, and no exposure; its variants must still answer for it."""
    nothing = np.empty(0, np.int64)
    return ServedSlate(
        recommendation_id=recommendation_id,
        user_key=query.user_key,
        scene=query.scene,
        served_at_us=query.now_us,
        release="",
        model_version=None,
        index_version=None,
        took_us=took_us,
        degraded=(),
        request={"body": request, "rung": Rung.NOTHING},
        seed=0,
        item_index=nothing,
        score=nothing,
        propensity=nothing,
        source_bits=nothing,
        experiments=enrolment.exposures,
        failed=True,
    )
