"""The claim that the suite is about, as one page: latency, diversity and CTR of a baseline against the full pipeline.

    python benchmarks/suite_claim.py [--users 300] [--minutes 2] [--seed 1] [--json FILE] [--html FILE]

Over the demo on MovieLens-100K (var/demo/, made by `silkrec demo --exit` when it is not there). Baseline: popularity +
item-to-item, fused by rank. Pipeline: /v1/recommend as it comes, and with diversity. Clicks are not drawn: CTR is the
expectation of `experiments.simulator`'s click model over the served slates, with tastes from the users' own ratings.
Nothing is written to the suite: no event is sent.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.claim import people as people_of
from benchmarks.claim.page import COLUMNS, cells, page
from benchmarks.claim.people import People
from benchmarks.claim.ways import COUNT, Front
from benchmarks.report import machine, save
from services.cli.demo import suite
from services.cli.demo.command import FOLDER, State
from services.cli.demo.load import DEADLINE_MS
from services.recommender.experiments.simulator.clicks import Item, likeness
from services.recommender.experiments.statistics.frequentist import one_sample
from services.recommender.experiments.statistics.moments import Moments

WARM_UP = 50
DIVERSITY = (0.3, 0.6)
Way = Callable[[str], tuple[list[str], float, bool]]


def ild(slate: Sequence[Item]) -> float:
    pairs = [1 - likeness(one, other) for one, other in combinations(slate, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")


def serve(ways: dict[str, Way], people: People, users: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """The ways of a user follow each other in an order drawn anew for each: whichever comes second finds the user's
    latents cached, and one after the other the last way looked 8 ms faster than the first."""
    order, rows = random.Random(seed), {name: Served() for name in ways}
    for number, user_id in enumerate([*users[:WARM_UP], *users]):
        for name in order.sample(sorted(ways), len(ways)):
            item_ids, ms, gave_up = ways[name](user_id)
            if number < min(WARM_UP, len(users)):
                continue
            slate = [people.films[item_id] for item_id in item_ids]
            if len(slate) != COUNT:
                raise SystemExit(f"the run is worth nothing: {name} gave user {user_id} {len(slate)} items")
            rows[name].add(ms, gave_up, float(people.model.probabilities(user_id, slate).mean()), ild(slate))
    return [{"way": name, **served.row()} for name, served in rows.items()]


@dataclass
class Served:
    """What one way served, a user a place."""

    took: list[float] = field(default_factory=list)
    degraded: list[bool] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    ilds: list[float] = field(default_factory=list)

    def add(self, ms: float, degraded: bool, rate: float, diversity: float) -> None:
        self.took.append(ms)
        self.degraded.append(degraded)
        self.rates.append(rate)
        self.ilds.append(diversity)

    def row(self) -> dict[str, Any]:
        p50, p95, p99 = (round(float(value), 2) for value in np.percentile(self.took, [50, 95, 99]))
        return {
            "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
            "over_deadline": float(np.mean(np.array(self.took) > DEADLINE_MS)),
            "degraded": float(np.mean(self.degraded)), "ild_at_10": float(np.mean(self.ilds)),
            "expected_ctr": float(np.mean(self.rates)), "rates": np.array(self.rates),
        }  # fmt: skip


def add_lift(row: dict[str, Any], base: dict[str, Any]) -> None:
    """Of the same users, so by pairs; the baseline's mean taken as known, which it is for these users."""
    if row is base:
        row.update(lift="", lift_low=None, lift_high=None, relative_lift=None)
        return
    found = one_sample(Moments.of((row["rates"] - base["rates"]) / base["expected_ctr"]))
    row.update(
        lift=f"{found.estimate:+.1%} ({found.low:+.1%} to {found.high:+.1%})",
        relative_lift=found.estimate, lift_low=found.low, lift_high=found.high,
    )  # fmt: skip


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    place = suite.prepare(FOLDER)
    if State.read(place.folder).training is None:
        console.print("There is no demo yet: `silkrec demo --exit` makes it.")
        subprocess.run(place.silkrec("demo", "--exit", "--minutes", str(options.minutes)), check=True)
    people = people_of.read(place.folder / "ml-100k", options.seed)
    users = random.Random(options.seed).sample(sorted(people.liked), min(options.users, len(people.liked)))
    with suite.running(place), contextlib.closing(Front(suite.url_of(place, "recommender"), people)) as front:
        ways: dict[str, Way] = {"popularity + item-to-item": front.baseline, "full pipeline": front.full}
        for diversity in DIVERSITY:
            ways[f"full pipeline, diversity {diversity}"] = lambda user, d=diversity: front.full(user, d)  # type: ignore[misc]
        rows = serve(ways, people, users, options.seed)
    for row in rows:
        add_lift(row, rows[0])
    for row in rows:
        del row["rates"]
    names = ["baseline", "full", *(f"full_diversity_{diversity}" for diversity in DIVERSITY)]
    figures = ("p50_ms", "p95_ms", "p99_ms", "ild_at_10", "expected_ctr", "relative_lift")
    measured = {f"{name}_{key}": row[key] for name, row in zip(names, rows, strict=True) for key in figures}
    trained = State.read(place.folder).training or {}
    for name in ("hr_at_10", "popular_hr_at_10"):  # of real ratings held out, where no click model has a say
        measured[f"held_out_{name}"] = trained.get("metrics", {}).get(name)
    about = machine()
    workload = {"users": len(users), "seed": options.seed, **people.model.parameters}
    return {"machine": about, "workload": workload, "rows": rows, "measured": measured}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=2.0, help="of training, when there is no demo yet")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--html", type=Path)
    options, console = parser.parse_args(arguments), Console(highlight=False)
    result = run(options, console)
    table = Table(*(title for _, title, _ in COLUMNS))
    for row in result["rows"]:
        table.add_row(*cells(row))
    console.print(table)
    save(result, options.json)
    if options.html is not None:
        options.html.write_text(page(result), "utf-8")


if __name__ == "__main__":
    main()
