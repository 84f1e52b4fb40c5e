"""/v1/feedback, for server and admin keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from services.features.feedback.service import FeedbackService
from services.features.users.export import timestamp
from shared.actions import ActionTable
from shared.errors import FieldError, NotFound, ValidationFailed
from shared.identity import ID_MAX_LENGTH, ID_PATTERN, user_key
from shared.web.auth import require

Kind = Literal["like", "dislike", "not_interested", "rating"]
Id = Annotated[str, Path(pattern=ID_PATTERN, max_length=ID_MAX_LENGTH)]
router = APIRouter(tags=["feedback"], dependencies=[Depends(require("server"))])


class FeedbackBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    value: float | None = Field(None, allow_inf_nan=False, description="needed where the event type has bands: stars")


class FeedbackAnswer(BaseModel):
    user_id: str
    item_id: str
    feedback_type: str
    value: float | None
    updated_at: str


@router.put("/v1/feedback/{user_id}/{item_id}/{feedback_type}", response_model=FeedbackAnswer)
async def put_feedback(
    user_id: Id, item_id: Id, feedback_type: Kind, request: Request, body: FeedbackBody | None = None
) -> Any:
    """Sets the value; sending it again changes nothing."""
    actions: ActionTable = request.state.actions
    value = None if body is None else body.value
    if feedback_type not in actions.event_types:
        raise NotFound(f"{feedback_type} is not declared under event_types of silkrec.yaml")
    action = actions.resolve(feedback_type, value)
    if action is None:
        message = f"feedback of type {feedback_type} needs a value"
        raise ValidationFailed(message, errors=[FieldError("/value", message, "missing")])
    service: FeedbackService = request.state.feedback
    kept = await service.put(user_key(user_id, None), item_id, feedback_type, action.code, value)
    return FeedbackAnswer(
        user_id=user_id,
        item_id=item_id,
        feedback_type=feedback_type,
        value=kept.value,
        updated_at=timestamp(kept.updated_at_us) or "",
    )


@router.delete("/v1/feedback/{user_id}/{item_id}/{feedback_type}", status_code=204)
async def delete_feedback(user_id: Id, item_id: Id, feedback_type: Kind, request: Request) -> None:
    """Takes it back, out of the history too; doing it again changes nothing."""
    service: FeedbackService = request.state.feedback
    await service.delete(user_key(user_id, None), item_id, feedback_type)
