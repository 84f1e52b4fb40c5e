"""How sure latency quantiles are, from slates in the database to the report."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import insert, select

from services.recommender.experiments.analysis.build import build
from services.recommender.experiments.analysis.results import report
from services.recommender.experiments.local_days import start_us, zone_of
from services.recommender.experiments.slate_quality import QUANTILES
from services.recommender.experiments.statistics.quantiles import Clustered, quantile_lifts
from shared.storage.database import Database
from shared.storage.tables import experiment_latency_daily, experiment_slates
from tests.integration.experiments.analysis_world import (
    ACTIONS,
    CONTROL,
    DAY_US,
    FIRST_DAY,
    KNOWN,
    TREATMENT,
    ZONE,
    now_us,
    registered,
    slates,
    world,
)

pytestmark = pytest.mark.integration


def test_latency_lifts_are_the_bootstrap_over_users_of_a_bounded_sample(database: Database) -> None:
    made = world()
    made.write(database)
    slates(database, made, a_unit=4)
    build(database, registered(), now_us(), known=KNOWN, actions=ACTIONS)
    with database.read() as connection:
        kept = {(row.variant, row.day): row for row in connection.execute(select(experiment_latency_daily))}
        served = connection.execute(select(experiment_slates).where(experiment_slates.c.failed.is_(False))).all()
    newest = max(day for _, day in kept)
    took: dict[str, tuple[list[int], list[str]]] = {}
    for row in served:
        values, users = took.setdefault(row.variant, ([], []))
        values.append(row.took_us)
        users.append(row.unit)
    control, treatment = (
        Clustered(took[name][0], np.unique(took[name][1], return_inverse=True)[1]) for name in (CONTROL, TREATMENT)
    )
    expected = quantile_lifts(control, treatment, QUANTILES, draws=400)
    sampled = sum(len(row.sample["us"]) for row in kept.values())
    assert sampled == len(served), "a day of fewer slates than the bound is kept whole"
    found = kept[TREATMENT, newest].lifts
    assert [one["lift"] for one in found] == pytest.approx([one.estimate for one in expected])
    assert kept[CONTROL, newest].lifts == []
    ours = report(database, registered(), now_us(), known=KNOWN, actions=ACTIONS)
    (told,) = [one for one in ours.quality if one.latency_lifts]
    assert (told.variant, [one.quantile for one in told.latency_lifts]) == (TREATMENT, ["p50", "p95", "p99"])
    for one, true in zip(told.latency_lifts, expected, strict=True):
        assert one.fixed is not None
        assert one.fixed.low is not None
        assert one.fixed.high is not None
        assert one.fixed.low <= true.estimate <= one.fixed.high


def test_of_a_busy_day_a_thousand_slates_are_drawn_by_the_random_end_of_their_ids(database: Database) -> None:
    made, at_us, dice = world(), start_us(FIRST_DAY + 1, zone_of(ZONE)), np.random.default_rng(3)
    made.write(database)
    rows = [
        {
            "experiment": "shelf", "recommendation_id": f"{number:012x}{dice.bytes(10).hex()}", "phase": 0,
            "variant": CONTROL, "unit": f"u:{number % 500}", "served_at_us": at_us + number, "items": 1,
            "served_day": at_us // DAY_US, "took_us": number, "rung": "model", "degraded": False, "failed": False,
        }
        for number in range(5_000)
    ]  # fmt: skip
    with database.write() as connection:
        connection.execute(insert(experiment_slates), rows)
    build(database, registered(), now_us(), known=KNOWN, actions=ACTIONS)
    with database.read() as connection:
        (sample,) = connection.scalars(select(experiment_latency_daily.c.sample)).all()
    assert 850 < len(sample["us"]) == len(sample["unit"]) < 1_150
    assert 2_300 < np.mean(sample["us"]) < 2_700, "no hour is favoured"
    assert len(set(sample["unit"])) > 400
