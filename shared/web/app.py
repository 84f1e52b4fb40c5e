"""`create_app`: the FastAPI application that every service starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from shared.observability.metrics import Metrics
from shared.settings.roots import Settings
from shared.web import health, openapi, problem
from shared.web.health import Readiness
from shared.web.json import JsonResponse, StrictRoute, make_strict
from shared.web.middleware import BodyLimit, ContextMiddleware, GuardMiddleware

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]
CORS_MAX_AGE_S = 600


class Application(FastAPI):
    """FastAPI whose included routers read strict JSON, whatever class of route they were made with."""

    def include_router(self, router: APIRouter, **options: Any) -> None:
        for route in _api_routes(router.routes):
            make_strict(route)
        super().include_router(router, **options)

    def openapi(self) -> dict[str, Any]:
        return openapi.document(self)


def create_app(
    *,
    title: str,
    lifespan: Lifespan,
    settings: Settings,
    service: str,
    metrics: Metrics,
    max_body_bytes: BodyLimit,
    ready: Callable[[], Readiness],
    alive: Callable[[], bool] = lambda: True,
) -> FastAPI:
    """An application with ids, access log, metrics, limits, problems, health routes and CORS; add your routers to it.

    `lifespan` yields the mapping that becomes `request.state` (`settings` and `keys` are needed by `require`).
    `max_body_bytes` is a number, or a function of the ASGI scope where routes differ.
    """
    app = Application(
        title=title,
        version=openapi.package_version(),
        lifespan=lifespan,
        default_response_class=JsonResponse,
        docs_url=None,  # both pages load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(ContextMiddleware, metrics=metrics, quiet=frozenset(health.PATHS)),
            *_cors(settings.auth.cors_origins),
            Middleware(GuardMiddleware, limit=max_body_bytes),
        ],
    )
    app.router.route_class = StrictRoute
    problem.install(app)
    app.include_router(health.router(service=service, metrics=metrics, ready=ready, alive=alive))
    return app


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "authorization",
                "content-type",
                "x-api-key",
                "x-request-id",
                "traceparent",
                "idempotency-key",
            ],
            expose_headers=["x-request-id", "retry-after"],
            max_age=CORS_MAX_AGE_S,
        )
    ]


def _api_routes(routes: Iterable[BaseRoute]) -> Iterable[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        included = getattr(route, "original_router", None)  # FastAPI keeps nested routers as they are
        if included is not None:
            yield from _api_routes(included.routes)
