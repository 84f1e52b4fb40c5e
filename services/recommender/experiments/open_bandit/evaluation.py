"""BTS from the random policy's log, beside what BTS earned in its own: the only check of an off-policy estimate that
real data allows.

The interval of `off_policy` takes the target policy as known. Here it is estimated from 10,000 rows, so `low_both` to
`high_both` redraws both logs (percentile bootstrap) and is the one to compare with. Rows are taken as independent; the
sample has no user ids, so people who came twice are not accounted for and every interval is a little too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.recommender.experiments.off_policy import Log, Overlap, Value, doubly_robust, ips, overlap, snips
from services.recommender.experiments.open_bandit.log import BanditLog, Ints
from services.recommender.experiments.open_bandit.policies import action_frequency, counts_of, frequency_of
from services.recommender.experiments.refusals import check_alpha
from services.recommender.experiments.statistics.frequentist import one_sample
from services.recommender.experiments.statistics.moments import Moments

Values = npt.NDArray[np.float64]

DRAWS = 1_000
FOLDS = 2
_PRIOR_ROWS = 20.0
"""How many rows of the overall click rate stand behind each (item, place) in the model of the reward: a place of an
item has 42 rows in the sample, of which 0.16 were clicked."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """`low_both`, `high_both`: with the target policy's own uncertainty; NaN like all else when refused."""

    method: str
    value: Value
    low_both: float
    high_both: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`on_policy`: the click rate of BTS in its own log, with its 1 - α interval. `logged`: that of the random log."""

    overlap: Overlap
    estimates: tuple[Estimated, ...]
    on_policy: float
    on_policy_low: float
    on_policy_high: float
    logged: float


def evaluate(random: BanditLog, bts: BanditLog, *, alpha: float = 0.05, seed: int = 0) -> Evaluation:
    """Clicks a slot. Refused overlaps come back with the reason in `overlap.refused` and NaN for numbers."""
    check_alpha(alpha)
    items = int(max(random.item.max(), bts.item.max())) + 1
    places = int(max(random.place.max(), bts.place.max())) + 1
    frequency = action_frequency(bts, items, places)
    log = Log(random.click, frequency[random.item, random.place], random.propensity)
    fold = np.random.default_rng(seed).integers(FOLDS, size=len(random.click))
    models = np.stack([_model(random, fold != held, items, places) for held in range(FOLDS)])
    predicted = models[fold, random.item, random.place]
    baseline = _expected(frequency, models)[fold, random.place]
    values = {
        "ipw": ips(log, alpha=alpha),
        "snips": snips(log, alpha=alpha),
        "dr": doubly_robust(log, predicted, baseline, alpha=alpha),
    }
    found = overlap(log)
    both = {} if found.refused else _redrawn(random, bts, models, fold, alpha, seed)
    unknown = (float("nan"), float("nan"))
    own = one_sample(Moments.of(bts.click), alpha=alpha)
    return Evaluation(
        found,
        tuple(Estimated(name, value, *both.get(name, unknown)) for name, value in values.items()),
        bts.click_rate,
        own.low,
        own.high,
        random.click_rate,
    )


def _model(log: BanditLog, rows: npt.NDArray[np.bool_], items: int, places: int) -> Values:
    """[items, places] click rates by the chosen rows, drawn towards the overall one. A row's own model is fitted on the
    other folds, so that no row predicts itself."""
    flat, clicked = (log.item * places + log.place)[rows], log.click[rows]
    seen = np.bincount(flat, minlength=items * places)
    clicks = np.bincount(flat, weights=clicked, minlength=items * places)
    overall = float(clicked.sum()) / max(len(clicked), 1)
    rates = (clicks + _PRIOR_ROWS * overall) / (seen + _PRIOR_ROWS)
    return np.asarray(rates, np.float64).reshape(items, places)


def _expected(frequency: Values, models: Values) -> Values:
    """[folds, places]: what the target policy earns there, by each fold's model."""
    return np.asarray((frequency * models).sum(axis=1), np.float64)


def _redrawn(
    random: BanditLog, bts: BanditLog, models: Values, fold: Ints, alpha: float, seed: int
) -> dict[str, tuple[float, float]]:
    """method -> (low, high). A draw is a multinomial over (item, place) for the target and over rows for the log; the
    models of the reward stay as they were fitted."""
    draws = np.random.default_rng(seed + 1)
    _, items, places = models.shape
    counts = counts_of(bts, items, places).ravel()
    drawn = draws.multinomial(len(bts.click), counts / counts.sum(), size=DRAWS).reshape(DRAWS, items, places)
    predicted, size = models[fold, random.item, random.place], len(random.click)
    found = np.empty((DRAWS, 3))
    for draw, counted in enumerate(drawn):
        frequency = frequency_of(counted.astype(np.float64))
        rows = draws.integers(size, size=size)
        item, place, click = random.item[rows], random.place[rows], random.click[rows]
        weight = frequency[item, place] / random.propensity[rows]
        earned = float(weight @ click)
        value = _expected(frequency, models)[fold[rows], place] + weight * (click - predicted[rows])
        found[draw] = earned / size, earned / float(weight.sum()), value.mean()
    low, high = np.percentile(found, [100 * alpha / 2, 100 * (1 - alpha / 2)], axis=0).tolist()
    return {name: (low[column], high[column]) for column, name in enumerate(("ipw", "snips", "dr"))}
