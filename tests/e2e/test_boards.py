"""Every panel of every board has something to show: Prometheus asks a suite that people use, with infra's own files."""

from __future__ import annotations

import contextlib
import json
import math
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI, Response

from infra.grafana.boards import BOARDS
from infra.grafana.panels import as_json
from tests.conftest import needed
from tests.e2e.suite import FrontEnd, Suite, event, until
from tests.http_server import listening
from tests.prometheus import INFRA, prometheus
from tests.servers import free_port, program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
EXPERIMENT = "boards"
SHOWN_S = 40.0
SCRAPED = {"recommender", "features", "inference", "jobs", "gpu"}
# $__rate_interval of a scrape interval of 1 s is 4 s; a job of seconds, once over, must still be in the range.
VARIABLES = {"$__rate_interval": "30s", "${datasource}": "silkrec"}
RECORDED = json.loads((INFRA.parent / "tests" / "data" / "gpu_metrics.json").read_text())
NAMES = re.compile(r"\bsilkrec_\w+")
GPU_PHASE = "m: 64 clients without a pause"


@dataclass(frozen=True)
class Target:
    """One query of a panel as Grafana would send it."""

    where: str
    expr: str


def targets() -> list[Target]:
    found = []
    for board in BOARDS:
        for panel in as_json(board)["panels"]:
            for query in panel.get("targets", []):
                expr = query["expr"]
                for name, value in VARIABLES.items():
                    expr = expr.replace(name, value)
                assert "$" not in expr, f"{board.name}: {panel['title']}: a variable that this test does not know"
                found.append(Target(f"{board.name}: {panel['title']}: {query['legendFormat']}", expr))
    return found


def recorded_series() -> list[Target]:
    """What the rules write down, by the names under which it can be asked for."""
    groups = yaml.safe_load((INFRA / "prometheus" / "rules" / "recording.yml").read_text())["groups"]
    return [Target(f"rule {rule['record']}", rule["record"]) for group in groups for rule in group["rules"]]


@contextlib.contextmanager
def gpu_exporter() -> Iterator[str]:
    """What an engine on a GPU said, a recorded sample a scrape."""
    app, scrapes, rows = FastAPI(), count(), RECORDED["phases"][GPU_PHASE]

    @app.get("/metrics")
    def metrics() -> Response:
        row = rows[next(scrapes) % len(rows)]
        lines = [f"silkrec_inference_{name} {value}" for name, value in row.items()]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    with listening(app) as url:
        yield url


def known(url: str) -> set[str]:
    """Metrics that some process declared, counted or not."""
    answer = httpx.get(f"{url}/api/v1/metadata", timeout=10, trust_env=False)
    return set(answer.raise_for_status().json()["data"])


def ask(url: str, expr: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each series that has one."""
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expr}, timeout=10, trust_env=False)
    assert answer.status_code == 200, f"{expr}: {answer.text}"
    rows = answer.json()["data"]["result"]
    found = [(row["metric"], float(row["value"][1])) for row in rows]
    return [(labels, value) for labels, value in found if not math.isnan(value)]


@contextlib.contextmanager
def watched(suite: Suite, folder: Path, gpu: str) -> Iterator[str]:
    services = {name: f"http://127.0.0.1:{suite.ports[name]}" for name in ("features", "inference", "jobs")}
    often = {f"{name}: 10s": f"{name}: 500ms" for name in ("scrape_interval", "evaluation_interval")}
    with prometheus(
        folder,
        [("recommender", suite.url), *services.items(), ("gpu", gpu)],
        f"http://127.0.0.1:{free_port()}",
        {**often, "scrape_timeout: 5s": "scrape_timeout: 500ms", "refresh_interval: 10s": "refresh_interval: 1s"},
        {},
    ) as url:
        yield url


def use(suite: Suite) -> None:
    """What people and back ends do in a day: writes, shelves, an experiment, mistakes, and a job."""
    http, mark = suite.http, uuid.uuid4().hex[:8]
    done = (
        http.post("/v1/experiments", json=experiment()),
        http.post(f"/v1/experiments/{EXPERIMENT}:start", json={}),
        suite.send([event(f"b-{mark}", number) for number in range(20)]),
        http.put(f"/v1/items/new-{mark}", json={"title": "Item new", "properties": {"brand": "b1"}}),
        http.put(f"/v1/users/u-{mark}", json={"properties": {}}),
        http.post("/v1/recommend", json={"user_id": "u1", "exclude_item_ids": [f"item-{n}" for n in range(0, 80, 2)]}),
        http.get("/v1/popular"),
        http.get("/v1/items/item-1/similar"),
        http.post("/v1/rank", json={"user_id": "u1", "input_list": ["item-1", "item-2"]}),
        http.get("/dashboard"),
    )
    for answer in done:
        assert answer.status_code < 300, f"{answer.request.url}: {answer.text}"
    refused = (
        http.get("/v1/items/nobody-put-it"),
        http.put("/v1/feedback/u1/item-1/like"),  # the shop declares no likes
        httpx.post(f"http://127.0.0.1:{suite.ports['inference']}/v2/models/none/infer", json={"inputs": []}),
    )
    for answer in refused:
        assert 400 <= answer.status_code < 500, f"{answer.request.url}: {answer.status_code} {answer.text}"


def experiment() -> dict[str, Any]:
    variants = [{"key": key, "weight": 0.5} for key in ("control", "treatment")]
    return {"key": EXPERIMENT, "owner": "Ann", "hypothesis": "Boards show it", "variants": variants}


def submit(suite: Suite) -> str:
    answer = suite.http.post("/v1/jobs", json={"type": "slate", "params": {"segment": "*", "outputs": ["database"]}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def test_every_panel_and_every_rule_shows_something_of_a_suite_in_use(suite: Suite, tmp_path: Path) -> None:
    with needed():
        program("prometheus")
    asked = [*targets(), *recorded_series()]
    empty = list(asked)

    def shown() -> bool:
        empty[:] = [target for target in empty if not ask(url, target.expr)]
        return not empty

    with gpu_exporter() as gpu, watched(suite, tmp_path / "prometheus", gpu) as url, FrontEnd(suite) as front:
        # A rate needs a sample from before.
        until(lambda: {labels["service"] for labels, up in ask(url, "up") if up} >= SCRAPED, "every target is asked")
        until(lambda: ask(url, "silkrec_jobs_worker_looks_total"), "the worker's processes count")
        use(suite)
        job_id = submit(suite)
        until(lambda: suite.recommend("u1")["experiments"], "slates of the experiment")
        try:
            with contextlib.suppress(AssertionError):  # what is empty says more than that something is
                until(shown, "every panel", SHOWN_S)
            until(lambda: suite.http.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded", "the job's end")
        finally:
            suite.http.post(f"/v1/experiments/{EXPERIMENT}:stop", json={}).raise_for_status()
        assert not empty, "\n".join(f"{target.where}\n    {target.expr}" for target in empty)
        assert not front.failures, front.failures
        # A 0 that stands in for no series must not hide that nobody has the metric.
        rare = {name for target in asked if "vector(0)" in target.expr for name in NAMES.findall(target.expr)}
        assert rare
        assert not rare - known(url)
        of_gpu = [target for target in asked if re.search(r"inference_(gpu|memory)_", target.expr)]
        assert len(of_gpu) >= 5
        instance = gpu.removeprefix("http://")
        told = ask(url, "max by (instance) (silkrec_inference_gpu_utilisation_ratio)")
        assert {value for labels, value in told if labels["instance"] == instance} <= {
            row["gpu_utilisation_ratio"] for row in RECORDED["phases"][GPU_PHASE]
        }
        assert instance in {labels["instance"] for labels, _ in told}
    until(lambda: not suite.recommend("u1")["experiments"], "slates without the experiment")
