"""POST /v1/rank: the caller's own candidates, ranked."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from services.recommender.routes.answers import RankAnswer
from services.recommender.routes.arrival import arrived
from services.recommender.routes.desk import Desk
from services.recommender.routes.identities import attempt_of
from services.recommender.routes.queries import unknown_ids
from services.recommender.routes.requests import RankRequest
from shared.web.auth import Principal, authorize_user, require
from shared.web.json import JsonResponse

router = APIRouter(prefix="/v1", tags=["serving"])


@router.post("/rank", summary="Rank the given items for this user", response_model=RankAnswer)
async def rank(
    body: RankRequest, request: Request, principal: Annotated[Principal, Depends(require("client", "server"))]
) -> Response:
    """Items that are hidden, deleted or filtered are left out, as everywhere; items already seen are ranked."""
    authorize_user(principal, body.user_id, body.visitor_id, body.user_token)
    desk: Desk = request.state.desk
    at = arrived(request)
    prepared = desk.prepare(
        body,
        arrived=at,
        deadline=desk.deadline(at, body.deadline_ms),
        route="rank",
        attempt=await attempt_of(request, desk.now_us()),
    )
    unknown = {"unknown_item_ids": unknown_ids(prepared.state.catalogue, body)}
    if body.validate_only:
        return JsonResponse(desk.checked(prepared) | unknown)
    prepared = await desk.enrolled(prepared)
    page = desk.whole(prepared, await desk.find(prepared))
    return JsonResponse(await desk.answer(prepared, page, None) | unknown)
