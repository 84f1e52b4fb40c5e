"""The open-loop load on POST /v1/recommend, as a process of its own.

    python -m benchmarks.bulk.online --url http://127.0.0.1:8080 --rate 60 --seconds 5 --users u1,u2,…

Poisson arrivals; a request is sent when it is due whatever became of those before it, and its latency counts from then.
Good is an answer within 68 ms in which the model scored every candidate. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import uvloop

DEADLINE_S = 0.068
WARM_UP_S = 1.0
TIMEOUT_S = 5.0
_HEAD = b"POST /v1/recommend HTTP/1.1\r\nhost: benchmark\r\ncontent-type: application/json\r\n"


@dataclass
class Connections:
    """Kept-alive HTTP/1.1 connections; a request takes a free one or opens one more."""

    host: str
    port: int
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def post(self, body: bytes) -> tuple[int, bytes]:
        reader, writer = await self._one()
        writer.write(_HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        lines = answer.lower().split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
        content = await reader.readexactly(length)
        self.free.append((reader, writer))
        return int(lines[0].split(b" ")[1]), content

    async def _one(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Those that the server ended while they idled are dropped, as every HTTP client does."""
        while self.free:
            reader, writer = self.free.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self.host, self.port)

    def close(self) -> None:
        for _, writer in self.free:
            writer.close()


@dataclass
class Found:
    """Of requests after the warm-up. `ms`: every answer's; `gave_up`: stages and causes by how many answers."""

    counted: int = 0
    good: int = 0
    ms: list[float] = field(default_factory=list)
    gave_up: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def summary(self, rate: float) -> dict[str, Any]:
        p50, p95, p99 = (round(float(value), 2) for value in np.percentile(self.ms or [float("nan")], [50, 95, 99]))
        share = self.good / max(self.counted, 1)
        return {
            "rate": round(rate, 1), "counted": self.counted, "good_share": round(share, 4), "failed": self.failed,
            "in_time_share": round(sum(ms <= DEADLINE_S * 1e3 for ms in self.ms) / max(self.counted, 1), 4),
            "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "gave_up": dict(self.gave_up),
        }  # fmt: skip


async def load(options: argparse.Namespace) -> dict[str, Any]:
    address, found = urlsplit(options.url), Found()
    connections = Connections(str(address.hostname), int(address.port or 80))
    random = np.random.default_rng(options.seed)
    total = int(options.rate * (options.seconds + WARM_UP_S))
    dues = np.cumsum(random.exponential(1.0 / options.rate, total)).tolist()
    users = random.choice(options.users.split(","), total).tolist()
    bodies = [orjson.dumps({"user_id": user, "count": options.count}) for user in users]
    gc.freeze()
    gc.disable()
    tasks: set[asyncio.Task[None]] = set()
    begin = time.perf_counter()
    for due, body in zip(dues, bodies, strict=True):
        wait_s = begin + due - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        task = asyncio.create_task(_one(connections, body, begin + due, found if due >= WARM_UP_S else None))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    connections.close()
    return found.summary(options.rate)


async def _one(connections: Connections, body: bytes, due: float, found: Found | None) -> None:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            status, content = await connections.post(body)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        if found is not None:
            found.counted += 1
            found.failed += 1
        return
    seconds = time.perf_counter() - due
    if found is None:
        return
    found.counted += 1
    found.ms.append(seconds * 1e3)
    answer = orjson.loads(content)
    degraded = [f"{row['stage']}: {row['cause']}" for row in answer.get("degraded_stages", ())]
    found.gave_up.update(degraded)
    found.failed += status != 200
    found.good += status == 200 and not degraded and seconds <= DEADLINE_S


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--users", required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    print(orjson.dumps(uvloop.run(load(parser.parse_args(arguments)))).decode())


if __name__ == "__main__":
    main()
