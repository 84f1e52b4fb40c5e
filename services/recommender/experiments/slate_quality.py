"""From daily counts of slates to rates, latency quantiles and rarefied coverage. Pure.

Rarefaction: the expected number of distinct items in R requests drawn without replacement of N, of which m_i hold item
i: Σ 1 - C(N - m_i, R) / C(N, R) (Hurlbert 1971, Ecology 52). Raw counts would praise whoever was asked more often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from services.recommender.experiments.report import Bounds, LatencyLift, SlateQuality

QUANTILES = (0.5, 0.95, 0.99)
FALLBACK_RUNGS = ("last_good", "batch", "retrieval", "popular", "nothing")
"""Rungs of the degradation ladder below the model's own order."""
STEPS = ((10_000, 50), (100_000, 500), (1_000_000, 5_000), (2**31 - 1, 50_000))
"""Latency buckets: below so many µs, steps of so many µs."""


def rarefied(slates_by_item: npt.ArrayLike, slates: int, drawn: int) -> float:
    """Expected distinct items in `drawn` of `slates`; `slates_by_item` [items]: slates that hold the item."""
    m = np.asarray(slates_by_item, np.float64)
    rest = slates - m
    possible = rest >= drawn
    logs = _log_choose(rest[possible], drawn) - _log_choose(np.float64(slates), drawn)
    return float(len(m) - np.exp(logs).sum())


def _log_choose(n: Any, k: int) -> Any:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


def quantile_ms(histogram: Mapping[str, int], q: float) -> float | None:
    """The upper end of the bucket that holds it, so never too good."""
    if not histogram:
        return None
    buckets = sorted((int(low), count) for low, count in histogram.items())
    reached = np.cumsum([count for _, count in buckets])
    low = buckets[int(np.searchsorted(reached, q * reached[-1] * (1 - 1e-12)))][0]
    return (low + next(step for end, step in STEPS if low < end)) / 1000


def merged(days: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of days' sums."""
    total: dict[str, Any] = {"latency": {}}
    for day in days:
        for name, value in day.items():
            if name == "latency":
                for bucket, count in value.items():
                    total["latency"][bucket] = total["latency"].get(bucket, 0) + count
            elif name == "newest_us":
                total[name] = max(total.get(name, 0), value)
            else:
                total[name] = total.get(name, 0) + value
    return total


def quality(
    variant: str,
    sums: Mapping[str, Any],
    slates_by_item: npt.ArrayLike,
    drawn: int,
    lifts: Sequence[Mapping[str, Any]] = (),
) -> SlateQuality:
    """`drawn`: requests to which the coverage of all variants is cut; 0: none. `lifts` {q, lift, low, high, problem}
    of its latencies."""
    requests = int(sums.get("requests", 0))

    def share(name: str) -> float | None:
        return sums.get(name, 0) / requests if requests else None

    def mean(name: str) -> float | None:
        count = sums.get(f"{name}_n", 0)
        return sums[name] / count if count else None

    latency = sums.get("latency", {})
    return SlateQuality(
        variant=variant,
        requests=requests,
        p50_ms=quantile_ms(latency, 0.5),
        p95_ms=quantile_ms(latency, 0.95),
        p99_ms=quantile_ms(latency, 0.99),
        error_rate=share("failed"),
        fallback_rate=share("fallback"),
        degraded_rate=share("degraded"),
        empty_rate=share("empty"),
        ild=mean("ild"),
        novelty=mean("novelty"),
        coverage=rarefied(slates_by_item, int(sums["sampled"]), drawn) if drawn else None,
        coverage_requests=drawn,
        latency_lifts=tuple(
            LatencyLift(
                quantile=f"p{one['q'] * 100:g}",
                lift=one["lift"],
                fixed=None if one["lift"] is None else Bounds(low=one["low"], high=one["high"]),
                problem=one["problem"],
            )
            for one in lifts
        ),
    )
