"""What the tests of infra/ share: where things lie, programs, and whether a command line of ours can be read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import typer

from services.cli.main import app
from shared.settings.load import load_settings
from shared.settings.roots import Settings

REPOSITORY = Path(__file__).resolve().parents[3]
INFRA = REPOSITORY / "infra"


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Standard output of a program of the virtual environment or the system; a failure shows what it said."""
    own = Path(sys.executable).parent / str(command[0])
    words = [str(own) if own.exists() else str(command[0]), *map(str, command[1:])]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env, cwd=cwd)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def assert_is_command(arguments: Sequence[str]) -> None:
    """`silkrec ARGUMENTS` exists with these options. Nothing is carried out."""
    command: Any = typer.main.get_command(app)
    rest, context = list(arguments), click.Context(command)
    while isinstance(command, click.Group) or hasattr(command, "list_commands"):
        assert rest, f"silkrec {' '.join(arguments)} names a group and no command"
        found = command.get_command(context, rest[0])
        assert found is not None, f"there is no `silkrec {' '.join(arguments)}`"
        command, rest = found, rest[1:]
    command.make_context(arguments[0], rest)


def settings_of(environment: Mapping[str, str], folder: Path) -> Settings:
    """As a process would read them. Raises ConfigurationError for a name or a value that is none."""
    given = {name: value for name, value in environment.items() if name.startswith("SILKREC_")}
    given.pop("SILKREC_CONFIG", None)
    config = folder / "silkrec.yaml"
    config.write_text("{}\n")
    return load_settings(config, env=given).settings
