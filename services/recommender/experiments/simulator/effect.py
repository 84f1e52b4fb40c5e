"""The true lift of click-through rate between two variants: the model's expectation over the slates that both served.

No click is drawn, so nothing of it is luck of clicks. What remains is which users fell into which variant: the interval
(users as clusters) says how far the lift over all possible users may lie from that over these. Slates depend on earlier
clicks through the users' histories, and that is part of the effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.recommender.experiments.simulator.clicks import ClickModel, Item
from services.recommender.experiments.simulator.tally import Tally
from services.recommender.experiments.statistics.effects import Estimate
from services.recommender.experiments.statistics.frequentist import welch

Served = tuple[str, Sequence[Item]]
"""`(user_id, slate)`."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Relative lifts. `true` by expected clicks, `sampled` by the drawn ones: what an analysis sees."""

    true: Estimate
    sampled: Estimate


def true_effect(
    model: ClickModel, control: Iterable[Served], treatment: Iterable[Served], *, alpha: float = 0.05
) -> Estimate:
    """The relative lift of expected click-through rate, with its 1 - α interval over users."""
    tallies = []
    for served in (control, treatment):
        tally = Tally()
        for user_id, slate in served:
            probabilities = model.probabilities(user_id, slate)
            nothing = probabilities < 0
            tally.add(user_id, probabilities, nothing, nothing)
        tallies.append(tally)
    return welch(tallies[0].expected_ratio(), tallies[1].expected_ratio(), alpha=alpha)


def effect_of(control: Tally, treatment: Tally, *, alpha: float = 0.05) -> Effect:
    return Effect(
        welch(control.expected_ratio(), treatment.expected_ratio(), alpha=alpha),
        welch(control.drawn_ratio(), treatment.drawn_ratio(), alpha=alpha),
    )
