"""`silkrec experiments list|results|build|export`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from services.cli.context import load, say_json
from services.recommender.experiments import metrics, report_text
from services.recommender.experiments.analysis import export as exporting
from services.recommender.experiments.analysis.desk import Results
from services.recommender.experiments.local_days import iso
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.registry.store import ExperimentStore
from services.recommender.experiments.report import Cell, Report
from shared.actions import ActionTable
from shared.storage import migrate
from shared.storage.database import Database

app = typer.Typer(no_args_is_help=True, help="Experiments: what their data says.")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The experiment's key.")]
_COLUMNS = ("Metric", "Role", "Variant", "Units", "Value", "Lift", "Interval", "p", "To win", "Verdict")
_WIDEST = 1_000
"""A table wider than the terminal would lose the ends of its words: then a line a variant is written instead."""
STATEMENT_TIMEOUT_S = 3_600.0
"""A first build may read a month of events in one statement."""


@dataclass(frozen=True, slots=True)
class _Desk:
    """What every command here works with."""

    database: Database
    registry: ExperimentStore
    results: Results

    def load(self, key: str) -> RegisteredExperiment:
        return self.registry.get(key).registered


@app.command("list")
def list_(ctx: typer.Context, as_json: AsJson = False) -> None:
    """All experiments, newest first."""
    with _desk(ctx) as desk:
        found = [stored.registered for stored in desk.registry.list()]
    rows: list[dict[str, Any]] = [
        {
            "experiment": one.definition.key,
            "status": one.definition.status.value,
            "owner": one.owner,
            "primary": one.plan.primary,
            "variants": [variant.key for variant in one.definition.variants],
        }
        for one in found
    ]
    if as_json:
        say_json({"experiments": rows})
        return
    table = Table("Experiment", "Status", "Owner", "Primary metric", "Variants")
    for row in rows:
        table.add_row(row["experiment"], row["status"], row["owner"], row["primary"], ", ".join(row["variants"]))
    Console().print(table)


@app.command()
def results(ctx: typer.Context, key: Key, as_json: AsJson = False) -> None:
    """What the data says: variants, lifts with intervals, alarms, the conclusion."""
    with _desk(ctx) as desk:
        found = desk.results.of(key)
    if as_json:
        say_json(report_text.as_dict(found))
        return
    _print(found, Console())


@app.command()
def build(ctx: typer.Context, key: Key, as_json: AsJson = False) -> None:
    """Brings the aggregates up to date. Run it daily; a second run is harmless."""
    with _desk(ctx) as desk:
        done = desk.results.build(desk.load(key))
    days = [iso(day) for day in done.days]
    if as_json:
        say_json({"experiment": key, "days": days, "seconds": round(done.seconds, 3)})
        return
    typer.echo(
        f"{key}: {len(days)} days in {done.seconds:.1f} s{': ' + ', '.join(days) if days else ', no exposure yet'}"
    )


@app.command()
def export(ctx: typer.Context, key: Key, file: Annotated[Path, typer.Argument(help="Parquet file to write.")]) -> None:
    """Sufficient statistics as Parquet, for a warehouse or DuckDB."""
    with _desk(ctx) as desk:
        rows = exporting.export(desk.database, desk.load(key), file)
    typer.echo(f"{file}: {rows} rows")


@contextlib.contextmanager
def _desk(ctx: typer.Context) -> Iterator[_Desk]:
    settings = load(ctx).settings
    patient = settings.database.model_copy(update={"statement_timeout_s": STATEMENT_TIMEOUT_S})
    database = Database(settings.database_url(), patient)
    try:
        if migrate.pending(database):
            migrate.upgrade(database)
        known = metrics.load(settings.home / metrics.FILE)
        registry = ExperimentStore(database, settings.data)
        yield _Desk(database, registry, Results(database, registry, known, ActionTable.from_schema(settings.data)))
    finally:
        database.close()


def _print(found: Report, console: Console) -> None:
    simulated = "  [bold]simulated traffic[/bold]" if found.simulated else ""
    console.print(f"[bold]{found.experiment}[/bold] phase {found.phase}: {found.conclusion.decision.value}{simulated}")
    for alarm in found.alarms:
        console.print(f"[red]{alarm.code.value}[/red] {dict(alarm.facts)}", highlight=False)
    for code, facts in found.conclusion.reasons:
        console.print(f"- {code} {dict(facts)}", highlight=False, markup=False)
    table = Table(*_COLUMNS)
    for metric in found.metrics:
        for cell in metric.cells:
            table.add_row(metric.metric, metric.role.value, cell.variant, str(cell.units), *_numbers(cell))
    wide = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    if wide <= console.width:
        console.print(table)
        return
    for metric in found.metrics:
        console.print(f"[bold]{metric.metric}[/bold] ({metric.role.value})", highlight=False)
        for cell in metric.cells:
            named = zip(_COLUMNS[3:], (str(cell.units), *_numbers(cell)), strict=True)
            said = ", ".join(f"{name.lower()} {number}" for name, number in named if number)
            console.print(Padding(Text(f"{cell.variant}: {said}"), (0, 0, 0, 2)))


def _numbers(cell: Cell) -> tuple[str, ...]:
    between = "" if cell.sequential is None else f"{_percent(cell.sequential.low)} to {_percent(cell.sequential.high)}"
    value = "" if cell.value is None else f"{cell.value:.4g}"
    p = "" if cell.p_adjusted is None else f"{cell.p_adjusted:.3g}"
    chance = "" if cell.chance_to_win is None else f"{cell.chance_to_win:.1%}"
    return value, _percent(cell.lift), between, p, chance, "" if cell.lift is None else cell.verdict.value


def _percent(number: float | None) -> str:
    return "" if number is None else f"{number:+.2%}"
