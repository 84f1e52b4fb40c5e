"""/v1/jobs, for admin keys: slates of many users, made behind the traffic. What is accepted is durable."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, Field, WithJsonSchema

from services.recommender.jobs.desk import JobDesk, at_desk
from services.recommender.jobs.shown import as_shown
from services.recommender.jobs.spec import KINDS, JobBody
from services.recommender.jobs.store.jobs import JobState
from shared.errors import FieldError, ValidationFailed
from shared.observability import context, tracing
from shared.web.auth import Principal, require

T = TypeVar("T")
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
Admin = Annotated[Principal, Depends(require("admin"))]
JobId = Annotated[str, Path(pattern=r"^job_[0-9a-f]{24}$")]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[!-~]+$",
        description="the same key with the same body is the same job; with another body a 409",
    ),
]
# A type that only a newer release knows is shown as well: one such job must not take the whole list away.
ShownKind = Annotated[str, WithJsonSchema({"type": "string", "enum": list(KINDS)})]
_CURSOR = re.compile(r"([0-9]{1,19})\.(job_[0-9a-f]{24})\Z")


class JobProgress(BaseModel):
    """Users. `total` grows while the job is planned; `failed` got no slate."""

    done: int
    total: int
    failed: int


class ParkedChunk(BaseModel):
    chunk: int
    users: int
    reason: str


class FailedUser(BaseModel):
    user: str = Field(description="u: or v: and the id; a row of a file that names nobody as it stood there")
    reason: str


class JobAnswer(BaseModel):
    """Times are RFC 3339. `rate`: users a second; `eta_s`: seconds left, null while it cannot be known."""

    job_id: str
    type: ShownKind
    state: JobState
    params: dict[str, Any]
    progress: JobProgress
    rate: float | None
    eta_s: float | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    output: dict[str, Any]
    reason: str | None
    checksum: str | None = Field(description="of users and items, whatever the chunks; null until it is over")
    actor: str


class JobDetail(JobAnswer):
    """`parked`, `failures`: the newest chunks that were given up, the first users without a slate."""

    parked: list[ParkedChunk]
    failures: list[FailedUser]


class JobList(BaseModel):
    items: list[JobAnswer] = Field(description="newest first")
    next_cursor: str | None


@router.post("", status_code=202, summary="Start a job", response_model=JobAnswer)
async def create(
    body: JobBody, request: Request, response: Response, principal: Admin, idempotency_key: Key = None
) -> Any:
    """`location` names it. It starts as soon as a worker is free."""
    key = None if idempotency_key is None else f"api:{idempotency_key}"
    origin = context.current()
    seen, _ = await _changed(
        request, lambda desk: desk.submit(body, actor=_actor(principal), idempotency_key=key, origin=origin)
    )
    tracing.note(silkrec_job_id=seen.job.job_id)
    response.headers["location"] = f"/v1/jobs/{seen.job.job_id}"
    return as_shown(seen)


@router.get("", summary="All of them, newest first", response_model=JobList)
async def list_jobs(
    request: Request,
    _principal: Admin,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Any:
    after = None if cursor is None else _after(cursor)
    found = await at_desk(request, lambda desk: desk.page(limit=limit, state=state, after=after))
    last = found[-1].job if len(found) == limit else None
    next_cursor = None if last is None else f"{last.created_at_us}.{last.job_id}"
    return {"items": [as_shown(one) for one in found], "next_cursor": next_cursor}


@router.get("/{job_id}", summary="How far it is", response_model=JobDetail)
async def get_job(job_id: JobId, request: Request, _principal: Admin) -> Any:
    return as_shown(await at_desk(request, lambda desk: desk.get(job_id)), detail=True)


@router.post("/{job_id}:cancel", summary="Stop it for good", response_model=JobAnswer)
async def cancel(job_id: JobId, request: Request, _principal: Admin) -> Any:
    """What chunks have committed stays; the chunk under way writes nothing. Cancelling again changes nothing."""
    return as_shown(await _changed(request, lambda desk: desk.cancel(job_id)))


def _after(cursor: str) -> tuple[int, str]:
    match = _CURSOR.match(cursor)
    if match is None:
        message = "the cursor is damaged or from another list; start again without it"
        raise ValidationFailed(message, errors=[FieldError("/cursor", message, "cursor")])
    return int(match[1]), match[2]


async def _changed(request: Request, work: Callable[[JobDesk], T]) -> T:
    """A caller that hangs up must not leave it open whether the job was accepted: it is."""
    return await asyncio.shield(at_desk(request, work))


def _actor(principal: Principal) -> str:
    return principal.name if principal.key_id is None else f"{principal.name} ({principal.key_id})"
