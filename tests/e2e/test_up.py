from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from services.cli.up.down import DATA
from tests.conftest import needed
from tests.e2e.suite import until
from tests.nginx import INFRA
from tests.servers import free_port, program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
_PORTS = ("RECOMMENDER__PORT", "FEATURES__PORT", "INFERENCE__PORT", "INFERENCE__GRPC_PORT", "ALERTS__PORT")


def silkrec(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli.main", *arguments]
    environment = json.loads((folder / "environment.json").read_text())
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes that were told of the folder, by argument or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), *process.environ().values()]
            if any(str(folder) in word for word in told) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:  # gone meanwhile, or not ours to look at
            continue
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with needed():
        for names in (("nginx",), ("prometheus",), ("prometheus-alertmanager", "alertmanager"), ("envsubst",)):
            program(*names)
    place = tmp_path / "a clone"
    place.mkdir()
    (place / "silkrec.yaml").touch()
    told = {name: value for name, value in os.environ.items() if tmp_path.name not in value}
    told |= {f"SILKREC_{name}": str(free_port()) for name in _PORTS}
    told |= {"SILKREC_CONFIG": str(place / "silkrec.yaml"), "SILKREC_ALERTS__WECOM__KEY": "a-key"}
    (place / "environment.json").write_text(json.dumps(told))
    return place


def up(folder: Path) -> dict[str, Any]:
    doors = [f"SILKREC_NGINX_{name}=127.0.0.1:{free_port()}" for name in ("INFERENCE_LISTEN", "GRPC_LISTEN")]
    (folder / "nginx.env").write_text("\n".join(doors))
    ports = [f"--{name}=127.0.0.1:{free_port()}" for name in ("listen", "prometheus", "alertmanager")]
    given = [f"--infra={INFRA.parent}", f"--nginx-env={folder / 'nginx.env'}", "--json"]
    done = silkrec(folder, "up", *ports, *given)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def asked_by(prometheus: str) -> set[str]:
    targets = httpx.get(f"{prometheus}/api/v1/targets", trust_env=False).json()["data"]["activeTargets"]
    return {target["labels"]["service"] for target in targets}


def test_up_starts_a_monitored_suite_once_and_down_leaves_its_data_but_no_process(folder: Path) -> None:
    try:
        told = up(folder)
        with httpx.Client(base_url=told["urls"]["nginx"], trust_env=False, timeout=20) as http:
            assert http.get("/ready").json()["ready"] is True
            answer = http.post("/v1/items", json={"items": [{"item_id": "i1", "title": "one"}]})
            assert answer.status_code < 300, answer.text
        expected = {"recommender", "features", "inference", "alerts", "prometheus", "alertmanager"}
        until(lambda: asked_by(told["urls"]["prometheus"]) >= expected, "Prometheus asks all of them")
        assert up(folder) == told, "the second call says what runs"
    finally:
        ended = silkrec(folder, "down")
    assert ended.returncode == 0, ended.stderr
    assert processes_of(folder) == []
    state = folder / "var"
    assert (state / "silkrec.db").stat().st_size > 0
    assert {path.name for path in state.iterdir()} <= set(DATA), "what down --delete-data does not know"
    removed = silkrec(folder, "down", "--delete-data", "--yes")
    assert removed.returncode == 0, removed.stderr
    assert list(state.iterdir()) == []


def test_a_port_that_is_taken_is_one_line_before_anything_starts(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = silkrec(folder, "up", f"--listen={address}", f"--infra={INFRA.parent}")
    assert done.returncode == 2
    assert f"{address}: Address already in use; choose another by --listen" in done.stderr
    assert processes_of(folder) == []


def test_nobody_else_reaches_a_suite_without_keys(folder: Path) -> None:
    done = silkrec(folder, "up", f"--listen=0.0.0.0:{free_port()}", f"--infra={INFRA.parent}")
    assert done.returncode == 2
    assert "silkrec keys create server" in done.stderr
