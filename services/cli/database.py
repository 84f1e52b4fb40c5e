"""`silkrec database status|upgrade`: the schema. Services upgrade it themselves when they start."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.context import load, opened, say_json
from shared.storage import migrate

app = typer.Typer(no_args_is_help=True, help="The database's schema.")


@app.command()
def upgrade(ctx: typer.Context) -> None:
    """Brings the schema to this release's; safe to repeat, and while services run."""
    with opened(load(ctx)) as database:
        typer.echo(f"{database.url.render_as_string(hide_password=True)} has this release's schema")


@app.command()
def status(ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Is the schema this release's? Exits with 1 when it is older."""
    with opened(load(ctx), upgrade=False) as database:
        pending = migrate.pending(database)
        url = database.url.render_as_string(hide_password=True)
    if as_json:
        say_json({"url": url, "pending": pending})
    else:
        typer.echo(
            f"{url}: " + ("older than this release; run `silkrec database upgrade`" if pending else "up to date")
        )
    raise typer.Exit(1 if pending else 0)
