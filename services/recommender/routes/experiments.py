"""/v1/experiments, for admin keys: write one down, start it, change it while it runs, stop it, ship it, take back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field, ValidationError

from services.recommender.catalogue.columns import format_time
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.registry.document import KEY_PATTERN, ExperimentBody, Key, Strict, body_of
from services.recommender.experiments.registry.store import AUDIT_ROWS, ExperimentStore, StoredExperiment
from shared.errors import FieldError, ValidationFailed
from shared.storage.database import Database
from shared.web.auth import Principal, require

T = TypeVar("T")
router = APIRouter(prefix="/v1/experiments", tags=["experiments"])
Admin = Annotated[Principal, Depends(require("admin"))]
PathKey = Annotated[str, Path(pattern=KEY_PATTERN, max_length=64)]
Revision = Annotated[int | None, Field(description="of what was looked at; another one meanwhile is a 409")]


class ActionBody(Strict):
    revision: Revision = None


class VariantActionBody(ActionBody):
    variant: Key


class NewPhaseBody(ActionBody):
    """What is left out stays. Another `seed` draws everybody again."""

    weights: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(None, min_length=2, max_length=20)
    coverage: float | None = Field(None, ge=0, le=1)
    seed: str | None = Field(None, max_length=128)
    keep_out_earlier: bool = False


class ExperimentAnswer(ExperimentBody):
    """As it was written, and where it stands. Times are RFC 3339."""

    status: Status
    revision: int
    phase: int
    killed: list[str] = Field(description="variants whose units get what everybody gets")
    shipped: str | None
    created_at: str
    updated_at: str
    started_at: str | None
    stopped_at: str | None


class ExperimentList(BaseModel):
    items: list[ExperimentAnswer]


class AuditRow(BaseModel):
    at: str
    actor: str
    action: str
    detail: dict[str, Any]


class AuditList(BaseModel):
    items: list[AuditRow] = Field(description="newest first")


@router.post("", status_code=201, summary="Write down a draft", response_model=ExperimentAnswer)
async def create(body: ExperimentBody, request: Request, principal: Admin) -> Any:
    return await _changed(request, lambda store: store.create(body.registered(), actor=_actor(principal)))


@router.get("", summary="All of them, newest first", response_model=ExperimentList)
async def list_experiments(request: Request, _principal: Admin, status: Status | None = None) -> Any:
    found = await _run(request, lambda store: store.list(status))
    return {"items": [_answer(one) for one in found]}


@router.get("/{key}", summary="One of them", response_model=ExperimentAnswer)
async def get_experiment(key: PathKey, request: Request, _principal: Admin) -> Any:
    return _answer(await _run(request, lambda store: store.get(key)))


@router.patch("/{key}", summary="Change a draft", response_model=ExperimentAnswer)
async def edit(key: PathKey, body: dict[str, Any], request: Request, principal: Admin) -> Any:
    """Any field of the body that creates one, whole; a null takes an optional one away. `revision`: as everywhere."""
    changes = dict(body)
    revision = changes.pop("revision", None)
    if revision is not None and (not isinstance(revision, int) or isinstance(revision, bool)):
        raise ValidationFailed(
            "revision must be a whole number", errors=[FieldError("/revision", "must be a whole number")]
        )

    def change(store: ExperimentStore) -> StoredExperiment:
        seen = store.get(key)
        wanted = _merged({**body_of(seen.registered), **changes}).registered()
        return store.edit(
            key, wanted, actor=_actor(principal), revision=seen.revision if revision is None else revision
        )

    return await _changed(request, change)


@router.post("/{key}:start", summary="Start a draft", response_model=ExperimentAnswer)
async def start(key: PathKey, request: Request, principal: Admin, body: ActionBody | None = None) -> Any:
    """A 409 names the running experiment that changes the same setting for the same units."""
    revision = body.revision if body else None
    return await _changed(request, lambda store: store.start(key, actor=_actor(principal), revision=revision))


@router.post("/{key}:stop", summary="Stop it", response_model=ExperimentAnswer)
async def stop(key: PathKey, request: Request, principal: Admin, body: ActionBody | None = None) -> Any:
    revision = body.revision if body else None
    return await _changed(request, lambda store: store.stop(key, actor=_actor(principal), revision=revision))


@router.post("/{key}:ship", summary="A variant's settings for everybody", response_model=ExperimentAnswer)
async def ship(key: PathKey, body: VariantActionBody, request: Request, principal: Admin) -> Any:
    """In its scenes, everywhere within 5 s. What runs is stopped by it."""
    return await _changed(
        request, lambda store: store.ship(key, body.variant, actor=_actor(principal), revision=body.revision)
    )


@router.post("/{key}:roll_back", summary="Take back what was shipped", response_model=ExperimentAnswer)
async def roll_back(key: PathKey, request: Request, principal: Admin, body: ActionBody | None = None) -> Any:
    revision = body.revision if body else None
    return await _changed(request, lambda store: store.roll_back(key, actor=_actor(principal), revision=revision))


@router.post("/{key}:kill_variant", summary="End one variant; nobody else moves", response_model=ExperimentAnswer)
async def kill_variant(key: PathKey, body: VariantActionBody, request: Request, principal: Admin) -> Any:
    return await _changed(
        request, lambda store: store.kill_variant(key, body.variant, actor=_actor(principal), revision=body.revision)
    )


@router.post("/{key}:new_phase", summary="New weights or coverage", response_model=ExperimentAnswer)
async def new_phase(key: PathKey, body: NewPhaseBody, request: Request, principal: Admin) -> Any:
    """Its data is analysed on its own."""
    return await _changed(request, lambda store: store.new_phase(key, actor=_actor(principal), **body.model_dump()))


@router.get("/{key}/audit", summary="Who did what to it", response_model=AuditList)
async def audit(
    key: PathKey, request: Request, _principal: Admin, limit: Annotated[int, Query(ge=1, le=AUDIT_ROWS)] = 100
) -> Any:
    entries = await _run(request, lambda store: store.audit(key, limit))
    rows = [
        {"at": format_time(one.at_us), "actor": one.actor, "action": one.action, "detail": one.detail}
        for one in entries
    ]
    return {"items": rows}


async def _run(request: Request, work: Callable[[ExperimentStore], T]) -> T:
    """In the database's threads."""
    store: ExperimentStore = request.state.experiments
    database: Database = request.state.database
    return await database.run(work, store)


async def _changed(request: Request, work: Callable[[ExperimentStore], StoredExperiment]) -> dict[str, Any]:
    """A caller that hangs up must not leave it open whether the change was made: it is."""
    return _answer(await asyncio.shield(_run(request, work)))


def _actor(principal: Principal) -> str:
    return principal.name if principal.key_id is None else f"{principal.name} ({principal.key_id})"


def _merged(body: dict[str, Any]) -> ExperimentBody:
    """Raises ValidationFailed with pointers, as a body that creates one would be refused."""
    try:
        return ExperimentBody.model_validate(body)
    except ValidationError as error:
        faults = [
            FieldError("".join(f"/{part}" for part in one["loc"]), one["msg"], one["type"]) for one in error.errors()
        ]
        raise ValidationFailed("; ".join(f"{one.pointer} {one.message}" for one in faults), errors=faults) from None


def _answer(stored: StoredExperiment) -> dict[str, Any]:
    one = stored.registered
    return {
        **body_of(one),
        "status": one.definition.status,
        "revision": stored.revision,
        "phase": one.definition.phase,
        "killed": [variant.key for variant in one.definition.variants if variant.killed],
        "shipped": one.shipped,
        "created_at": format_time(one.created_at_us),
        "updated_at": format_time(one.updated_at_us),
        "started_at": None if one.started_at_us is None else format_time(one.started_at_us),
        "stopped_at": None if one.stopped_at_us is None else format_time(one.stopped_at_us),
    }
