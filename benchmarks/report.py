"""What every benchmark tells: its tables, the machine it ran on, and the file that keeps its result."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    told = Path("/proc/cpuinfo")
    if told.exists():
        names = [
            line.partition(":")[2].strip() for line in told.read_text("utf-8").splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Columns are the keys of the first row."""
    if not rows:
        return
    found = Table(title=title)
    for name in rows[0]:
        found.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        found.add_row(*(str(row.get(name, "")) for name in rows[0]))
    Console(width=160).print(found)


def save(result: Mapping[str, Any], path: Path | None) -> None:
    """The result as JSON, where `--json` names a file."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
