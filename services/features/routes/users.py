"""/v1/users and /v1/deletions, for server and admin keys."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.features.users.cursor import CURSOR_MAX_LENGTH, unwrap, wrap
from services.features.users.deletion_worker import DeletionWorker
from services.features.users.deletions import Deletion
from services.features.users.export import MEDIA_TYPE, export_user, timestamp
from services.features.users.profiles import ProfileWrite, UserProfile, refuse_pending
from services.features.users.service import UserService
from services.features.users.validation import check_profile
from shared.actions import ActionTable
from shared.errors import FieldError, ValidationFailed
from shared.identity import ID_MAX_LENGTH, ID_PATTERN, split_user_key, user_key
from shared.schema import UserField
from shared.settings.roots import Settings
from shared.web.auth import require

BULK_MAX = 500
PAGE_MAX = 500
_LIST = "users"

Id = Annotated[str, Field(pattern=ID_PATTERN, max_length=ID_MAX_LENGTH)]
UserId = Annotated[str, Path(pattern=ID_PATTERN, max_length=ID_MAX_LENGTH)]

router = APIRouter(tags=["users"], dependencies=[Depends(require("server"))])


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ProfileBody(Body):
    """`user_id` may be repeated in the body; it must then be the one of the path."""

    user_id: Id | None = None
    properties: dict[str, Any] = Field(default_factory=dict)
    segments: list[str] = Field(default_factory=list)


class PatchBody(Body):
    """A null takes a property away; what is not named stays."""

    properties: dict[str, Any] = Field(default_factory=dict)
    segments: list[str] | None = None


class BulkRow(ProfileBody):
    user_id: Id


class BulkBody(Body):
    users: list[dict[str, Any]] = Field(min_length=1, max_length=BULK_MAX)


class MergeBody(Body):
    visitor_id: Id
    user_id: Id


class UserAnswer(BaseModel):
    user_id: str
    properties: dict[str, Any]
    segments: list[str]
    created_at: str
    updated_at: str


class UserList(BaseModel):
    items: list[UserAnswer]
    next_cursor: str | None


class Rejected(BaseModel):
    index: int
    user_id: str | None
    code: str
    message: str
    pointer: str


class BulkAnswer(BaseModel):
    accepted: int
    rejected: list[Rejected]


class Moved(BaseModel):
    events: int
    feedback: int
    recommendations: int


class MergeAnswer(BaseModel):
    """`changed` is false when all of it had been moved by an earlier call."""

    visitor_id: str
    user_id: str
    changed: bool
    moved: Moved


class DeletionAccepted(BaseModel):
    deletion_id: str


class DeletionAnswer(BaseModel):
    deletion_id: str
    user_id: str | None
    state: str
    requested_at: str
    finished_at: str | None
    receipts: dict[str, dict[str, Any]]


def _service(request: Request) -> UserService:
    service: UserService = request.state.users
    return service


def _worker(request: Request) -> DeletionWorker:
    worker: DeletionWorker = request.state.deletions
    return worker


def _fields(request: Request) -> dict[str, UserField]:
    settings: Settings = request.state.settings
    return settings.data.user_fields


Service = Annotated[UserService, Depends(_service)]
Worker = Annotated[DeletionWorker, Depends(_worker)]
Fields = Annotated[dict[str, UserField], Depends(_fields)]


@router.put("/v1/users/{user_id}", response_model=UserAnswer, responses={201: {"model": UserAnswer}})
async def put_user(user_id: UserId, body: ProfileBody, response: Response, service: Service, fields: Fields) -> Any:
    """Replaces the whole profile; 201 when there was none."""
    if body.user_id not in (None, user_id):
        _refuse([FieldError("/user_id", "must be the user_id of the path, or be left out")])
    _refuse(check_profile(body.properties, body.segments, fields))
    key = user_key(user_id, None)
    result = await service.put([ProfileWrite(key, body.properties, tuple(body.segments))])
    refuse_pending(result.refused)
    response.status_code = 201 if key in result.created else 200
    return _answer(result.written[0])


@router.patch("/v1/users/{user_id}", response_model=UserAnswer)
async def patch_user(user_id: UserId, body: PatchBody, service: Service, fields: Fields) -> Any:
    _refuse(check_profile(body.properties, body.segments or [], fields, nulls=True))
    return _answer(await service.patch(user_key(user_id, None), body.properties, body.segments))


@router.get("/v1/users/{user_id}", response_model=UserAnswer)
async def get_user(user_id: UserId, service: Service) -> Any:
    return _answer(await service.get(user_key(user_id, None)))


@router.delete("/v1/users/{user_id}", status_code=202, response_model=DeletionAccepted)
async def delete_user(user_id: UserId, service: Service, worker: Worker) -> Any:
    """Hides the user at once and removes them from every store; `GET /v1/deletions/{deletion_id}` has the receipts."""
    deletion_id = await service.delete(user_key(user_id, None))
    worker.wake()
    return DeletionAccepted(deletion_id=deletion_id)


@router.get("/v1/deletions/{deletion_id}", response_model=DeletionAnswer)
async def get_deletion(deletion_id: Annotated[str, Path(max_length=64)], service: Service) -> Any:
    return _deletion(await service.deletion(deletion_id))


@router.post("/v1/users", response_model=BulkAnswer)
async def put_users(body: BulkBody, service: Service, fields: Fields) -> Any:
    """Up to 500 whole profiles. A row that does not fit is rejected by itself; of two for one user the last counts."""
    writes: dict[int, ProfileWrite] = {}
    rejected: list[Rejected] = []
    for index, raw in enumerate(body.users):
        row = _row(index, raw, fields)
        if isinstance(row, Rejected):
            rejected.append(row)
        else:
            writes[index] = row
    refused = (await service.put(list(writes.values()))).refused if writes else frozenset()
    pending = "this user is being deleted; send it again once the deletion has left the database"
    for index, write in writes.items():
        if write.user_key in refused:
            user_id, _ = split_user_key(write.user_key)
            rejected.append(
                Rejected(index=index, user_id=user_id, code="deletion_pending", message=pending, pointer="/user_id")
            )
    rejected.sort(key=lambda row: row.index)
    return BulkAnswer(accepted=len(body.users) - len(rejected), rejected=rejected)


@router.get("/v1/users", response_model=UserList)
async def list_users(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
    cursor: Annotated[str | None, Query(max_length=CURSOR_MAX_LENGTH)] = None,
) -> Any:
    """By user_id; `next_cursor` is null on the last page."""
    rows = await service.page(unwrap(_LIST, cursor) if cursor is not None else "", limit + 1)
    page = rows[:limit]
    return UserList(
        items=[_answer(row) for row in page],
        next_cursor=wrap(_LIST, page[-1].user_key) if len(rows) > limit else None,
    )


@router.post("/v1/users:merge", response_model=MergeAnswer)
async def merge_users(body: MergeBody, service: Service) -> Any:
    """What the visitor did becomes the user's, later events included. Doing it again changes nothing."""
    merged = await service.merge(user_key(None, body.visitor_id), user_key(body.user_id, None))
    return MergeAnswer(
        visitor_id=body.visitor_id,
        user_id=body.user_id,
        changed=merged.changed,
        moved=Moved(events=merged.events, feedback=merged.feedback, recommendations=merged.recommendations),
    )


@router.get("/v1/users/{user_id}/export", response_class=StreamingResponse)
async def get_export(user_id: UserId, request: Request) -> StreamingResponse:
    """JSON lines: profile, events, feedback, recommendations, and a last line `end` that counts them."""
    actions = ActionTable.from_schema(request.state.settings.data)
    lines = await export_user(request.state.database, actions, user_key(user_id, None))
    return StreamingResponse(lines, media_type=MEDIA_TYPE)


def _row(index: int, raw: dict[str, Any], fields: dict[str, UserField]) -> ProfileWrite | Rejected:
    sent = raw.get("user_id")
    user_id = sent[:ID_MAX_LENGTH] if isinstance(sent, str) else None
    try:
        row = BulkRow.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        pointer = "".join(f"/{step}" for step in first["loc"])
        return Rejected(index=index, user_id=user_id, code=str(first["type"]), message=first["msg"], pointer=pointer)
    faults = check_profile(row.properties, row.segments, fields)
    if faults:
        fault = faults[0]
        return Rejected(index=index, user_id=user_id, code=fault.code, message=fault.message, pointer=fault.pointer)
    return ProfileWrite(user_key(row.user_id, None), row.properties, tuple(row.segments))


def _refuse(faults: list[FieldError]) -> None:
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ValidationFailed(f"{faults[0].pointer}: {faults[0].message}{more}", errors=faults)


def _answer(profile: UserProfile) -> UserAnswer:
    user_id, _ = split_user_key(profile.user_key)
    return UserAnswer(
        user_id=user_id or "",
        properties=dict(profile.properties),
        segments=list(profile.segments),
        created_at=timestamp(profile.created_at_us) or "",
        updated_at=timestamp(profile.updated_at_us) or "",
    )


def _deletion(deletion: Deletion) -> DeletionAnswer:
    user_id, _ = split_user_key(deletion.user_key)
    receipts = {
        store: {name: value for name, value in receipt.items() if name != "at_us"}
        | ({"at": timestamp(receipt["at_us"])} if "at_us" in receipt else {})
        for store, receipt in deletion.receipts.items()
    }
    return DeletionAnswer(
        deletion_id=deletion.deletion_id,
        user_id=user_id,
        state="done" if deletion.finished_at_us is not None else "pending",
        requested_at=timestamp(deletion.requested_at_us) or "",
        finished_at=timestamp(deletion.finished_at_us),
        receipts=receipts,
    )
