"""`silkrec doctor`, the command: asks every part once, reads the figures twice, and shows what it found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.context import load, say_json
from services.cli.doctor import broker, database, monitoring, redis, scrape, services, setup, traffic
from services.cli.doctor.deployment import Deployment, find
from services.cli.doctor.finding import Finding
from services.cli.doctor.scrape import Figures, Samples
from shared.errors import ConfigurationError
from shared.settings.load import Loaded

ASK_S = 2.0
_STYLE = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_WORST_FIRST = ("fail", "warn", "ok")


def command(
    ctx: typer.Context,
    seconds: Annotated[float, typer.Option(min=0, help="How long the traffic is looked at.")] = 2.0,
    nginx: Annotated[str, typer.Option(help="nginx's address; of `silkrec up` it is known.")] = "",
    prometheus: Annotated[str, typer.Option(help="Prometheus' address; of `silkrec up` it is known.")] = "",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Explains a sick set-up or deployment: what, where, how bad, and how to mend it.

    Exits with 1 when something failed; warnings alone are 0."""
    findings = list(examine(ctx, seconds=seconds, nginx=nginx, prometheus=prometheus))
    failed = any(finding.verdict == "fail" for finding in findings)
    if as_json:
        say_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    raise typer.Exit(1 if failed else 0)


def examine(ctx: typer.Context, *, seconds: float, nginx: str, prometheus: str) -> Iterator[Finding]:
    yield setup.python()
    try:
        loaded = load(ctx)
    except ConfigurationError as error:
        yield Finding("settings", "fail", error.detail, "mend the named setting; `silkrec config show --origin`")
        return
    yield Finding("settings", "ok", "valid", "", str(loaded.config_file or "defaults and environment"))
    deployment = find(loaded.settings, nginx=nginx.rstrip("/"), prometheus=prometheus.rstrip("/"))
    with httpx.Client(trust_env=False, timeout=ASK_S) as http:
        began, before = time.monotonic(), _scraped(http, deployment)
        yield from setup.state(loaded.settings)
        yield from setup.journal(loaded.settings)
        yield from setup.open_files(deployment)
        yield from database.examine(loaded)
        yield from redis.examine(loaded)
        yield from broker.examine(loaded.settings)
        yield from services.examine(http, deployment, loaded.settings)
        if any(before.values()):
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            yield from _traffic(loaded, deployment, before, _scraped(http, deployment))
        if deployment.prometheus:
            yield from monitoring.examine(http, deployment.prometheus)


def _scraped(http: httpx.Client, deployment: Deployment) -> Mapping[str, Samples]:
    return {name: scrape.ask(http, url) for name, url in deployment.services.items()}


def _traffic(
    loaded: Loaded, deployment: Deployment, before: Mapping[str, Samples], now: Mapping[str, Samples]
) -> Iterator[Finding]:
    settings, now_s = loaded.settings, time.time()
    asked: Mapping[str, Callable[[Figures, str], Iterator[Finding]]] = {
        "recommender": lambda figures, where: traffic.recommender(figures, settings, where),
        "inference": lambda figures, where: traffic.inference(figures, settings, where),
        "features": traffic.features,
        "jobs": lambda figures, where: traffic.jobs(figures, now_s, where),
    }
    for name, look in asked.items():
        figures = Figures(now.get(name, {}), before.get(name, {}))
        if figures:
            yield from look(figures, deployment.services[name])


def _show(findings: list[Finding]) -> None:
    """Worst first: on a terminal the beginning of a table is what is left to be read."""
    table = Table("", "What", "Where", "Found", "What to do")
    for verdict in _WORST_FIRST:
        for finding in findings:
            if finding.verdict == verdict:
                cells = (finding.what, finding.where, finding.found, finding.mend)
                table.add_row(f"[{_STYLE[verdict]}]{verdict}[/]", *map(escape, cells))
    Console().print(table)
