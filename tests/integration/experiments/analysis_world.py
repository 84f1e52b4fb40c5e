"""A small shop with an experiment in it: exposures, events and slates drawn at random, and the sums of its units worked
out once more in Python, event by event, from the definitions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import insert

from services.recommender.experiments.definitions import Experiment, Status, Variant
from services.recommender.experiments.local_days import start_us, zone_of
from services.recommender.experiments.metrics import Metric, parse
from services.recommender.experiments.registered import Plan, RegisteredExperiment
from shared.actions import ActionTable
from shared.schema import Schema
from shared.storage.database import Database
from shared.storage.tables import events, experiment_slates, exposures, recommendation_items

ZONE = "America/New_York"  # behind UTC, and summer time ends inside the world (2026-11-01)
FIRST_DAY, DAYS = 20_755, 6
DAY_US, HOUR_US = 86_400_000_000, 3_600_000_000
ACTIONS = ActionTable.from_schema(Schema())
CODE = {action.name: action.code for action in ACTIONS}
KNOWN = parse([])
PLAN = Plan(primary="ctr", secondary=("conversion", "revenue_per_unit"), guardrails={"watch_time_per_unit": 0.05})
CONTROL, TREATMENT = "control", "treatment"


def now_us() -> int:
    return start_us(FIRST_DAY + DAYS, zone_of(ZONE)) - HOUR_US


def registered(**changes: Any) -> RegisteredExperiment:
    definition = Experiment(
        key="shelf", variants=(Variant(CONTROL, 0.5), Variant(TREATMENT, 0.5)), status=Status.RUNNING
    )
    values = {"time_zone": ZONE, "segment_by": "country", "started_at_us": start_us(FIRST_DAY, zone_of(ZONE))}
    return RegisteredExperiment(definition=definition, owner="ana", hypothesis="", plan=PLAN, **{**values, **changes})


@dataclass
class World:
    exposed: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def write(self, database: Database) -> None:
        with database.write() as connection:
            connection.execute(insert(exposures), self.exposed)
            connection.execute(insert(events), self.events)


def exposure(unit: str, variant: str, at_us: int, segment: str = "") -> dict[str, Any]:
    key = {"experiment": "shelf", "phase": 0, "unit": unit, "variant": variant}
    return {**key, "first_at_us": at_us, "first_day": at_us // DAY_US, "segment": segment, "simulated": False}


def event(
    number: int, unit: str, kind: str, at_us: int, value: float | None = None, seen: list[str] | None = None
) -> dict[str, Any]:
    return {
        "event_id": f"e{number}", "occurred_day": at_us // DAY_US, "user_key": unit, "item_index": 1 + number % 7,
        "action": CODE[kind], "event_value": value, "occurred_at_us": at_us, "received_at_us": at_us,
        "impression": seen,
    }  # fmt: skip


def world(units: int = 120, *, impressions: bool = True, seed: int = 5) -> World:
    dice = np.random.default_rng(seed)
    made, number = World(), 0
    begin, end = start_us(FIRST_DAY, zone_of(ZONE)), now_us()
    for unit in (f"u:{n}" for n in range(units)):
        first = int(dice.integers(begin, end))
        variant = (CONTROL, TREATMENT)[int(dice.integers(2))]
        made.exposed.append(exposure(unit, variant, first, ("de", "fr", "")[int(dice.integers(3))]))
        if dice.random() < 0.1:  # met both
            made.exposed.append(
                exposure(unit, CONTROL if variant == TREATMENT else TREATMENT, int(dice.integers(first, end)))
            )
        for _ in range(int(dice.integers(0, 30))):
            kinds = ["click", "purchase", "watch", "like", *(["impression"] if impressions else [])]
            kind, number = kinds[int(dice.integers(len(kinds)))], number + 1
            at = int(dice.integers(begin - 20 * DAY_US, end)) if dice.random() < 0.4 else int(dice.integers(first, end))
            value = round(float(dice.gamma(2, 20)), 2) if kind in ("purchase", "watch") else None
            seen = (
                [f"i{n}" for n in range(int(dice.integers(0, 5)))]
                if kind == "impression" and dice.random() < 0.7
                else None
            )
            made.events.append(event(number, unit, kind, at, value, seen))
    made.exposed.sort(key=lambda row: row["first_at_us"])
    return made


def expected(made: World, metric: Metric, until_us: int, *, segment: str | None = None) -> dict[str, dict[str, float]]:
    """{variant: {n, x, xx, …}}: by the definitions, one event after the other."""
    met: dict[str, list[dict[str, Any]]] = {}
    for row in made.exposed:
        met.setdefault(row["unit"], []).append(row)
    rows: dict[str, list[list[float]]] = {}
    for unit, exposed in met.items():
        if len(exposed) > 1 or exposed[0]["first_at_us"] >= until_us or segment not in (None, exposed[0]["segment"]):
            continue
        own = [one for one in made.events if one["user_key"] == unit]
        rows.setdefault(exposed[0]["variant"], []).append(_letters(own, metric, exposed[0]["first_at_us"], until_us))
    return {variant: _products(np.array(found), metric) for variant, found in rows.items()}


def _letters(own: list[dict[str, Any]], metric: Metric, first: int, until: int) -> list[float]:
    end = until if metric.window_days is None else min(until, first + metric.window_days * DAY_US)
    after = [one for one in own if first <= one["occurred_at_us"] < end]
    before = [one for one in own if first - 14 * DAY_US <= one["occurred_at_us"] < first]
    letters = []
    for events_ in (after, before):
        for amount in (metric.numerator, metric.denominator):
            chosen = [one for one in events_ if amount and one["action"] in [CODE[name] for name in amount.event_types]]
            letters.append(sum(_of(one, amount.of) for one in chosen) if amount else 0.0)
    if metric.kind == "proportion":
        letters = [float(number > 0) for number in letters]
    return [letters[0], letters[1], letters[2], letters[3]]


def _of(one: dict[str, Any], what: str) -> float:
    if what == "count":
        return 1
    if what == "sum":
        return one["event_value"] or 0.0
    return 1 if one["impression"] is None else len(one["impression"])


def _products(units: Any, metric: Metric) -> dict[str, float]:
    names = "xypq" if metric.kind == "ratio" else "xp"
    columns = {name: units[:, "xypq".index(name)] for name in names}
    sums = {"n": float(len(units))} | {name: float(one.sum()) for name, one in columns.items()}
    for place, a in enumerate(names):
        sums |= {a + b: float((columns[a] * columns[b]).sum()) for b in names[place:]}
    return sums


def slates(database: Database, made: World, a_unit: int = 3) -> None:
    """Each exposed unit gets `a_unit` slates of four items after its first exposure; every tenth one failed."""
    dice = np.random.default_rng(1)
    rows, slots = [], []
    for number, row in enumerate(made.exposed * a_unit):
        at, name = int(row["first_at_us"]) + number, f"r{number:06d}"
        failed = number % 10 == 0
        rows.append({
            "experiment": "shelf", "recommendation_id": name, "phase": 0, "variant": row["variant"],
            "unit": row["unit"], "served_at_us": at, "served_day": at // DAY_US,
            "took_us": int(dice.integers(3_000, 60_000)), "items": 0 if failed else 4,
            "rung": "popular" if number % 4 == 0 else "model",
            "degraded": number % 4 == 0, "failed": failed, "ild": None if failed else 0.5, "novelty": None,
        })  # fmt: skip
        slots += [
            {"recommendation_id": name, "position": place, "item_index": int(item), "score": 0.0, "propensity": 1.0,
             "source_bits": 0, "served_day": at // DAY_US}
            for place, item in enumerate(dice.choice(50, 4, replace=False)) if not failed
        ]  # fmt: skip
    with database.write() as connection:
        connection.execute(insert(experiment_slates), rows)
        connection.execute(insert(recommendation_items), slots)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
