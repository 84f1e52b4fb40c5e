"""POST /v1/events. JSON, or the same text as text/plain: navigator.sendBeacon sends no other type across origins, and
no headers, so its key is `client_key` in the body."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from services.features.ingest.group import EventIngest, now_us
from services.features.ingest.rows import EventRow
from services.features.ingest.validation import MAX_EVENTS, MAX_IMPRESSION, EventValidator, Rejected, read_body
from shared.errors import Forbidden
from shared.identity import ID_MAX_LENGTH, ID_PATTERN, split_user_key
from shared.web.auth import Principal, authenticate_key, authorize_user
from shared.web.json import JsonResponse, parse
from shared.web.problem import UnsupportedMediaType

router = APIRouter(tags=["events"])
_ID = {"type": "string", "pattern": ID_PATTERN, "maxLength": ID_MAX_LENGTH}
_TIME = {"type": "string", "format": "date-time", "description": "RFC 3339 with its zone"}
_EVENT = {
    "type": "object",
    "title": "Event",
    "additionalProperties": False,
    "required": ["event_id", "event_type", "occurred_at"],
    "description": "`user_id` or `visitor_id` is needed. A repeated `event_id` changes nothing.",
    "properties": {
        "event_id": _ID,
        "event_type": {"type": "string", "description": "declared in silkrec.yaml"},
        "user_id": _ID,
        "visitor_id": _ID,
        "item_id": _ID,
        "session_id": _ID,
        "event_value": {"type": "number", "description": "in the unit of the event type: stars, seconds, a currency"},
        "occurred_at": _TIME,
        "recommendation_id": _ID,
        "position": {"type": "integer", "minimum": 0},
        "impression": {"type": "array", "items": _ID, "maxItems": MAX_IMPRESSION, "description": "item ids seen"},
        "properties": {"type": "object"},
    },
}
_BODY = {
    "type": "object",
    "title": "EventsBody",
    "additionalProperties": False,
    "required": ["events"],
    "properties": {
        "events": {"type": "array", "items": _EVENT, "minItems": 1, "maxItems": MAX_EVENTS},
        "sent_at": {**_TIME, "description": "the client's clock when it sent this; corrects each occurred_at"},
        "client_key": {"type": "string", "description": "where no header can be sent"},
        "user_token": {"type": "string", "description": "a client key needs it for events of a user_id"},
    },
}


class RejectedEvent(BaseModel):
    index: int
    event_id: str | None
    code: str
    message: str


class EventsAnswer(BaseModel):
    accepted: int = Field(description="durable, and part of the user's next slate")
    duplicates: int = Field(description="known already; nothing changed")
    rejected: list[RejectedEvent]


@router.post(
    "/v1/events",
    status_code=202,
    response_model=EventsAnswer,
    summary="Up to 500 events; one bad event does not refuse the others",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _BODY}, "text/plain": {"schema": {"type": "string"}}},
        }
    },
)
async def post_events(request: Request) -> Response:
    """Answered after the commit: what is accepted survives a crash of any part. 503 with Retry-After: nothing was."""
    received_at_us = now_us()
    _check_type(request.headers.get("content-type", ""))
    body = read_body(parse(await request.body()), received_at_us)
    principal = authenticate_key(request, body.client_key, "client", "server")
    validator: EventValidator = request.state.validator
    rows, rejected = validator.rows(body, received_at_us)
    rows = _allowed(principal, rows, body.user_token, rejected)
    ingest: EventIngest = request.state.ingest
    outcomes = await ingest.submit([row for _, row in rows])
    message = "this user was deleted; PUT the user_id again before sending events of it"
    rejected += [
        Rejected(index, row.event_id, "user_deleted", message)
        for (index, row), outcome in zip(rows, outcomes, strict=True)
        if outcome == "refused"
    ]
    rejected.sort(key=lambda row: row.index)
    return JsonResponse(
        {
            "accepted": outcomes.count("accepted"),
            "duplicates": outcomes.count("duplicate"),
            "rejected": [row.as_dict() for row in rejected],
        },
        status_code=202,
    )


def _check_type(header: str) -> None:
    kind = header.partition(";")[0].strip().lower()
    if kind not in ("", "application/json", "text/plain") and not kind.endswith("+json"):
        raise UnsupportedMediaType(f"the body is {kind[:64]!a}; send application/json, or text/plain by sendBeacon")


def _allowed(
    principal: Principal, rows: list[tuple[int, EventRow]], user_token: str | None, rejected: list[Rejected]
) -> list[tuple[int, EventRow]]:
    """A client key writes for visitors, and for the user whose token it has; each user is looked at once."""
    if principal.role != "client":
        return rows
    verdicts: dict[str, str] = {}
    for user_key in {row.user_key for _, row in rows}:
        try:
            authorize_user(principal, *split_user_key(user_key), user_token)
        except Forbidden as error:
            verdicts[user_key] = error.detail
    rejected += [
        Rejected(index, row.event_id, Forbidden.code, verdicts[row.user_key])
        for index, row in rows
        if row.user_key in verdicts
    ]
    return [(index, row) for index, row in rows if row.user_key not in verdicts]
