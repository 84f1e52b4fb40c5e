"""`silkrec …` over the test's database, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from services.cli.main import app
from shared.errors import SilkrecError
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database


@dataclass(frozen=True)
class Command:
    """`folder` holds the configuration and all state but the database."""

    folder: Path
    database: Database

    @classmethod
    def of(cls, folder: Path, database: Database) -> Command:
        url = database.url.render_as_string(hide_password=False)
        (folder / "silkrec.yaml").write_text(json.dumps({"database": {"url": url}}))
        return cls(folder, database)

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.folder / "var" / "artifacts")

    def run(self, *arguments: str) -> dict[str, Any]:
        """What it printed with --json. Raises what the command raised."""
        config = ["--config", str(self.folder / "silkrec.yaml")]
        done = CliRunner().invoke(app, [*config, *arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer

    def refusal(self, *arguments: str) -> str:
        """The words of the error it ends with."""
        try:
            self.run(*arguments)
        except SilkrecError as error:
            return error.detail
        raise AssertionError(f"{arguments} was not refused")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "services.cli.main", "--config", str(self.folder / "silkrec.yaml")]
        return subprocess.Popen(
            [*line, *arguments, "--json"],
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
