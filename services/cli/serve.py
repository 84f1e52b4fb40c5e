"""`silkrec serve recommender|features|inference|jobs|all`: one service in this process, or all of them supervised."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn

from services.cli.context import load, load_shipped, opened
from shared.errors import ConfigurationError, DatabaseUnavailable
from shared.observability import logging, tracing
from shared.settings.load import Loaded
from shared.settings.roots import Settings
from shared.storage import keys, migrate
from shared.storage.database import Database
from shared.web.auth import check_binding

app = typer.Typer(no_args_is_help=True, help="Start a service, or the whole suite.")

# With the 5 s in which requests end, a service is gone well before Kubernetes' 30 s.
GRACE_S = 5
BACKLOG = 2048
SCHEMA_RETRY_S = 1.0
Supervised = Annotated[bool, typer.Option("--supervised", hidden=True, help="End when standard input ends.")]
_log = logging.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    module: str
    address: Callable[[Settings], tuple[str, int]]


SERVICES = {
    "recommender": Service(
        "recommender", "services.recommender.app", lambda s: (s.recommender.host, s.recommender.port)
    ),
    "features": Service("features", "services.features.app", lambda s: (s.features.host, s.features.port)),
    "inference": Service("inference", "services.inference.app", lambda s: (s.inference.host, s.inference.port)),
    "jobs": Service("jobs", "services.recommender.jobs.app", lambda s: (s.jobs.host, s.jobs.port)),
}


@app.command()
def recommender(ctx: typer.Context, supervised: Supervised = False) -> None:
    """/v1/recommend and what reads: pipeline, FAISS, journal."""
    run_service(load_shipped(ctx), SERVICES["recommender"], supervised=supervised)


@app.command()
def features(ctx: typer.Context, supervised: Supervised = False) -> None:
    """/v1/events, /v1/items, /v1/users: what writes."""
    run_service(load_shipped(ctx), SERVICES["features"], supervised=supervised)


@app.command()
def inference(ctx: typer.Context, supervised: Supervised = False) -> None:
    """The ranker behind Open Inference Protocol v2: gRPC on a Unix socket and TCP, and REST."""
    run_service(load_shipped(ctx), SERVICES["inference"], supervised=supervised)


@app.command()
def jobs(ctx: typer.Context, supervised: Supervised = False) -> None:
    """A worker for batch jobs, and what wakes it: sweeper, schedules, webhook. Several machines may run one."""
    run_service(load_shipped(ctx), SERVICES["jobs"], supervised=supervised)


@app.command(hidden=True)
def worker(ctx: typer.Context, supervised: Supervised = False) -> None:
    """The Celery worker that `serve jobs` starts."""
    from services.recommender.jobs.worker import Worker, end_with_stdin

    loaded = load_shipped(ctx)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logging.configure(loaded.settings.log, service="jobs worker", state=loaded.settings.state)
    if supervised:
        end_with_stdin()
    Worker(loaded).run()


@app.command()
def alerts(ctx: typer.Context, supervised: Supervised = False) -> None:
    """From Alertmanager to the group robots of DingTalk and WeCom. Needs neither database nor Redis."""
    from services.alerts.app import robots_of

    loaded = load(ctx)
    settings = loaded.settings.alerts
    if not robots_of(settings):
        raise ConfigurationError("no robot is configured: set alerts.dingtalk.access_token or alerts.wecom.key")
    service = Service("alerts", "services.alerts.app", lambda s: (s.alerts.host, s.alerts.port))
    run_service(loaded, service, supervised=supervised, guarded=settings.webhook_token is not None)


@app.command("all")
def all_(
    ctx: typer.Context,
    log_dir: Annotated[
        Path | None, typer.Option("--log-dir", help="A log file a service there, instead of standard error.")
    ] = None,
    supervised: Supervised = False,
) -> None:
    """All services and the embedded Redis under one supervisor; a process that dies is started again."""
    from services.cli.supervisor import supervise

    loaded = load(ctx)
    logging.configure(loaded.settings.log, service="supervisor", state=loaded.settings.state)
    if supervised:
        _end_with_stdin()
    with contextlib.suppress(DatabaseUnavailable), opened(loaded):
        _log.info("the schema is up to date")
    raise typer.Exit(asyncio.run(supervise(loaded, log_dir)))


def run_service(loaded: Loaded, service: Service, *, supervised: bool, guarded: bool | None = None) -> None:
    """Serves until SIGTERM or SIGINT. Raises ConfigurationError when the address cannot be had. `guarded`: whether
    callers need a key; None: when the database has keys, and its schema is brought up to date first."""
    settings = loaded.settings
    # Before numpy is imported: products of a request are small, and OpenBLAS's helpers took its CPU from 6.1 to 9.2 ms.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logging.configure(settings.log, service=service.name, state=settings.state)
    tracing.configure(settings.tracing, service=service.name)
    if loaded.ignored:
        _log.warning("shipped settings of a newer release do nothing here", settings=list(loaded.ignored))
    if supervised:
        _end_with_stdin()
    settings.socket_path(service.name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    host, port = service.address(settings)
    check_binding(host, _prepare_database(settings) if guarded is None else guarded)
    listener = bind(host, port, f"{service.name}.port")
    build = importlib.import_module(service.module).build
    config = uvicorn.Config(
        build(loaded),
        log_config=None,
        access_log=False,
        server_header=False,
        # Rewritten from X-Forwarded-For, the peer could be a proxy that the dashboard trusts, and that was only named.
        proxy_headers=False,
        lifespan="on",
        loop="uvloop",
        http="httptools",
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = uvicorn.Server(config)
    _log.info("serving", url=f"http://{host}:{listener.getsockname()[1]}", pid=os.getpid())
    server.run(sockets=[listener])
    tracing.shutdown()
    if not server.started:
        raise ConfigurationError(f"{service.name} could not start; its log above says why")


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Bound before anything else starts, so that a taken port is one clear line. It listens once the service has
    started: a proxy let in earlier would wait for its answer, and one that is refused asks the next server at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        variable = "SILKREC_" + setting.upper().replace(".", "__")
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; set {variable} to another port"
        ) from None
    return listener


def _prepare_database(settings: Settings) -> bool:
    """Brings the schema up to date, now or, while the database is away, later; says whether keys exist."""
    database = Database(settings.database_url(), settings.database)
    try:
        migrate.upgrade(database)
        found = keys.has_keys(database)
    except DatabaseUnavailable as error:
        _log.warning("the database does not answer; the schema is looked at later", error=error.detail)
        threading.Thread(target=_upgrade_later, args=(database,), name="schema", daemon=True).start()
        return False
    database.close()
    return found


def _upgrade_later(database: Database) -> None:
    while True:
        time.sleep(SCHEMA_RETRY_S)
        try:
            migrate.upgrade(database)
        except DatabaseUnavailable:
            continue
        except ConfigurationError as error:
            _log.critical("the schema cannot be used", error=error.detail)
            os.kill(os.getpid(), signal.SIGTERM)
        database.close()
        return


def _end_with_stdin() -> None:
    """The supervisor holds the other end: when it is gone, even by SIGKILL, this process ends as well."""

    def wait(*_: Any) -> None:
        while sys.stdin.buffer.read(1):
            continue
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor's end", daemon=True).start()
