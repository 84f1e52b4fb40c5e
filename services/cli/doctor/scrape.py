"""/metrics of the services, read twice: what grew meanwhile, and where nothing did, since their start."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

Key = tuple[str, tuple[tuple[str, str], ...]]
Samples = Mapping[Key, float]
# Of fewer requests no share is worth a word.
ENOUGH = 20


def ask(http: httpx.Client, base: str) -> Samples:
    """Empty when nobody answers, or another program does."""
    try:
        answer = http.get(f"{base}/metrics")
        answer.raise_for_status()
        families = list(text_string_to_metric_families(answer.text))
    except (httpx.HTTPError, ValueError):
        return {}
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@dataclass(frozen=True, slots=True)
class Figures:
    """Counters of one service. `total` counts since `before`, or since the start when `before` is empty."""

    now: Samples
    before: Samples = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.now)

    def since_start(self) -> Figures:
        return Figures(self.now)

    def value(self, name: str) -> float | None:
        """Of a gauge, its series added up; None: there is none."""
        found = [value for (known, _), value in self.now.items() if known == name]
        return sum(found) if found else None

    def total(self, name: str, **labels: str) -> float:
        return sum(self.by(name, **labels).values())

    def by(self, name: str, *wanted: str, **labels: str) -> dict[tuple[str, ...], float]:
        """How much each combination of the `wanted` labels grew."""
        grown: dict[tuple[str, ...], float] = defaultdict(float)
        for key, value in self.now.items():
            told = dict(key[1])
            if key[0] == name and all(told.get(label) == text for label, text in labels.items()):
                grown[tuple(told.get(label, "") for label in wanted)] += value - self.before.get(key, 0.0)
        return dict(grown)

    def quantile(self, name: str, share: float, **labels: str) -> float:
        """Seconds, the upper end of the bucket that holds it; NaN without an observation."""
        buckets = sorted((float(le), count) for (le,), count in self.by(f"{name}_bucket", "le", **labels).items())
        if not buckets or buckets[-1][1] <= 0:
            return math.nan
        return next(end for end, count in buckets if count >= share * buckets[-1][1])
