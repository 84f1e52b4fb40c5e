"""What the serving routes accept, field by field. Strict: unknown fields and wrong types are a 422."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from shared.identity import ID_MAX_LENGTH, ID_PATTERN

MAX_COUNT = 100
MAX_INPUT_LIST = 500
MAX_SHELVES = 16
MAX_FILTER = 16_384
MAX_CURSOR = 8192

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN, max_length=ID_MAX_LENGTH)]
Expression = Annotated[str, StringConstraints(min_length=1, max_length=MAX_FILTER)]
Short = Annotated[str, StringConstraints(max_length=256)]
Deadline = Annotated[int, Field(ge=5, le=1000, description="milliseconds, from arrival; 68 when left out")]
FilterValue = str | float | bool | list[str | float | bool] | None


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Promotion(Strict):
    """Items that match `filter`: at `position` (from 0), or on `percent` of the slots."""

    name: Short
    filter: Expression
    percent: float | None = Field(None, ge=0, le=100)
    position: int | None = Field(None, ge=0, lt=MAX_COUNT)

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.percent is None) == (self.position is None):
            raise ValueError("give either `percent` or `position`")
        return self


class Common(Strict):
    """What recommend and rank share."""

    user_id: Id | None = None
    visitor_id: Id | None = None
    user_token: str | None = Field(
        None, max_length=4096, description="signed by your back end; a client key needs it to send a user_id"
    )
    session_id: Id | None = None
    scene: Short = "home"
    item_ids: list[Id] = Field([], max_length=100, description="context: the page's item, the basket")
    context: dict[Short, str | float | bool | None] = Field({}, max_length=50)
    filter: Expression | None = None
    filter_values: dict[Short, FilterValue] = Field({}, max_length=100)
    exclude_item_ids: list[Id] = Field([], max_length=1000)
    promotions: list[Promotion] = Field([], max_length=10)
    diversity: float | None = Field(None, ge=0, le=1, description="the scene's when left out")
    return_properties: list[Short] = Field([], max_length=50)
    explain: bool = False
    personalized: bool = Field(True, description="false reads no history")
    deadline_ms: Deadline | None = None
    validate_only: bool = Field(False, description="checks the request and answers no items")

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if self.user_id is None and self.visitor_id is None:
            raise ValueError("give user_id or visitor_id")
        return self


class RecommendRequest(Common):
    count: int = Field(10, ge=1, le=MAX_COUNT)
    cursor: str | None = Field(None, max_length=MAX_CURSOR, description="`next_cursor` of the page before")


class RankRequest(Common):
    input_list: list[Id] = Field(min_length=1, max_length=MAX_INPUT_LIST, description="ranked instead of retrieval")
    count: int | None = Field(None, ge=1, le=MAX_INPUT_LIST, description="all of input_list when left out")


class Shelf(RecommendRequest):
    """A page's shelf; `deadline_ms` and `validate_only` stand beside `requests`, and shelves have no cursor."""

    @model_validator(mode="after")
    def _one_deadline(self) -> Self:
        if self.deadline_ms is not None or self.validate_only:
            raise ValueError("deadline_ms and validate_only stand beside `requests`, not inside")
        if self.cursor is not None:
            raise ValueError("a shelf takes no cursor; ask /v1/recommend with it for the shelf's next page")
        return self


class BatchRequest(Strict):
    requests: list[Shelf] = Field(min_length=1, max_length=MAX_SHELVES)
    deadline_ms: Deadline | None = None
    validate_only: bool = False


def as_logged(request: Common) -> dict[str, Any]:
    """What the journal keeps of a request: only what was sent, and no token."""
    return request.model_dump(mode="json", exclude_unset=True, exclude={"user_token", "cursor"})
