"""POST /v1/recommend, and /v1/recommend:batch for all shelves of a page."""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from services.recommender.routes.answers import BatchAnswer, SlateAnswer
from services.recommender.routes.arrival import arrived
from services.recommender.routes.desk import Desk, Page, Prepared
from services.recommender.routes.identities import Attempt, attempt_of
from services.recommender.routes.requests import BatchRequest, RecommendRequest
from shared.contracts.history import Int32
from shared.web.auth import Principal, authorize_user, require
from shared.web.json import JsonResponse

router = APIRouter(prefix="/v1", tags=["serving"])
Caller = Annotated[Principal, Depends(require("client", "server"))]
_NONE: Int32 = np.empty(0, np.int32)


@router.post("/recommend", summary="A ranked slate, inside the deadline", response_model=SlateAnswer)
async def recommend(body: RecommendRequest, request: Request, principal: Caller) -> Response:
    authorize_user(principal, body.user_id, body.visitor_id, body.user_token)
    desk: Desk = request.state.desk
    at = arrived(request)
    prepared = desk.prepare(
        body,
        arrived=at,
        deadline=desk.deadline(at, body.deadline_ms),
        route="recommend",
        attempt=await attempt_of(request, desk.now_us()),
    )
    if body.validate_only:
        return JsonResponse(desk.checked(prepared))
    prepared = await desk.enrolled(prepared)
    page = desk.page(prepared, await desk.find(prepared), taken=_NONE)
    return JsonResponse(await desk.answer(prepared, page, desk.next_cursor(prepared, page, others=_NONE)))


@router.post("/recommend:batch", summary="A page's shelves: one deadline, no item twice", response_model=BatchAnswer)
async def recommend_batch(body: BatchRequest, request: Request, principal: Caller) -> Response:
    """Shelves are made at the same time; an item that two of them want goes to the earlier one. A propensity is that of
    the shelf on its own."""
    for asked in body.requests:
        authorize_user(principal, asked.user_id, asked.visitor_id, asked.user_token)
    desk: Desk = request.state.desk
    at = arrived(request)
    shelves = _prepare(desk, body, at, await attempt_of(request, desk.now_us()))
    if body.validate_only:
        return JsonResponse(_batch([desk.checked(shelf) for shelf in shelves], desk, at))
    shelves = await asyncio.gather(*(desk.enrolled(shelf) for shelf in shelves))
    found = await asyncio.gather(*(desk.find(shelf) for shelf in shelves))
    pages: list[Page] = []
    taken = _NONE
    for shelf, slate in zip(shelves, found, strict=True):
        page = desk.page(shelf, slate, taken=taken)
        taken = np.concatenate([taken, page.shown.items.item_index])
        pages.append(page)
    # Only now is it known what the whole page shows; no shelf may show it again further down.
    pages = [desk.without(page, taken) for page in pages]
    cursors = [desk.next_cursor(shelf, page, others=taken) for shelf, page in zip(shelves, pages, strict=True)]
    rows = zip(shelves, pages, cursors, strict=True)
    answers = await asyncio.gather(*(desk.answer(shelf, page, cursor) for shelf, page, cursor in rows))
    return JsonResponse(_batch(answers, desk, at))


def _prepare(desk: Desk, body: BatchRequest, at: float, attempt: Attempt | None) -> list[Prepared]:
    """Each shelf asks for as many more items as the shelves before it may take away."""
    deadline = desk.deadline(at, body.deadline_ms)
    prepared, before = [], 0
    for place, shelf in enumerate(body.requests):
        prepared.append(
            desk.prepare(
                shelf,
                arrived=at,
                deadline=deadline,
                route="batch",
                attempt=attempt,
                place=place,
                extra=before,
                pointer=f"/requests/{place}",
            )
        )
        before += shelf.count
    return prepared


def _batch(answers: list[dict[str, object]], desk: Desk, at: float) -> dict[str, object]:
    return {"slates": answers, "took_ms": round((desk.clock() - at) * 1000, 3)}
