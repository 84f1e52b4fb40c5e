"""`silkrec simulate` against an API of the test's own: what it sends, what it reports, and how it fails."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.cli.simulate.driver import Traffic, drive
from services.cli.simulate.report import as_dict
from services.cli.simulate.shop import Shop
from services.recommender.experiments.simulator.clicks import ClickModel
from services.recommender.experiments.simulator.users import arrivals, user_ids
from shared.errors import NotFound, SilkrecError, ValidationFailed

MODEL = ClickModel(seed=4)
GENRES = ("drama", "war", "noir", "comedy", "action", "crime")


@dataclass
class Api:
    """Users with an even number get slates of one category, the others varied ones; that is the experiment."""

    known: set[str] = field(default_factory=lambda: {"impression", "click", "purchase"})
    requests: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    turn_away_every: int = 0
    at_once: int = 0
    most_at_once: int = 0
    numbers: Any = field(default_factory=itertools.count)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/v1/events":
            return self._events(body["events"])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        self.requests.append(body)
        number = next(self.numbers)
        if self.turn_away_every and number % self.turn_away_every == 0:
            return httpx.Response(503, json={})
        varied = int(body["user_id"].rpartition("-")[2]) % 2
        genres = GENRES if varied else GENRES[:1] * len(GENRES)
        rows = [
            {"item_id": f"i{place}-{genre}", "properties": {"categories": [genre], "price": 3.5}}
            for place, genre in enumerate(genres)
        ]
        answer = {
            "recommendation_id": f"r{number}",
            "items": rows,
            "degraded_stages": [],
            "experiments": [{"key": "diversity", "variant": "varied" if varied else "plain"}],
        }
        return httpx.Response(200, json=answer)

    def _events(self, sent: list[dict[str, Any]]) -> httpx.Response:
        rejected = [
            {"index": place, "code": "unknown_event_type", "message": f"{event['event_type']} is not declared"}
            for place, event in enumerate(sent)
            if event["event_type"] not in self.known
        ]
        self.events += sent
        return httpx.Response(202, json={"accepted": len(sent) - len(rejected), "duplicates": 0, "rejected": rejected})


Handler = Callable[[httpx.Request], Any]


def simulated(api: Handler, *, requests: int = 300, users: int = 60, concurrency: int = 4, rate: float = 0) -> Traffic:
    async def inside() -> Traffic:
        async with httpx.AsyncClient(transport=httpx.MockTransport(api), base_url="http://shop") as http:
            planned = arrivals(user_ids(users, MODEL.seed), requests, rate, MODEL.seed)
            shop = Shop(http, scene="home", count=6)
            return await drive(shop, MODEL, planned, experiment="diversity", concurrency=concurrency)

    return asyncio.run(inside())


def reported(traffic: Traffic) -> dict[str, Any]:
    return as_dict(traffic, MODEL, "diversity", "plain")


def test_every_request_is_marked_and_every_slate_answered_with_what_its_user_did() -> None:
    api = Api()
    report = reported(simulated(api))
    assert len(api.requests) == 300
    assert all(body["context"] == {"silkrec_simulated": True} for body in api.requests)
    by_type = {kind: [e for e in api.events if e["event_type"] == kind] for kind in ("impression", "click", "purchase")}
    assert len(by_type["impression"]) == 300
    assert all(len(event["impression"]) == 6 for event in by_type["impression"])
    assert sum(row["clicks"] for row in report["variants"].values()) == len(by_type["click"]) > 0
    assert sum(row["purchases"] for row in report["variants"].values()) == len(by_type["purchase"]) > 0
    clicked = {(event["recommendation_id"], event["position"]) for event in by_type["click"]}
    assert all((event["recommendation_id"], event["position"]) in clicked for event in by_type["purchase"])
    assert all(event["event_value"] == 3.5 for event in by_type["purchase"])
    assert all(event["properties"] == {"simulated": True} for event in api.events)
    assert len({event["event_id"] for event in api.events}) == len(api.events)


def test_the_report_has_the_true_effect_beside_the_drawn_one() -> None:
    report = reported(simulated(Api(), requests=3_000, users=1_000, concurrency=16))
    effect = report["effects"]["varied"]
    assert effect["true"]["low"] > 0
    assert effect["sampled"]["low"] < effect["true"]["lift"] < effect["sampled"]["high"]
    for row in report["variants"].values():
        assert row["ctr"] == pytest.approx(row["expected_ctr"], rel=0.15)


def test_a_seed_has_one_result_however_many_lanes_there_are() -> None:
    assert reported(simulated(Api(), concurrency=1)) == reported(simulated(Api(), concurrency=16))


def test_no_more_requests_run_at_once_than_allowed() -> None:
    api = Api()
    simulated(api, concurrency=3)
    assert 1 < api.most_at_once <= 3


def test_requests_come_at_their_rate() -> None:
    async def inside() -> float:
        begin = asyncio.get_running_loop().time()
        async with httpx.AsyncClient(transport=httpx.MockTransport(Api()), base_url="http://shop") as http:
            planned = list(arrivals(user_ids(5, 1), 20, 200.0, 1))
            shop = Shop(http, scene="home", count=6)
            await drive(shop, MODEL, iter(planned), experiment=None, concurrency=4)
        return asyncio.get_running_loop().time() - begin - planned[-1].at_s

    assert asyncio.run(inside()) >= 0


def test_turned_away_requests_are_counted_and_not_clicked() -> None:
    traffic = simulated(Api(turn_away_every=10))
    assert traffic.refused == 30
    assert sum(tally.slates for tally in traffic.tallies.values()) == 270


def test_an_undeclared_event_type_is_named_with_what_to_do() -> None:
    with pytest.raises(ValidationFailed, match="needs impression, click, purchase under event_types"):
        simulated(Api(known={"click"}))


@pytest.mark.parametrize(
    ("status", "words"), [(401, "give it as --key"), (403, "server key"), (404, "answered 404"), (500, "answered 500")]
)
def test_a_refusal_ends_the_run_in_words(status: int, words: str) -> None:
    with pytest.raises(SilkrecError, match=words):
        simulated(lambda _request: httpx.Response(status, text="no"))


def test_an_experiment_that_nobody_met_is_an_error() -> None:
    traffic = simulated(Api())
    with pytest.raises(NotFound, match="no answer was of experiment 'other'"):
        as_dict(Traffic(tallies={"(none)": traffic.tallies["plain"]}, requests=1), MODEL, "other", None)
    with pytest.raises(NotFound, match="plain, varied"):
        as_dict(traffic, MODEL, "diversity", "nothing")


def test_without_a_suite_the_command_says_where_it_looked_and_how_to_start_one() -> None:
    result = CliRunner().invoke(app, ["simulate", "--url", "http://127.0.0.1:1", "--requests", "3"])
    assert isinstance(result.exception, SilkrecError)
    assert "http://127.0.0.1:1" in result.exception.detail
    assert "silkrec serve all" in result.exception.detail
