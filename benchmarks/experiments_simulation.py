"""How often the tests err, by simulation: A/A runs, peeking, clustered clicks, and power against theory.

Each run is made of sufficient statistics, thousands at once in numpy, by the same formulas; a sample of runs goes
through the suite's own functions too and must give the same numbers, else the benchmark ends.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from services.recommender.experiments.statistics.frequentist import welch
from services.recommender.experiments.statistics.moments import Moments, Proportion, Ratio
from services.recommender.experiments.statistics.power import Plan, power
from services.recommender.experiments.statistics.sequential import DEFAULT_TUNING, confidence_sequence, critical_value

Values = npt.NDArray[np.float64]
ALPHA = 0.05
SAMPLED = 200


def relative(a: Values, var_a: Values, b: Values, var_b: Values, n: float) -> tuple[Values, Values]:
    """Lift and its standard error; variances per unit, `n` units a variant. All [runs]."""
    return (b - a) / a, np.sqrt(var_b / n + var_a * (b / a) ** 2 / n) / a


def significant(lift: Values, error: Values, var_a: Values, var_b: Values, n: int) -> npt.NDArray[np.bool_]:
    """Welch, two-sided, as `frequentist.welch`."""
    a, b = var_a / n, var_b / n
    freedom = (a + b) ** 2 / ((a**2 + b**2) / (n - 1))
    found: npt.NDArray[np.bool_] = 2 * special.stdtr(freedom, -np.abs(lift / error)) < ALPHA
    return found


def moments(sums: Values, squares: Values, n: int) -> tuple[Values, Values]:
    return sums / n, (squares - sums**2 / n) / (n - 1)


def aa_fixed(runs: int, dice: np.random.Generator, lift: float = 0.0, units: int = 2_000) -> float:
    """Share of runs of `units` a variant, gamma outcomes, that are significant."""
    hits = 0
    for start in range(0, runs, 500):
        size = min(500, runs - start)
        x = dice.gamma(2.0, 1.0, (2, size, units))
        x[1] *= 1 + lift
        (ma, va), (mb, vb) = (moments(one.sum(-1), (one**2).sum(-1), units) for one in x)
        found, error = relative(ma, va, mb, vb, units)
        hit = significant(found, error, va, vb, units)
        hits += int(hit.sum())
        for run in range(0, size, max(1, runs // SAMPLED)):
            own = welch(Moments.of(x[0, run]), Moments.of(x[1, run]))
            same(own.estimate, found[run])
            agree(own.p_value < ALPHA, bool(hit[run]))
    return hits / runs


def peeking(runs: int, dice: np.random.Generator, looks: int = 40, step: int = 250) -> tuple[float, float]:
    """Share of A/A runs that any of 40 looks calls significant: by the confidence sequence, and by a fixed test.

    A look adds `step` units a variant: normal outcomes, of which sums and squares are drawn as such.
    """
    mean = 5.0
    sums, squares = np.zeros((2, runs)), np.zeros((2, runs))
    ever, fixed = np.zeros(runs, bool), np.zeros(runs, bool)
    for look in range(1, looks + 1):
        centre = dice.normal(0.0, math.sqrt(step), (2, runs))
        spread = dice.chisquare(step - 1, (2, runs))
        sums += step * mean + centre
        squares += spread + centre**2 / step + 2 * mean * centre + step * mean**2
        n = look * step
        (ma, va), (mb, vb) = (moments(sums[place], squares[place], n) for place in (0, 1))
        found, error = relative(ma, va, mb, vb, n)
        ever |= np.abs(found) > critical_value(2 * n, ALPHA, DEFAULT_TUNING) * error
        fixed |= significant(found, error, va, vb, n)
        for run in range(0, runs, max(1, runs // 10)):
            pair = [Moments(n, float(sums[place, run]), float(squares[place, run])) for place in (0, 1)]
            own = confidence_sequence(*pair)
            same(own.high - own.estimate, critical_value(2 * n, ALPHA, DEFAULT_TUNING) * error[run])
    return float(ever.mean()), float(fixed.mean())


def clustered(runs: int, dice: np.random.Generator, users: int = 400) -> tuple[float, float]:
    """A/A of click-through rates where users differ: by the ratio with users as rows, and by the binomial test that
    takes each impression for itself."""
    ours = naive = 0
    for start in range(0, runs, 1_000):
        size = min(1_000, runs - start)
        seen = 1.0 + dice.poisson(19, (2, size, users))
        clicks = dice.binomial(seen.astype(np.int64), dice.beta(0.5, 4.5, (2, size, users))).astype(np.float64)
        y, d = clicks.sum(-1), seen.sum(-1)
        rate = y / d
        residual = clicks - rate[..., None] * seen
        variance = (residual**2).sum(-1) / (users - 1) / (d / users) ** 2
        found, error = relative(rate[0], variance[0], rate[1], variance[1], users)
        hit = significant(found, error, variance[0], variance[1], users)
        ours += int(hit.sum())
        binomial = rate * (1 - rate)
        distance = (rate[1] - rate[0]) / np.sqrt(binomial[0] / d[0] + binomial[1] / d[1])
        naive += int((2 * special.ndtr(-np.abs(distance)) < ALPHA).sum())
        for run in range(0, size, max(1, runs // SAMPLED)):
            pair = [Ratio.of(clicks[place, run], seen[place, run]) for place in (0, 1)]
            own = welch(*pair)
            same(own.estimate, found[run])
            same(own.standard_error, error[run])
    return ours / runs, naive / runs


def powers(runs: int, dice: np.random.Generator) -> list[dict[str, Any]]:
    """Conversion of 10 %, three sizes: share of runs that see a lift of 8 %, and what theory says."""
    rows, base, lift = [], 0.10, 0.08
    plan = Plan(mean=base, variance=base * (1 - base))
    for units in (8_000, 16_000, 32_000):
        a, b = (dice.binomial(units, rate, runs) / units for rate in (base, base * (1 + lift)))
        va, vb = a * (1 - a), b * (1 - b)
        found, error = relative(a, va, b, vb, units)
        hit = significant(found, error, va, vb, units)
        for run in range(0, runs, max(1, runs // SAMPLED)):
            own = welch(Proportion(units, a[run] * units), Proportion(units, b[run] * units))
            same(own.standard_error, error[run])
        rows.append({"units": 2 * units, "seen": float(hit.mean()), "theory": power(plan, lift, 2 * units)})
    return rows


def same(ours: float, vectorised: float) -> None:
    if not math.isclose(ours, float(vectorised), rel_tol=1e-6, abs_tol=1e-9):
        raise SystemExit(f"the simulation computes something else than the suite: {ours} and {vectorised}")


def agree(ours: bool, vectorised: bool) -> None:
    if ours != vectorised:
        raise SystemExit("the simulation decides otherwise than the suite")


def measure(runs: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    dice = np.random.default_rng(2026)
    sequential, fixed = peeking(runs, dice)
    ours, naive = clustered(runs, dice)
    rows = powers(runs, dice)
    measured = {
        "aa_false_positive": aa_fixed(runs, dice),
        "sequential_false_positive": sequential,
        "fixed_false_positive_peeking": fixed,
        "clustered_false_positive": ours,
        "naive_false_positive": naive,
        "power_worst_gap": max(abs(row["seen"] - row["theory"]) for row in rows),
    }
    for name, value in measured.items():
        print(f"{name:32} {value:.4f}")
    for row in rows:
        print(f"power at {row['units']:6} units: {row['seen']:.3f} seen, {row['theory']:.3f} by theory")
    return rows, measured
