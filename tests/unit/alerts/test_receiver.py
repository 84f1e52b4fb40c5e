"""From Alertmanager's post to the robots: who gets what, how often, and what is never said."""

from __future__ import annotations

import asyncio
import contextlib
import io
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from services.alerts.app import build
from services.alerts.delivery import ATTEMPTS, Delivery
from services.alerts.message import message_of
from services.alerts.metrics import DeliveryMetrics
from services.alerts.robots import DingTalk, WeCom, dingtalk_sign
from services.alerts.webhook import Webhook
from shared.errors import DependencyError
from shared.observability import logging
from shared.observability.metrics import Metrics
from shared.settings.load import Loaded, load_settings
from shared.settings.roots import LogSettings
from tests.asgi import running
from tests.robots import KEY, SECRET, TOKEN, Robots
from tests.unit.alerts.posts import alert, post

WEBHOOK = "/v1/alertmanager"


def settings_of(folder: Path, **overrides: Any) -> Loaded:
    secrets = {
        "alerts.dingtalk.access_token": TOKEN,
        "alerts.dingtalk.secret": SECRET,
        "alerts.wecom.key": KEY,
        "alerts.dingtalk.url": "http://robots/robot/send",
        "alerts.wecom.url": "http://robots/cgi-bin/webhook/send",
    }
    return load_settings(env={}, overrides={"state_dir": folder, **secrets, **overrides})


@contextlib.asynccontextmanager
async def receiver(folder: Path, robots: Robots, **overrides: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = build(settings_of(folder, **overrides), transport=httpx.ASGITransport(robots.app()))
    async with running(app) as client:
        yield client


def test_both_robots_are_told_in_their_own_format_and_signed(tmp_path: Path) -> None:
    async def scenario() -> None:
        robots = Robots()
        async with receiver(tmp_path, robots, **{"alerts.dingtalk.call_all": True}) as client:
            answer = await client.post(WEBHOOK, json=post(alert(labels={"severity": "critical"})))
            assert answer.status_code == 200, answer.text
            metrics = (await client.get("/metrics")).text
        assert {vendor for vendor, _ in robots.told} == {"dingtalk", "wecom"}
        assert all("rung last_good" in text for _, text in robots.told)
        assert [body["at"] for body in robots.bodies if "at" in body] == [{"isAtAll": True}]
        assert 'silkrec_alerts_messages_total{outcome="delivered",robot="dingtalk"} 1.0' in metrics

    asyncio.run(scenario())


def test_the_signature_is_the_vendors() -> None:
    """Computed with the Python example of DingTalk's page."""
    assert dingtalk_sign("1700000000000", "SECthis-is-a-secret") == "TaTiygEFKE1tL8S16JSPQ4yM8i9Yx+vo6HuO+H1oDpI="


@pytest.mark.parametrize(
    ("overrides", "robot"),
    [({"alerts.dingtalk.secret": "SECwrong"}, "dingtalk"), ({"alerts.wecom.key": "wrong"}, "wecom")],
)
def test_a_refusal_inside_a_200_is_a_failure_that_alertmanager_hears_of(
    tmp_path: Path, overrides: dict[str, str], robot: str
) -> None:
    async def scenario() -> None:
        robots = Robots()
        async with receiver(tmp_path, robots, **overrides) as client:
            answer = await client.post(WEBHOOK, json=post())
            assert answer.status_code == 503
            assert robot in answer.json()["detail"]
            assert answer.headers["retry-after"]
            metrics = (await client.get("/metrics")).text
            assert f'silkrec_alerts_messages_total{{outcome="failed",robot="{robot}"}} 1.0' in metrics
            assert robots.calls == 2, "what a vendor refuses is not tried again"
            again = await client.post(WEBHOOK, json=post())
            assert again.status_code == 503
        assert len(robots.told) == 1, "the other robot is told once, however often Alertmanager posts it"

    asyncio.run(scenario())


def test_a_post_without_the_token_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        robots = Robots()
        async with receiver(tmp_path, robots, **{"alerts.webhook_token": "hook-secret"}) as client:
            assert (await client.post(WEBHOOK, json=post())).status_code == 401
            told = {"authorization": "Bearer hook-secret"}
            assert (await client.post(WEBHOOK, json=post(), headers=told)).status_code == 200
            assert (await client.post(WEBHOOK, json=post(version="3"), headers=told)).status_code == 422

    asyncio.run(scenario())


def test_without_a_robot_the_service_is_not_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(build(load_settings(env={}, overrides={"state_dir": tmp_path}))) as client:
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/health")).status_code == 200

    asyncio.run(scenario())


@dataclass
class Line:
    """A delivery over fakes: a vendor that answers as told, and time that a test owns."""

    delivery: Delivery
    metrics: Metrics
    robots: Robots
    naps: list[float]
    now: list[float]

    async def deliver(self, **changes: Any) -> None:
        webhook = Webhook.model_validate(post(**changes))
        await self.delivery.deliver(message_of(webhook), webhook.digest)


def line(transport: httpx.AsyncBaseTransport | None = None) -> Line:
    robots, naps, now, metrics = Robots(), [], [1000.0], Metrics("alerts")

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        now[0] += seconds

    dingtalk = DingTalk("http://robots/robot/send", SecretStr(TOKEN), SecretStr(SECRET))
    delivery = Delivery(
        [dingtalk],
        DeliveryMetrics(metrics, ("dingtalk",)),
        transport=transport or httpx.ASGITransport(robots.app()),
        sleep=sleep,
        clock=lambda: now[0],
    )
    return Line(delivery, metrics, robots, naps, now)


def test_a_busy_robot_is_tried_again_and_the_tries_are_counted_out() -> None:
    async def scenario() -> None:
        busy = line()
        busy.robots.answers = [{"errcode": -1, "errmsg": "busy"}, {"errcode": 130101, "errmsg": "too fast"}]
        await busy.deliver()
        assert len(busy.robots.told) == 1
        assert len(busy.naps) == 2
        assert busy.naps[1] > busy.naps[0]
        busy.robots.answers = [{"errcode": -1, "errmsg": "busy"}] * 10
        with pytest.raises(DependencyError, match="dingtalk"):
            await busy.deliver(groupKey="another")
        assert len(busy.robots.answers) == 10 - ATTEMPTS

    asyncio.run(scenario())


def test_a_robot_gets_no_more_a_minute_than_it_takes() -> None:
    async def scenario() -> None:
        storm = line()
        refused = 0
        for number in range(30):
            try:
                await storm.deliver(groupKey=f"group {number}")
            except DependencyError:
                refused += 1
        assert len(storm.robots.told) <= 18
        assert len(storm.robots.told) + refused == 30
        assert 'outcome="deferred",robot="dingtalk"} ' + f"{refused}.0" in storm.metrics.render().decode()
        storm.now[0] += 61
        await storm.deliver(groupKey="group 29")

    asyncio.run(scenario())


def test_a_repeated_post_is_told_once_and_a_change_or_a_later_reminder_again() -> None:
    async def scenario() -> None:
        calm = line()
        await calm.deliver()
        await calm.deliver()
        assert len(calm.robots.told) == 1
        await calm.deliver(alerts=[alert(status="resolved")])
        assert len(calm.robots.told) == 2
        calm.now[0] += 3600
        await calm.deliver()
        assert len(calm.robots.told) == 3

    asyncio.run(scenario())


class Broken(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(f"cannot connect to {request.url}")


class Page(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>a proxy's page</html>")


@pytest.mark.parametrize("transport", [Broken, Page, None])
def test_no_secret_is_ever_logged(transport: Callable[[], httpx.AsyncBaseTransport] | None, tmp_path: Path) -> None:
    async def scenario() -> None:
        speaking = line(None if transport is None else transport())
        if transport is None:
            speaking.robots.answers = [{"errcode": 310000, "errmsg": "sign not match"}]
        with contextlib.suppress(DependencyError):
            await speaking.deliver()

    written = io.StringIO()
    logging.configure(LogSettings(level="debug"), service="alerts", stream=written)
    try:
        asyncio.run(scenario())
        logging.get_logger("test").info("settings", alerts=settings_of(tmp_path).settings.alerts)
    finally:
        logging.configure(LogSettings(level="info"))
    said = written.getvalue()
    assert "a robot did not take an alert" in said
    for secret in (TOKEN, SECRET, KEY, "sign="):
        assert secret not in said, said


def test_serving_without_a_robot_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "silkrec.yaml").touch()
    done = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "--config", str(tmp_path / "silkrec.yaml"), "serve", "alerts"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "alerts.dingtalk.access_token" in done.stderr


def test_wecom_has_its_own_limit_of_bytes() -> None:
    webhook = Webhook.model_validate(post(*(alert(labels={"rung": f"r{n}"}) for n in range(100))))
    content = WeCom("http://robots", SecretStr(KEY)).body(message_of(webhook))["markdown"]["content"]
    assert len(content.encode()) <= 4096
