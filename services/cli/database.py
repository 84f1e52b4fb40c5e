"""`silkrec database status|upgrade`: the schema. Services upgrade it themselves when they start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
    """Is the schema this release's? What is pending, and what of it ends the way back to the release before. Exits with
    1 when it is older."""
    with opened(load(ctx), upgrade=False) as database:
        missing = migrate.missing(database)
        url = database.url.render_as_string(hide_password=True)
    if as_json:
        say_json({"url": url, "pending": bool(missing), "migrations": [asdict(one) for one in missing]})
    else:
        typer.echo(
            f"{url}: " + ("older than this release; run `silkrec database upgrade`" if missing else "up to date")
        )
        if missing:
            _show(missing)
    raise typer.Exit(1 if missing else 0)


def _show(missing: Sequence[migrate.Migration]) -> None:
    table = Table("Pending", "Does", "Rollback to the release before")
    for one in missing:
        back = "stays possible" if one.contracts is None else f"[bold red]ends here[/]: {escape(one.contracts)}"
        table.add_row(one.revision, escape(one.does), back)
    Console().print(table)
