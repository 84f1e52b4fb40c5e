"""`silkrec releases promote|rollback|list`: which model and index serve, and the settings shipped with them.

Everything is verified before it is written: both folders with every sha256, that they belong together, that the model's
actions are those declared here, that shipped settings are settings. The write is one row, so a release is never half
in force.
"""

from __future__ import annotations

import difflib
import getpass
import re
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
import yaml
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, select

from services.cli.context import Options, load, opened, say_json
from services.recommender.retrieval.index import RetrievalIndex
from services.recommender.retrieval.registry import register
from shared.actions import ActionTable
from shared.contracts.manifest import Deployment, IndexManifest, ModelManifest, Release
from shared.errors import ArtifactError, Conflict, NotFound, ValidationFailed
from shared.settings.load import Loaded, flatten, load_settings
from shared.settings.roots import Settings
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore, new_version
from shared.storage.statements import upsert
from shared.storage.tables import counters
from shared.storage.tables import deployments as deployments_table

app = typer.Typer(no_args_is_help=True, help="Releases: what serves, and since when.")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
NONE = "none"
NOTE_MAX = 512
HISTORY = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Without these a process cannot even read what was shipped, or they differ from host to host.
_NOT_SHIPPED = ("state_dir", "database.", "artifacts.", "recommender.host", "features.host", "inference.host")


@app.command()
def promote(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option("--model", help="Version, or `none`; the index's own otherwise.")] = None,
    index: Annotated[
        str | None, typer.Option("--index", help="Version, or `none`; the newest one of the model otherwise.")
    ] = None,
    release: Annotated[str | None, typer.Option("--release", help="Its name; made up otherwise.")] = None,
    note: Annotated[str, typer.Option("--note", help="Why, for `releases list`.")] = "",
    setting: Annotated[
        list[str] | None,
        typer.Option("--setting", help="name=value to ship with it; repeatable. Others stay in force."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Takes a model and an index into service, everywhere within 5 s. With --setting alone, ships settings with what
    serves now; services read shipped settings when they start."""
    loaded = load(ctx)
    settings = _parsed(setting or [])
    _check_text(release, note)
    store = ArtifactStore(loaded.settings.artifacts_dir())
    with opened(loaded) as database:
        if model is None and index is None:
            if not settings:
                raise ValidationFailed("say what to promote: --index, --model or --setting; `silkrec index list`")
            with database.read() as connection:
                chosen = _in_force(connection)
        else:
            chosen = _chosen(store, model, index)
        wanted = chosen if release is None else chosen.model_copy(update={"release": release})
        manifests = verify(loaded, store, wanted)

        def write(connection: Connection) -> Deployment:
            lock(connection)
            _check_name(connection, wanted)
            current = deployments.active(connection)
            shipped = {**(current.settings if current else {}), **settings}
            options = ctx.find_object(Options) or Options()
            load_settings(options.config, shipped=shipped)
            for manifest in manifests:
                register(connection, manifest)
            return deployments.promote(connection, wanted, settings=shipped, actor=_actor(), note=note)

        made = database.transact(write)
    _say(made, as_json)


@app.command()
def rollback(
    ctx: typer.Context,
    to: Annotated[
        int | None, typer.Option("--to", help="Deployment number; the newest one with another release otherwise.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Puts an older deployment in force again, release and settings: a new row with its content."""
    loaded = load(ctx)
    store = ArtifactStore(loaded.settings.artifacts_dir())
    with opened(loaded) as database:
        with database.read() as connection:
            older = _rollback_target(connection, to)
        verify(loaded, store, older.release)

        def write(connection: Connection) -> Deployment:
            lock(connection)
            return deployments.roll_back(connection, actor=_actor(), to_version=older.version)

        made = database.transact(write)
    _say(made, as_json)


@app.command("list")
def list_(
    ctx: typer.Context, limit: Annotated[int, typer.Option(min=1, max=HISTORY)] = 20, as_json: AsJson = False
) -> None:
    """Deployments, newest first; the first one is in force."""
    with opened(load(ctx)) as database, database.read() as connection:
        history = deployments.history(connection, limit)
    if as_json:
        rows = [{**_row(made), "active": place == 0} for place, made in enumerate(history)]
        say_json({"deployments": rows})
        return
    if not history:
        typer.echo("Nothing was promoted yet; build an index with `silkrec index build`, then promote it.")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("No.", "Release", "Model", "Index", "Settings", "When", "By", "Note"):
        table.add_column(name, overflow="fold", no_wrap=name == "Release")
    for place, made in enumerate(history):
        row = _row(made)
        shipped = "\n".join(f"{name}={value}" for name, value in sorted(made.settings.items()))
        values = [row["release"], row["model_version"] or "", row["index_version"] or "", shipped]
        number = f"{made.version} (active)" if place == 0 else str(made.version)
        table.add_row(number, *values, row["created_at"], made.actor, made.note, style="bold" if place == 0 else None)
    Console().print(table)


def verify(loaded: Loaded, store: ArtifactStore, release: Release) -> list[ModelManifest | IndexManifest]:
    """Reads every file of both folders. Raises ArtifactError for damage, Conflict for what does not fit together."""
    found: list[ModelManifest | IndexManifest] = []
    model: ModelManifest | None = None
    if release.model_version is not None:
        _, model = store.open_folder(ModelManifest, release.model_version)
        _check_actions(ActionTable.from_schema(loaded.settings.data), model)
        found.append(model)
    if release.index_version is not None:
        index = RetrievalIndex.open(store, release.index_version)
        _check_pair(model, index)
        found.append(index.manifest)
    for manifest in found:
        if manifest.version not in (release.model_version, release.index_version):
            raise ArtifactError(f"a {manifest.kind} folder holds {manifest.version}; it bears its version's name")
    return found


def lock(connection: Connection) -> None:
    """Until the commit, no other promotion or roll back reads what this one is about to replace."""
    upsert(connection, counters, [{"name": "deployments", "value": 1}], lambda _: {"value": counters.c.value + 1})


def _check_pair(model: ModelManifest | None, index: RetrievalIndex) -> None:
    if index.model_version is None:
        return
    if model is None:
        raise Conflict(
            f"index {index.version} was built from model {index.model_version}, and the release has none: add --model "
            f"{index.model_version}, or build one with `silkrec index build --model none`"
        )
    mend = f"run `silkrec index build --model {model.version}`"
    if index.model_version != model.version:
        raise Conflict(
            f"index {index.version} was built from model {index.model_version}, not from {model.version}: {mend}"
        )
    if index.user_dim != model.vector_dim:
        raise Conflict(
            f"index {index.version} takes user vectors of {index.user_dim} numbers, and model {model.version} makes "
            f"{model.vector_dim}: {mend}"
        )


def _check_actions(declared: ActionTable, model: ModelManifest) -> None:
    for action in model.actions:
        found = declared.by_code.get(action.code)
        if found is None or found.name != action.name:
            raise Conflict(
                f"model {model.version} learnt code {action.code} as {action.name}, and the configuration declares it "
                f"as {found.name if found else 'nothing'}: codes never change meaning; restore it, or train again"
            )


def _in_force(connection: Connection) -> Release:
    active = deployments.active(connection)
    if active is None:
        raise NotFound("nothing was promoted yet, so there is nothing to ship settings with; add --index")
    return active.release


def _chosen(store: ArtifactStore, model: str | None, index: str | None) -> Release:
    model_version = None if model in (None, NONE) else model
    index_version = None if index in (None, NONE) else index
    if model is None and index_version is not None:
        model_version = store.manifest(IndexManifest, index_version).model_version
    if index is None:
        index_version = _newest_index(store, model_version)
    if model_version is None and index_version is None:
        raise ValidationFailed("a release without model and index would serve nothing personal; name one of them")
    return Release(release=new_version("r"), model_version=model_version, index_version=index_version)


def _newest_index(store: ArtifactStore, model_version: str | None) -> str:
    for version in reversed(store.versions(IndexManifest)):
        if store.manifest(IndexManifest, version).model_version == model_version:
            return version
    raise NotFound(
        f"there is no index of model {model_version}; run `silkrec index build --model {model_version or NONE}`"
    )


def _rollback_target(connection: Connection, to: int | None) -> Deployment:
    history = deployments.history(connection, HISTORY)
    if not history:
        raise NotFound("nothing was promoted yet, so there is nothing to roll back to")
    for made in history[1:] if to is None else history:
        if made.version == to or (to is None and made.release.release != history[0].release.release):
            return made
    raise NotFound("there is no such older deployment; `silkrec releases list` shows them")


def _check_text(release: str | None, note: str) -> None:
    if release is not None and _NAME.fullmatch(release) is None:
        raise ValidationFailed("--release: 1 to 64 letters, digits, dots, dashes and underscores")
    if len(note) > NOTE_MAX:
        raise ValidationFailed(f"--note: at most {NOTE_MAX} characters")


def _check_name(connection: Connection, release: Release) -> None:
    """Caches and logs are keyed by the name, so it stands for one model and index for ever."""
    table = deployments_table.c
    query = select(table.model_version, table.index_version).where(table.release == release.release).limit(1)
    before = connection.execute(query).first()
    if before is not None and tuple(before) != (release.model_version, release.index_version):
        raise Conflict(
            f"release {release.release} was model {before[0]} and index {before[1]}; choose another --release"
        )


def _parsed(pairs: list[str]) -> dict[str, Any]:
    """`name=value` by YAML's rules. Raises ValidationFailed for a name that is no setting or may not be shipped."""
    known: Mapping[str, Any] = {name: value for name, value in flatten(Settings()) if name not in ("home", "data")}
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValidationFailed(f"--setting {pair}: write name=value")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
            raise ValidationFailed(f"--setting {name}: no such setting{f'; did you mean {near[0]}?' if near else ''}")
        if isinstance(known[name], SecretStr) or name == "auth.user_token_secret" or name.startswith(_NOT_SHIPPED):
            raise ValidationFailed(f"--setting {name}: set it on each host instead; secrets and places are not shipped")
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValidationFailed(f"--setting {name}: {text!r} is no value") from None
        if not isinstance(found[name], bool | int | float | str | list):
            raise ValidationFailed(f"--setting {name}: {text!r} is neither number, text, true, false nor a list")
    return found


def _actor() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"[:128]


def _row(made: Deployment) -> dict[str, Any]:
    created = datetime.fromtimestamp(made.created_at_us / 1_000_000, UTC)
    return {
        "deployment": made.version,
        **made.release.model_dump(),
        "settings": made.settings,
        "actor": made.actor,
        "note": made.note,
        "created_at": f"{created:%Y-%m-%dT%H:%M:%SZ}",
    }


def _say(made: Deployment, as_json: bool) -> None:
    if as_json:
        say_json(_row(made))
        return
    release = made.release
    console = Console(highlight=False)
    parts = f"model {release.model_version or NONE}, index {release.index_version or NONE}"
    console.print(f"[bold]{release.release}[/bold] is in force (deployment {made.version}): {parts}")
    if made.settings:
        shipped = ", ".join(f"{name}={value}" for name, value in sorted(made.settings.items()))
        console.print(f"Shipped settings, read when services start: {shipped}", markup=False)
