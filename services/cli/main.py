"""The `silkrec` command. Groups are imported when they are called: `silkrec keys` never loads FAISS."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from services.cli.context import Options
from shared.errors import ClientError, ConfigurationError, SilkrecError

EXIT_USER = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

# name: module under services.cli; it has `app` (a group of commands) or `command` (one).
COMMANDS = {
    "serve": "serve",
    "up": "up.command",
    "down": "up.down",
    "demo": "demo.command",
    "data": "data",
    "schema": "schema",
    "train": "train",
    "index": "index",
    "releases": "releases",
    "experiments": "experiments",
    "jobs": "jobs",
    "keys": "keys",
    "config": "config",
    "database": "database",
    "backup": "backup.command",
    "tune": "tune.command",
    "doctor": "doctor.command",
    "simulate": "simulate.command",
    "open-bandit": "open_bandit.command",
    "openapi": "openapi",
}


class _Commands(TyperGroup):
    def list_commands(self, _ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"services.cli.{COMMANDS[cmd_name]}")
        found = typer.main.get_command(_typer_of(module))
        found.name = cmd_name
        return found


def _typer_of(module: Any) -> typer.Typer:
    if hasattr(module, "app"):
        group: typer.Typer = module.app
        return group
    single = typer.Typer(add_completion=False)
    single.command()(module.command)
    return single


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"silkrec {metadata.version('silkrec')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Configuration file; silkrec.yaml here otherwise.")
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """SilkRec: ranked slates inside a deadline."""
    ctx.obj = Options(config)


def main() -> None:
    """Runs one command; an error of ours is one line on stderr, never a traceback."""
    try:
        app()
    except SilkrecError as error:
        _tell(error)
        sys.exit(EXIT_USER if isinstance(error, ClientError | ConfigurationError) else EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `silkrec … | head`
        sys.stderr.close()
        sys.exit(EXIT_FAILED)


def _tell(error: SilkrecError) -> None:
    typer.secho(f"silkrec: {error.detail}", err=True, fg="red")
    for fault in error.errors:
        typer.echo(f"  {fault.pointer}: {fault.message}", err=True)


if __name__ == "__main__":
    main()
