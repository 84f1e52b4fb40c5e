"""Users, films and ratings into the suite, through POST /v1/users, /v1/items and /v1/events."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.demo import dataset
from shared.errors import SilkrecError

BATCH = 500
# Four requests at a time fill the group commits. A user's ratings keep to one lane, so that their order is the file's.
LANES = 4
TIMEOUT_S = 30.0
_RETRY_S = 60.0


def import_all(url: str, folder: Path, progress: Progress) -> float:
    """Returns accepted events a second. Repeating it changes nothing. Raises SilkrecError."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http:
        _send_all(http, "users", list(dataset.users(folder)), progress)
        _send_all(http, "items", list(dataset.items(folder)), progress)
        rows = list(dataset.events(folder))
        lanes: list[list[dict[str, Any]]] = [[] for _ in range(LANES)]
        for row in rows:
            lanes[zlib.crc32(row["user_id"].encode()) % LANES].append(row)
        task = progress.add_task("events", total=len(rows))
        began = time.perf_counter()
        with ThreadPoolExecutor(LANES) as threads:
            for done in [threads.submit(_lane, http, lane, progress, task) for lane in lanes]:
                done.result()
        return len(rows) / (time.perf_counter() - began)


def progress_bar(**options: Any) -> Progress:
    return Progress(
        TextColumn("  {task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), **options
    )


def _send_all(http: httpx.Client, noun: str, rows: list[dict[str, Any]], progress: Progress) -> None:
    task = progress.add_task(noun, total=len(rows))
    for batch in _batches(rows):
        _send(http, noun, batch)
        progress.advance(task, len(batch))


def _lane(http: httpx.Client, rows: list[dict[str, Any]], progress: Progress, task: Any) -> None:
    for batch in _batches(rows):
        _send(http, "events", batch)
        progress.advance(task, len(batch))


def _send(http: httpx.Client, noun: str, batch: list[dict[str, Any]]) -> None:
    """As a careful client would: 503 is retried after what Retry-After says, which is harmless for every noun."""
    deadline = time.monotonic() + _RETRY_S
    while True:
        answer = http.post(f"/v1/{noun}", json={noun: batch})
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
            break
        time.sleep(float(answer.headers.get("retry-after", "1")))
    if answer.status_code >= httpx.codes.BAD_REQUEST:
        raise SilkrecError(f"POST /v1/{noun} answered {answer.status_code}: {answer.text[:300]}")
    rejected = answer.json()["rejected"]
    if rejected:
        raise SilkrecError(f"POST /v1/{noun} rejected {len(rejected)} rows, the first: {rejected[0]}")


def _batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def titles(url: str, item_ids: Iterable[str]) -> dict[str, str]:
    """What the catalogue calls them."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http:
        return {item_id: http.get(f"/v1/items/{item_id}").json().get("title") or item_id for item_id in item_ids}
