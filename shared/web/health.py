"""/health (alive), /ready (able to serve), /metrics (Prometheus): the same three in every service, without a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastapi import APIRouter, Response

from shared.observability.metrics import CONTENT_TYPE, Metrics
from shared.web.json import JsonResponse

PATHS = ("/health", "/ready", "/metrics")


@dataclass(frozen=True, slots=True)
class Readiness:
    """`dependencies` (name -> `ok`, or what is wrong) inform; they do not by themselves make a service not ready."""

    ready: bool
    dependencies: Mapping[str, str] = field(default_factory=dict)


def router(
    *, service: str, metrics: Metrics, ready: Callable[[], Readiness], alive: Callable[[], bool] = lambda: True
) -> APIRouter:
    """`alive` False: only a new process can help, so /health fails and the supervisor starts one."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/health", summary="The process is alive")
    async def health() -> Response:
        if alive():
            return JsonResponse({"status": "alive", "service": service})
        return JsonResponse({"status": "dead", "service": service}, status_code=503)

    @routes.get("/ready", summary="The service is warm and can answer; 503 otherwise")
    async def readiness() -> Response:
        state = ready()
        return JsonResponse(
            {"ready": state.ready, "dependencies": dict(state.dependencies)},
            status_code=200 if state.ready else 503,
            headers={"cache-control": "no-store"} | ({} if state.ready else {"retry-after": "1"}),
        )

    @routes.get("/metrics", summary="Prometheus metrics", include_in_schema=False)
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return routes
