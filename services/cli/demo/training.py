"""`silkrec train` in a process of its own, shown as one progress bar."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from services.cli.demo.suite import Place
from shared.errors import SilkrecError

# Index and release come on top; together they stay within five minutes.
MINUTES = 4.6
_LOOK_S = 0.3
_COLUMNS = (TextColumn("  {task.description:<10}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())


def train(place: Place, console: Console, minutes: float) -> dict[str, Any]:
    """Returns {model_version, train_s, epochs, metrics}. Raises SilkrecError with the command's own words."""
    progress_file, log = place.folder / "train-progress.jsonl", place.logs / "train.log"
    progress_file.unlink(missing_ok=True)
    arguments = ["train", "--json", "--minutes", str(minutes), "--progress-file", str(progress_file)]
    console.print(f"Training the ranker (at most {minutes:g} minutes; popular and similar items serve meanwhile):")
    command = place.silkrec(*arguments)
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, env=place.environment, stdout=subprocess.PIPE, stderr=errors) as child,
        Progress(*_COLUMNS, console=console) as bar,
    ):
        task = bar.add_task("training", total=minutes * 60)
        began = time.monotonic()
        while child.poll() is None:
            _follow(bar, task, progress_file, time.monotonic() - began)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_LOOK_S)
        said = child.stdout.read() if child.stdout else b""
        bar.update(task, completed=minutes * 60)
    if child.returncode != 0:
        last = log.read_text("utf-8", errors="replace").strip().splitlines()[-1:] or ["(it said nothing)"]
        raise SilkrecError(f"`silkrec train` failed: {last[0]} (more in {log})")
    result: dict[str, Any] = json.loads(said.decode().strip().splitlines()[-1])
    return result


def _follow(bar: Progress, task: Any, path: Path, elapsed_s: float) -> None:
    """The newest line of the progress file: {phase, epoch, done, total, eta_s}."""
    try:
        lines = path.read_text("utf-8").strip().splitlines()
        told = json.loads(lines[-1]) if lines else {}
    except (FileNotFoundError, ValueError):
        return
    remaining = float(told.get("eta_s") or 0.0)
    if remaining > 0:
        bar.update(
            task, description=str(told.get("phase", "training")), completed=elapsed_s, total=elapsed_s + remaining
        )
