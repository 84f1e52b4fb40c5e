"""What the bulk path makes of two cores that requests share with it, and what a job costs requests.

    python -m benchmarks.batch [--rounds 3] [--seconds 5] [--start 15] [--json FILE]

Over the demo on MovieLens-100K (var/demo/, made by `silkrec demo --exit` when it is not there), whole suite, real
engine. In each round, after a restart of the suite:

1. a worker (`benchmarks/bulk/job.py`) goes over the users for 8 s while nobody else asks: `users_per_s`;
2. open-loop Poisson load on /v1/recommend (`benchmarks/bulk/online.py`) rises by a quarter until more than 1 % of the
   answers are late: the goodput is the last rate that passed. Once counting every answer in time, whatever it gave up
   (`online_goodput`), and once those in which the model scored every candidate (`online_goodput_whole`): under load
   requests shed candidates, a job never does;
3. half of that goodput is offered alone and then while the worker runs.

measured, medians over rounds: `batch_users_per_s`, `online_goodput`, `batch_over_online`, the same `…_whole`,
`online_p99_ms` and `online_p99_ms_beside_job` at half the goodput, `batch_users_per_s_beside_online`. The load, the
worker and the suite share the cores. About 2 minutes a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import machine, save, table
from services.cli.demo import suite
from services.cli.demo.command import FOLDER, State
from services.cli.demo.suite import Place

USERS, COUNT = 943, 20
JOB_S = 8.0
BESIDE_REQUESTS, BESIDE_MOST_S = 500, 30.0
"""So that 1 % is a handful of requests and not one."""
UP, SHARE, STEPS = 1.25, 0.99, 14


def users() -> str:
    return ",".join(str(number) for number in range(1, USERS + 1))


def online(place: Place, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bulk.online", "--url", suite.url_of(place, "recommender")]
    command += ["--rate", str(rate), "--seconds", str(seconds), "--users", users(), "--count", str(COUNT)]
    done = subprocess.run([*command, "--seed", str(seed)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Job:
    """A worker that runs beside whatever the block does."""

    def __init__(self, place: Place, seconds: float, seed: int) -> None:
        command = [sys.executable, "-m", "benchmarks.bulk.job", "--config", place.environment["SILKREC_CONFIG"]]
        command += ["--users", users(), "--seconds", str(seconds), "--count", str(COUNT), "--seed", str(seed)]
        self._process = subprocess.Popen(command, env=place.environment, stdout=subprocess.PIPE, text=True)
        if self._line() != "ready":
            raise SystemExit("the worker did not open")

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._line())
        self._process.wait(30)
        return found

    def _line(self) -> str:
        if self._process.stdout is None:
            raise SystemExit("the worker has no output")
        return self._process.stdout.readline().strip()


def ladder(place: Place, options: argparse.Namespace, seed: int, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """(goodput of answers in time, of whole ones): rates in answers a second."""
    in_time, whole, rate = 0.0, 0.0, options.start
    for step in range(STEPS):
        found = online(place, rate, options.seconds, seed + step)
        if found["in_time_share"] < SHARE:  # one slow second of the machine is not the suite's
            found = online(place, rate, options.seconds, seed + step + 100)
        rows.append({"what": "online", **found})
        print(json.dumps(rows[-1]), flush=True)
        if found["good_share"] >= SHARE:
            whole = rate
        if found["in_time_share"] < SHARE:
            break
        in_time, rate = rate, rate * UP
    return in_time, whole


def one_round(place: Place, options: argparse.Namespace, number: int, rows: list[dict[str, Any]]) -> dict[str, float]:
    seed = 1000 * number
    with suite.running(place):
        alone = Job(place, JOB_S, seed).result()
        rows.append({"what": "job", **alone})
        print(json.dumps(rows[-1]), flush=True)
        online(place, options.start, 10.0, seed)  # histories in the engine's cache, as of people who come back
        in_time, whole = ladder(place, options, seed, rows)
    if in_time == 0:
        raise SystemExit(f"not even {options.start} requests a second are answered in time; try --start lower")
    with suite.running(place):  # without what the last, failing rate left behind
        rate = in_time / 2
        seconds = min(BESIDE_REQUESTS / rate, BESIDE_MOST_S)
        online(place, rate, 8.0, seed)
        half = online(place, rate, seconds, seed + 1)
        job = Job(place, seconds + 2, seed)
        beside = online(place, rate, seconds, seed + 2)
        made = job.result()
    rows += [{"what": "half", **half}, {"what": "half beside job", **beside}, {"what": "job beside half", **made}]
    for row in rows[-3:]:
        print(json.dumps(row), flush=True)
    return {
        "batch_users_per_s": alone["users_per_s"],
        "online_goodput": in_time,
        "online_goodput_whole": whole,
        "batch_over_online": alone["users_per_s"] / in_time,
        "online_p99_ms": half["p99_ms"],
        "online_p99_ms_beside_job": beside["p99_ms"],
        "online_in_time_share_beside_job": beside["in_time_share"],
        "batch_users_per_s_beside_online": made["users_per_s"],
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    place = suite.prepare(FOLDER)
    if State.read(place.folder).training is None:
        subprocess.run(place.silkrec("demo", "--exit", "--minutes", "2"), check=True)
    about = machine()
    print(f"machine: {about}", flush=True)
    rows: list[dict[str, Any]] = []
    rounds = [one_round(place, options, number, rows) for number in range(options.rounds)]
    table("rounds", [{name: round(value, 2) for name, value in one.items()} for one in rounds])
    measured = {name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]}
    whole = measured["online_goodput_whole"]
    if whole:
        measured["batch_over_online_whole"] = round(measured["batch_users_per_s"] / whole, 3)
    workload = {"users": USERS, "count": COUNT, "deadline_ms": 68, "rounds": options.rounds, "start": options.start}
    return {"machine": about, "workload": workload, "rows": rows, "measured": measured}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="a trial at one rate")
    parser.add_argument("--start", type=float, default=15.0, help="the lowest rate, requests a second")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options)
    print(json.dumps(result["measured"], indent=2))
    save(result, options.json)


if __name__ == "__main__":
    main()
