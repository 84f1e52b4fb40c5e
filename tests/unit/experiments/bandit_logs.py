"""Logs in the shape of Open Bandit's, drawn from two known policies."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from services.recommender.experiments.open_bandit.log import BanditLog, Campaign, Policy, Values, file_of

ITEMS, PLACES = 5, 3
UNIFORM = np.full((ITEMS, PLACES), 1 / ITEMS)
GREEDY = np.array([[0.5, 0.1, 0.2], [0.2, 0.2, 0.2], [0.1, 0.3, 0.2], [0.1, 0.3, 0.2], [0.1, 0.1, 0.2]])
CLICKS = np.linspace(0.4, 0.05, ITEMS)[:, None] * np.array([1.0, 0.8, 0.6])
VALUE = float((GREEDY * CLICKS).sum(axis=0).mean())
"""What GREEDY earns a slot, places equally often."""
BEGIN_US = 1_574_553_600_000_000


def drawn(policy: Values, rows: int, seed: int) -> BanditLog:
    random = np.random.default_rng(seed)
    place = random.integers(PLACES, size=rows)
    item = (random.random(rows) > policy[:, place].cumsum(axis=0)).sum(axis=0)
    click = (random.random(rows) < CLICKS[item, place]).astype(np.float64)
    return BanditLog(item, place, click, policy[item, place], BEGIN_US + np.arange(rows) * 1_000_001)


def write(folder: Path, campaign: Campaign, logs: dict[Policy, BanditLog]) -> None:
    for policy, log in logs.items():
        path = file_of(folder, policy, campaign)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["", "timestamp", "item_id", "position", "click", "propensity_score", "user_feature_0"])
            for row in range(len(log.item)):
                at = np.datetime64(int(log.at_us[row]), "us")
                cells = [log.item[row], log.place[row] + 1, int(log.click[row]), log.propensity[row]]
                writer.writerow([row, f"{str(at).replace('T', ' ')}+00:00", *cells, "f"])
