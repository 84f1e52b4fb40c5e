"""`silkrec simulate`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.context import load, say_json
from services.cli.simulate.driver import Traffic, drive
from services.cli.simulate.report import as_dict, show
from services.cli.simulate.shop import Shop
from services.recommender.experiments.simulator.clicks import ClickModel
from services.recommender.experiments.simulator.users import arrivals, user_ids

TIMEOUT_S = 10.0
_DEFAULT = ClickModel(seed=0)


def command(
    ctx: typer.Context,
    url: Annotated[str | None, typer.Option("--url", help="Of the API; this configuration's otherwise.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="A server key.")] = None,
    experiment: Annotated[str | None, typer.Option("--experiment", help="Report by its variants.")] = None,
    control: Annotated[str | None, typer.Option("--control", help="The variant others are compared with.")] = None,
    users: Annotated[int, typer.Option("--users", min=1)] = 500,
    requests: Annotated[int, typer.Option("--requests", min=1)] = 2_000,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Requests a second; 0: as fast as answered.")] = 50.0,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=256)] = 8,
    count: Annotated[int, typer.Option("--count", min=1, max=100, help="Items a slate.")] = 10,
    scene: Annotated[str, typer.Option("--scene")] = "home",
    tiredness: Annotated[
        float, typer.Option("--tiredness", min=0, max=1, help="How much a duplicate loses.")
    ] = _DEFAULT.tiredness,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable report.")] = False,
) -> None:
    """Simulated users ask for slates and click by a known model, so that the true effect of a variant is known.

    Everything goes through the real API and is marked as simulated; histories, popularity and experiments learn from it
    as from real traffic, so leave it off a shop that people use. All of it happens now: exposures are dated when they
    are served, so several days cannot be simulated in one.
    """
    model = ClickModel(seed=seed, tiredness=tiredness)
    if url is None:
        settings = load(ctx).settings.recommender
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104  (compared, not bound)
        url = f"http://{host}:{settings.port}"
    planned = arrivals(user_ids(users, seed), requests, rate, seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json, transient=True) as bar:
        task = bar.add_task("simulated requests", total=requests)

        async def run() -> Traffic:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            limits = httpx.Limits(max_connections=concurrency)
            async with httpx.AsyncClient(
                base_url=url, headers=headers, timeout=TIMEOUT_S, limits=limits, trust_env=False
            ) as http:
                shop = Shop(http, scene=scene, count=count)
                return await drive(
                    shop,
                    model,
                    iter(planned),
                    experiment=experiment,
                    concurrency=concurrency,
                    advance=lambda: bar.advance(task),
                )

        traffic = asyncio.run(run())
    report = {"url": url, "users": users, "seed": seed, **as_dict(traffic, model, experiment, control)}
    if as_json:
        say_json(report)
    else:
        show(Console(highlight=False, soft_wrap=True), report)
