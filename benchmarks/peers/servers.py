"""Each server as processes of its own that can be paused, so that those whose turn it is not cost nothing: LitServe's
workers look into their queue without pause, and four idle servers are not free either."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.peers import environment
from benchmarks.peers.clients import BLOCK_BYTES, Asker, HttpAsker, SilkrecAsker, TritonAsker
from benchmarks.peers.workload import CANDIDATES, MODEL
from tests.inference_process import inference_process
from tests.servers import Process, free_port

Settings = Mapping[str, Any]
PEERS = ("litserve", "bentoml", "pytriton")
_WAKE_S = 0.2


@dataclass
class Server:
    """Running, and paused unless `awake`."""

    kind: str
    settings: Settings
    make_asker: Callable[[], Asker]
    roots: list[psutil.Process] = field(default_factory=list)
    targets: tuple[str, ...] = ()
    """Of our engines, as their client takes them."""

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        self.resume()
        time.sleep(_WAKE_S)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        self._tell(signal.SIGSTOP)

    def resume(self) -> None:
        self._tell(signal.SIGCONT)

    def rss_mb(self) -> float:
        return sum(process.memory_info().rss for process in self._tree()) / 2**20

    def cpu_s(self) -> float:
        """Spent so far, by the processes that there are now."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self._tree()))

    def _tell(self, number: signal.Signals) -> None:
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _tree(self) -> list[psutil.Process]:
        return [process for root in self.roots for process in (root, *root.children(recursive=True))]


@contextlib.contextmanager
def server(kind: str, settings: Settings, folder: Path, model: Path) -> Iterator[Server]:
    """Paused. `model`: the published folder that the peers load. Raises RuntimeError when it does not start."""
    folder.mkdir(parents=True, exist_ok=True)
    with _silkrec(settings, folder) if kind == "silkrec" else _peer(kind, settings, folder, model) as found:
        found.pause()
        try:
            yield found
        finally:
            found.resume()


@contextlib.contextmanager
def _silkrec(settings: Settings, folder: Path) -> Iterator[Server]:
    """`engines` processes, each as `silkrec serve inference` runs, with one thread."""
    chosen = {name: str(value) for name, value in settings.items() if name != "engines"}
    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(
                inference_process(folder / str(number), config=MODEL, settings={"threads": "1", **chosen})
            )
            for number in range(settings["engines"])
        ]
        targets = tuple(engine.target for engine in engines)
        roots = [psutil.Process(engine.process.pid) for engine in engines if engine.process is not None]
        yield Server("silkrec", settings, lambda: SilkrecAsker(targets), roots, targets)


@contextlib.contextmanager
def _peer(kind: str, settings: Settings, folder: Path, model: Path) -> Iterator[Server]:
    port, grpc_port = free_port(), free_port()
    python = str(environment.python())
    told = {**settings, "width": BLOCK_BYTES, "candidates": CANDIDATES, "actions": len(MODEL.actions)}
    if kind == "bentoml":
        command = [str(Path(python).with_name("bentoml")), "serve", "benchmarks.peers.bentoml_server:Ranker"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
    else:
        command = [python, "-m", f"benchmarks.peers.{kind}_server", str(port), str(grpc_port)]
    mine = {"PEER_MODEL": str(model), "PEER_SETTINGS": json.dumps(told)}
    variables = [f"{name}={value}" for name, value in {**environment.variables(), **mine}.items()]
    path = {"litserve": "/health", "bentoml": "/readyz", "pytriton": "/v2/models/ranker/ready"}[kind]
    process = Process([*_tied(), "env", "-i", *variables, *command], folder / "log", lambda: _answers(port, path))
    try:
        process.start()
        assert process.process is not None
        yield Server(kind, settings, _asker(kind, port, grpc_port), [psutil.Process(process.process.pid)])
    finally:
        _end(process)


def _tied() -> list[str]:
    """An end with the benchmark, where util-linux is there to do so."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


def _asker(kind: str, port: int, grpc_port: int) -> Callable[[], Asker]:
    if kind == "pytriton":
        return lambda: TritonAsker(f"127.0.0.1:{grpc_port}")
    if kind == "bentoml":
        return lambda: HttpAsker(port, "/rank", "application/json", as_text=True)
    return lambda: HttpAsker(port, "/predict", "application/octet-stream", as_text=False)


def _end(process: Process) -> None:
    """With all that it started: a server that is asked to stop may leave workers behind, and one that is interrupted
    while it starts makes more of them."""
    if process.process is None:
        return
    root = psutil.Process(process.process.pid)
    tree = root.children(recursive=True)
    root.terminate()
    _, left = psutil.wait_procs([root, *tree], timeout=5.0)
    for one in [*left, *_session(root.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.kill()


def _session(leader: int) -> list[psutil.Process]:
    """Nothing when `leader` has no session of its own."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(one.pid) == leader and one.pid != leader:
                found.append(one)
    return found


def _answers(port: int, path: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False
