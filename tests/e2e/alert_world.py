"""A suite whose every process can be harmed alone, and all that carries its alerts to two robots.

The recommender's state lies on a small disk of its own (a tmpfs in a mount namespace), so that a full disk harms nobody
else. Two engines: one serves, the other cannot read its model.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from services.alerts import app as alerts
from services.inference.model.config import ModelConfig
from shared.contracts.manifest import Release
from shared.settings.load import load_settings
from shared.settings.roots import DatabaseSettings
from shared.storage import backup_time, deployments, migrate
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from tests.e2e.alert_messages import named
from tests.e2e.suite import declare
from tests.http_server import listening
from tests.inference_models import publish
from tests.prometheus import INFRA, alertmanager, prometheus
from tests.recorded_gpu import BUSY, FRAGMENTED, recorded
from tests.robots import KEY, SECRET, TOKEN, Robots
from tests.servers import MariaDB, Process, RedisServer, free_port
from tests.unit.recommender.indexes import DIM, put_index

SCHEMA = "alerts"
ITEMS, DISK_MB = 60, 16
# Until both robots were told, from the moment that something broke: windows and `for` take up to 17 s of it.
TOLD_S = 60.0
OLD = timedelta(days=4)
MODEL = ModelConfig(
    vocabulary=ITEMS + 1, actions=(2,), d_model=DIM, n_layers=2, n_heads=2, kv_lora_rank=8, qk_nope_head_dim=4,
    qk_rope_head_dim=4, v_head_dim=8, intermediate_size=32, content_tokens=0, max_history=40,
)  # fmt: skip
# A robot takes 20 messages a minute; where minutes of rules last seconds, so do its own.
FASTER = 30
_MAIN = "from services.cli.main import main; main()"


@dataclass
class World:
    robots: Robots
    database: MariaDB
    redis: RedisServer
    processes: dict[str, Process] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    disk: Path = Path()
    targets: list[tuple[str, str]] = field(default_factory=list)
    manager: str = ""

    def until_told(self, *names: str, resolved: bool = False) -> None:
        """Both robots, of each of these alerts."""

        def missing() -> set[tuple[str, str]]:
            wanted = {(vendor, name) for vendor in ("dingtalk", "wecom") for name in names}
            told = {(vendor, name) for vendor, text in self.robots.told for name in named(text, resolved=resolved)}
            return wanted - told

        with self.robots.heard:
            self.robots.heard.wait_for(lambda: not missing(), TOLD_S)
            assert not missing(), f"not told{' of the end' if resolved else ''}: {sorted(missing())}"

    def addresses(self) -> dict[str, str]:
        """Of this run, and the default ones of their services."""
        found = {urlsplit(url).netloc: _DEFAULT[service] for service, url in self.targets}
        return {**found, urlsplit(self.manager).netloc.replace("127.0.0.1", socket.gethostname()): _DEFAULT["manager"]}

    def fill_disk(self) -> None:
        with self.filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    @property
    def filler(self) -> Path:
        """On the recommender's disk, seen from outside its namespace."""
        process = self.processes["recommender"].process
        assert process is not None
        return Path(f"/proc/{process.pid}/root{self.disk}/filler")


@contextlib.contextmanager
def world(folder: Path, database: MariaDB, redis: RedisServer) -> Iterator[World]:
    """Everything runs and is ready; nothing is wrong but what is old: index and backup."""
    robots = Robots()
    ours = World(robots, database, redis)
    with contextlib.ExitStack() as stack:
        vendors = stack.enter_context(listening(robots.app()))
        told = load_settings(env={}, overrides=_robots_at(vendors, folder))
        receiver = stack.enter_context(listening(alerts.build(told, clock=lambda: time.monotonic() * FASTER)))
        cards = [stack.enter_context(listening(recorded(phase))) for phase in (BUSY, FRAGMENTED)]
        manager = stack.enter_context(alertmanager(folder / "alertmanager", receiver, _SOON))
        _start(ours, folder, stack)
        ours.targets = [(name.split(" ")[0], url) for name, url in ours.urls.items()]
        ours.targets += [("alerts", receiver), *(("inference", card) for card in cards)]
        ours.manager = manager
        stack.enter_context(prometheus(folder / "prometheus", ours.targets, manager, _OFTEN, _SHORT))
        yield ours


_SOON = {
    "group_wait: 10s": "group_wait: 100ms",
    "group_wait: 5s": "group_wait: 100ms",
    "group_wait: 1m": "group_wait: 100ms",
    "group_interval: 1m": "group_interval: 500ms",
}
# Half an hour without a chunk.
_SHORT = {"> 1800": "> 3"}
_DEFAULT = {
    "recommender": "127.0.0.1:8080",
    "features": "127.0.0.1:8081",
    "inference": "127.0.0.1:8082",
    "jobs": "127.0.0.1:8084",
    "alerts": "127.0.0.1:8085",
    "manager": "127.0.0.1:9093",
}
_OFTEN = {name + ": 10s": name + ": 500ms" for name in ("scrape_interval", "evaluation_interval")} | {
    "scrape_timeout: 5s": "scrape_timeout: 500ms",
    "refresh_interval: 10s": "refresh_interval: 1s",
}


def _robots_at(vendors: str, folder: Path) -> dict[str, Any]:
    return {
        "state_dir": folder / "alerts",
        "alerts.dingtalk.access_token": TOKEN,
        "alerts.dingtalk.secret": SECRET,
        "alerts.dingtalk.url": f"{vendors}/robot/send",
        "alerts.wecom.key": KEY,
        "alerts.wecom.url": f"{vendors}/cgi-bin/webhook/send",
    }


def _start(ours: World, folder: Path, stack: contextlib.ExitStack) -> None:
    schema = ours.database.create_schema(SCHEMA)
    ours.disk = folder / "disk"
    ours.disk.mkdir(parents=True)
    artifacts = folder / "artifacts"
    _prepare(schema, artifacts)
    serving = load_settings(env={}, overrides={"state_dir": folder / "inference"}).settings
    redis = ours.redis.url.removesuffix("0")
    common = {
        "CONFIG": str(declare(folder)),
        "DATABASE__URL": schema,
        "REDIS__URL": redis + "6",
        "BROKER__URL": redis + "7",
        "ARTIFACTS__URL": f"file://{artifacts}",
        "RECOMMENDER__INFERENCE_TARGETS": f'["{serving.inference_targets()[0]}"]',
        "RECOMMENDER__REFRESH_S": "0.5",
        "RECOMMENDER__ANALYSIS_INTERVAL_S": "1",
        "INFERENCE__GRPC_PORT": "-1",
        "INFERENCE__CACHE__DEVICE_MB": "1",
        "INFERENCE__CACHE__PAGE_ROWS": "512",
        "INFERENCE__DYNAMIC_BATCHING__MAX_BATCH_SIZE": "8",
    }
    disk = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    disk += [f'mount -t tmpfs -o size={DISK_MB}m silkrec "$0" && exec "$@"', str(ours.disk)]
    for name, own, before in (
        ("inference", {"STATE_DIR": str(folder / "inference")}, []),
        (
            "inference without a model",
            {"STATE_DIR": str(folder / "other"), "ARTIFACTS__URL": f"file://{folder}/none"},
            [],
        ),
        ("recommender", {"STATE_DIR": str(ours.disk)}, disk),
        ("jobs", {"STATE_DIR": str(folder / "jobs")}, []),
        ("features", {"STATE_DIR": str(folder / "features")}, []),
    ):
        service, port = name.split(" ")[0], free_port()
        told = {**common, **own, f"{service.upper()}__PORT": str(port)}
        environment = {**os.environ, **{f"SILKREC_{key}": value for key, value in told.items()}}
        url = f"http://127.0.0.1:{port}"
        path = "/ready" if name in ("inference", "recommender") else "/health"
        command = [*before, sys.executable, "-c", _MAIN, "serve", service]
        ours.urls[name] = url
        ours.processes[name] = Process(command, folder / f"{name}.log", _answers(url + path), environment=environment)
    with ThreadPoolExecutor(len(ours.processes)) as starting:
        for process in ours.processes.values():
            stack.callback(process.kill)
        list(starting.map(Process.start, ours.processes.values()))


def _prepare(schema: str, artifacts: Path) -> None:
    """A release that was built four days ago, by which time the last backup was made too."""
    store = ArtifactStore(artifacts)
    publish(store, "m-1", MODEL, names={2: "click"})
    put_index(store, "i-1", items=ITEMS + 1, model_version="m-1", created_at=datetime.now(UTC) - OLD)
    database = Database(schema, DatabaseSettings())
    try:
        migrate.upgrade(database)
        release = Release(release="r-1", model_version="m-1", index_version="i-1")
        with database.write() as connection:
            deployments.promote(connection, release, settings={}, actor="test")
            backup_time.tell(connection, round((datetime.now(UTC) - OLD).timestamp() * 1e6))
    finally:
        database.close()


def alert_names() -> list[str]:
    """As the rules have them."""
    groups = yaml.safe_load((INFRA / "prometheus" / "rules" / "alerts.yml").read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"]]


def _answers(url: str) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            return httpx.get(url, timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    return answers
