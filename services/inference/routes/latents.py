"""Forgetting what the engine keeps of a user."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from shared.web.auth import Principal, require

router = APIRouter(tags=["inference"])
Caller = Annotated[Principal, Depends(require("server"))]


@router.delete("/v1/latents/{user_key}", status_code=204, response_class=Response)
async def forget(user_key: Annotated[str, Path(min_length=1)], caller: Caller) -> None:
    """The engine holds a history for as long as its request runs and keeps nothing of it afterwards, so there is
    nothing left to remove once this answers."""
