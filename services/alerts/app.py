"""The alert receiver's application: one route for Alertmanager beside the usual three."""

from __future__ import annotations

import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI, Request, Response

from services.alerts.delivery import Delivery
from services.alerts.message import message_of
from services.alerts.metrics import DeliveryMetrics
from services.alerts.robots import DingTalk, Robot, WeCom
from services.alerts.webhook import Webhook
from shared.errors import Unauthenticated
from shared.observability.metrics import Metrics
from shared.observability.resources import ResourceMetrics
from shared.observability.tasks import TaskOwner
from shared.settings.load import Loaded
from shared.settings.roots import AlertsSettings
from shared.web.app import create_app
from shared.web.health import Readiness
from shared.web.json import JsonResponse

TITLE = "SilkRec alerts"
SERVICE = "alerts"
# Alertmanager sends a group as a whole; 1,000 alerts of 500 bytes.
MAX_BODY_BYTES = 1024 * 1024
router = APIRouter(prefix="/v1", tags=["alerts"])


@router.post("/alertmanager", summary="What Alertmanager posts; 503 until every robot has it")
async def alertmanager(body: Webhook, request: Request) -> Response:
    settings: AlertsSettings = request.state.settings.alerts
    _check_token(request, settings)
    delivery: Delivery = request.state.delivery
    await delivery.deliver(message_of(body, settings.runbook_base_url), body.digest)
    return JsonResponse({"delivered": True})


def _check_token(request: Request, settings: AlertsSettings) -> None:
    if settings.webhook_token is None:
        return
    expected = f"Bearer {settings.webhook_token.get_secret_value()}"
    if not hmac.compare_digest(request.headers.get("authorization", "").encode(), expected.encode()):
        raise Unauthenticated("the bearer token is not alerts.webhook_token; set it as credentials in alertmanager.yml")


def robots_of(settings: AlertsSettings) -> tuple[Robot, ...]:
    """Those that have a token."""
    found: list[Robot] = []
    dingtalk, wecom = settings.dingtalk, settings.wecom
    if dingtalk.access_token is not None:
        found.append(DingTalk(dingtalk.url, dingtalk.access_token, dingtalk.secret, dingtalk.call_all))
    if wecom.key is not None:
        found.append(WeCom(wecom.url, wecom.key))
    return tuple(found)


def build(
    loaded: Loaded,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Nothing is opened before the lifespan begins. For tests: `transport`, another way to the robots; `clock`, by
    which a robot's minute passes."""
    metrics = Metrics(SERVICE)
    robots = robots_of(loaded.settings.alerts)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        delivery = Delivery(
            robots,
            DeliveryMetrics(metrics, tuple(robot.name for robot in robots)),
            transport=transport,
            clock=clock,
        )
        tasks = TaskOwner(metrics=metrics)
        tasks.start("resources", ResourceMetrics(metrics, state=loaded.settings.state, pools={}).run)
        try:
            yield {"settings": loaded.settings, "delivery": delivery}
        finally:
            await tasks.close()
            await delivery.close()

    def ready() -> Readiness:
        return Readiness(bool(robots), {robot.name: "ok" for robot in robots} or {"robots": "none has a token"})

    app = create_app(
        title=TITLE,
        lifespan=lifespan,
        settings=loaded.settings,
        service=SERVICE,
        metrics=metrics,
        max_body_bytes=MAX_BODY_BYTES,
        ready=ready,
    )
    app.include_router(router)
    return app
