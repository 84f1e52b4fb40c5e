"""`silkrec config show [--origin]`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import BaseModel, SecretStr
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from services.cli.context import load_shipped, say_json
from shared.settings.load import flatten

app = typer.Typer(no_args_is_help=True, help="Settings, and where each comes from.")


@app.callback()
def _group() -> None:
    """Keeps `show` a subcommand though it is the only one."""


@app.command()
def show(
    ctx: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Every setting as the services see it: shipped with the release > environment > silkrec.yaml > default."""
    loaded = load_shipped(ctx)
    rows = [
        {"name": name, "value": _shown(value), "origin": loaded.origin.get(name, "default")}
        for name, value in flatten(loaded.settings)
        if name != "home"
    ]
    if as_json:
        say_json({"settings": rows, "file": str(loaded.config_file or "")})
        return
    table = Table("Setting", "Value", *(["From"] if origin else []))
    for row in rows:
        if row["name"] != "data":
            table.add_row(row["name"], str(row["value"]), *([row["origin"]] if origin else []))
    console = Console()
    console.print(table)
    declared, source = loaded.settings.data, loaded.config_file or "the defaults"
    console.print(
        f"{len(declared.scenes)} scenes, {len(declared.event_types)} event types, "
        f"{len(declared.item_fields)} item fields, {len(declared.user_fields)} user fields from {source}"
    )


def _shown(value: Any) -> Any:
    """Secrets stay hidden; of a URL only its password is one."""
    if isinstance(value, SecretStr):
        text = value.get_secret_value()
        try:
            return make_url(text).render_as_string(hide_password=True) if "://" in text else _masked(text)
        except ArgumentError:
            return "********"
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, bool | int | float | None) else str(value)


def _masked(text: str) -> str:
    return text if text == "embedded" else "********"
