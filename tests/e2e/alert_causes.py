"""What goes wrong in a running suite, side by side: the cause of each alert, as an operator would meet it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.e2e.alert_world import ITEMS, SCHEMA, World
from tests.e2e.suite import event, until
from tests.unit.experiments.written import body

USERS, ROWS = 60, 30
FEW = [f"u{number}" for number in range(4)]
ALL = [f"u{number}" for number in range(USERS)]
STRANGERS = [f"stranger{number}" for number in range(120)]
ENDED = ["SilkrecDiskLow", "SilkrecEmptySlates", "SilkrecLatencyP99High"]


def post(url: str, path: str, **sent: Any) -> httpx.Response:
    return httpx.post(url + path, json=sent, timeout=20, trust_env=False)


def fill(world: World) -> None:
    """Items, and users with histories."""
    features = world.urls["features"]
    items = [{"item_id": f"item-{n}", "title": f"Item {n}", "categories": ["c"]} for n in range(ITEMS)]
    assert post(features, "/v1/items", items=items).status_code < 300
    began, dice = datetime.now(UTC) - timedelta(days=1), random.Random(7)
    rows = [
        event(user, place, item=dice.randrange(ITEMS), at=began + timedelta(minutes=place))
        for user in ALL
        for place in range(ROWS)
    ]
    for start in range(0, len(rows), 500):
        assert post(features, "/v1/events", events=rows[start : start + 500]).status_code == 202


@contextlib.contextmanager
def asked(
    world: World, users: Sequence[str], *, clients: int = 1, pause_s: float = 0.02, **options: Any
) -> Iterator[None]:
    """Slates of `users`, in turn, by so many clients that each wait for their answer and `pause_s`."""
    end, turn = threading.Event(), itertools.cycle(users)
    address = urlsplit(world.urls["recommender"]).netloc

    def ask() -> None:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=20)) as connection:
            while not end.wait(pause_s):
                content = json.dumps({"user_id": next(turn), "count": 5, **options})
                try:
                    connection.request("POST", "/v1/recommend", content, {"content-type": "application/json"})
                    connection.getresponse().read()
                except (OSError, http.client.HTTPException):
                    connection.close()

    askers = [threading.Thread(target=ask) for _ in range(clients)]
    for asker in askers:
        asker.start()
    try:
        yield
    finally:
        end.set()
        for asker in askers:
            asker.join()


def cause_everything(world: World) -> None:
    """Returns once both robots were told of each alert, and of the end of some."""
    fill(world)
    _old_things_and_another_engine(world)
    _stores_and_a_disk(world)
    _too_many_requests(world)
    _engine_and_database_gone(world)


def _old_things_and_another_engine(world: World) -> None:
    """Index and backup were made four days ago; an engine finds no model; the GPU's metrics are replayed. Few users
    come meanwhile, whose latents are at hand: the usual day that the cache's alert compares with."""
    with _half_an_experiment(world), asked(world, FEW):
        world.until_told(
            "SilkrecBackupOld",
            "SilkrecEngineDown",
            "SilkrecGpuBusy",
            "SilkrecIndexStale",
            "SilkrecMemoryFragmented",
            "SilkrecSampleRatioMismatch",
        )


@contextlib.contextmanager
def _half_an_experiment(world: World) -> Iterator[None]:
    """Strangers meet both variants; the exposures of one are thrown away, and the suite builds its results."""
    recommender, rows = world.urls["recommender"], f"FROM {SCHEMA}.exposures WHERE experiment = 'mmr'"
    assert post(recommender, "/v1/experiments", **body()).status_code == 201
    assert post(recommender, "/v1/experiments/mmr:start").status_code == 200
    with httpx.Client(base_url=recommender, timeout=20, trust_env=False) as client:

        def met(user: str) -> bool:
            answer = client.post("/v1/recommend", json={"user_id": user})
            assert answer.status_code in (200, 503), answer.text  # 503: nothing was read yet
            return answer.is_success and bool(answer.json()["experiments"])

        until(lambda: met("first"), "the experiment is known")
        assert all(met(user) for user in STRANGERS)
    until(lambda: world.database.value(f"SELECT COUNT(*) {rows}") > len(STRANGERS), "the journal is drained")
    world.database.execute(f"DELETE {rows} AND variant = 'diverse'")
    yield


def _stores_and_a_disk(world: World) -> None:
    """More users than the latent cache holds; somebody's filter lets nothing pass; the recommender's disk is full; a
    table is gone that this release writes. Redis is killed: users stay behind, and no worker hears of a job."""
    table = f"{SCHEMA}.recommendations"
    world.redis.kill()
    job = {"type": "prefill", "params": {"user_ids": ["u1"]}}
    assert post(world.urls["recommender"], "/v1/jobs", **job).status_code == 202
    with asked(world, ALL, clients=2), asked(world, ["nobody"], pause_s=0.1, filter="price > 0"):
        world.database.execute(f"RENAME TABLE {table} TO {table}_old")
        world.fill_disk()
        with _writing(world):
            world.until_told("SilkrecJobStuck", "SilkrecQueueGrowing")
        world.until_told(
            "SilkrecBackgroundDeaths",
            "SilkrecCacheHitsCollapsed",
            "SilkrecDiskLow",
            "SilkrecEmptySlates",
            "SilkrecSlatesLost",
        )
    world.redis.start()
    world.filler.unlink()
    world.database.execute(f"RENAME TABLE {table}_old TO {table}")


def _too_many_requests(world: World) -> None:
    """More than the engine can carry, while a robot's server fails. What was mended meanwhile is told."""
    world.robots.broken = 3
    with asked(world, ALL, clients=16, pause_s=0.0, deadline_ms=400):
        world.until_told(
            "SilkrecAlertsUndelivered", "SilkrecEngineQueueSlow", "SilkrecLatencyP99High", "SilkrecSloBurnFast"
        )
    world.until_told("SilkrecSloBurnSlow")
    world.until_told(*ENDED, resolved=True)


def _engine_and_database_gone(world: World) -> None:
    """The engine hangs, and the database is killed."""
    world.processes["inference"].send(signal.SIGSTOP)
    world.database.kill()
    with asked(world, ALL), _writing(world):
        world.until_told("SilkrecDegraded", "SilkrecTargetDown", "SilkrecWritesRefused")


@contextlib.contextmanager
def _writing(world: World) -> Iterator[None]:
    """An event of each of ever more users."""
    end, numbers = threading.Event(), itertools.count()

    def write() -> None:
        while not end.wait(0.2):
            rows = [event(f"new{number}", number) for number in itertools.islice(numbers, 400)]
            post(world.urls["features"], "/v1/events", events=rows)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        end.set()
        writer.join()
