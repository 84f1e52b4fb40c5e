"""What every command group shares: the options before the command, settings, the database, output."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from shared.errors import DatabaseUnavailable
from shared.settings.load import Loaded, load_settings
from shared.storage import deployments, migrate
from shared.storage.database import Database


@dataclass(frozen=True, slots=True)
class Options:
    """`silkrec --config FILE …`"""

    config: Path | None = None


def load(ctx: typer.Context) -> Loaded:
    """Environment, file and defaults; what was shipped with the release stays out. Raises ConfigurationError."""
    options = ctx.find_object(Options) or Options()
    return load_settings(options.config)


def load_shipped(ctx: typer.Context) -> Loaded:
    """`load` under the settings that the active deployment ships. Without a database, as if nothing were shipped."""
    loaded = load(ctx)
    shipped = _shipped(loaded)
    options = ctx.find_object(Options) or Options()
    return load_settings(options.config, shipped=shipped) if shipped else loaded


def _shipped(loaded: Loaded) -> Mapping[str, Any]:
    try:
        with opened(loaded, upgrade=False) as database:
            if migrate.pending(database):
                return {}
            with database.read() as connection:
                found = deployments.active(connection)
                return found.settings if found else {}
    except DatabaseUnavailable:
        return {}


@contextlib.contextmanager
def opened(loaded: Loaded, *, upgrade: bool = True) -> Iterator[Database]:
    """The database of the settings, with this release's schema. Raises DatabaseUnavailable."""
    settings = loaded.settings
    database = Database(settings.database_url(), settings.database)
    try:
        if upgrade:
            migrate.upgrade(database)
        yield database
    finally:
        database.close()


def say_json(content: Any) -> None:
    typer.echo(json.dumps(content, default=str))
