"""The inference service's application: REST beside the gRPC door. What stands behind is put together in `wiring`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI

from services.inference import wiring
from services.inference.routes import items, latents, oip
from shared.observability.metrics import Metrics
from shared.settings.load import Loaded
from shared.web.app import create_app

TITLE = "SilkRec inference"
SERVICE = "inference"
# JSON needs about six bytes where a tensor needs four: 65,536 rows and 10,000 candidates are 2 MB of digits.
MAX_BODY_BYTES = 4 * 1024 * 1024


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
        max_body_bytes=MAX_BODY_BYTES,
        ready=board.ready,
        alive=board.alive,
    )
    app.include_router(oip.router)
    app.include_router(latents.router)
    app.include_router(items.router)
    return app
