"""The route, the Parquet file and the report behind them, on real aggregates."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI

from services.recommender.experiments.analysis.build import build
from services.recommender.experiments.analysis.desk import Results
from services.recommender.experiments.analysis.export import export
from services.recommender.experiments.registry.store import StoredExperiment
from services.recommender.routes.experiment_results import router
from shared.errors import NotFound
from shared.observability.metrics import Metrics
from shared.settings.roots import Settings
from shared.storage.database import Database
from shared.web.app import create_app
from shared.web.health import Readiness
from tests.asgi import running
from tests.integration.experiments.analysis_world import ACTIONS, KNOWN, now_us, registered, slates, world
from tests.unit.web.example import KEYS

pytestmark = pytest.mark.integration
ADMIN = {"x-api-key": "sk_admin_x"}


class Registry:
    """Knows the world's experiment."""

    def get(self, key: str) -> StoredExperiment:
        if key != "shelf":
            raise NotFound(f"there is no experiment {key!a}")
        return StoredExperiment(registered(), 1)


@pytest.fixture
def built(database: Database) -> Database:
    made = world()
    made.write(database)
    slates(database, made)
    build(database, registered(), now_us(), known=KNOWN, actions=ACTIONS)
    return database


def app(database: Database) -> FastAPI:
    settings = Settings()

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        yield {"settings": settings, "keys": KEYS, "results": Results(database, Registry(), KNOWN, ACTIONS)}

    made = create_app(
        title="results", lifespan=lifespan, settings=settings, service="recommender", metrics=Metrics("recommender"),
        max_body_bytes=1000, ready=lambda: Readiness(True, {}),
    )  # fmt: skip
    made.include_router(router)
    return made


def ask(database: Database, path: str, headers: Mapping[str, str] = ADMIN) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with running(app(database)) as client:
            return await client.get(path, headers=dict(headers))

    return asyncio.run(asked())


def test_the_route_answers_every_number_as_json(built: Database) -> None:
    answer = ask(built, "/v1/experiments/shelf/results")
    assert answer.status_code == 200
    content = answer.json()
    assert content["metrics"][0]["metric"] == "ctr"
    assert content["conclusion"]["decision"] == "blocked"
    assert sum(one["units"] for one in content["variants"]) > 90


@pytest.mark.parametrize(("query", "accept"), [("?format=csv", "*/*"), ("", "text/csv")])
def test_the_route_answers_csv_to_whoever_asks_for_it(built: Database, query: str, accept: str) -> None:
    answer = ask(built, f"/v1/experiments/shelf/results{query}", {**ADMIN, "accept": accept})
    assert answer.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert {line["table"] for line in lines} >= {"variant", "metric", "quality", "lift", "segment"}


def test_only_an_admin_key_reads_results_and_an_unknown_experiment_is_a_404(built: Database) -> None:
    assert ask(built, "/v1/experiments/shelf/results", {"x-api-key": "sk_server_x"}).status_code == 403
    assert ask(built, "/v1/experiments/shelf/results", {}).status_code == 401
    assert ask(built, "/v1/experiments/other/results").status_code == 404


def test_the_parquet_file_holds_the_sums_of_every_day(built: Database, tmp_path: Path) -> None:
    path = tmp_path / "sums.parquet"
    rows = export(built, registered(), path)
    table = pq.read_table(path)
    assert table.num_rows == rows > 50
    last = [row for row in table.to_pylist() if row["metric"] == "revenue_per_unit" and row["variant"] == "control"]
    assert max(row["day"] for row in last).isoformat() == "2026-11-03"
    assert all(row["xx"] >= 0 and row["y"] is None for row in last if row["x"] is not None)
    assert [one.name for one in tmp_path.iterdir()] == ["sums.parquet"]
