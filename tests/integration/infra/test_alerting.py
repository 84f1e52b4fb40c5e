"""From a slow engine to the words in two groups, and to the words that it is over: every process between is real."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.alerts import app as alerts
from services.recommender.app import build
from shared.contracts.inference import RankRequest, RankResult
from shared.settings.load import Loaded, load_settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from tests.conftest import needed
from tests.http_server import listening
from tests.integration.recommender.shop import FakeInference, promote, put_items, settings
from tests.prometheus import alertmanager, prometheus
from tests.robots import KEY, SECRET, TOKEN, Robots
from tests.servers import program

pytestmark = pytest.mark.integration
TOLD_S = 45.0
SLOW_S = 0.12


class SlowEngine(FakeInference):
    """Ranks as late as it is told."""

    rank_s = SLOW_S

    async def rank(self, request: RankRequest) -> RankResult:
        await asyncio.sleep(self.rank_s)
        return await super().rank(request)


@contextlib.contextmanager
def asked_all_the_time(url: str) -> Iterator[None]:
    end = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
            while not end.wait(0.03):
                client.post("/v1/recommend", json={"visitor_id": "v1", "count": 5})

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield
    finally:
        end.set()
        asker.join()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_slow_engine_is_told_to_both_groups_and_so_is_its_end(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    with needed():
        for name in ("prometheus", "prometheus-alertmanager"):
            program(name)
    shop = settings(database, redis_url, tmp_path, deadline_ms=400)
    put_items(database)
    promote(database, ArtifactStore(shop.artifacts_dir()), "r-1")
    engine, robots = SlowEngine(), Robots()
    with contextlib.ExitStack() as stack:
        vendors = stack.enter_context(listening(robots.app()))
        receiver = stack.enter_context(listening(alerts.build(robots_at(vendors, tmp_path))))
        recommender = stack.enter_context(listening(build(Loaded(shop, {}, None), inference=engine)))
        manager = stack.enter_context(
            alertmanager(
                tmp_path / "alertmanager",
                receiver,
                {"group_wait: 5s": "group_wait: 100ms", "group_interval: 1m": "group_interval: 500ms"},
            )
        )
        stack.enter_context(asked_all_the_time(recommender))
        stack.enter_context(
            prometheus(
                tmp_path / "prometheus",
                {"recommender": recommender, "alerts": receiver},
                manager,
                {name + ": 10s": name + ": 500ms" for name in ("scrape_interval", "evaluation_interval")}
                | {"scrape_timeout: 5s": "scrape_timeout: 500ms", "refresh_interval: 10s": "refresh_interval: 1s"},
                {"[1m]": "[2s]", "for: 1m\n": "for: 1s\n"},
            )
        )
        told = robots.wait(2, TOLD_S)
        assert {vendor for vendor, _ in told} == {"dingtalk", "wecom"}
        for _, text in told:
            lines = text.splitlines()
            assert lines[0] == "### [critical] SilkrecLatencyP99High"
            assert lines[2].startswith("**p99 of /v1/recommend is ")
            assert "what to do: docs/runbooks/SilkrecLatencyP99High.md" in text
        engine.rank_s = 0.0
        over = robots.wait(4, TOLD_S)[2:]
        assert {vendor for vendor, _ in over} == {"dingtalk", "wecom"}
        assert all(text.startswith("### [resolved] SilkrecLatencyP99High") for _, text in over)


def robots_at(vendors: str, folder: Path) -> Loaded:
    chosen = {
        "state_dir": folder / "alerts",
        "alerts.dingtalk.access_token": TOKEN,
        "alerts.dingtalk.secret": SECRET,
        "alerts.dingtalk.url": f"{vendors}/robot/send",
        "alerts.wecom.key": KEY,
        "alerts.wecom.url": f"{vendors}/cgi-bin/webhook/send",
    }
    return load_settings(env={}, overrides=chosen)
