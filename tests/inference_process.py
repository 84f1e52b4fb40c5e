"""`silkrec serve inference` as a process of its own, with a state folder and a SQLite database of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.inference.model.config import ModelConfig
from shared.contracts.manifest import ModelManifest, Release
from shared.settings.load import Loaded, load_settings
from shared.storage import deployments, migrate
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from tests.inference_models import TINY, publish
from tests.servers import Process, free_port

_MAIN = "from services.cli.main import main; main()"
WAIT_S = 20.0


@dataclass
class InferenceProcess(Process):
    """`target` as GrpcInferenceClient takes it; `tcp` the same over TCP, empty when that door is closed."""

    url: str = ""
    target: str = ""
    tcp: str = ""

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


def settings_of(state: Path, **overrides: object) -> Loaded:
    return load_settings(env={}, overrides={"state_dir": state, "inference.refresh_s": 0.05, **overrides})


def promote(loaded: Loaded, version: str, config: ModelConfig = TINY, *, seed: int = 0) -> None:
    """Publishes a random model, unless it is there, and makes it the active release."""
    store = ArtifactStore(loaded.settings.artifacts_dir())
    if not store.folder(ModelManifest, version).exists():
        publish(store, version, config, seed=seed)
    database = Database(loaded.settings.database_url(), loaded.settings.database)
    try:
        with database.write() as connection:
            release = Release(release=f"r-{version}", model_version=version, index_version=None)
            deployments.promote(connection, release, settings=None, actor="test")
    finally:
        database.close()


@contextlib.contextmanager
def inference_process(
    state: Path,
    *,
    config: ModelConfig | None = TINY,
    tcp: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Iterator[InferenceProcess]:
    """Warm with model m-1 of `config`, or without a model. `settings`: ends of SILKREC_INFERENCE__* names."""
    state.mkdir(parents=True, exist_ok=True)
    loaded = settings_of(state)
    database = Database(loaded.settings.database_url(), loaded.settings.database)
    migrate.upgrade(database)
    database.close()
    if config is not None:
        promote(loaded, "m-1", config)
    port, grpc_port = free_port(), free_port() if tcp else -1
    chosen = {"port": str(port), "grpc_port": str(grpc_port), "refresh_s": "0.05", **(settings or {})}
    environment = [f"SILKREC_INFERENCE__{name.upper()}={value}" for name, value in chosen.items()]
    command = ["env", f"SILKREC_STATE_DIR={state}", *environment, sys.executable, "-c", _MAIN, "serve", "inference"]
    url = f"http://127.0.0.1:{port}"
    server = InferenceProcess(
        command,
        state / "log",
        lambda: _answers(url, "/health" if config is None else "/ready"),
        url=url,
        target=loaded.settings.inference_targets()[0],
        tcp=f"127.0.0.1:{grpc_port}" if tcp else "",
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


async def eventually(check: Callable[[], Awaitable[bool]], *, within_s: float = WAIT_S) -> None:
    """Waits for something that another process or task does."""
    async with asyncio.timeout(within_s):
        while True:
            if await check():
                return
            await asyncio.sleep(0.01)


def _answers(url: str, path: str) -> bool:
    try:
        return httpx.get(url + path, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
