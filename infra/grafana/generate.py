"""`python -m infra.grafana.generate [--check]`: writes dashboards/*.json of `boards`, or says which differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from infra.grafana.boards import BOARDS
from infra.grafana.panels import as_json

FOLDER = Path(__file__).resolve().parent / "dashboards"


def files() -> dict[Path, str]:
    """Each file's path and what it must hold."""
    return {FOLDER / f"{board.name}.json": json.dumps(as_json(board), indent=1) + "\n" for board in BOARDS}


def differing() -> list[str]:
    """Also files that no board makes any more."""
    wanted = files()
    here = {path: path.read_text("utf-8") for path in FOLDER.glob("*.json")}
    return sorted(path.name for path in wanted.keys() | here.keys() if wanted.get(path) != here.get(path))


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        for name in differing():
            print(
                f"{name} is not what infra/grafana/boards says; run python -m infra.grafana.generate", file=sys.stderr
            )
        return 1 if differing() else 0
    wanted = files()
    for path in FOLDER.glob("*.json"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
