"""`silkrec tune batch`."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from services.cli.context import load, opened, say_json
from services.cli.tune import plot
from services.cli.tune.open_loop import Asked, Shape, requests
from services.cli.tune.search import best, delays_then, ladder, sizes_first
from services.cli.tune.trial import Row, Setting, engine, measure
from services.cli.tune.yaml_edit import set_value
from shared.contracts.manifest import ModelManifest
from shared.errors import Conflict, NotFound, SilkrecError
from shared.settings.load import DEFAULT_FILE, Loaded
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore

app = typer.Typer(no_args_is_help=True, help="Settings that depend on the machine.")
GROUP = ("inference", "dynamic_batching")
# Histories as a shop has them: most users did little; the model's own cap counts where it is lower.
ROWS = (20, 200)


@app.callback()
def _group() -> None:
    """Keeps `batch` a subcommand though it is the only one."""


@app.command()
def batch(
    ctx: typer.Context,
    slo_ms: Annotated[float, typer.Option("--slo-ms", min=5, help="99 % of answers whole within this.")] = 68.0,
    size: Annotated[list[int] | None, typer.Option(min=1, help="max_batch_size to try; again for more.")] = None,
    delay_ms: Annotated[list[float] | None, typer.Option(min=0, help="max_queue_delay_ms to try.")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="A request.")] = 500,
    rate: Annotated[float, typer.Option(min=1, help="Requests a second to begin with.")] = 20.0,
    seconds: Annotated[float, typer.Option(min=0.5, help="A trial, after 1 s of warm-up.")] = 5.0,
    plot_file: Annotated[Path, typer.Option("--plot", help="HTML.")] = Path("var/tune-batch.html"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Sweeps batch size, then queue delay, with the active model on this machine, and writes the best to silkrec.yaml.

    Best is the highest rate at which 99 % of requests come back whole within the SLO. About five minutes; nothing else
    should be busy on the machine."""
    loaded = load(ctx)
    pool = requests(1, _shape(loaded, candidates, slo_ms / 1000))
    delays = delay_ms or [0.0, 1.0, 4.0]
    now = loaded.settings.inference.dynamic_batching.max_queue_delay_ms
    say = Console(stderr=True)
    rows: list[Row] = []
    for setting in sizes_first(size or [1, 8, 32, 128], now if now in delays else delays[0]):
        rows += _try(loaded, pool, setting, rate, seconds, slo_ms, say)
    found = best(rows)
    if found is not None:
        for setting in delays_then(found, delays):
            rows += _try(loaded, pool, setting, found.rate, seconds, slo_ms, say)
        found = best(rows)
    plot_file.parent.mkdir(parents=True, exist_ok=True)
    plot.write(plot_file, rows, slo_ms)
    _conclude(loaded, rows, found, slo_ms=slo_ms, plot_file=plot_file, dry_run=dry_run, as_json=as_json)


def _shape(loaded: Loaded, candidates: int, slo_s: float) -> Shape:
    """Of the active model. Raises NotFound without one, Conflict when the release ships what is to be tuned."""
    with opened(loaded) as database, database.read() as connection:
        active = deployments.active(connection)
    if active is None or active.release.model_version is None:
        raise NotFound("no model is active: `silkrec train`, then `silkrec releases promote`")
    shipped = [name for name in active.settings if name.startswith(".".join(GROUP))]
    if shipped:
        raise Conflict(
            f"release {active.release.release} ships {shipped[0]}, which beats silkrec.yaml: promote without it"
        )
    manifest = ArtifactStore(loaded.settings.artifacts_dir()).manifest(ModelManifest, active.release.model_version)
    longest = min(ROWS[1], int(manifest.architecture["max_history"]), loaded.settings.inference.max_sequence_length)
    codes = [action.code for action in manifest.actions]
    return Shape(manifest.vocabulary, codes, (min(ROWS[0], longest), longest), candidates, slo_s)


def _try(
    loaded: Loaded, pool: list[Asked], setting: Setting, rate: float, seconds: float, slo_ms: float, say: Console
) -> list[Row]:
    with engine(loaded, setting, _preferred(loaded, setting)) as target, say.status(f"{setting}"):

        async def one(at: float) -> Row:
            return await measure(target, pool, setting, at, seconds, slo_ms / 1000)

        async def climb() -> list[Row]:
            await one(rate / 2)  # the cost model learns, memory is touched; not counted
            return await ladder(one, rate)

        return asyncio.run(climb())


def _preferred(loaded: Loaded, setting: Setting) -> tuple[int, ...]:
    told = loaded.settings.inference.dynamic_batching.preferred_batch_size
    return tuple(size for size in told if size <= setting.max_batch_size)


def _conclude(
    loaded: Loaded,
    rows: Sequence[Row],
    found: Row | None,
    *,
    slo_ms: float,
    plot_file: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    path = loaded.config_file or Path(DEFAULT_FILE).resolve()
    before = path.read_text("utf-8") if path.exists() else ""
    after = before if found is None else _written(before, loaded, found.setting)
    if not as_json:
        _show(rows, found, slo_ms)
        typer.echo(f"plot: {plot_file}")
        lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), path.name, path.name)
        typer.echo("".join(lines) or f"{path} stays as it is.")
    if not dry_run and after != before:
        draft = path.with_name(f".{path.name}.tmp")
        draft.write_text(after, "utf-8")
        draft.replace(path)
    if as_json:
        told = {"slo_ms": slo_ms, "rows": [_row(row) for row in rows], "best": _row(found) if found else None}
        say_json({**told, "file": str(path), "written": not dry_run and after != before, "plot": str(plot_file)})
    if found is None:
        raise SilkrecError(
            f"no setting held any rate within {slo_ms:g} ms: fewer candidates, a smaller model, or a GPU"
        )


def _written(text: str, loaded: Loaded, setting: Setting) -> str:
    """Preferred sizes that somebody wrote down must fit; defaults give way by themselves."""
    text = set_value(text, (*GROUP, "max_batch_size"), setting.max_batch_size)
    text = set_value(text, (*GROUP, "max_queue_delay_ms"), setting.max_queue_delay_ms)
    preferred = _preferred(loaded, setting)
    name = ".".join((*GROUP, "preferred_batch_size"))
    if name in loaded.origin and preferred != loaded.settings.inference.dynamic_batching.preferred_batch_size:
        text = set_value(text, (*GROUP, "preferred_batch_size"), list(preferred))
    return text


def _row(row: Row) -> dict[str, Any]:
    told = {name: None if value != value else value for name, value in asdict(row).items() if name != "setting"}
    return {**asdict(row.setting), **told, "held": row.held}


def _ms(value: float) -> str:
    """NaN: nothing was answered."""
    return "–" if value != value else f"{value:.1f}"


def _show(rows: Sequence[Row], found: Row | None, slo_ms: float) -> None:
    table = Table("Batch", "Delay ms", "QPS", "p50 ms", "p99 ms", f"Goodput at {slo_ms:g} ms", "In time")
    for row in sorted(rows, key=lambda row: (row.setting.max_batch_size, row.setting.max_queue_delay_ms, row.rate)):
        style = "bold green" if row is found else "" if row.held else "dim"
        table.add_row(
            str(row.setting.max_batch_size),
            f"{row.setting.max_queue_delay_ms:g}",
            f"{row.rate:.1f}",
            _ms(row.p50_ms),
            _ms(row.p99_ms),
            f"{row.goodput:.1f}",
            f"{row.share:.1%}",
            style=style,
        )
    Console().print(table)
