"""A private nginx on infra/nginx's very files, and servers behind it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.servers import Process, free_port, program

REPOSITORY = Path(__file__).resolve().parent.parent
INFRA = REPOSITORY / "infra" / "nginx"


@dataclass
class Backend(Process):
    """`address` as nginx writes it."""

    name: str = ""
    address: str = ""
    requests: Path = field(default_factory=Path)

    def got(self) -> list[dict[str, Any]]:
        """What it was asked, in order."""
        if not self.requests.exists():
            return []
        return [json.loads(line) for line in self.requests.read_text().splitlines()]


@dataclass
class Nginx(Process):
    url: str = ""
    inference_url: str = ""
    grpc: str = ""
    access: Path = field(default_factory=Path)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.access.read_text().splitlines()]


@contextlib.contextmanager
def backend(folder: Path, name: str) -> Iterator[Backend]:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    requests = folder / f"{name}.requests"
    command = [sys.executable, str(REPOSITORY / "tests" / "backend.py"), str(port), name, str(requests)]
    server = Backend(
        command,
        folder / f"{name}.log",
        lambda: _connects(port),
        name=name,
        address=f"127.0.0.1:{port}",
        requests=requests,
    )
    server.start()
    try:
        yield server
    finally:
        server.kill()


def render(folder: Path, **variables: str) -> Path:
    """The configuration; `variables` are ends of SILKREC_NGINX_* names."""
    environment = {f"SILKREC_NGINX_{name.upper()}": value for name, value in variables.items()}
    environment.setdefault("SILKREC_NGINX_STATE", str(folder / "state"))
    done = subprocess.run(
        [str(INFRA / "render"), str(folder)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "nginx.conf"


@contextlib.contextmanager
def nginx(folder: Path, **variables: str) -> Iterator[Nginx]:
    """One worker on free loopback ports; `variables` as for `render`."""
    server = prepared(folder, **variables)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def prepared(folder: Path, **variables: str) -> Nginx:
    folder.mkdir(parents=True, exist_ok=True)
    ports = {name: free_port() for name in ("listen", "inference_listen", "grpc_listen")}
    access = folder / "access.log"
    conf = render(
        folder,
        **{name: f"127.0.0.1:{port}" for name, port in ports.items()},
        **{"workers": "1", "access_log": str(access), **variables},
    )
    url = f"http://127.0.0.1:{ports['listen']}"
    user = ["-g", "daemon off; user root;"] if os.geteuid() == 0 else ["-g", "daemon off;"]
    return Nginx(
        [program("nginx"), "-c", str(conf), "-e", "stderr", *user],
        folder / "nginx.log",
        lambda: _answers(f"{url}/nginx-health"),
        url=url,
        inference_url=f"http://127.0.0.1:{ports['inference_listen']}",
        grpc=f"127.0.0.1:{ports['grpc_listen']}",
        access=access,
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _connects(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
