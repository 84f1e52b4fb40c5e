"""`silkrec releases promote|rollback|list`: which model and index serve, changed in one transaction."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from services.cli.context import Options, load, opened, say_json
from shared.contracts.manifest import Deployment, IndexManifest, ModelManifest, Release
from shared.errors import Conflict, NotFound, ValidationFailed
from shared.settings.load import load_settings
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore, new_version

app = typer.Typer(no_args_is_help=True, help="What serves: promote, roll back, list.")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Note = Annotated[str, typer.Option("--note", help="Why; shown in the list.")]


@app.command()
def promote(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option(help="Model version; none: retrieval scores.")] = None,
    index: Annotated[str | None, typer.Option(help="Index version; the newest one that fits the model.")] = None,
    release: Annotated[str | None, typer.Option(help="A name; made from the time otherwise.")] = None,
    note: Note = "",
    setting: Annotated[
        list[str] | None, typer.Option(help="name=value shipped with the release, beats the environment.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verifies both folders, then makes them the active release: seen by every process within seconds."""
    loaded = load(ctx)
    store = ArtifactStore(loaded.settings.artifacts_dir())
    chosen = _pair(store, model, index)
    shipped = _settings(ctx, setting) if setting else None
    named = Release(release=release or new_version("r"), model_version=chosen[0], index_version=chosen[1])
    with opened(loaded) as database, database.write() as connection:
        deployed = deployments.promote(connection, named, settings=shipped, actor=getpass.getuser(), note=note)
    _told(deployed, as_json)


@app.command()
def rollback(
    ctx: typer.Context,
    to: Annotated[int | None, typer.Option(help="Deployment version; the newest one of another release.")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes an older deployment active again, settings included. Its folders are verified first."""
    loaded = load(ctx)
    store = ArtifactStore(loaded.settings.artifacts_dir())
    with opened(loaded) as database, database.write() as connection:
        deployed = deployments.roll_back(connection, actor=getpass.getuser(), to_version=to)
        _pair(store, deployed.release.model_version, deployed.release.index_version)
    _told(deployed, as_json)


@app.command("list")
def list_(
    ctx: typer.Context, limit: Annotated[int, typer.Option(min=1, max=1000)] = 20, as_json: AsJson = False
) -> None:
    """Deployments, newest first; the first one is active."""
    with opened(load(ctx)) as database, database.read() as connection:
        found = deployments.history(connection, limit)
    if as_json:
        say_json({"deployments": [_row(row) for row in found]})
        return
    if not found:
        typer.echo("Nothing was promoted yet: `silkrec index build`, then `silkrec releases promote`.")
        return
    table = Table("", "Release", "Model", "Index", "Settings", "By", "When", "Note")
    for row in found:
        named = row.release
        when = datetime.fromtimestamp(row.created_at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
        settings = ", ".join(f"{name}={value}" for name, value in row.settings.items())
        table.add_row(
            str(row.version),
            named.release,
            named.model_version or "",
            named.index_version or "",
            settings,
            row.actor,
            when,
            row.note,
        )
    Console().print(table)


def _pair(store: ArtifactStore, model: str | None, index: str | None) -> tuple[str | None, str]:
    """Verified, and made for each other. Raises NotFound, Conflict, ArtifactError."""
    if index is None:
        index = _newest_index(store, model)
    _, index_manifest = store.open_folder(IndexManifest, index)
    if index_manifest.model_version not in (None, model):
        raise Conflict(
            f"index {index} was built for model {index_manifest.model_version}, not for {model or 'no model'}; "
            f"promote that model, or run `silkrec index build --model {model or 'none'}`"
        )
    if model is None:
        return None, index
    _, model_manifest = store.open_folder(ModelManifest, model)
    user = index_manifest.spaces.get("user")
    if user is not None and user.dim != model_manifest.vector_dim:
        raise Conflict(
            f"index {index} has {user.dim} dimensions, model {model} {model_manifest.vector_dim}; "
            f"run `silkrec index build --model {model}`"
        )
    return model, index


def _newest_index(store: ArtifactStore, model: str | None) -> str:
    for version in reversed(store.versions(IndexManifest)):
        if store.manifest(IndexManifest, version).model_version == model:
            return version
    raise NotFound(f"there is no index for {model or 'no model'}; run `silkrec index build --model {model or 'none'}`")


def _settings(ctx: typer.Context, pairs: list[str]) -> dict[str, Any]:
    """Checked as if they were in force. Raises ValidationFailed, ConfigurationError."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValidationFailed(f"--setting {pair!r} is no name=value, e.g. recommender.candidates=300")
        values[name.strip()] = yaml.safe_load(text)
    options = ctx.find_object(Options) or Options()
    load_settings(options.config, shipped=values)
    return values


def _row(deployed: Deployment) -> dict[str, Any]:
    return {
        "deployment": deployed.version,
        "release": deployed.release.release,
        "model_version": deployed.release.model_version,
        "index_version": deployed.release.index_version,
        "settings": deployed.settings,
        "actor": deployed.actor,
        "note": deployed.note,
        "created_at_us": deployed.created_at_us,
    }


def _told(deployed: Deployment, as_json: bool) -> None:
    if as_json:
        say_json(_row(deployed))
        return
    named = deployed.release
    Console().print(
        f"[bold]{named.release}[/bold] is active (deployment {deployed.version}): "
        f"model {named.model_version or 'none'}, index {named.index_version or 'none'}"
    )
