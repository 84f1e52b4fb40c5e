"""`silkrec index build|list`: the FAISS indexes that slates are retrieved from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from redis.asyncio import Redis
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.cli.context import load, opened, say_json
from services.features.reader import FeatureReader
from services.recommender.retrieval.build import RECALL_GOAL, IndexBuilder, Model, Tell
from services.recommender.retrieval.registry import register
from services.recommender.retrieval.stock import read_stock
from shared.actions import ActionTable
from shared.contracts.manifest import Deployment, IndexManifest
from shared.settings.roots import Settings
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database

app = typer.Typer(no_args_is_help=True, help="Indexes: build them from behaviour or from a model.")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
ACTIVE, NONE = "active", "none"


@app.command()
def build(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Option("--model", help="A model's version, `active` (the active release's, if it has one) or `none`."),
    ] = ACTIVE,
    recall: Annotated[
        float, typer.Option("--recall", min=0.5, max=1.0, help="Share of the exact 100 best that a search must find.")
    ] = RECALL_GOAL,
    as_json: AsJson = False,
) -> None:
    """Builds an index of what can be recommended now, as a new immutable folder. Serving starts with `releases
    promote`."""
    loaded = load(ctx)
    settings, actions = loaded.settings, ActionTable.from_schema(loaded.settings.data)
    with opened(loaded) as database, _told() as tell:
        store = ArtifactStore(settings.artifacts_dir())
        chosen = _chosen_model(database, store, model)
        reader = _reader(settings, database, actions)
        tell("events", 0.0)
        # Events first: whatever they name is then in the catalogue that is read after them.
        events = reader.training_events()
        tell("events", 1.0)
        stock = read_stock(reader, time.time_ns() // 1000)
        builder = IndexBuilder(store, actions, recall, tell=tell)
        manifest = builder.build(events, stock, chosen)
        database.transact(lambda connection: register(connection, manifest))
    if as_json:
        say_json(_row(manifest))
        return
    spaces = ", ".join(
        f"{name} {space.kind} (recall@100 {space.recall_at_100:.3f})" for name, space in _spaces(manifest)
    )
    from_model = f"model {manifest.model_version}" if manifest.model_version else "behaviour alone"
    console = Console(highlight=False)
    console.print(f"[bold]{manifest.version}[/bold]: {manifest.spaces['item'].count} items from {from_model}; {spaces}")
    if left_out := int(manifest.metrics["items_without_vector"]):
        console.print(f"{left_out} items are left out: nothing places them yet (no events, no row in the model).")
    console.print(f"Serve it with: silkrec releases promote --index {manifest.version}", soft_wrap=True)


@app.command("list")
def list_(ctx: typer.Context, as_json: AsJson = False) -> None:
    """The published indexes of this host, newest first."""
    loaded = load(ctx)
    store = ArtifactStore(loaded.settings.artifacts_dir())
    with opened(loaded) as database:
        active = _active(database)
    now = None if active is None else active.release.index_version
    manifests = [store.manifest(IndexManifest, version) for version in reversed(store.versions(IndexManifest))]
    if as_json:
        say_json({"indexes": [{**_row(manifest), "active": manifest.version == now} for manifest in manifests]})
        return
    if not manifests:
        typer.echo(f"There is no index in {store.root}; build one with `silkrec index build`.")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("Index", "Active", "Items", "Model", "Item space", "User space", "Created"):
        table.add_column(name, overflow="fold", no_wrap=name == "Index")
    for manifest in manifests:
        spaces = {name: f"{space.kind}, {space.recall_at_100:.3f}" for name, space in _spaces(manifest)}
        table.add_row(
            manifest.version,
            "yes" if manifest.version == now else "",
            str(manifest.spaces["item"].count),
            manifest.model_version or "",
            spaces["item"],
            spaces.get("user", ""),
            f"{manifest.created_at:%Y-%m-%d %H:%M}",
        )
    Console().print(table)


def _chosen_model(database: Database, store: ArtifactStore, wanted: str) -> Model | None:
    if wanted == ACTIVE:
        active = _active(database)
        version = None if active is None else active.release.model_version
    else:
        version = None if wanted == NONE else wanted
    return None if version is None else Model.open(store, version)


def _active(database: Database) -> Deployment | None:
    with database.read() as connection:
        return deployments.active(connection)


def _reader(settings: Settings, database: Database, actions: ActionTable) -> FeatureReader:
    # What is read here comes from the database alone; the client never connects.
    return FeatureReader(database, Redis.from_url(settings.redis_url()), settings.features, actions)


def _spaces(manifest: IndexManifest) -> Iterator[tuple[str, Any]]:
    yield from sorted(manifest.spaces.items())


def _row(manifest: IndexManifest) -> dict[str, Any]:
    return {
        "index_version": manifest.version,
        "model_version": manifest.model_version,
        "created_at": manifest.created_at.isoformat(),
        "catalogue_version": manifest.catalogue_version,
        "items": manifest.spaces["item"].count,
        "spaces": {name: space.model_dump(mode="json") for name, space in _spaces(manifest)},
        "metrics": manifest.metrics,
    }


@contextmanager
def _told() -> Iterator[Tell]:
    """A bar a phase on stderr, so that stdout stays for the result."""
    columns = (TextColumn("  {task.description:<12}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(phase: str, share: float) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=1.0)
            progress.update(tasks[phase], completed=share)

        yield tell
