"""Lists that belong to no user: similar items and popular items. From memory alone; nothing is journalled."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel

from services.recommender.catalogue import Catalogue
from services.recommender.filters import CompiledFilter
from services.recommender.retrieval.hits import Hits
from services.recommender.routes.answers import DegradedStage
from services.recommender.routes.desk import Desk
from services.recommender.routes.requests import MAX_COUNT, MAX_FILTER
from services.recommender.serving.state import ServingState
from shared.contracts.history import Int32
from shared.errors import NotFound
from shared.identity import ID_MAX_LENGTH, ID_PATTERN
from shared.web.auth import require
from shared.web.json import JsonResponse

# A filter is applied to so many neighbours before the list is cut.
DEPTH = 1000
router = APIRouter(prefix="/v1", tags=["serving"], dependencies=[Depends(require("client", "server"))])
Count = Annotated[int, Query(ge=1, le=MAX_COUNT)]
Expression = Annotated[str | None, Query(min_length=1, max_length=MAX_FILTER)]
Names = Annotated[str | None, Query(max_length=4096, description="item fields, with commas between")]


class ListedItem(BaseModel):
    item_id: str
    position: int
    score: float
    properties: dict[str, Any]


class ItemList(BaseModel):
    items: list[ListedItem]
    index_version: str | None
    degraded_stages: list[DegradedStage]


@router.get("/items/{item_id}/similar", summary="Items like this one", response_model=ItemList)
async def similar(
    request: Request,
    item_id: Annotated[str, Path(pattern=ID_PATTERN, max_length=ID_MAX_LENGTH)],
    count: Count = 10,
    filter: Expression = None,  # noqa: A002  (the public name)
    return_properties: Names = None,
) -> Response:
    """An item that the index does not hold yet is answered with what is popular in its categories, and says so."""
    desk: Desk = request.state.desk
    state = desk.holder.current()
    item_index = state.catalogue.index_of(item_id)
    if item_index is None:
        raise NotFound(f"there is no item {item_id!a}; PUT it, or send an event with it")
    chosen = None if filter is None else _bound(desk, filter)
    names = desk.builder.names(state.catalogue, return_properties)
    hits, degraded = _neighbours(state, item_index)
    hits = _allowed(hits, state, desk.now_us(), (chosen,), leave_out=item_index)
    return _listed(hits, count, state, names, degraded)


@router.get("/popular", summary="What is popular", response_model=ItemList)
async def popular(
    request: Request,
    scene: Annotated[str, Query(max_length=64)] = "home",
    category: Annotated[str | None, Query(max_length=1024)] = None,
    count: Count = 10,
    return_properties: Names = None,
) -> Response:
    """Of a category, or of everything; the scene's own filter holds here too. Before the first event, the newest."""
    desk: Desk = request.state.desk
    state = desk.holder.current()
    rule = desk.builder.scene_filter(desk.builder.scene(scene))
    names = desk.builder.names(state.catalogue, return_properties)
    found, degraded = state.popular.top(DEPTH, category), []
    if len(state.popular) == 0:
        found = _newest(state, category)
        degraded = [{"stage": "popular", "cause": "no_events", "fallback": "newest"}]
    return _listed(_allowed(found, state, desk.now_us(), (rule,)), count, state, names, degraded)


def _bound(desk: Desk, text: str) -> CompiledFilter:
    compiled = desk.builder.filter(text)
    compiled.bind({})
    return compiled


def _neighbours(state: ServingState, item_index: int) -> tuple[Hits, list[dict[str, str]]]:
    index = state.index
    if index is not None and index.contains(item_index):
        return index.similar(item_index, DEPTH), []
    cause = "no_index" if index is None else "not_indexed_yet"
    return _popular_nearby(state, item_index), [{"stage": "similar", "cause": cause, "fallback": "popular"}]


def _newest(state: ServingState, category: str | None) -> Hits:
    item_index = state.fresh.item_index
    if category is not None:
        column = state.catalogue.column("categories")
        codes, owner = column.flat(item_index)
        chosen = [place for place, code in zip(owner, codes, strict=True) if column.strings[code] == category]
        item_index = item_index[np.unique(np.array(chosen, np.int64))]
    return Hits(item_index, np.zeros(len(item_index), np.float32))


def _popular_nearby(state: ServingState, item_index: int) -> Hits:
    categories = state.catalogue.properties(item_index, ["categories"])["categories"] or []
    found = [hits for name in categories if len(hits := state.popular.top(DEPTH, name))]
    if not found:
        return state.popular.top(DEPTH)
    items = np.concatenate([hits.item_index for hits in found])
    scores = np.concatenate([hits.score for hits in found])
    unique, first = np.unique(items, return_index=True)
    order = np.argsort(-scores[first], kind="stable")
    return Hits(unique[order], scores[first][order])


def _allowed(
    hits: Hits, state: ServingState, now_us: int, rules: tuple[CompiledFilter | None, ...], *, leave_out: int = -1
) -> Hits:
    item_index: Int32 = hits.item_index
    allowed = state.catalogue.servable(now_us, item_index) & (item_index != leave_out)
    for rule in rules:
        if rule is not None:
            allowed &= rule.mask(state.catalogue, item_index, {"segments": ()}, {}, now_us)
    return Hits(item_index[allowed], hits.score[allowed])


def _listed(
    hits: Hits, count: int, state: ServingState, names: tuple[str, ...], degraded: list[dict[str, str]]
) -> Response:
    catalogue: Catalogue = state.catalogue
    rows = zip(hits.item_index[:count].tolist(), hits.score[:count].tolist(), strict=True)
    items = [
        {
            "item_id": catalogue.item_id(item_index),
            "position": position,
            "score": score,
            "properties": catalogue.properties(item_index, names) if names else {},
        }
        for position, (item_index, score) in enumerate(rows)
    ]
    return JsonResponse({"items": items, "index_version": state.index_version, "degraded_stages": degraded})
