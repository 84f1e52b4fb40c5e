"""What the engine is told by the rest of the suite: items that came after training, and users who are gone."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.suite import Suite, event, until

pytestmark = pytest.mark.e2e


def counted(suite: Suite, name: str, **labels: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{suite.ports['inference']}/metrics", trust_env=False).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(s.value for s in samples if s.name == f"silkrec_inference_{name}" and labels.items() <= s.labels.items())


def test_a_new_item_reaches_the_engine_and_a_restarted_engine_is_told_again(suite: Suite) -> None:
    item = {"item_id": "item-new", "title": "Item new", "categories": ["c1"], "properties": {"brand": "b1"}}
    assert suite.http.post("/v1/items", json={"items": [item]}).json()["accepted"] == 1
    until(lambda: counted(suite, "upserted_items_total", outcome="taken") >= 1, "the engine took the new item")
    starts = suite.starts("inference")
    suite.kill("inference")
    suite.until_restarted("inference", starts)
    until(lambda: counted(suite, "upserted_items_total", outcome="taken") >= 1, "the new engine took it too")
    until(lambda: not suite.recommend("u1")["degraded_stages"], "slates that give nothing up")


def test_a_deleted_users_latents_are_confirmed_to_be_gone(suite: Suite) -> None:
    assert suite.send([event("leaver", number) for number in range(3)]).status_code == 202
    until(lambda: not suite.recommend("leaver")["degraded_stages"], "a slate by the model")
    before = counted(suite, "forgotten_rows_total")
    answer = suite.http.delete("/v1/users/leaver")
    assert answer.status_code == 202, answer.text
    path = f"/v1/deletions/{answer.json()['deletion_id']}"
    until(lambda: suite.http.get(path).json()["receipts"]["latents"]["state"] == "done", "the receipt of latents")
    assert suite.http.get(path).json()["receipts"]["latents"]["engines"] == 1
    assert counted(suite, "forgotten_rows_total") > before
