"""`silkrec open-bandit import | evaluate`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from services.cli.context import load, opened, say_json
from services.cli.open_bandit.sample import PACKAGE, TERMS
from services.cli.open_bandit.store import import_arms
from services.recommender.experiments import metrics
from services.recommender.experiments.analysis.desk import Results
from services.recommender.experiments.open_bandit.evaluation import Evaluation, evaluate
from services.recommender.experiments.open_bandit.log import BanditLog, Campaign, Policy, read_log
from services.recommender.experiments.registry.store import ExperimentStore
from shared.actions import ActionTable
from shared.settings.load import Loaded

app = typer.Typer(no_args_is_help=True, help="Open Bandit's small sample: real logs of two policies.")
CampaignOption = Annotated[Campaign, typer.Option("--campaign", help="Which part of the shop.")]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="With random/ and bts/ inside; downloaded when left out.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


@app.callback()
def _group() -> None:
    """Open Bandit."""


@app.command("import")
def import_(
    ctx: typer.Context,
    campaign: CampaignOption = Campaign.ALL,
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Makes a stopped experiment of two arms of it, random and bts. A second time changes nothing."""
    loaded = load(ctx)
    logs = _logs(loaded, campaign, folder, as_json=as_json)
    actions = ActionTable.from_schema(loaded.settings.data)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stderr = Console(stderr=True)
    with opened(loaded) as database, Progress(*columns, console=stderr, disable=as_json, transient=True) as bar:
        task = bar.add_task("impressions", total=sum(len(log.click) for log in logs.values()))
        done = import_arms(
            database,
            actions,
            campaign,
            logs,
            now_us=time.time_ns() // 1000,
            advance=lambda rows: bar.advance(task, rows),
        )
        bar.update(task, description="aggregates")
        # Nobody else builds what stopped years ago.
        store = ExperimentStore(database, loaded.settings.data)
        known = metrics.load(loaded.settings.home / metrics.FILE)
        Results(database, store, known, actions).build(store.get(done.experiment).registered)
    if as_json:
        say_json({name: getattr(done, name) for name in done.__slots__})
        return
    typer.echo(
        f"{done.experiment}: {done.rows:,} impressions and {done.clicks:,} clicks; {done.new_exposures:,} exposures "
        f"and {done.new_events:,} events are new. Each impression is a unit of its own: the sample names no users. "
        f"Results: silkrec experiments results {done.experiment}, or the dashboard."
    )


@app.command("evaluate")
def evaluate_(
    ctx: typer.Context,
    campaign: CampaignOption = Campaign.ALL,
    folder: FolderOption = None,
    alpha: Annotated[float, typer.Option("--alpha", help="1 minus the confidence of the intervals.")] = 0.05,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """What BTS earns, from the random policy's log alone, beside what it earned. Reads no database.

    A hopeless overlap is refused with the reason, and the command ends with 1."""
    logs = _logs(load(ctx), campaign, folder, as_json=as_json)
    found = evaluate(logs[Policy.RANDOM], logs[Policy.BTS], alpha=alpha, seed=seed)
    if as_json:
        say_json(as_dict(campaign, found))
    else:
        _show(campaign, found, alpha)
    if found.overlap.refused:
        raise typer.Exit(1)


def as_dict(campaign: Campaign, found: Evaluation) -> dict[str, Any]:
    """NaN is null: JSON has none."""
    overlap = found.overlap
    return {
        "campaign": str(campaign),
        "rows": overlap.n,
        "effective_rows": overlap.effective,
        "mean_weight": overlap.mean_weight,
        "refused": overlap.refused,
        "estimates": {
            one.method: {
                "estimate": _number(one.value.estimate),
                "standard_error": _number(one.value.standard_error),
                "low": _number(one.value.low),
                "high": _number(one.value.high),
                "low_both": _number(one.low_both),
                "high_both": _number(one.high_both),
            }
            for one in found.estimates
        },
        "on_policy": {"click_rate": found.on_policy, "low": found.on_policy_low, "high": found.on_policy_high},
        "logged_click_rate": found.logged,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _logs(loaded: Loaded, campaign: Campaign, folder: Path | None, *, as_json: bool) -> dict[Policy, BanditLog]:
    """The control first. The terms are shown whenever the data is used; beside JSON on stderr."""
    typer.secho(TERMS, err=as_json, dim=True)
    if folder is None:
        folder = loaded.settings.state / "open-bandit"
        if not PACKAGE.is_here(folder):
            typer.echo(f"Downloading the wheel {PACKAGE.wheel} ({PACKAGE.size}) by pip.", err=True)
            PACKAGE.fetch(folder)
    return {policy: read_log(folder, policy, campaign) for policy in Policy}


def _show(campaign: Campaign, found: Evaluation, alpha: float) -> None:
    console, overlap, level = Console(highlight=False, soft_wrap=True), found.overlap, f"{1 - alpha:.0%}"
    console.print(
        f"Open Bandit, campaign {campaign}: {overlap.n:,} rows of the random policy are worth {overlap.effective:,.0f} "
        f"for BTS (ESS); weights average {overlap.mean_weight:.3f}."
    )
    if overlap.refused:
        console.print(f"[bold]No estimate: {overlap.refused}.[/bold]")
        return
    table = Table("Clicks a slot", "Estimate", f"{level} interval", f"{level}, both logs redrawn")
    for one in found.estimates:
        table.add_row(
            {"ipw": "IPW", "snips": "SNIPS", "dr": "DR"}[one.method],
            f"{one.value.estimate:.5f}",
            f"{one.value.low:.5f} to {one.value.high:.5f}",
            f"{one.low_both:.5f} to {one.high_both:.5f}",
        )
    table.add_row(
        "BTS in its own log", f"{found.on_policy:.5f}", f"{found.on_policy_low:.5f} to {found.on_policy_high:.5f}", ""
    )
    table.add_row("random in its own log", f"{found.logged:.5f}", "", "")
    console.print(table)
