"""The running suite of the demo: `silkrec serve all` in a process of its own, and other commands beside it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import httpx

from services.cli.supervisor import last_line
from shared.errors import SilkrecError

READY_S = 60.0
STOP_S = 20.0
_PORTS = {"recommender": 8080, "features": 8081, "inference": 8082, "inference.grpc": 8083, "jobs": 8084}
_TRIES = 200


@dataclass(frozen=True, slots=True)
class Place:
    """Where the demo's state lies and how its commands are called."""

    folder: Path
    environment: dict[str, str]

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    def silkrec(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "services.cli.main", *arguments]

    def run(self, *arguments: str) -> dict[str, Any]:
        """A command with --json; returns what it printed. Raises SilkrecError with its own words."""
        done = subprocess.run(
            self.silkrec(*arguments, "--json"), env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or ["(it said nothing)"]
            raise SilkrecError(f"`silkrec {' '.join(arguments)}` failed: {last[0]}")
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer


def prepare(folder: Path) -> Place:
    """Writes the configuration and picks free ports, the usual ones first."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "silkrec.yaml"
    config.write_bytes(resources.files("services.cli.demo").joinpath("silkrec.yaml").read_bytes())
    environment = {**os.environ, "SILKREC_CONFIG": str(config.resolve())}
    taken: set[int] = set()
    for name, first in _PORTS.items():
        service, _, kind = name.partition(".")
        port = _free_port(first, taken)
        taken.add(port)
        environment[f"SILKREC_{service.upper()}__{'GRPC_PORT' if kind else 'PORT'}"] = str(port)
    return Place(folder.resolve(), environment)


def url_of(place: Place, service: str) -> str:
    return f"http://127.0.0.1:{place.environment[f'SILKREC_{service.upper()}__PORT']}"


@contextlib.contextmanager
def running(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """The suite, ready to serve; it ends with the block, and with this process."""
    place.logs.mkdir(parents=True, exist_ok=True)
    log = place.logs / "supervisor.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            place.silkrec("serve", "all", "--supervised", "--log-dir", str(place.logs)),
            env=place.environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
    try:
        _wait_ready(place, process, log)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


def _wait_ready(place: Place, process: subprocess.Popen[bytes], log: Path) -> None:
    waiting = {"features": "/ready", "inference": "/health", "recommender": "/health"}
    deadline = time.monotonic() + READY_S
    with httpx.Client(trust_env=False, timeout=2.0) as http:
        while waiting:
            if process.poll() is not None:
                raise SilkrecError(f"the suite did not start: {last_line(log)}")
            if time.monotonic() > deadline:
                raise SilkrecError(f"{', '.join(waiting)} not ready within {READY_S:.0f} s; see {place.logs}/")
            for service, path in list(waiting.items()):
                with contextlib.suppress(httpx.HTTPError):
                    if http.get(url_of(place, service) + path).status_code == httpx.codes.OK:
                        del waiting[service]
            time.sleep(0.1)


def _free_port(first: int, taken: Sequence[int] | set[int]) -> int:
    for port in range(first, first + _TRIES):
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SilkrecError(f"no free port between {first} and {first + _TRIES} on 127.0.0.1")
