"""`silkrec jobs submit|watch|cancel|list`: batch jobs of this installation's database."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from services.cli.context import load_shipped, opened, say_json
from services.recommender.jobs.desk import JobDesk, Seen
from services.recommender.jobs.shown import as_shown
from services.recommender.jobs.spec import KINDS, read_body
from services.recommender.jobs.store.jobs import JobState
from shared.errors import DatabaseUnavailable, ValidationFailed

app = typer.Typer(no_args_is_help=True, help="Batch jobs: slates of many users.")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job_id.")]
LOOK_S = 0.5
EXIT_FAILED = 1


@app.command()
def submit(
    ctx: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="TYPE", help=" | ".join(KINDS))] = "slate",
    segment: Annotated[str | None, typer.Option(help="Expression over users; '*' for everybody.")] = None,
    user: Annotated[list[str] | None, typer.Option(help="A user_id; may be given again.")] = None,
    file: Annotated[str | None, typer.Option(help="Parquet or JSON Lines below jobs.input_dir.")] = None,
    scene: Annotated[str | None, typer.Option(help="home, when left out.")] = None,
    count: Annotated[int | None, typer.Option(help="Items a slate.")] = None,
    filter_: Annotated[str | None, typer.Option("--filter", help="Expression over items.")] = None,
    to: Annotated[list[str] | None, typer.Option(help="database, parquet, redis; may be given again.")] = None,
    body: Annotated[Path | None, typer.Option(help="JSON as POST /v1/jobs takes it, instead of all this.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key is the same job.")] = None,
    watch_it: Annotated[bool, typer.Option("--watch", help="Stay until it is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Starts a job. A `silkrec serve jobs` (or `serve all`) carries it out."""
    given = {
        "segment": segment, "user_ids": user, "file": file, "scene": scene, "count": count, "filter": filter_,
        "outputs": to,
    }  # fmt: skip
    params = {name: value for name, value in given.items() if value}
    content = _read(body) if body is not None else {"type": kind, "params": params}
    key = None if idempotency_key is None else f"api:{idempotency_key}"
    loaded = load_shipped(ctx)
    with opened(loaded) as database:
        desk = JobDesk(database, loaded.settings)
        seen, is_new = desk.submit(read_body(content), actor=f"command line ({getpass.getuser()})", idempotency_key=key)
        if not watch_it:
            if as_json:
                say_json(as_shown(seen))
            else:
                typer.echo(f"{seen.job.job_id}{'' if is_new else '  (there already, by its key)'}")
            return
        _watch(desk, seen.job.job_id, as_json)


@app.command()
def watch(ctx: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """Its progress until it is over. The exit status is 1 unless it succeeded."""
    loaded = load_shipped(ctx)
    with opened(loaded) as database:
        _watch(JobDesk(database, loaded.settings), job, as_json)


@app.command()
def cancel(ctx: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """Stops it for good; what its chunks have committed stays."""
    loaded = load_shipped(ctx)
    with opened(loaded) as database:
        seen = JobDesk(database, loaded.settings).cancel(job)
    if as_json:
        say_json(as_shown(seen))
    else:
        typer.echo(f"{job} is {seen.job.state.value}")


@app.command("list")
def list_(
    ctx: typer.Context,
    state: Annotated[JobState | None, typer.Option(help="Of this state only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first."""
    loaded = load_shipped(ctx)
    with opened(loaded) as database:
        found = JobDesk(database, loaded.settings).page(limit=limit, state=state, after=None)
    if as_json:
        say_json({"items": [as_shown(one) for one in found]})
        return
    table = Table("Job", "Type", "State", "Done", "Failed", "Users/s", "Started", "By")
    for one in found:
        shown = as_shown(one)
        done = f"{one.progress.done:,} of {one.progress.total:,}"
        rate = "" if one.progress.rate is None else f"{one.progress.rate:,.0f}"
        started = (shown["started_at"] or shown["created_at"])[:19]
        row = (one.job.job_id, one.job.kind, one.job.state.value, done, f"{one.progress.failed:,}", rate, started)
        table.add_row(*row, one.job.actor)
    Console().print(table)


def _read(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise ValidationFailed(f"{path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ValidationFailed(f"{path} is no JSON: {error}") from None


def _watch(desk: JobDesk, job_id: str, as_json: bool) -> None:
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} users"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as bar:
        task = bar.add_task("planning", total=0, rate="")
        seen = _follow(desk, job_id, lambda one: bar.update(task, **_drawn(one)))
    shown = as_shown(seen, detail=True)
    if as_json:
        say_json(shown)
    else:
        _tell(seen)
    if seen.job.state is not JobState.SUCCEEDED:
        raise typer.Exit(EXIT_FAILED)


def _follow(desk: JobDesk, job_id: str, draw: Callable[[Seen], None]) -> Seen:
    """Until it is over; a database that restarts is waited for once the job was seen."""
    seen = desk.get(job_id)
    while True:
        draw(seen)
        if not seen.job.active:
            return seen
        time.sleep(LOOK_S)
        try:
            seen = desk.get(job_id)
        except DatabaseUnavailable as error:
            typer.echo(f"silkrec: {error.detail}; waiting", err=True)


def _drawn(seen: Seen) -> dict[str, Any]:
    progress = seen.progress
    rate = "" if progress.rate is None else f"{progress.rate:,.0f} users/s"
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    return {
        "description": seen.job.state.value,
        "completed": progress.done + progress.failed,
        "total": progress.total,
        "rate": rate + failed,
    }


def _tell(seen: Seen) -> None:
    job, progress = seen.job, seen.progress
    rate = "" if progress.rate is None else f", {progress.rate:,.0f} users a second"
    typer.echo(f"{job.job_id} {job.state.value}: {progress.done:,} of {progress.total:,} users{rate}")
    if job.reason:
        typer.secho(f"  {job.reason}", fg="red")
    for chunk, users, why in seen.parked:
        typer.echo(f"  parked: chunk {chunk} ({users} users): {why}")
    for who, why in seen.failures:
        typer.echo(f"  no slate for {who}: {why}")
    if job.output:
        typer.echo(f"  {job.output['manifest']}: {job.output['rows']:,} rows")
