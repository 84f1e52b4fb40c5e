"""What metrics cost, and what the tracing hooks cost while nobody traces, in CPU seconds of a request's processes.

    python -m benchmarks.overhead [--rounds 160] [--requests 40] [--json FILE]

A recommender, a features service and an engine with a small trained model over a private MariaDB and Redis. A round
asks the same /v1/recommend of the same users, one at a time, four times in an order drawn for it: as it is, as it is
again (the control: what the machine makes of no difference), with every metric an empty function, and with tracing's
three hooks (`serving`, `calling`, `note`) replaced by the request's ids alone. Rounds are short, half a second a way,
since neighbours on the machine change a request's CPU by a third within seconds. CPU: user and system time of the three
processes, all threads, from their CPU clocks, background work included; wall time counts nowhere, so a shared machine
matters little. A share is the median over rounds of the difference to `as it is` of the same round, with a 95 %
bootstrap interval. The model is small, so a request is cheap and the shares are larger than with a real one.

measured: `cpu_s_per_10k` of each way, `metrics_share` (asked: at most 0.03), `tracing_off_share` (at most 0.01),
`control_share`, each with `_low` and `_high`; `scrape_cpu_ms`: one GET /metrics of each of the three.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.overhead_switch import AS_IT_IS, NO_HOOKS, NO_METRICS, SOCKET
from benchmarks.replicas import Replica, cpu_s, world
from benchmarks.report import machine, save, table
from tests.e2e.suite import USERS

CONTROL = "as it is, again"
WAYS = (AS_IT_IS, CONTROL, NO_METRICS, NO_HOOKS)
SHARES = {"metrics_share": NO_METRICS, "tracing_off_share": NO_HOOKS, "control_share": CONTROL}
WARM_UP, SETTLE, SCRAPES, RESAMPLES = 400, 8, 40, 4000
DEADLINE_MS = 400
"""So that a busy machine makes no request cheaper by giving something up."""


@dataclass
class Service:
    """A replica and its switch."""

    replica: Replica
    lines: Any

    def to(self, way: str) -> None:
        self.lines.write(way + "\n")
        self.lines.flush()
        if self.lines.readline().strip() != way:
            raise RuntimeError(f"{self.replica.name} does not switch to {way!r}")


@contextlib.contextmanager
def switched(replica: Replica) -> Iterator[Service]:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(10)
        caller.connect(str(replica.state / SOCKET))
        with caller.makefile("rw", encoding="utf-8") as lines:
            yield Service(replica, lines)


class Caller:
    """One connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self.asked = self.degraded = 0

    def ask(self, users: Sequence[int]) -> None:
        for user in users:
            body = json.dumps({"user_id": f"u{user}", "count": 10, "deadline_ms": DEADLINE_MS})
            self._connection.request("POST", "/v1/recommend", body, {"content-type": "application/json"})
            answer = self._connection.getresponse()
            content = answer.read()
            if answer.status != http.client.OK:
                raise RuntimeError(f"{answer.status}: {content[:200]!r}")
            self.asked += 1
            self.degraded += b'"degraded_stages":[]' not in content


class Trial:
    def __init__(self, services: Sequence[Service], caller: Caller) -> None:
        self._services, self._caller = services, caller
        self._random = random.Random(1)
        self.rows: list[dict[str, float]] = []
        """By way: CPU seconds of a round."""

    def round(self, requests: int) -> None:
        users = [self._random.randrange(USERS) for _ in range(requests)]
        order = self._random.sample(WAYS, len(WAYS))
        found = {}
        for way in order:
            for service in self._services:
                service.to(AS_IT_IS if way == CONTROL else way)
            self._caller.ask(users[:SETTLE])  # the interpreter forgets what it knew of the exchanged functions
            before = self._cpu()
            self._caller.ask(users)
            found[way] = self._cpu() - before
        self.rows.append(found)

    def _cpu(self) -> float:
        return sum(cpu_s(service.replica.pid) for service in self._services)

    def scrape_s(self) -> float:
        """CPU seconds of one scrape of all."""
        for service in self._services:
            service.to(AS_IT_IS)
        before = self._cpu()
        for service in self._services:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.replica.port)) as connection:
                for _ in range(SCRAPES):
                    connection.request("GET", "/metrics")
                    connection.getresponse().read()
        return (self._cpu() - before) / SCRAPES


def share(rows: Sequence[dict[str, float]], without: str) -> tuple[float, float, float]:
    """Median and 95 % interval of what `as it is` costs beyond `without`, as a share of the latter."""
    ratios = np.array([row[AS_IT_IS] / row[without] - 1 for row in rows])
    chance = np.random.default_rng(1)
    medians = np.median(chance.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def run(options: argparse.Namespace) -> dict[str, Any]:
    about = machine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="silkrec-overhead-")))
        suite = stack.enter_context(world(folder, 1, ("-m", "benchmarks.overhead_switch")))
        services = [stack.enter_context(switched(replica)) for replica in suite.replicas]
        caller = Caller(suite.recommenders[0].port)
        caller.ask([number % USERS for number in range(WARM_UP)])
        trial = Trial(services, caller)
        end = time.monotonic() + 60 * options.minutes
        while len(trial.rows) < options.rounds and time.monotonic() < end:
            trial.round(options.requests)
        scrape_s = trial.scrape_s()
    rows = [_row(way, trial.rows, options.requests) for way in WAYS]
    table("CPU seconds per 10,000 requests", rows)
    measured: dict[str, Any] = {"rounds": len(trial.rows), "requests": len(trial.rows) * options.requests}
    measured["cpu_s_per_10k"] = {row["way"]: row["median"] for row in rows}
    for name, without in SHARES.items():
        measured[name], measured[f"{name}_low"], measured[f"{name}_high"] = (
            round(found, 4) for found in share(trial.rows, without)
        )
    measured["scrape_cpu_ms"] = round(1e3 * scrape_s, 2)
    measured["degraded_share"] = round(caller.degraded / max(caller.asked, 1), 5)
    workload = {"requests_a_run": options.requests, "users": USERS, "concurrency": 1, "order": "drawn each round"}
    return {"machine": about, "workload": workload, "rows": rows, "measured": measured}


def _row(way: str, rows: Sequence[dict[str, float]], requests: int) -> dict[str, Any]:
    seconds = [1e4 * row[way] / requests for row in rows]
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return {
        "way": way,
        "median": round(float(median), 2),
        "quarter": round(float(low), 2),
        "three_quarters": round(float(high), 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=160)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=7.0, help="no round begins later")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options)
    print(json.dumps(result["measured"], indent=2))
    save(result, options.json)


if __name__ == "__main__":
    main()
