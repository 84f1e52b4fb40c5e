"""`silkrec serve all` in processes of its own, with a small shop in it, and a front end that keeps asking."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.servers import free_port

USERS, ITEMS, EVENTS_EACH = 60, 80, 16
READY_S, CHANGE_S, STOP_S = 90.0, 60.0, 30.0
# The public promise is 68 ms on a machine of its own. Tests share two cores with whatever else runs there, so they ask
# for a wider deadline and then allow nothing beyond it.
DEADLINE_MS = 400
_DECLARED = {
    "scenes": {"home": {"weights": {"click": 1.0, "purchase": 2.0}, "hide_seen": False}},
    "event_types": {
        "impression": {"code": 1, "in_history": False, "marks_seen": False, "sentiment": "neutral", "popularity": 0.0},
        "click": {"code": 2, "marks_seen": False},
        "purchase": {"code": 5, "popularity": 2.0},
    },
    "item_fields": {"brand": {"type": "string", "feature": True}},
}


def until(check: Callable[[], Any], what: str, within_s: float = CHANGE_S) -> Any:
    """Asks again until `check` is true and gives its answer; an unanswered call is a no."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(httpx.HTTPError):
            found = check()
            if found:
                return found
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.05)


@dataclass
class Suite:
    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    http: httpx.Client
    ports: dict[str, int]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['recommender']}"

    def silkrec(self, *arguments: str, failing: bool = False) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "services.cli.main", *arguments, "--json"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == int(failing), f"silkrec {' '.join(arguments)}: {done.stdout}{done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer

    def running(self) -> dict[str, dict[str, Any]]:
        """What the supervisor says of its children; empty before it says anything."""
        try:
            told: dict[str, dict[str, Any]] = json.loads((self.folder / "var/run/suite.json").read_text())["services"]
        except (FileNotFoundError, ValueError):
            return {}
        return told

    def kill(self, name: str) -> None:
        os.kill(self.running()[name]["pid"], signal.SIGKILL)

    def starts(self, name: str) -> int:
        return int(self.running().get(name, {}).get("starts", 0))

    def recommend(self, user_id: str, **options: Any) -> dict[str, Any]:
        body = {"user_id": user_id, "count": 10, "deadline_ms": DEADLINE_MS, **options}
        answer = self.http.post("/v1/recommend", json=body)
        assert answer.status_code == 200, answer.text
        slate: dict[str, Any] = answer.json()
        return slate

    def send(self, events: list[dict[str, Any]]) -> httpx.Response:
        return self.http.post("/v1/events", json={"events": events})

    def event_ids(self, user_id: str) -> set[str]:
        """What the database holds of a user."""
        answer = self.http.get(f"/v1/users/{user_id}/export")
        if answer.status_code == 404:
            return set()
        assert answer.status_code == 200, answer.text
        rows = [json.loads(line) for line in answer.text.splitlines()]
        return {row["event_id"] for row in rows if row["kind"] == "event"}

    def until_restarted(self, name: str, starts: int) -> None:
        until(lambda: self.starts(name) > starts, f"the supervisor starts {name} again")

    def until_stored(self, recommendation_id: str) -> None:
        """The journal was drained that far."""
        path = f"/v1/recommendations/{recommendation_id}"
        until(lambda: self.http.get(path).status_code == 200, f"{path} is 200")

    def until_answers(self, url: str, within_s: float = CHANGE_S) -> None:
        until(lambda: httpx.get(url, trust_env=False).status_code == 200, f"{url} is 200", within_s)

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in (self.folder / "log").glob("*.log")
        )


def event(user_id: str, number: int, *, item: int | None = None, at: datetime | None = None) -> dict[str, Any]:
    chosen = random.Random(number).randrange(ITEMS) if item is None else item
    return {
        "event_id": f"e-{user_id}-{number}",
        "event_type": "click",
        "user_id": user_id,
        "item_id": f"item-{chosen}",
        "occurred_at": (at or datetime.now(UTC)).isoformat(),
    }


def declare(folder: Path) -> Path:
    """The shop's silkrec.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "silkrec.yaml"
    path.write_text(yaml.safe_dump(_DECLARED))
    return path


@contextlib.contextmanager
def serve_all(folder: Path, config: Path | None = None, **settings: str) -> Iterator[Suite]:
    """Ready to answer. `config`: instead of the shop's own; `settings`: environment variables without their SILKREC_
    prefix."""
    ports = {name: free_port() for name in ("recommender", "features", "inference", "grpc", "jobs")}
    config = config or declare(folder)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SILKREC_")},
        "SILKREC_CONFIG": str(config),
        "SILKREC_RECOMMENDER__PORT": str(ports["recommender"]),
        "SILKREC_FEATURES__PORT": str(ports["features"]),
        "SILKREC_INFERENCE__PORT": str(ports["inference"]),
        "SILKREC_INFERENCE__GRPC_PORT": str(ports["grpc"]),
        "SILKREC_JOBS__PORT": str(ports["jobs"]),
        **{f"SILKREC_{name}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "services.cli.main", "serve", "all", "--log-dir", str(folder / "log")]
    with (folder / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{ports['recommender']}", timeout=20, trust_env=False) as http:
        suite = Suite(folder, environment, process, http, ports)
        try:
            wait_ready(suite)
            yield suite
        except BaseException:
            print(suite.logs())
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            finally:
                process.kill()


def wait_ready(suite: Suite) -> None:
    for name, path in (("features", "/ready"), ("inference", "/health"), ("recommender", "/ready")):
        suite.until_answers(f"http://127.0.0.1:{suite.ports[name]}{path}", READY_S)


def fill(suite: Suite) -> None:
    """A shop whose users like one of four brands, an index without a model, then a model and its index."""
    items = [
        {
            "item_id": f"item-{n}",
            "title": f"Item {n}",
            "categories": [f"c{n % 4}"],
            "properties": {"brand": f"b{n % 4}"},
        }
        for n in range(ITEMS)
    ]
    answer = suite.http.post("/v1/items", json={"items": items})
    assert answer.status_code < 300, answer.text
    began, dice = datetime.now(UTC) - timedelta(days=2), random.Random(7)
    rows = []
    for user in range(USERS):
        for place in range(EVENTS_EACH):
            item = dice.randrange(ITEMS // 4) * 4 + user % 4
            rows.append(event(f"u{user}", place, item=item, at=began + timedelta(minutes=place)))
    for start in range(0, len(rows), 500):
        answer = suite.send(rows[start : start + 500])
        assert answer.status_code == 202, answer.text
        assert not answer.json()["rejected"]


def train_and_promote(suite: Suite) -> str:
    """Seconds of training: what it learns does not matter here. Returns the release, once slates come from it."""
    model = suite.silkrec("train", "--minutes", "0.1")["model_version"]
    index = suite.silkrec("index", "build", "--model", model)["index_version"]
    release = str(suite.silkrec("releases", "promote", "--model", model, "--index", index)["release"])

    def served() -> bool:
        slate = suite.recommend("u1")
        return slate["release"] == release and slate["model_version"] == model and not slate["degraded_stages"]

    until(served, f"slates of {release} that give nothing up")
    return release


@dataclass
class Answer:
    took_ms: float
    status: int
    slate: dict[str, Any] = field(repr=False)

    @property
    def gave_up(self) -> set[str]:
        return {row["stage"] for row in self.slate.get("degraded_stages", [])}


class FrontEnd:
    """Asks for slates of random users, one after the other, from a thread, for as long as the block lasts."""

    def __init__(self, suite: Suite) -> None:
        self._address = f"127.0.0.1:{suite.ports['recommender']}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.answers: list[Answer] = []
        self.failures: list[str] = []

    def __enter__(self) -> FrontEnd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def until_more(self, count: int) -> None:
        goal = len(self.answers) + count
        until(lambda: len(self.answers) >= goal or self.failures, f"{count} more answers")
        assert not self.failures, self.failures[:3]

    def _ask(self) -> None:
        with contextlib.closing(http.client.HTTPConnection(self._address, timeout=20)) as connection:
            dice = random.Random(11)
            while not self._stop.wait(0.01) and self._one(connection, f"u{dice.randrange(USERS)}"):
                continue

    def _one(self, connection: http.client.HTTPConnection, user_id: str) -> bool:
        body = json.dumps({"user_id": user_id, "deadline_ms": DEADLINE_MS})
        began = time.perf_counter()
        try:
            connection.request("POST", "/v1/recommend", body, {"content-type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except OSError as error:
            self.failures.append(repr(error))
            return False
        took_ms = (time.perf_counter() - began) * 1000
        self.answers.append(Answer(took_ms, response.status, json.loads(content)))
        return True
