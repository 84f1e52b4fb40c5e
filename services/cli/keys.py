"""`silkrec keys create|list|revoke`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from services.cli.context import load
from shared.storage import keys, migrate
from shared.storage.database import Database

app = typer.Typer(no_args_is_help=True, help="API keys: who may call, and what for.")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command()
def create(
    ctx: typer.Context,
    role: Annotated[str, typer.Argument(help="client (browsers), server (your back end) or admin")],
    name: Annotated[str, typer.Option("--name", "-n", help="What the key is for, shown in lists.")] = "unnamed",
    as_json: AsJson = False,
) -> None:
    """Makes a key and shows it once. From then on the API refuses requests without a key."""
    with _database(ctx) as database:
        made = keys.create(database, role, name)
    if as_json:
        typer.echo(json.dumps({**_as_dict(made.key), "key": made.text}))
        return
    console = Console()
    console.print(
        f"[bold]{made.key.key_id}[/bold] ({made.key.role}), valid within {keys.REFRESH_S:g} s. Copy the key now:"
    )
    console.print(made.text, style="green", soft_wrap=True, markup=False, highlight=False)


@app.command("list")
def list_(ctx: typer.Context, as_json: AsJson = False) -> None:
    """All keys, revoked ones too. The keys themselves are not stored."""
    with _database(ctx) as database:
        rows = [_as_dict(key) for key in keys.list_keys(database)]
    if as_json:
        typer.echo(json.dumps({"keys": rows}))
        return
    if not rows:
        typer.echo("There are no keys: the API serves this machine only. Make one with `silkrec keys create server`.")
        return
    table = Table("Key", "Role", "Name", "Created", "Revoked")
    for row in rows:
        table.add_row(row["key_id"], row["role"], row["name"], row["created_at"], row["revoked_at"] or "")
    Console().print(table)


@app.command()
def revoke(ctx: typer.Context, key_id: Annotated[str, typer.Argument()], as_json: AsJson = False) -> None:
    """Ends a key at once; running services follow within two seconds. Doing it twice changes nothing."""
    with _database(ctx) as database:
        key = keys.revoke(database, key_id)
    typer.echo(json.dumps(_as_dict(key)) if as_json else f"{key.key_id} ({key.name}) is revoked.")


@contextlib.contextmanager
def _database(ctx: typer.Context) -> Iterator[Database]:
    settings = load(ctx).settings
    database = Database(settings.database_url(), settings.database)
    try:
        if migrate.pending(database):
            migrate.upgrade(database)
        yield database
    finally:
        database.close()


def _as_dict(key: keys.ApiKey) -> dict[str, Any]:
    row = asdict(key)
    row["created_at"] = _time(row.pop("created_at_us"))
    row["revoked_at"] = _time(row.pop("revoked_at_us"))
    return row


def _time(us: int | None) -> str | None:
    return None if us is None else datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
