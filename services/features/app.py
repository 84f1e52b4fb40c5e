"""The features service's application: what writes. What stands behind the routes is put together in `wiring`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI

from services.features import wiring
from services.features.routes import events, feedback, items, users
from shared.observability.metrics import Metrics
from shared.settings.load import Loaded
from shared.web.app import create_app

TITLE = "SilkRec features"
SERVICE = "features"
ROUTERS = (events.router, feedback.router, items.router, users.router)


def build(loaded: Loaded) -> FastAPI:
    """Nothing is opened before the lifespan begins."""
    metrics = Metrics(SERVICE)
    board = wiring.Board()

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with wiring.opened(loaded, metrics, board) as state:
            yield state

    app = create_app(
        title=TITLE,
        lifespan=lifespan,
        settings=loaded.settings,
        service=SERVICE,
        metrics=metrics,
        max_body_bytes=loaded.settings.features.max_body_bytes,
        ready=board.ready,
        alive=board.alive,
    )
    for router in ROUTERS:
        app.include_router(router)
    return app
