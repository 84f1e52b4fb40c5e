"""500 calls of /v1/recommend, four at a time, as four front ends would send them."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

CALLS, CONCURRENCY, WARM_UP = 500, 4, 200
DEADLINE_MS = 68.0
TIMEOUT_S = 10.0
SEED = 2026


@dataclass
class Latency:
    """As the client saw it, connection kept open. A miss is an answer after the deadline, or none."""

    took_ms: list[float] = field(default_factory=list)
    failures: int = 0
    degraded: Counter[str] = field(default_factory=Counter)

    def percentile(self, of: float) -> float:
        return round(float(np.percentile(self.took_ms, of)), 2) if self.took_ms else float("nan")

    @property
    def misses(self) -> int:
        return self.failures + sum(took > DEADLINE_MS for took in self.took_ms)


def measure(url: str, user_ids: Sequence[str]) -> Latency:
    """Warm-up calls are not counted. Users are drawn with a fixed seed."""
    chosen = random.Random(SEED).choices(user_ids, k=WARM_UP + CALLS)
    _send(url, chosen[:WARM_UP])
    return _send(url, chosen[WARM_UP:])


def _send(url: str, user_ids: Sequence[str]) -> Latency:
    with ThreadPoolExecutor(CONCURRENCY) as threads:
        parts = list(threads.map(lambda lane: _lane(url, user_ids[lane::CONCURRENCY]), range(CONCURRENCY)))
    total = Latency()
    for part in parts:
        total.took_ms += part.took_ms
        total.failures += part.failures
        total.degraded += part.degraded
    return total


def _lane(url: str, user_ids: Sequence[str]) -> Latency:
    """One connection. http.client and not httpx: the client shares the two cores with what it measures."""
    latency = Latency()
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)) as connection:
        for user_id in user_ids:
            _call(connection, user_id, latency)
    return latency


def _call(connection: http.client.HTTPConnection, user_id: str, latency: Latency) -> None:
    body = json.dumps({"user_id": user_id, "count": 10})
    began = time.perf_counter()
    try:
        connection.request("POST", "/v1/recommend", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    except OSError:
        latency.failures += 1
        connection.close()
        return
    latency.took_ms.append((time.perf_counter() - began) * 1000)
    if answer.status != http.client.OK:
        latency.failures += 1
        return
    latency.degraded.update(f"{row['stage']}: {row['cause']}" for row in json.loads(content)["degraded_stages"])
