"""`silkrec index build|list`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from services.cli.context import load_shipped, opened, say_json
from services.features.reader import FeatureReader
from shared.actions import ActionTable
from shared.contracts.manifest import IndexManifest, ModelManifest
from shared.errors import NotFound
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.redis import connect

app = typer.Typer(no_args_is_help=True, help="Retrieval indexes: FAISS over item vectors.")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command()
def build(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="A model's version; newest, active, or none: behaviour alone.")] = "newest",
    as_json: AsJson = False,
) -> None:
    """Builds an index of the whole catalogue and publishes it. Then: `silkrec releases promote`."""
    from services.recommender.retrieval.build import build as build_index

    loaded = load_shipped(ctx)
    settings = loaded.settings
    store, actions = ArtifactStore(settings.artifacts_dir()), ActionTable.from_schema(settings.data)
    columns = (TextColumn("{task.description:<14}"), BarColumn(), TaskProgressColumn())
    with opened(loaded) as database, Progress(*columns, console=Console(stderr=True), disable=as_json) as bar:
        chosen = _model(model, store, database)
        redis = connect(settings.redis_url(), settings.redis, timeout_ms=settings.redis.read_timeout_ms)
        reader = FeatureReader(database, redis, settings.features, actions)
        task = bar.add_task("reading", total=1.0)
        manifest = build_index(
            reader,
            store,
            database,
            actions,
            model_version=chosen,
            advance=lambda phase, share: bar.update(task, description=phase, completed=share),
        )
        bar.update(task, description="done", completed=1.0)
    if as_json:
        say_json({"index_version": manifest.version, **_row(manifest)})
        return
    console = Console()
    console.print(f"[bold]{manifest.version}[/bold]: {manifest.spaces['item'].count} items. Next:")
    release = f"--model {chosen} " if chosen else ""
    console.print(f"silkrec releases promote {release}--index {manifest.version}", highlight=False)


@app.command("list")
def list_(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Published indexes, newest first."""
    store = ArtifactStore(load_shipped(ctx).settings.artifacts_dir())
    manifests = [store.manifest(IndexManifest, version) for version in reversed(store.versions(IndexManifest))]
    if as_json:
        say_json({"indexes": [{"index_version": manifest.version, **_row(manifest)} for manifest in manifests]})
        return
    table = Table("Index", "Model", "Items", "Kind", "Recall@100", "Made")
    for manifest in manifests:
        space = manifest.spaces.get("user") or manifest.spaces["item"]
        made = manifest.created_at.strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(
            manifest.version,
            manifest.model_version or "",
            str(space.count),
            space.kind,
            f"{space.recall_at_100:.3f}",
            made,
        )
    Console().print(table)


def _row(manifest: IndexManifest) -> dict[str, object]:
    return {
        "model_version": manifest.model_version,
        "catalogue_version": manifest.catalogue_version,
        "created_at": manifest.created_at.isoformat(),
        "spaces": {name: space.model_dump() for name, space in manifest.spaces.items()},
    }


def _model(wanted: str, store: ArtifactStore, database: Database) -> str | None:
    """Raises NotFound."""
    published = store.versions(ModelManifest)
    if wanted == "none":
        return None
    if wanted == "newest":
        return published[-1] if published else None
    if wanted == "active":
        with database.read() as connection:
            active = deployments.active(connection)
        if active is None or active.release.model_version is None:
            raise NotFound("no model is promoted yet; `--model newest` takes the last one trained, none does without")
        return active.release.model_version
    if wanted not in published:
        raise NotFound(f"there is no model {wanted!r}; published: {', '.join(published[-5:]) or 'none'}")
    return wanted
