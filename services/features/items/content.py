"""What an item's owner may say about it: field types and limits, as pydantic reads them from a request's body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from services.features.items.times import TIME_RULE, parse_time
from shared.identity import ID_MAX_LENGTH, ID_PATTERN

TITLE_MAX = 1024
CATEGORIES_MAX = 64
CATEGORY_MAX = 256
EMBEDDINGS_MAX = 8
DIMENSION_MAX = 4096
_FLOAT32_MAX = 3.4028234e38  # vectors are used as float32, where anything larger would be infinite


def _time(value: Any) -> int:
    time_us = parse_time(value) if isinstance(value, str) else None
    if time_us is None:
        raise PydanticCustomError("time", "must be {rule}", {"rule": TIME_RULE})
    return time_us


Id = Annotated[str, Field(pattern=ID_PATTERN, max_length=ID_MAX_LENGTH)]
Time = Annotated[int, BeforeValidator(_time), WithJsonSchema({"type": "string", "format": "date-time"})]
ItemType = Annotated[str, Field(min_length=1, max_length=64)]
Title = Annotated[str, Field(max_length=TITLE_MAX)]
Category = Annotated[str, Field(min_length=1, max_length=CATEGORY_MAX)]
Categories = Annotated[list[Category], Field(max_length=CATEGORIES_MAX)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$", description="ISO 4217, for example EUR")]
VectorName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Element = Annotated[float, Field(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX, allow_inf_nan=False)]
Vector = Annotated[list[Element], Field(min_length=1, max_length=DIMENSION_MAX)]
Embeddings = Annotated[dict[VectorName, Vector], Field(max_length=EMBEDDINGS_MAX)]
EmbeddingChanges = Annotated[dict[VectorName, Vector | None], Field(max_length=2 * EMBEDDINGS_MAX)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ItemBody(Body):
    """The whole item. `item_id` may be repeated in the body; it must then be the one of the path."""

    item_id: Id | None = None
    item_type: ItemType | None = None
    title: Title | None = None
    categories: Categories = Field(default_factory=list)
    is_hidden: bool = False
    available_from: Time | None = None
    available_until: Time | None = None
    price: Price | None = None
    currency: Currency | None = None
    created_at: Time | None = Field(None, description="the item's own age; without it, when it was first seen")
    properties: dict[str, Any] = Field(default_factory=dict, description="as item_fields of silkrec.yaml declare them")
    embeddings: Embeddings = Field(default_factory=dict)

    def content(self) -> ItemContent:
        return ItemContent(
            item_type=self.item_type,
            title=self.title,
            categories=tuple(self.categories),
            is_hidden=self.is_hidden,
            available_from_us=self.available_from,
            available_until_us=self.available_until,
            price=self.price,
            currency=self.currency,
            created_at_us=self.created_at,
            properties=self.properties,
            embeddings=self.embeddings,
        )


class ItemRowBody(ItemBody):
    """One item of a bulk request."""

    item_id: Id


class ItemPatch(Body):
    """RFC 7396: what is not named stays, a null takes a field, a property or an embedding away."""

    item_id: Id | None = None
    item_type: ItemType | None = None
    title: Title | None = None
    categories: Categories | None = None
    is_hidden: bool | None = None
    available_from: Time | None = None
    available_until: Time | None = None
    price: Price | None = None
    currency: Currency | None = None
    created_at: Time | None = None
    properties: dict[str, Any] | None = None
    embeddings: EmbeddingChanges | None = None


@dataclass(frozen=True, slots=True)
class ItemContent:
    """Times are microseconds since 1970 UTC. `created_at_us` None: its owner does not say."""

    item_type: str | None = None
    title: str | None = None
    categories: tuple[str, ...] = ()
    is_hidden: bool = False
    available_from_us: int | None = None
    available_until_us: int | None = None
    price: float | None = None
    currency: str | None = None
    created_at_us: int | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    embeddings: Mapping[str, list[float]] = field(default_factory=dict)

    def patched(self, patch: ItemPatch) -> ItemContent:
        """`created_at` cannot be taken away, so a null there must have been refused before."""
        told = patch.model_fields_set

        def scalar(name: str, column: str) -> Any:
            return getattr(patch, name) if name in told else getattr(self, column)

        return ItemContent(
            item_type=scalar("item_type", "item_type"),
            title=scalar("title", "title"),
            categories=tuple(scalar("categories", "categories") or ()),
            is_hidden=bool(scalar("is_hidden", "is_hidden")),
            available_from_us=scalar("available_from", "available_from_us"),
            available_until_us=scalar("available_until", "available_until_us"),
            price=scalar("price", "price"),
            currency=scalar("currency", "currency"),
            created_at_us=scalar("created_at", "created_at_us"),
            properties=_merged(self.properties, patch.properties, "properties" in told),
            embeddings=_merged(self.embeddings, patch.embeddings, "embeddings" in told),
        )


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any] | None, told: bool) -> Mapping[str, Any]:
    if not told:
        return old
    if changes is None:
        return {}
    return {name: value for name, value in {**old, **changes}.items() if value is not None}
