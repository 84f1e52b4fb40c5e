"""MovieLens' users as the click model meets them: what each likes and what each film is worth, from their own ratings.

Both sides of the comparison read the same histories, so neither knows more of these tastes than the other. They are
still a model: liking is by genre alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.cli.demo import dataset
from services.recommender.experiments.simulator.clicks import ClickModel, Item

GOOD = 4.0
_PRIOR = 5.0
"""Ratings of the average that stand behind each film and each user's genre."""


@dataclass(frozen=True, slots=True)
class People:
    """`liked` {user_id: item ids rated 4 or 5, newest first}; `seen` {user_id: all rated}; `model` clicks for them."""

    liked: dict[str, list[str]]
    seen: dict[str, frozenset[str]]
    films: dict[str, Item]
    model: ClickModel


def read(folder: Path, seed: int) -> People:
    films = {row["item_id"]: Item(row["item_id"], frozenset(row["categories"])) for row in dataset.items(folder)}
    liked: dict[str, list[str]] = defaultdict(list)
    seen: dict[str, set[str]] = defaultdict(set)
    stars: dict[str, list[float]] = defaultdict(list)
    for event in dataset.events(folder):
        seen[event["user_id"]].add(event["item_id"])
        stars[event["item_id"]].append(event["event_value"])
        if event["event_value"] >= GOOD:
            liked[event["user_id"]].insert(0, event["item_id"])
    shares = {user_id: _shares(ids, films) for user_id, ids in liked.items()}
    everybody = _shares([item_id for ids in liked.values() for item_id in ids], films)
    worth = _worth(stars)

    def taste(user_id: str, category: str) -> float:
        """Half for an average share of the genre among what the user rated high, towards 1 for more, 0 for less."""
        own, average = shares.get(user_id, {}), everybody.get(category, 0.0)
        count = len(liked.get(user_id, ()))
        share = (own.get(category, 0.0) * count + _PRIOR * average) / (count + _PRIOR)
        return share / (share + average) if average else 0.0

    model = ClickModel(seed=seed, taste=taste, worth=lambda item_id: worth.get(item_id, 0.0))
    return People(dict(liked), {user: frozenset(ids) for user, ids in seen.items()}, films, model)


def _shares(item_ids: list[str], films: dict[str, Item]) -> dict[str, float]:
    counted = Counter(category for item_id in item_ids for category in films[item_id].categories)
    return {category: count / len(item_ids) for category, count in counted.items()}


def _worth(stars: dict[str, list[float]]) -> dict[str, float]:
    """Mean stars, drawn to the overall mean, in standard deviations over films."""
    overall = float(np.mean([value for values in stars.values() for value in values]))
    means = {item: (sum(values) + _PRIOR * overall) / (len(values) + _PRIOR) for item, values in stars.items()}
    spread = float(np.std(list(means.values())))
    return {item: (mean - overall) / spread for item, mean in means.items()}
