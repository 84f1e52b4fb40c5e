"""The committed openapi.json, thrown at the real applications: recommender and features behind one URL, on SQLite.

Redis and inference are not there, so every fallback is under fire as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from services.cli.openapi import FILE
from services.features import app as features
from services.recommender import app as recommender
from shared.settings.load import Loaded
from shared.settings.roots import AuthSettings, FeaturesSettings, RecommenderSettings, Settings
from shared.storage import migrate
from shared.storage.database import Database
from tests.http_server import free_listener, listening, url_of

pytestmark = pytest.mark.integration

# 6 examples an operation and mode take about 60 s together on two cores.
EXAMPLES = 6
TIMEOUT_S = 15.0
schema = schemathesis.openapi.from_dict(orjson.loads(FILE.read_bytes()))


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("schemathesis")
    with contextlib.ExitStack() as stack:
        writing = free_listener()
        configured = _settings(folder, url_of(writing))
        database = Database(configured.database_url(), configured.database)
        migrate.upgrade(database)
        database.close()
        loaded = Loaded(configured, {}, None)
        stack.enter_context(listening(features.build(loaded), writing))
        url = stack.enter_context(listening(recommender.build(loaded)))
        _seed(url)
        yield url


def _settings(folder: Path, features_url: str) -> Settings:
    return Settings(
        home=folder,
        auth=AuthSettings(),
        recommender=RecommenderSettings(features_url=features_url, deadline_ms=1000),
        features=FeaturesSettings(),
    )


def _seed(url: str) -> None:
    """A few items, so that answers have something in them."""
    items = [{"item_id": f"item-{number}", "title": f"Item {number}", "categories": ["a"]} for number in range(20)]
    answer = httpx.post(f"{url}/v1/items", json={"items": items}, timeout=TIMEOUT_S, trust_env=False)
    assert answer.status_code < 300, answer.text


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_answered_with_a_500_and_every_refusal_is_a_problem(
    case: schemathesis.Case[Any], base_url: str
) -> None:
    answer = case.call(base_url=base_url, timeout=TIMEOUT_S)
    said = f"{case.method} {case.path}: {answer.status_code} {answer.text[:500]}"
    # 503 and 504 are honest here: stores are missing on purpose. Anything else above is a fault of ours.
    assert answer.status_code < 500 or answer.status_code in (503, 504), said
    if answer.status_code >= 400 and case.path != "/ready":
        assert answer.headers["content-type"] == ["application/problem+json"], said
        problem = orjson.loads(answer.content)
        assert problem["status"] == answer.status_code, said
        assert {"type", "title", "detail", "code", "request_id", "errors"} <= problem.keys(), said
