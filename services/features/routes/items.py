"""/v1/items, for server and admin keys."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from services.features.items.content import Body, Id, ItemBody, ItemContent, ItemPatch, ItemRowBody
from services.features.items.index_status import IndexStatus
from services.features.items.service import ItemService, Shown
from services.features.items.times import format_time
from services.features.items.validation import check_content, check_patch, check_properties
from services.features.users.cursor import CURSOR_MAX_LENGTH, unwrap, wrap
from shared.errors import FieldError, ValidationFailed
from shared.identity import ID_MAX_LENGTH, ID_PATTERN
from shared.schema import ItemField
from shared.settings.roots import Settings
from shared.web.auth import require

BULK_MAX = 500
PAGE_MAX = 500
_LIST = "items"

ItemId = Annotated[str, Path(pattern=ID_PATTERN, max_length=ID_MAX_LENGTH)]

router = APIRouter(tags=["items"], dependencies=[Depends(require("server"))])


class BulkItemsBody(Body):
    items: list[dict[str, Any]] = Field(
        min_length=1, max_length=BULK_MAX, description="each as for PUT, with its item_id"
    )


class ItemIndexStatus(BaseModel):
    """`index_version`: since which one the item can be retrieved; null while it cannot, and `reason` says why.
    `visible` null: this host cannot read the index."""

    visible: bool | None
    index_version: str | None
    reason: str | None
    detail: str | None


class ItemSummary(BaseModel):
    """`known` false: only seen in events, no content was PUT yet."""

    item_id: Id
    known: bool
    item_type: str | None
    title: str | None
    categories: list[str]
    is_hidden: bool
    available_from: str | None
    available_until: str | None
    price: float | None
    currency: str | None
    created_at: str
    updated_at: str
    properties: dict[str, Any]
    index_status: ItemIndexStatus


class ItemAnswer(ItemSummary):
    embeddings: dict[str, list[float]]


class ItemPage(BaseModel):
    items: list[ItemSummary]
    next_cursor: str | None


class ItemDeleted(BaseModel):
    item_id: str
    deleted_at: str
    index_status: ItemIndexStatus


class ItemRejected(BaseModel):
    index: int
    item_id: str | None
    code: str
    message: str
    pointer: str


class BulkItemsAnswer(BaseModel):
    accepted: int
    rejected: list[ItemRejected]


def _service(request: Request) -> ItemService:
    service: ItemService = request.state.items
    return service


def _fields(request: Request) -> dict[str, ItemField]:
    settings: Settings = request.state.settings
    return settings.data.item_fields


Service = Annotated[ItemService, Depends(_service)]
Fields = Annotated[dict[str, ItemField], Depends(_fields)]


@router.put("/v1/items/{item_id}", response_model=ItemAnswer, responses={201: {"model": ItemAnswer}})
async def put_item(item_id: ItemId, body: ItemBody, response: Response, service: Service, fields: Fields) -> Any:
    """Replaces the whole item; 201 when there was none, or only events of it. A deleted item is one again."""
    _same_id(body.item_id, item_id)
    content = body.content()
    _refuse(_faults(content, fields))
    shown, created = await service.put(item_id, content)
    response.status_code = 201 if created else 200
    return _answer(shown)


@router.patch("/v1/items/{item_id}", response_model=ItemAnswer)
async def patch_item(item_id: ItemId, body: ItemPatch, service: Service, fields: Fields) -> Any:
    """A merge patch: what is not named stays, a null takes a field, a property or an embedding away."""
    _same_id(body.item_id, item_id)
    _refuse(check_patch(body, fields))
    return _answer(await service.patch(item_id, body))


@router.get("/v1/items/{item_id}", response_model=ItemAnswer)
async def get_item(item_id: ItemId, service: Service) -> Any:
    """An item that was only seen in events is there too, without content."""
    return _answer(await service.get(item_id))


@router.delete("/v1/items/{item_id}", response_model=ItemDeleted)
async def delete_item(item_id: ItemId, service: Service) -> Any:
    """Takes the item out of every slate within seconds; its history stays. Doing it again changes nothing."""
    item, status = await service.delete(item_id)
    return ItemDeleted(
        item_id=item.item_id, deleted_at=format_time(item.deleted_at_us or 0), index_status=_status(status)
    )


@router.post("/v1/items", response_model=BulkItemsAnswer)
async def put_items(body: BulkItemsBody, service: Service, fields: Fields) -> Any:
    """Up to 500 whole items. One that does not fit is rejected by itself; of two for one item_id the last counts."""
    writes: list[tuple[str, ItemContent]] = []
    rejected: list[ItemRejected] = []
    for index, raw in enumerate(body.items):
        row = _row(index, raw, fields)
        if isinstance(row, ItemRejected):
            rejected.append(row)
        else:
            writes.append(row)
    if writes:
        await service.put_many(writes)
    return BulkItemsAnswer(accepted=len(writes), rejected=rejected)


@router.get("/v1/items", response_model=ItemPage)
async def list_items(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
    cursor: Annotated[str | None, Query(max_length=CURSOR_MAX_LENGTH)] = None,
) -> Any:
    """By item_id, without embeddings and without deleted items; `next_cursor` is null on the last page."""
    rows = await service.page(unwrap(_LIST, cursor) if cursor is not None else "", limit + 1)
    page = rows[:limit]
    return ItemPage(
        items=[ItemSummary(**_fields_of(shown)) for shown in page],
        next_cursor=wrap(_LIST, page[-1][0].item_id) if len(rows) > limit else None,
    )


def _row(index: int, raw: dict[str, Any], fields: dict[str, ItemField]) -> tuple[str, ItemContent] | ItemRejected:
    sent = raw.get("item_id")
    item_id = sent[:ID_MAX_LENGTH] if isinstance(sent, str) else None
    try:
        row = ItemRowBody.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        pointer = "".join(f"/{step}" for step in first["loc"])
        return ItemRejected(
            index=index, item_id=item_id, code=str(first["type"]), message=first["msg"], pointer=pointer
        )
    content = row.content()
    faults = _faults(content, fields)
    if faults:
        fault = faults[0]
        return ItemRejected(index=index, item_id=item_id, code=fault.code, message=fault.message, pointer=fault.pointer)
    return row.item_id, content


def _faults(content: ItemContent, fields: dict[str, ItemField]) -> list[FieldError]:
    return check_properties(content.properties, fields) + check_content(content)


def _same_id(told: str | None, item_id: str) -> None:
    if told not in (None, item_id):
        _refuse([FieldError("/item_id", "must be the item_id of the path, or be left out")])


def _refuse(faults: list[FieldError]) -> None:
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ValidationFailed(f"{faults[0].pointer}: {faults[0].message}{more}", errors=faults)


def _answer(shown: Shown) -> ItemAnswer:
    return ItemAnswer(**_fields_of(shown), embeddings=dict(shown[0].content.embeddings))


def _fields_of(shown: Shown) -> dict[str, Any]:
    item, status = shown
    content = item.content
    return {
        "item_id": item.item_id,
        "known": item.known,
        "item_type": content.item_type,
        "title": content.title,
        "categories": list(content.categories),
        "is_hidden": content.is_hidden,
        "available_from": _time(content.available_from_us),
        "available_until": _time(content.available_until_us),
        "price": content.price,
        "currency": content.currency,
        "created_at": _time(content.created_at_us),
        "updated_at": _time(item.updated_at_us),
        "properties": dict(content.properties),
        "index_status": _status(status),
    }


def _status(status: IndexStatus) -> ItemIndexStatus:
    return ItemIndexStatus(
        visible=status.visible, index_version=status.index_version, reason=status.reason, detail=status.detail
    )


def _time(time_us: int | None) -> str | None:
    return None if time_us is None else format_time(time_us)
