"""The inference service with one setting, in a process of its own over a state folder of its own, under load."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.cli.supervisor import last_line
from services.cli.tune.open_loop import Asked, Tally, load, poisson
from services.inference.client import GrpcInferenceClient
from shared.errors import SilkrecError
from shared.settings.load import Loaded
from shared.settings.roots import Settings

READY_S = 120.0
STOP_S = 20.0
# Below this share of whole answers in time, a rate is not held: the SLO of `in time` is 99 %.
HELD = 0.99


@dataclass(frozen=True, slots=True)
class Setting:
    max_batch_size: int
    max_queue_delay_ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """One setting at one rate (requests a second)."""

    setting: Setting
    rate: float
    p50_ms: float
    p99_ms: float
    goodput: float
    share: float

    @property
    def held(self) -> bool:
        return self.share >= HELD


@contextlib.contextmanager
def engine(loaded: Loaded, setting: Setting, preferred: tuple[int, ...]) -> Iterator[str]:
    """gRPC target of a warm service; it serves this installation's active model and touches nothing else of it."""
    with tempfile.TemporaryDirectory(prefix="silkrec-tune-") as folder:
        place = Path(folder)
        told = _environment(loaded, place, setting, preferred)
        log = place / "log"
        command = [sys.executable, "-m", "services.cli.main", "serve", "inference", "--supervised"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=told, stdin=subprocess.PIPE, stdout=output, stderr=output)
        try:
            _wait_ready(process, f"http://127.0.0.1:{told['SILKREC_INFERENCE__PORT']}/ready", log)
            yield f"unix:{Settings(state_dir=place).socket_path('inference')}"
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def measure(target: str, pool: list[Asked], setting: Setting, rate: float, seconds: float, slo_s: float) -> Row:
    """The same arrivals for every setting at a rate."""
    client, tally = GrpcInferenceClient([target]), Tally()
    try:
        await load(client, pool, poisson(rate, seconds, seed=round(rate * 10)), seconds, tally, slo_s)
    finally:
        await client.close()
    p50, _, p99 = tally.percentiles()
    return Row(setting, rate, p50, p99, tally.goodput, tally.share)


def _environment(loaded: Loaded, place: Path, setting: Setting, preferred: tuple[int, ...]) -> Mapping[str, str]:
    settings = loaded.settings
    own = {
        "STATE_DIR": str(place),
        "DATABASE__URL": settings.database_url(),
        "ARTIFACTS__URL": f"file://{settings.artifacts_dir()}",
        "INFERENCE__HOST": "127.0.0.1",
        "INFERENCE__PORT": str(_free_port()),
        "INFERENCE__GRPC_PORT": "-1",
        "INFERENCE__DYNAMIC_BATCHING__ENABLED": "true",
        "INFERENCE__DYNAMIC_BATCHING__MAX_BATCH_SIZE": str(setting.max_batch_size),
        "INFERENCE__DYNAMIC_BATCHING__MAX_QUEUE_DELAY_MS": str(setting.max_queue_delay_ms),
        "INFERENCE__DYNAMIC_BATCHING__PREFERRED_BATCH_SIZE": str(list(preferred)),
    }
    if loaded.config_file is not None:
        own["CONFIG"] = str(loaded.config_file)
    return {**os.environ, **{f"SILKREC_{name}": value for name, value in own.items()}}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    with httpx.Client(trust_env=False, timeout=2.0) as http:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if http.get(url).status_code == httpx.codes.OK:
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                raise SilkrecError(f"the inference service did not get ready: {last_line(log)}")
            time.sleep(0.1)
