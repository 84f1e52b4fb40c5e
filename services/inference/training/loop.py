"""From events to a trained ranker and what it is worth, inside `max_seconds` whatever the machine.

The weights that are measured are the weights that are published: they never saw a user's last event, so the numbers
in the manifest are of exactly this model. How many epochs, and every other choice of `plan`, was fixed on the last but
one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from services.inference.model.config import ModelConfig
from services.inference.model.ranker import Ranker
from services.inference.training.content import Content
from services.inference.training.dataset import EventColumns, Sequences, Split
from services.inference.training.evaluation import (
    Quality,
    evaluate,
    evaluated_users,
    popularity_scorer,
    ranking_scorer,
    retrieval_scorer,
)
from services.inference.training.next_item import steps_per_epoch, train_next_item
from services.inference.training.plan import TrainingPlan
from services.inference.training.ranking import ranking_steps, train_ranking
from services.inference.training.schedule import Clock, Schedule
from shared.errors import SilkrecError

MIN_EVENTS = 100
# Scoring every item for every user of a large installation would take longer than training.
MEASURED_USERS = 2000


@dataclass(frozen=True, slots=True)
class Progress:
    """`eta_s` is to the end of all training, measuring left out; `metrics` are known at the very end."""

    phase: str
    epoch: float
    done: int
    total: int
    eta_s: float
    loss: float | None = None
    metrics: Mapping[str, float] | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Trained:
    """`actions` are the codes that have a head; `metrics` as they go into the manifest."""

    ranker: Ranker
    content: Content
    actions: tuple[int, ...]
    epochs: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)


def train(
    events: EventColumns,
    content: Callable[[ModelConfig], Content],
    plan: TrainingPlan,
    weights: Mapping[int, float],
    report: Report,
    *,
    vocabulary: int,
    split: Split = "test",
    clock: Clock = time.monotonic,
    device: torch.device | str = "cpu",
) -> Trained:
    """`content` makes the tokens of an architecture; `weights` (action code to scene weight) is how slates are ordered
    and so what is measured. Raises SilkrecError when there is too little to learn from, or the loss is no number."""
    began = clock()
    data = Sequences.of(events, split)
    if data.rows < MIN_EVENTS:
        raise SilkrecError(
            f"{data.rows} events are too few to train on; send at least {MIN_EVENTS} of types with in_history: true"
        )
    actions = trained_actions(data, plan.min_positives)
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    ranker, tokens = _ranker(plan, vocabulary, actions, content)
    ranker.to(device)
    watch = _Watch(report, plan, began)
    ranking_s = plan.max_seconds * plan.ranking.time_share
    history = ranker.config.max_history
    per_epoch = max(1, steps_per_epoch(data, plan.next_item, history))
    first = Schedule(
        per_epoch * plan.next_item.epochs,
        began + plan.max_seconds - ranking_s,
        clock,
        plan.next_item.warmup,
    )
    train_next_item(ranker, data, plan.next_item, first, rng=rng, report=watch.of("next item", per_epoch, ranking_s))
    steps = max(1, ranking_steps(data, plan.ranking, history))
    second = Schedule(steps, began + plan.max_seconds, clock, plan.next_item.warmup)
    per_epoch_ranking = max(1, steps // max(1, plan.ranking.epochs))
    train_ranking(
        ranker,
        data,
        plan.ranking,
        plan.next_item,
        second,
        rng=rng,
        report=watch.of("ranking", per_epoch_ranking, 0.0),
    )
    seconds = clock() - began
    report(Progress("measuring", first.done / per_epoch, 0, 1, 0.0))
    metrics = measure(ranker, data, weights, vocabulary)
    report(Progress("measuring", first.done / per_epoch, 1, 1, 0.0, metrics=metrics))
    return Trained(ranker, tokens, actions, first.done / per_epoch, seconds, metrics)


def trained_actions(data: Sequences, min_positives: int) -> tuple[int, ...]:
    """Codes with enough events for a head, ascending; the most frequent one if none has."""
    codes, counts = np.unique(data.action, return_counts=True)
    kept = tuple(int(code) for code, count in zip(codes, counts, strict=True) if count >= min_positives and code > 0)
    return kept or (int(codes[np.argmax(counts)]),)


def measure(ranker: Ranker, data: Sequences, weights: Mapping[int, float], items: int) -> dict[str, float]:
    """HR@10 and NDCG@10 over all items, seen ones left out: as slates are ordered (the score), by the user vector
    alone (retrieval), and by popularity. The same users everywhere, at most MEASURED_USERS of them."""
    chosen = _sample(data, items)
    weight = torch.tensor([float(weights.get(code, 0.0)) for code in ranker.config.actions])
    if not float(weight.abs().sum()):
        weight = torch.ones_like(weight)
    ranked = evaluate(chosen, items, ranking_scorer(ranker, data, weight))
    recalled = evaluate(chosen, items, retrieval_scorer(ranker, data))
    popular = evaluate(chosen, items, popularity_scorer(data, items))
    return {
        **_named("", ranked),
        **_named("retrieval_", recalled),
        **_named("popular_", popular),
        "measured_users": float(ranked.users),
    }


def _sample(data: Sequences, items: int) -> Sequences:
    """The same rows with fewer held-out events, evenly spread over the users."""
    users = evaluated_users(data, items)
    if len(users) <= MEASURED_USERS:
        return data
    held = np.zeros_like(data.held)
    held[users[np.linspace(0, len(users) - 1, MEASURED_USERS).astype(np.int64)]] = True
    return replace(data, held=held)


def _named(prefix: str, quality: Quality) -> dict[str, float]:
    return {f"{prefix}hr_at_10": quality.hr_at_10, f"{prefix}ndcg_at_10": quality.ndcg_at_10}


def _ranker(
    plan: TrainingPlan,
    vocabulary: int,
    actions: tuple[int, ...],
    content: Callable[[ModelConfig], Content],
) -> tuple[Ranker, Content]:
    wanted: dict[str, Any] = {**plan.architecture, "vocabulary": vocabulary, "actions": actions}
    config = ModelConfig(**wanted)
    tokens = content(config)
    if not tokens.tokens:
        config = replace(config, content_tokens=0)
    else:
        config = replace(config, content_vocabulary=tokens.vocabulary)
    ranker = Ranker(config)
    if config.content_tokens:
        ranker.items.content.copy_(torch.from_numpy(tokens.table))
    return ranker, tokens


class _Watch:
    """Turns steps into progress, and a loss that is no number into an error before an hour is wasted on it."""

    def __init__(self, report: Report, plan: TrainingPlan, began: float) -> None:
        self._report, self._plan, self._began = report, plan, began

    def of(self, phase: str, per_epoch: int, later_s: float) -> Callable[[Schedule, float], None]:
        def step(schedule: Schedule, loss: float) -> None:
            if not np.isfinite(loss):
                raise SilkrecError(f"the {phase} loss is {loss}: lower the learning rate, or look at the data")
            self._report(
                Progress(
                    phase, schedule.done / per_epoch, schedule.done, schedule.steps, schedule.eta_s + later_s, loss
                )
            )

        return step
