"""A worker that makes slates, as a process of its own: it opens what a worker opens and goes over the users.

    python -m benchmarks.bulk.job --config var/demo/silkrec.yaml --users 1,2,… --seconds 8

Says `ready` on a line of its own, makes slates in chunks until the time is over, and prints one JSON object. Nothing is
stored: what a job's outputs cost is measured where they are.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as services have it: its threads would spin on both cores

import argparse
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import uvloop

from services.recommender.jobs.bulk.wiring import lower_priority, opened
from services.recommender.jobs.work import SlateAsk, SlateSpec
from shared.observability import logging
from shared.observability.metrics import Metrics
from shared.settings.load import load_settings
from shared.settings.roots import LogSettings

CHUNK = 500
WARM_UP = 128


async def work(options: argparse.Namespace) -> dict[str, Any]:
    settings = load_settings(options.config).settings
    lower_priority(settings)
    dice, spec = random.Random(options.seed), SlateSpec("home", options.count)
    people = [SlateAsk(f"u:{user}") for user in options.users.split(",")]
    gave_up: Counter[str] = Counter()
    made = 0
    async with opened(settings, Metrics("jobs")) as maker:
        await maker.slates(spec, people[:WARM_UP])
        print("ready", flush=True)
        begin, spent = time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < options.seconds:
            slates = await maker.slates(spec, dice.choices(people, k=CHUNK))
            made += len(slates)
            gave_up.update(word for slate in slates for word in slate.degraded)
            if any(slate.error or len(slate.item_ids) != options.count for slate in slates):
                raise SystemExit("the run is worth nothing: a slate is short or failed")
        seconds, spent = time.perf_counter() - begin, time.process_time() - spent
    return {
        "users": made,
        "users_per_s": round(made / seconds, 1),
        "cpu_ms": round(1000 * spent / made, 3),
        "gave_up": dict(gave_up),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--users", required=True)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.configure(LogSettings(level="warning"))
    print(orjson.dumps(uvloop.run(work(options))).decode(), flush=True)


if __name__ == "__main__":
    main()
