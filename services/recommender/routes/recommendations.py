"""GET /v1/recommendations/{id}: the slate as it was served; and why an item was in it, or was not."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, Field

from services.recommender.catalogue import Catalogue
from services.recommender.catalogue.columns import format_time
from services.recommender.journal import ServedSlate
from services.recommender.routes.answers import AnswerItem, DegradedStage
from services.recommender.routes.desk import Desk
from shared.errors import Conflict, DatabaseUnavailable, NotFound
from shared.identity import ID_MAX_LENGTH, ID_PATTERN, split_user_key
from shared.web.auth import require
from shared.web.json import JsonResponse

router = APIRouter(prefix="/v1/recommendations", tags=["serving"], dependencies=[Depends(require("server"))])
RecommendationId = Annotated[str, Path(pattern=r"^[0-9A-Za-z_.-]{1,64}$", max_length=64)]


class ServedAnswer(BaseModel):
    recommendation_id: str
    user_id: str | None
    visitor_id: str | None
    scene: str
    served_at: str
    items: list[AnswerItem]
    release: str | None
    model_version: str | None
    index_version: str | None
    last_event_id: str | None
    degraded_stages: list[DegradedStage]
    took_ms: float
    request: dict[str, Any] = Field(description="as it was sent")


class Why(BaseModel):
    recommendation_id: str
    item_id: str
    outcome: str = Field(description="served, filtered, or neither: not_chosen")
    position: int | None
    score: float | None
    scores: dict[str, float]
    retrieve_ids: list[str]
    reason: list[str]
    propensity: float | None
    filtered: list[dict[str, str]] = Field(description="stage and rule that took it away")


@router.get("/{recommendation_id}", summary="The slate as it was served", response_model=ServedAnswer)
async def served(request: Request, recommendation_id: RecommendationId) -> Response:
    desk: Desk = request.state.desk
    slate = await _find(desk, recommendation_id)
    user_id, visitor_id = split_user_key(slate.user_key)
    body = {
        "recommendation_id": slate.recommendation_id,
        "user_id": user_id,
        "visitor_id": visitor_id,
        "scene": slate.scene,
        "served_at": format_time(slate.served_at_us),
        "items": _rows(slate, desk.holder.current().catalogue),
        "release": slate.release or None,
        "model_version": slate.model_version,
        "index_version": slate.index_version,
        "last_event_id": slate.request.get("last_event_id"),
        "degraded_stages": list(slate.degraded),
        "took_ms": slate.took_us / 1000,
        "request": slate.request.get("body", {}),
    }
    return JsonResponse(body)


@router.get("/{recommendation_id}/why/{item_id}", summary="Why an item was in a slate, or was not", response_model=Why)
async def why(
    request: Request,
    recommendation_id: RecommendationId,
    item_id: Annotated[str, Path(pattern=ID_PATTERN, max_length=ID_MAX_LENGTH)],
) -> Response:
    """Needs a slate that was asked for with `explain`. `not_chosen`: no source proposed it, or others scored higher."""
    desk: Desk = request.state.desk
    slate = await _find(desk, recommendation_id)
    catalogue = desk.holder.current().catalogue
    item_index = catalogue.index_of(item_id)
    if item_index is None:
        raise NotFound(f"there is no item {item_id!a}")
    row = next((row for row in _rows(slate, catalogue) if row["item_id"] == item_id), None)
    removed = slate.request.get("filtered")
    if row is None and removed is None:
        raise Conflict("this slate was asked for without explain, so what was left out was not kept; ask again with it")
    filtered = [{"stage": stage, "rule": rule} for index, stage, rule in removed or () if index == item_index]
    outcome = "served" if row is not None else "filtered" if filtered else "not_chosen"
    empty: dict[str, Any] = {"scores": {}, "retrieve_ids": [], "reason": []}
    empty |= {"position": None, "score": None, "propensity": None}
    known = {name: value for name, value in (row or {}).items() if name in empty}
    body = {"recommendation_id": recommendation_id, "item_id": item_id, "outcome": outcome, "filtered": filtered}
    return JsonResponse({**body, **empty, **known})


async def _find(desk: Desk, recommendation_id: str) -> ServedSlate:
    slate = await desk.journal.find(recommendation_id)
    if slate is None:
        raise NotFound(f"there is no recommendation {recommendation_id!a}; slates are kept for a limited time")
    return slate


def _rows(slate: ServedSlate, catalogue: Catalogue) -> list[dict[str, Any]]:
    return [
        {
            "item_id": _name(catalogue, row.item_index),
            "position": row.position,
            "score": row.score,
            "scores": row.scores,
            "retrieve_ids": row.retrieve_ids,
            "reason": row.reasons,
            "propensity": row.propensity,
            "properties": {},
        }
        for row in slate.rows()
    ]


def _name(catalogue: Catalogue, item_index: int) -> str:
    try:
        return catalogue.item_id(item_index)
    except KeyError:
        message = "the catalogue is still being read; ask again in a second"
        raise DatabaseUnavailable(message, retry_after_s=1.0) from None
