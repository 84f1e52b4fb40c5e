"""How long a batch will take, learned while serving.

seconds = w . (1, requests, new rows, cached rows, candidates, attended pairs), w >= 0: least squares on relative errors
with exponential forgetting, pulled towards the warm-up's answer where traffic says nothing (a plain recursive filter
blows up when every request looks alike). A deadline needs a bound, not a mean: predictions are multiplied by a high
quantile of the recent actual/predicted ratios. When several batches in a row miss by a factor, what was believed is
scaled at once: least squares alone would take dozens of batches to leave a wrong prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_FORGETTING = 0.995  # half of the weight lies in the last 138 batches
_PRIOR = 0.02  # weight of the warm-up's answer: beside 200 remembered batches it decides only what they leave open
_QUANTILE = 0.95
_WINDOW = 128
_SWEEPS = 12
_REFRESH = 8
_WRONG = 1.5
_WRONG_RUN = 3
"""Batches in a row off by `_WRONG` in one direction: by chance, with 10 % of noise, less than once in 10^6."""
_FAR = 8.0
"""A miss by more says that what is believed has no part for this kind of batch (after an hour of rankings alone the
weight of everything else is 0, and an encode is predicted to take nothing): multiplying it would only make the other
kinds wrong. Seen as 59 hours a candidate, kept over restarts. Then learning begins anew, from the cold guess at the
speed that was measured."""
_COLD_TIMES = 100.0
"""How much slower or faster than the cold guess a machine may be."""
_LEAST_S = 5e-5
"""Of any pass: launching one takes that."""
_LONGEST_S = 60.0
"""Of one request; a kept belief beyond that is damage."""
_FORMAT = 1
# Features near 1 for a usual request, so that one ridge suits all of them.
_SCALE = (1.0, 1.0, 1e-2, 1e-3, 1e-2, 1e-5)
_COLD_START = (1e-3, 1e-4, 2e-4, 1e-4, 5e-4, 2e-4)
"""Before any measurement: a slow core (1 ms a call, 5 us a candidate), so that a cold engine promises too little."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a batch asks of the device: history rows to compute, rows read from the cache, candidates; `pairs` counts
    attended (query, key) pairs."""

    requests: int = 0
    rows: int = 0
    cached: int = 0
    candidates: int = 0
    pairs: int = 0

    def plus(self, rows: int, candidates: int, cached: int = 0) -> Load:
        """This load and one more request."""
        attended = rows * cached + rows * (rows + 1) // 2 + candidates * (cached + rows + 1)
        return Load(
            self.requests + 1,
            self.rows + rows,
            self.cached + cached,
            self.candidates + candidates,
            self.pairs + attended,
        )

    def __add__(self, other: Load) -> Load:
        """Both, in one batch."""
        return Load(
            self.requests + other.requests,
            self.rows + other.rows,
            self.cached + other.cached,
            self.candidates + other.candidates,
            self.pairs + other.pairs,
        )


class CostModel:
    """Not thread-safe; the executor observes and predicts under its lock."""

    def __init__(self) -> None:
        self.weights = list(_COLD_START)
        self._prior = list(_COLD_START)
        self._gram = [[0.0] * len(_SCALE) for _ in _SCALE]
        self._moment = [0.0] * len(_SCALE)
        self._ratios = np.ones(_WINDOW)
        self._seen = 0
        self._run = 0
        self.margin = 1.5
        """The quantile of actual/predicted; 1.5 until there are measurements."""

    @property
    def error(self) -> float:
        """Median of |actual/expected - 1| over the last 128 batches; 0 before the first."""
        recent = self._recent()
        return float(np.median(np.abs(recent - 1.0))) if len(recent) else 0.0

    def mean(self, load: Load) -> float:
        """Expected seconds."""
        return max(_LEAST_S, sum(w * x for w, x in zip(self.weights, _features(load), strict=True)))

    def predict(self, load: Load) -> float:
        """Seconds that hold with the safety quantile. Grows with every part of the load."""
        return 0.0 if load.requests == 0 else self.mean(load) * self.margin

    def candidates_within(self, load: Load, rows: int, candidates: int, budget_s: float, cached: int = 0) -> int:
        """How many of one more request's first candidates fit, 0 when none; the cost is linear in them."""
        base = self.predict(load.plus(rows, 0, cached))
        if candidates <= 0 or base > budget_s:
            return 0
        slope = (self.predict(load.plus(rows, candidates, cached)) - base) / candidates
        if slope <= 0.0:
            return candidates
        return min(candidates, int((budget_s - base) / slope))

    def observe(self, load: Load, seconds: float) -> None:
        """One measured batch."""
        if seconds <= 0.0 or load.requests == 0:
            return
        features = _features(load)
        ratio = seconds / max(self.mean(load), 1e-9)
        ratio = self._leave_wrong_prior(ratio, load, seconds)
        self._ratios[self._seen % _WINDOW] = ratio
        self._seen += 1
        # Dividing by the time makes a relative error of 10 % weigh the same for 1 ms and for 50 ms.
        relative = [x / seconds for x in features]
        for i, row in enumerate(self._gram):
            for j in range(len(row)):
                row[j] = _FORGETTING * row[j] + relative[i] * relative[j]
            self._moment[i] = _FORGETTING * self._moment[i] + relative[i]
        self._solve()
        if self._seen <= _WINDOW or self._seen % _REFRESH == 0:
            self.margin = float(np.clip(np.quantile(self._recent(), _QUANTILE), 1.02, 4.0))

    def settle(self) -> None:
        """After warm-up: what was learned becomes what unobserved directions fall back to; its first ratios, taken
        against the cold guess, are forgotten."""
        for _ in range(200):
            self._solve()
        self._prior = list(self.weights)
        self._seen = 0
        self.margin = 1.5

    def snapshot(self) -> dict[str, object]:
        """What was learned, as JSON has it; for `restore` in another process."""
        return {
            "format": _FORMAT,
            "weights": list(self.weights),
            "prior": list(self._prior),
            "gram": [list(row) for row in self._gram],
            "moment": list(self._moment),
            "ratios": self._recent().tolist(),
        }

    def restore(self, snapshot: Mapping[str, object]) -> bool:
        """False, and nothing is changed, for another format or numbers that cannot be."""
        if snapshot.get("format") != _FORMAT:
            return False
        size = len(_SCALE)
        shapes = {"weights": (size,), "prior": (size,), "gram": (size, size), "moment": (size,)}
        found = {name: _numbers(snapshot.get(name), shape) for name, shape in shapes.items()}
        ratios = _numbers(snapshot.get("ratios"), None)
        if ratios is None or len(ratios) > _WINDOW or any(value is None for value in found.values()):
            return False
        weights = [0.0] if found["weights"] is None else found["weights"].tolist()
        if sum(w * x for w, x in zip(weights, _features(Load().plus(1000, 1000)), strict=True)) > _LONGEST_S:
            return False
        self.weights, self._prior, self._gram, self._moment = (
            [] if value is None else value.tolist() for value in found.values()
        )
        self._ratios[: len(ratios)] = ratios
        self._seen = len(ratios)
        if self._seen:
            self.margin = float(np.clip(np.quantile(self._recent(), _QUANTILE), 1.02, 4.0))
        return True

    def _recent(self) -> npt.NDArray[np.float64]:
        return self._ratios[: min(self._seen, _WINDOW)]

    def _leave_wrong_prior(self, ratio: float, load: Load, seconds: float) -> float:
        """Counts misses in a row; at the third everything that is believed is scaled by the last one, or given up when
        that is far off. The ratio that is left."""
        side = 1 if ratio > _WRONG else -1 if ratio < 1 / _WRONG else 0
        self._run = self._run + side if side * self._run > 0 or (side and not self._run) else side
        if abs(self._run) < _WRONG_RUN:
            return ratio
        self._run = 0
        if 1 / _FAR < ratio < _FAR:
            self.weights, self._prior = [w * ratio for w in self.weights], [w * ratio for w in self._prior]
        else:
            times = seconds / sum(w * x for w, x in zip(_COLD_START, _features(load), strict=True))
            times = min(max(times, 1 / _COLD_TIMES), _COLD_TIMES)
            self.weights = [w * times for w in _COLD_START]
            self._prior = list(self.weights)
        self._gram = [[0.0] * len(_SCALE) for _ in _SCALE]
        self._moment = [0.0] * len(_SCALE)
        self._seen = 0
        self.margin = 1.5
        return 1.0

    def _solve(self) -> None:
        """Coordinate descent from the present answer; non-negative, so that a prediction never falls with load."""
        w, gram, moment = self.weights, self._gram, self._moment
        ridge = [_PRIOR * (gram[i][i] + 1e-12) for i in range(len(w))]
        for _ in range(_SWEEPS):
            for i, row in enumerate(gram):
                rest = sum(row[j] * w[j] for j in range(len(w))) - row[i] * w[i]
                w[i] = max(0.0, (moment[i] - rest + ridge[i] * self._prior[i]) / (row[i] + ridge[i]))


def _features(load: Load) -> tuple[float, ...]:
    raw = (1, load.requests, load.rows, load.cached, load.candidates, load.pairs)
    return tuple(value * scale for value, scale in zip(raw, _SCALE, strict=True))


def _numbers(values: object, shape: tuple[int, ...] | None) -> npt.NDArray[np.float64] | None:
    """None unless they are finite, not negative and of `shape` (None: a list of any length)."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return None
    fits = array.ndim == 1 if shape is None else array.shape == shape
    return array if fits and bool(np.isfinite(array).all()) and bool((array >= 0).all()) else None
