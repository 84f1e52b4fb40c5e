"""`silkrec down`: ends the suite of this state folder, and what it started, whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import psutil
import typer

from services.cli.context import load
from services.cli.up.leftovers import end_leftovers
from services.cli.up.running import supervisor_pid
from shared.settings.roots import EMBEDDED, Settings

# Front, then services, then Redis: each has 10 s before it is killed.
STOP_S = 40.0
KILL_S = 5.0
# All that a suite writes into its state folder. Backups, downloads and caches of other commands stay.
DATA = (
    "silkrec.db", "silkrec.db-wal", "silkrec.db-shm", "artifacts", "journal", "inference", "dashboard.secret",
    "log-key", "prometheus", "alertmanager", "up", "run", "log",
)  # fmt: skip


def command(
    ctx: typer.Context,
    delete_data: Annotated[bool, typer.Option("--delete-data", help="Then remove its data, after asking.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Ends the suite. Data stays unless told otherwise."""
    settings = load(ctx).settings
    pid = supervisor_pid(settings)
    if pid is None:
        killed = end_leftovers(settings)
        typer.echo(f"No suite runs in {settings.state}.")
        if killed:
            typer.echo(f"Left by a supervisor that was killed, and killed now: {', '.join(killed)}.")
    else:
        end(pid)
        typer.echo("The suite has ended.")
    if delete_data:
        _delete(settings, yes)


def end(pid: int) -> None:
    """Asks the supervisor to end, in order; kills what is left of its processes when it takes too long."""
    try:
        supervisor = psutil.Process(pid)
        tree = [supervisor, *supervisor.children(recursive=True)]
        supervisor.terminate()
    except psutil.NoSuchProcess:
        return
    psutil.wait_procs([supervisor], STOP_S)
    _, alive = psutil.wait_procs(tree, 0)
    for process in alive:
        typer.echo(f"{process.pid} did not end and is killed", err=True)
        process.kill()
    psutil.wait_procs(alive, KILL_S)


def _delete(settings: Settings, yes: bool) -> None:
    present = [path for name in DATA if (path := settings.state / name).exists()]
    if not present:
        typer.echo(f"There is no data in {settings.state}.")
        return
    for path in present:
        typer.echo(f"  {_size(path) / 1e6:10.1f} MB  {path}")
    if settings.database.url.get_secret_value() != EMBEDDED or settings.artifacts.url:
        typer.echo("A database server and an artifacts folder of your own stay as they are.")
    if not yes and not typer.confirm("Remove all this?"):
        typer.echo("Nothing was removed.")
        return
    for path in present:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    typer.echo("Removed.")


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.lstat().st_size for file in files)
