"""`silkrec train`: a model from the events that are in the database. Nothing is served before it is promoted."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from services.cli.context import load_shipped, opened, say_json
from services.features.reader import FeatureReader
from shared.actions import ActionTable
from shared.contracts.manifest import ModelManifest
from shared.settings.roots import Settings
from shared.storage.database import Database
from shared.storage.redis import connect

_TELL_EVERY_S = 0.25


def command(
    ctx: typer.Context,
    preset: Annotated[str, typer.Option(help="small, or moe for a mixture of experts")] = "small",
    minutes: Annotated[float | None, typer.Option(min=0.02, help="At most so long, measuring left out.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the events, if time allows.")] = None,
    scene: Annotated[str | None, typer.Option(help="Whose weights order what is measured; the first one.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed, data and machine give the same model.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda…; inference.device of the settings.")] = None,
    progress_file: Annotated[Path | None, typer.Option(help="Progress as JSON lines, rewritten by each run.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Trains the ranker and publishes it. Then: `silkrec index build`, `silkrec releases promote`."""
    from services.inference.training import job
    from services.inference.training.plan import preset as plan_of

    loaded = load_shipped(ctx)
    settings = loaded.settings
    plan = plan_of(preset, epochs=epochs, max_seconds=None if minutes is None else minutes * 60)
    plan = replace(plan, seed=seed)
    chosen = scene or next(iter(settings.data.scenes))
    with opened(loaded) as database, _told(progress_file, quiet=as_json) as report:
        reader = _reader(settings, database)
        began = time.monotonic()
        manifest = job.run(settings, reader, database, plan, report, scene=chosen, device=device)
        took_s = time.monotonic() - began
    if as_json:
        say_json(_result(manifest, took_s))
    else:
        _show(manifest, took_s)


def _reader(settings: Settings, database: Database) -> FeatureReader:
    """For its blocking reads; it never asks Redis."""
    redis = connect(settings.redis_url(), settings.redis, timeout_ms=settings.redis.read_timeout_ms)
    return FeatureReader(database, redis, settings.features, ActionTable.from_schema(settings.data))


def _result(manifest: ModelManifest, took_s: float) -> dict[str, Any]:
    return {
        "model_version": manifest.version,
        "train_s": round(took_s, 1),
        "epochs": manifest.metrics["epochs"],
        "metrics": manifest.metrics,
    }


def _show(manifest: ModelManifest, took_s: float) -> None:
    metrics = manifest.metrics
    table = Table("Each user's last event, among all items not seen", "HR@10", "NDCG@10")
    for name, prefix in (("slate's score", ""), ("user vector alone", "retrieval_"), ("popularity", "popular_")):
        table.add_row(name, f"{metrics[f'{prefix}hr_at_10']:.3f}", f"{metrics[f'{prefix}ndcg_at_10']:.4f}")
    console = Console()
    console.print(table)
    console.print(f"[bold]{manifest.version}[/bold]: {metrics['epochs']:g} epochs, {took_s:.0f} s in all. Next:")
    console.print(f"silkrec index build --model {manifest.version}", highlight=False)


@dataclass
class _Told:
    """Where progress goes; throttled, because a step may take a millisecond."""

    bar: Progress
    file: Path | None
    _last: float = field(default=-1.0)
    _phase: str = ""
    _task: Any = None

    def __call__(self, progress: Any) -> None:
        now = time.monotonic()
        soon = progress.phase == self._phase and now - self._last < _TELL_EVERY_S
        if soon and progress.done < progress.total:
            return
        if progress.phase != self._phase:
            self._task = self.bar.add_task(progress.phase, total=progress.total)
        self._phase, self._last = progress.phase, now
        self.bar.update(self._task, completed=progress.done, total=progress.total)
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(progress)) + "\n")


@contextlib.contextmanager
def _told(file: Path | None, *, quiet: bool) -> Iterator[Callable[[Any], None]]:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")  # what another run left there is no progress of this one
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        yield _Told(bar, file)
