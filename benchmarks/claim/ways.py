"""Two ways to a slate, both through the public API: what a shop builds first, and the whole pipeline."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from benchmarks.claim.people import People
from services.recommender.ranking.fusion import K

COUNT, DEPTH, RECENT = 10, 100, 3
TIMEOUT_S = 10.0


class Front:
    """A front end with its connections kept open. `timed` calls return `(item ids, ms, degraded)`."""

    def __init__(self, url: str, people: People) -> None:
        self._people = people
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)
        self._threads = ThreadPoolExecutor(RECENT + 1)

    def close(self) -> None:
        self._threads.shutdown()
        self._http.close()

    def baseline(self, user_id: str) -> tuple[list[str], float, bool]:
        """Popularity + item-to-item: what is popular and what is like the newest films that the user rated high, asked
        for at the same time, by reciprocal rank fusion; what the user rated already left out, as the pipeline does."""
        paths = [f"/v1/items/{item_id}/similar?count={DEPTH}" for item_id in self._people.liked[user_id][:RECENT]]
        begin = time.perf_counter()
        lists = list(self._threads.map(self._listed, [f"/v1/popular?count={DEPTH}", *paths]))
        slate = fused(lists, self._people.seen[user_id])[:COUNT]
        return slate, (time.perf_counter() - begin) * 1000, False

    def full(self, user_id: str, diversity: float | None = None) -> tuple[list[str], float, bool]:
        body: dict[str, Any] = {"user_id": user_id, "count": COUNT}
        if diversity is not None:
            body["diversity"] = diversity
        begin = time.perf_counter()
        answer = self._http.post("/v1/recommend", json=body).raise_for_status().json()
        slate = [row["item_id"] for row in answer["items"]]
        return slate, (time.perf_counter() - begin) * 1000, bool(answer["degraded_stages"])

    def _listed(self, path: str) -> list[str]:
        return [row["item_id"] for row in self._http.get(path).raise_for_status().json()["items"]]


def fused(lists: Sequence[Sequence[str]], seen: frozenset[str]) -> list[str]:
    """As `ranking.fusion` has it, over ids; equal scores in the order of first sight."""
    score: dict[str, float] = defaultdict(float)
    for ranking in lists:
        for place, item_id in enumerate(ranking, start=1):
            score[item_id] += 1 / (K + place)
    return sorted((item_id for item_id in score if item_id not in seen), key=lambda item_id: -score[item_id])
