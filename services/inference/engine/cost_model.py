"""How long a batch will take, learned while serving.

seconds = w . (1, requests, history rows, candidates, attended pairs), w >= 0: least squares on relative errors with
exponential forgetting, pulled towards the warm-up's answer where traffic says nothing (a plain recursive filter blows
up when every request looks alike). A deadline needs a bound, not a mean: predictions are multiplied by a high quantile
of the recent actual/predicted ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_FORGETTING = 0.995  # half of the weight lies in the last 138 batches
_PRIOR = 0.02  # weight of the warm-up's answer: beside 200 remembered batches it decides only what they leave open
_QUANTILE = 0.95
_WINDOW = 128
_SWEEPS = 12
_REFRESH = 8
# Features near 1 for a usual request, so that one ridge suits all of them.
_SCALE = (1.0, 1.0, 1e-2, 1e-2, 1e-5)
_COLD_START = (1e-3, 1e-4, 2e-4, 5e-4, 2e-4)
"""Before any measurement: a slow core (1 ms a call, 5 us a candidate), so that a cold engine promises too little."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a batch asks of the device. `pairs` counts attended (query, key) pairs."""

    requests: int = 0
    rows: int = 0
    candidates: int = 0
    pairs: int = 0

    def plus(self, rows: int, candidates: int) -> Load:
        """This load and one more request."""
        attended = rows * (rows + 1) // 2 + candidates * (rows + 1)
        return Load(self.requests + 1, self.rows + rows, self.candidates + candidates, self.pairs + attended)


class CostModel:
    """Not thread-safe; the executor observes and predicts under its lock."""

    def __init__(self) -> None:
        self.weights = list(_COLD_START)
        self._prior = list(_COLD_START)
        self._gram = [[0.0] * len(_SCALE) for _ in _SCALE]
        self._moment = [0.0] * len(_SCALE)
        self._ratios = np.ones(_WINDOW)
        self._seen = 0
        self.margin = 1.5
        """The quantile of actual/predicted; 1.5 until there are measurements."""

    def mean(self, load: Load) -> float:
        """Expected seconds."""
        return sum(w * x for w, x in zip(self.weights, _features(load), strict=True))

    def predict(self, load: Load) -> float:
        """Seconds that hold with the safety quantile. Grows with every part of the load."""
        return 0.0 if load.requests == 0 else self.mean(load) * self.margin

    def candidates_within(self, load: Load, rows: int, candidates: int, budget_s: float) -> int:
        """How many of one more request's first candidates fit, 0 when none; the cost is linear in them."""
        base = self.predict(load.plus(rows, 0))
        if candidates <= 0 or base > budget_s:
            return 0
        slope = (self.predict(load.plus(rows, candidates)) - base) / candidates
        if slope <= 0.0:
            return candidates
        return min(candidates, int((budget_s - base) / slope))

    def observe(self, load: Load, seconds: float) -> None:
        """One measured batch."""
        if seconds <= 0.0 or load.requests == 0:
            return
        features = _features(load)
        self._ratios[self._seen % _WINDOW] = seconds / max(self.mean(load), 1e-9)
        self._seen += 1
        # Dividing by the time makes a relative error of 10 % weigh the same for 1 ms and for 50 ms.
        relative = [x / seconds for x in features]
        for i, row in enumerate(self._gram):
            for j in range(len(row)):
                row[j] = _FORGETTING * row[j] + relative[i] * relative[j]
            self._moment[i] = _FORGETTING * self._moment[i] + relative[i]
        self._solve()
        if self._seen <= _WINDOW or self._seen % _REFRESH == 0:
            recent = self._ratios[: min(self._seen, _WINDOW)]
            self.margin = float(np.clip(np.quantile(recent, _QUANTILE), 1.02, 4.0))

    def settle(self) -> None:
        """After warm-up: what was learned becomes what unobserved directions fall back to; its first ratios, taken
        against the cold guess, are forgotten."""
        for _ in range(200):
            self._solve()
        self._prior = list(self.weights)
        self._seen = 0
        self.margin = 1.5

    def _solve(self) -> None:
        """Coordinate descent from the present answer; non-negative, so that a prediction never falls with load."""
        w, gram, moment = self.weights, self._gram, self._moment
        ridge = [_PRIOR * (gram[i][i] + 1e-12) for i in range(len(w))]
        for _ in range(_SWEEPS):
            for i, row in enumerate(gram):
                rest = sum(row[j] * w[j] for j in range(len(w))) - row[i] * w[i]
                w[i] = max(0.0, (moment[i] - rest + ridge[i] * self._prior[i]) / (row[i] + ridge[i]))


def _features(load: Load) -> tuple[float, ...]:
    raw = (1, load.requests, load.rows, load.candidates, load.pairs)
    return tuple(value * scale for value, scale in zip(raw, _SCALE, strict=True))
