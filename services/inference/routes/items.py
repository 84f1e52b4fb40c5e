"""Telling the engine what items are that came after its model was trained."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from services.inference.contents import ItemContents
from services.inference.metrics import DoorMetrics
from shared.contracts.inference import UPSERT_MOST, NewItem
from shared.errors import FieldError, ValidationFailed
from shared.web.auth import Principal, require

router = APIRouter(tags=["inference"])
Caller = Annotated[Principal, Depends(require("server"))]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewItemBody(_Body):
    """Content as in the catalogue (`PUT /v1/items/{item_id}`); `item_index` is the catalogue's."""

    item_index: int = Field(ge=0, lt=2**31)
    title: str | None = Field(None, max_length=1024)
    categories: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default_factory=list, max_length=64)
    properties: dict[str, Any] = Field(default_factory=dict)


class UpsertBody(_Body):
    items: list[NewItemBody] = Field(max_length=UPSERT_MOST)

    def new_items(self) -> list[NewItem]:
        """Raises ValidationFailed for an item that is there twice: which content would count?"""
        places: dict[int, int] = {}
        for place, item in enumerate(self.items):
            first = places.setdefault(item.item_index, place)
            if first != place:
                told = f"item_index {item.item_index} is given twice, at {first} and {place}; send it once"
                raise ValidationFailed(told, errors=[FieldError(f"/items/{place}/item_index", "is given twice")])
        return [NewItem(item.item_index, item.title, tuple(item.categories), item.properties) for item in self.items]


class UpsertAnswer(BaseModel):
    """`shared.contracts.inference.Upserted` tells what each means; the four counts add up to the items sent."""

    model_config = ConfigDict(from_attributes=True)

    model_version: str
    vocabulary: int
    instance: str
    taken: int
    known: int
    no_room: int
    without_tokens: int
    ignored_properties: list[str]


@router.post("/v1/items:upsert")
async def upsert(request: Request, body: UpsertBody, caller: Caller) -> UpsertAnswer:  # noqa: ARG001
    """Gives items beyond the model's vocabulary their content; histories and slates with them are scored by it from
    then on. An item's content is frozen while a model serves: what is sent for it again is for the next one. What was
    sent is given to every model that this process loads later; a restarted process forgets it (another `instance`)."""
    told = await cast("ItemContents", request.state.contents).upsert(body.new_items())
    cast("DoorMetrics", request.state.doors).upserted(told)
    return UpsertAnswer.model_validate(told)
