"""`silkrec up`: the suite, nginx in front of it, Prometheus and Alertmanager beside it, in the background."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import httpx
import typer

from services.cli.context import Options, load, say_json
from services.cli.supervisor import holder, last_line, supervise
from services.cli.up import configuration, processes
from services.cli.up.down import end
from services.cli.up.leftovers import end_leftovers
from services.cli.up.plan import LISTEN, Plan, check
from services.cli.up.running import published
from shared.errors import ConfigurationError, SilkrecError
from shared.observability import logging

# Loading torch and FAISS on two busy cores takes about 20 s.
READY_S = 120.0
LOOK_S = 0.2


def command(
    ctx: typer.Context,
    listen: Annotated[str, typer.Option(help="Where nginx serves; other than loopback needs an API key.")] = LISTEN,
    prometheus: Annotated[str, typer.Option(help="Where Prometheus serves.")] = "127.0.0.1:9090",
    alertmanager: Annotated[str, typer.Option(help="Where Alertmanager serves.")] = "127.0.0.1:9093",
    nginx_env: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="SILKREC_NGINX_… lines, as in defaults.env."),
    ] = None,
    infra: Annotated[Path, typer.Option(help="The clone's infra folder.", show_default=True)] = Path("infra"),
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, as systemd wants it.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Starts the whole monitored suite on this machine; `silkrec down` ends it."""
    loaded = load(ctx)
    plan = Plan(loaded, infra.resolve(), listen, prometheus, alertmanager, nginx_env)
    if holder(loaded.settings) is not None:
        _tell(plan, "runs already", as_json)
        return
    killed = end_leftovers(loaded.settings)
    if killed:
        typer.echo(f"Left by a supervisor that was killed, and killed now: {', '.join(killed)}.", err=True)
    check(plan)
    configuration.write(plan)
    if foreground:
        logging.configure(loaded.settings.log, service="supervisor", state=loaded.settings.state)
        around = {"front": processes.front(plan), "beside": processes.beside(plan)}
        raise typer.Exit(asyncio.run(supervise(loaded, plan.logs, **around)))
    _start(ctx, plan)
    _tell(plan, "runs", as_json)


def _start(ctx: typer.Context, plan: Plan) -> None:
    """The same command in the foreground of a session of its own; what it began ends when it does not get ready."""
    options = ctx.find_object(Options) or Options()
    config = ["--config", str(options.config)] if options.config is not None else []
    command = [sys.executable, "-m", "services.cli.main", *config, "up", "--foreground", "--infra", str(plan.infra)]
    command += ["--listen", plan.listen, "--prometheus", plan.prometheus, "--alertmanager", plan.alertmanager]
    if plan.nginx_env is not None:
        command += ["--nginx-env", str(plan.nginx_env)]
    log = plan.logs / "supervisor.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    # A first start on two busy cores was silent for 29 s.
    typer.echo(f"Starting {', '.join(plan.ready())}; this takes 10 to 30 s.", err=True)
    try:
        _wait_ready(plan, process, log)
    except BaseException:
        end(process.pid)
        raise


def _wait_ready(plan: Plan, process: subprocess.Popen[bytes], log: Path) -> None:
    waiting, deadline = plan.ready(), time.monotonic() + READY_S
    with httpx.Client(trust_env=False, timeout=2.0) as http:
        while waiting:
            if process.poll() is not None:
                raise SilkrecError(f"the suite did not start: {last_line(log)}")
            if time.monotonic() > deadline:
                names = ", ".join(waiting)
                raise SilkrecError(
                    f"{names} not ready within {READY_S:.0f} s: {last_line(plan.logs / f'{next(iter(waiting))}.log')}"
                )
            for name, url in list(waiting.items()):
                with contextlib.suppress(httpx.HTTPError):
                    if http.get(url).status_code == httpx.codes.OK:
                        del waiting[name]
            time.sleep(LOOK_S)


def _tell(plan: Plan, how: str, as_json: bool) -> None:
    """Of a suite that runs already, what it published: it may have been started with other addresses."""
    told = published(plan.loaded.settings)
    if "nginx" not in told:
        raise ConfigurationError(
            f"`silkrec serve all` runs in {plan.state}, without nginx and Prometheus; end it (`silkrec down`) first"
        )
    if as_json:
        say_json({"urls": told, "log": str(plan.logs), "pid": holder(plan.loaded.settings)})
        return
    typer.echo(f"SilkRec {how}, process {holder(plan.loaded.settings)}.")
    rows = {
        "API": told["nginx"],
        "dashboard": f"{told['nginx']}/dashboard",
        "Prometheus": told["prometheus"],
        "Alertmanager": told["alertmanager"],
        "logs": os.path.relpath(plan.logs),
    }
    for what, where in rows.items():
        typer.echo(f"  {what:<13}{where}")
    if "alerts" not in told:
        typer.echo("  Alerts stay in Alertmanager: no robot has a token (alerts.dingtalk, alerts.wecom).")
    typer.echo("`./run down` ends it.")
