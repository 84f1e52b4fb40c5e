"""The recommender's application. What stands behind the routes is put together in `wiring`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI

from services.inference.client import InferenceClient
from services.recommender import wiring
from services.recommender.experiments.dashboard import pages
from services.recommender.routes import (
    browse,
    experiment_results,
    experiments,
    forward,
    jobs,
    rank,
    recommend,
    recommendations,
)
from services.recommender.routes.arrival import ArrivalMiddleware
from services.recommender.serving.readiness import ReadinessBoard
from shared.observability.metrics import Metrics
from shared.settings.load import Loaded
from shared.settings.roots import Settings
from shared.web.app import Lifespan, create_app

TITLE = "SilkRec recommender"
SERVICE = "recommender"
ROUTERS = (
    recommend.router,
    rank.router,
    browse.router,
    recommendations.router,
    experiments.router,
    experiment_results.router,
    jobs.router,
)


def build(loaded: Loaded, *, inference: InferenceClient | None = None) -> FastAPI:
    """Nothing is opened before the lifespan begins. `inference`: instead of the client of the settings' targets."""
    metrics = Metrics(SERVICE)
    board = ReadinessBoard()

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with wiring.opened(loaded, metrics, board, inference) as state:
            yield state

    return assemble(loaded.settings, metrics=metrics, board=board, lifespan=lifespan)


def assemble(settings: Settings, *, metrics: Metrics, board: ReadinessBoard, lifespan: Lifespan) -> FastAPI:
    """The application around any `lifespan` that yields `settings`, `keys` and `desk`, `dashboard` for the pages, and
    `forwarder`."""
    app = create_app(
        title=TITLE,
        lifespan=lifespan,
        settings=settings,
        service=SERVICE,
        metrics=metrics,
        max_body_bytes=forward.body_limit(settings),
        ready=board.now,
    )
    for router in ROUTERS:
        app.include_router(router)
    app.include_router(pages.router())
    if settings.recommender.features_url:
        app.include_router(forward.router)  # last: what is ours is never forwarded
    app.add_middleware(ArrivalMiddleware)
    return app
