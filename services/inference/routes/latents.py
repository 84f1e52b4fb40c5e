"""Forgetting what the engine keeps of a user."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Request, Response

from services.inference.engine.engine import Engine
from services.inference.metrics import DoorMetrics
from shared.web.auth import Principal, require

router = APIRouter(tags=["inference"])
Caller = Annotated[Principal, Depends(require("server"))]


@router.delete("/v1/latents/{user_key}", status_code=204, response_class=Response)
async def forget(request: Request, user_key: Annotated[str, Path(min_length=1)], caller: Caller) -> None:  # noqa: ARG001
    """Drops the user's cached history states of every loaded model, between two batches; a pass that already runs may
    finish with them. `user_key` is `u:` or `v:` and the id. 204 whether or not anything was kept."""
    rows = await cast("Engine", request.state.engine).forget(user_key)
    cast("DoorMetrics", request.state.doors).forgot(rows)
