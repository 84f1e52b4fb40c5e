"""What a simulation says at its end: the same numbers as JSON and as a table."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table

from services.cli.simulate.driver import NO_VARIANT, Traffic
from services.recommender.experiments.simulator.clicks import ClickModel
from services.recommender.experiments.simulator.effect import Effect, effect_of
from services.recommender.experiments.simulator.tally import Tally
from services.recommender.experiments.statistics.effects import Estimate
from shared.errors import NotFound


def as_dict(traffic: Traffic, model: ClickModel, experiment: str | None, control: str | None) -> dict[str, Any]:
    """`control`: the variant that the others are held against; None: the first by name. Raises NotFound when no answer
    was of the experiment, or none of the control."""
    named = sorted(name for name in traffic.tallies if name != NO_VARIANT)
    if experiment is not None and traffic.requests > traffic.refused and not named:
        raise NotFound(f"no answer was of experiment {experiment!a}; is it running, for the scene that was asked?")
    if control is not None and named and control not in named:
        raise NotFound(f"no answer was of variant {control!a}; there were {', '.join(named)}")
    base = control or (named[0] if named else None)
    return {
        "simulated": True,
        "experiment": experiment,
        "control": base,
        "model": model.parameters,
        "requests": traffic.requests,
        "refused": traffic.refused,
        "late": traffic.late,
        "degraded": traffic.degraded,
        "events": traffic.events,
        "lost_events": traffic.lost_events,
        "variants": {name: _variant(tally) for name, tally in sorted(traffic.tallies.items())},
        "effects": {
            name: _effect(effect_of(traffic.tallies[base], traffic.tallies[name]))
            for name in named
            if base is not None and name != base
        },
    }


def show(console: Console, report: dict[str, Any]) -> None:
    table = Table("Variant", "Users", "Slates", "Impressions", "Clicks", "CTR drawn", "CTR expected")
    for name, row in report["variants"].items():
        counts = [f"{row[key]:,}" for key in ("users", "slates", "impressions", "clicks")]
        table.add_row(name, *counts, f"{row['ctr']:.4f}", f"{row['expected_ctr']:.4f}")
    console.print("[bold]Simulated traffic: the clicks are a model's, not people's.[/bold]")
    console.print(table)
    for name, effect in report["effects"].items():
        true, sampled = effect["true"], effect["sampled"]
        console.print(
            f"{name} against {report['control']}: true lift {_lift(true)}; by the drawn clicks {_lift(sampled)}"
        )
    for key, words in (
        ("refused", "requests were turned away or not answered in time"),
        ("late", "requests were sent late; lower --rate or raise --concurrency"),
        ("degraded", "answers were degraded"),
        ("lost_events", "events were turned away and are lost"),
    ):
        if report[key]:
            console.print(f"  {report[key]:,} {words}", style="yellow")


def _variant(tally: Tally) -> dict[str, Any]:
    return {
        "users": len(tally.users),
        "slates": tally.slates,
        "empty": tally.empty,
        "impressions": tally.impressions,
        "clicks": tally.clicks,
        "purchases": tally.purchases,
        "ctr": tally.drawn_ratio().mean,
        "expected_ctr": tally.expected_ratio().mean,
    }


def _effect(effect: Effect) -> dict[str, Any]:
    return {"true": _estimate(effect.true), "sampled": _estimate(effect.sampled)}


def _estimate(found: Estimate) -> dict[str, Any]:
    """NaN and infinities are null: JSON has neither."""
    numbers = {"lift": found.estimate, "low": found.low, "high": found.high}
    return {
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "problem": None if found.problem is None else str(found.problem),
    }


def _lift(estimate: dict[str, Any]) -> str:
    if estimate["lift"] is None:
        return f"unknown ({estimate['problem']})"
    return f"{estimate['lift']:+.2%} ({estimate['low']:+.2%} to {estimate['high']:+.2%}, 95 % over users)"
