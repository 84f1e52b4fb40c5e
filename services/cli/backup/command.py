"""`silkrec backup create|restore|list`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.backup.create import create as create_backup
from services.cli.backup.folder import BackupManifest, backups
from services.cli.backup.restore import restore as restore_backup
from services.cli.context import load, opened, say_json
from services.cli.supervisor import holder
from shared.errors import Conflict, SilkrecError
from shared.settings.roots import EMBEDDED

app = typer.Typer(no_args_is_help=True, help="Backups of database and artifacts.")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
To = Annotated[Path | None, typer.Option(help="Where backups lie; backups/ of the state folder otherwise.")]


@app.command()
def create(
    ctx: typer.Context,
    to: To = None,
    keep: Annotated[int, typer.Option(min=0, help="So many newest ones stay; 0: all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """A new dated folder, while everything runs."""
    loaded = load(ctx)
    root = (to or loaded.settings.state / "backups").resolve()
    with opened(loaded, upgrade=False) as database:
        try:
            folder, manifest = create_backup(loaded.settings, database, root, keep=keep)
        except OSError as error:
            raise SilkrecError(f"{root}: {error.strerror or error}; nothing was kept of this backup") from error
    _tell(folder, manifest, as_json)


@app.command()
def restore(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A backup.", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="Lose what the database holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Puts a backup into an empty database and adds its artifacts. No service may run meanwhile."""
    loaded = load(ctx)
    if holder(loaded.settings) is not None:
        raise Conflict(f"a suite runs in {loaded.settings.state}; end it first (`silkrec down`)")
    with opened(loaded, upgrade=False) as database:
        manifest = restore_backup(loaded.settings, database, folder.resolve(), replace=replace)
    _tell(folder, manifest, as_json)
    if not as_json and loaded.settings.redis.url.get_secret_value() != EMBEDDED:
        typer.echo(
            "Redis may hold histories that are newer than this backup: empty it (FLUSHDB) before services start."
        )


@app.command("list")
def list_(ctx: typer.Context, to: To = None, as_json: AsJson = False) -> None:
    """Backups, oldest first."""
    found = backups((to or load(ctx).settings.state / "backups").resolve())
    if as_json:
        say_json({"backups": [str(path) for path in found]})
        return
    for path in found:
        typer.echo(str(path))


def _tell(folder: Path, manifest: BackupManifest, as_json: bool) -> None:
    rows, size = sum(manifest.rows.values()), sum(file.bytes for file in manifest.files.values())
    if as_json:
        say_json({"folder": str(folder), "rows": rows, "bytes": size, "created_at": manifest.created_at.isoformat()})
        return
    typer.echo(
        f"{folder}: {rows:,} rows of {len(manifest.rows)} tables, {size / 1e6:,.1f} MB in {len(manifest.files)} files"
    )
