"""What `silkrec up` is about to start: addresses, programs, folders. Checked before anything is."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.cli.context import opened
from services.cli.supervisor import addresses
from shared.errors import ConfigurationError, DatabaseUnavailable
from shared.settings.load import Loaded
from shared.storage import keys
from shared.web.auth import check_binding

LISTEN = "127.0.0.1:8000"
# Debian's servers lie in /usr/sbin, which is not on the PATH of everybody.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"))
_NGINX = "SILKREC_NGINX_"
_LISTENS = ("LISTEN", "INFERENCE_LISTEN", "GRPC_LISTEN")


@dataclass(frozen=True, slots=True)
class Plan:
    """`infra`: the clone's folder; `nginx_env`: the operator's own file of SILKREC_NGINX_ names, which beats ours."""

    loaded: Loaded
    infra: Path
    listen: str
    prometheus: str
    alertmanager: str
    nginx_env: Path | None = None

    @property
    def state(self) -> Path:
        return self.loaded.settings.state

    @property
    def made(self) -> Path:
        """Generated configuration, written anew at each start."""
        return self.state / "up"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def services(self) -> dict[str, str]:
        return addresses(self.loaded.settings)

    def nginx(self) -> dict[str, str]:
        """The SILKREC_NGINX_ values, without their prefix: infra's defaults, then ours, then the operator's."""
        theirs = {} if self.nginx_env is None else _env_file(self.nginx_env)
        return {**_env_file(self.infra / "nginx" / "defaults.env"), **self.own_nginx(), **theirs}

    def own_nginx(self) -> dict[str, str]:
        settings = self.loaded.settings
        servers = {name: url.removeprefix("http://") for name, url in self.services.items()}
        host = servers["inference"].rpartition(":")[0]
        # nginx wants a server; one that is `down` makes the door say UNAVAILABLE.
        grpc = f"{host}:{settings.inference.grpc_port}" if settings.inference.grpc_port > 0 else f"{host}:9 down"
        return {
            "LISTEN": self.listen,
            "RECOMMENDERS": servers["recommender"],
            "FEATURES": servers["features"],
            "INFERENCE": servers["inference"],
            "GRPC": grpc,
            "STATE": str(self.made / "nginx-state"),
            "ACCESS_LOG": str(self.logs / "nginx-access.log"),
        }

    def urls(self) -> dict[str, str]:
        """Where each part is asked from this machine."""
        return {
            **self.services,
            "nginx": f"http://{_reached(self.nginx()['LISTEN'])}",
            "prometheus": f"http://{_reached(self.prometheus)}",
            "alertmanager": f"http://{_reached(self.alertmanager)}",
        }

    def ready(self) -> dict[str, str]:
        """What answers 200 once a part runs. A service is asked whether it lives: without a release it is not ready."""
        paths = {"nginx": "/nginx-health", "prometheus": "/-/ready", "alertmanager": "/-/ready"}
        return {name: url + paths.get(name, "/health") for name, url in self.urls().items()}


def check(plan: Plan) -> None:
    """Raises ConfigurationError with what to change: a missing program, a taken port, a door that anybody could use."""
    if not (plan.infra / "nginx" / "render").is_file():
        raise ConfigurationError(f"there is no {plan.infra}/nginx/render; call `./run up` of a clone, or give --infra")
    for name in ("nginx", "envsubst", "prometheus", "promtool", "prometheus-alertmanager", "amtool"):
        program(name)
    check_binding(_split(plan.nginx()["LISTEN"])[0], _has_keys(plan.loaded))
    taken = [line for what, address in _bound(plan) if (line := _taken(what, *_split(address)))]
    if taken:
        raise ConfigurationError("\n  ".join(taken))


def program(name: str) -> str:
    """Its path. Debian calls Alertmanager prometheus-alertmanager. Raises ConfigurationError."""
    for spelling in (name, name.removeprefix("prometheus-")):
        found = shutil.which(spelling, path=_PATH)
        if found:
            return found
    raise ConfigurationError(f"{name} is not installed; `./run up` installs what it needs, or names it")


def _has_keys(loaded: Loaded) -> bool:
    try:
        with opened(loaded) as database:
            return keys.has_keys(database)
    except DatabaseUnavailable:
        return False


def _bound(plan: Plan) -> Iterator[tuple[str, str]]:
    nginx = plan.nginx()
    for name in _LISTENS:
        yield "--listen" if name == "LISTEN" else f"{_NGINX}{name} in a file for --nginx-env", nginx[name]
    for name, url in plan.services.items():
        yield f"SILKREC_{name.upper()}__PORT", url.removeprefix("http://")
    inference = plan.loaded.settings.inference
    if inference.grpc_port > 0:
        yield "SILKREC_INFERENCE__GRPC_PORT", f"{inference.host}:{inference.grpc_port}"
    yield "--prometheus", plan.prometheus
    yield "--alertmanager", plan.alertmanager


def _taken(what: str, host: str, port: int) -> str:
    """Why nobody can listen there, and what to do; empty when one can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"{host}:{port}: {error.strerror}; choose another by {what}{_who(port)}"
    return ""


def _who(port: int) -> str:
    """Empty where the system does not say: other people's processes are shown to root alone."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid is not None:
                words = " ".join(psutil.Process(connection.pid).cmdline())
                return f" (process {connection.pid} has it: {words[:80]})"
    return ""


def _split(address: str) -> tuple[str, int]:
    """Of `host:port` or, as nginx has it, a port alone for every address. Raises ConfigurationError."""
    host, _, port = address.split(" ")[0].rpartition(":")
    if not port.isdecimal():
        raise ConfigurationError(f"'{address}' is no address: write host:port, such as 127.0.0.1:8000")
    return host.strip("[]").replace("*", "0.0.0.0") or "0.0.0.0", int(port)  # noqa: S104  (nginx's own meaning)


def _reached(address: str) -> str:
    host, port = _split(address)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (where to ask)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _env_file(path: Path) -> dict[str, str]:
    """NAME=VALUE lines, as infra/nginx/render reads them."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.removeprefix(_NGINX): value for name, _, value in pairs}
