"""The first phase: every row predicts the item after it (and, by MTP, the one after that) over the whole catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from services.inference.model.attention import Layout
from services.inference.model.batch import PackedBatch
from services.inference.model.mtp import MultiTokenPrediction
from services.inference.model.ranker import Ranker
from services.inference.training.dataset import (
    Ints,
    Sequences,
    Windows,
    epoch_windows,
    length_buckets,
    pack,
    ranges,
)
from services.inference.training.losses import full_softmax, sampled_softmax
from services.inference.training.optimiser import MovingAverage, Optimiser
from services.inference.training.plan import NextItemPlan
from services.inference.training.schedule import Schedule

StepReport = Callable[[Schedule, float], None]
"""After each step: the schedule and the loss."""


def steps_per_epoch(data: Sequences, plan: NextItemPlan, max_history: int) -> int:
    rng = np.random.default_rng(0)
    return sum(1 for _ in length_buckets(epoch_windows(data, max_history, rng), plan.batch_rows, rng))


def train_next_item(
    ranker: Ranker,
    data: Sequences,
    plan: NextItemPlan,
    schedule: Schedule,
    *,
    rng: np.random.Generator,
    report: StepReport,
) -> None:
    """Ends with the averaged weights in `ranker`, in eval mode."""
    device = ranker.cold.device
    mtp = MultiTokenPrediction(ranker.config).to(device) if ranker.config.mtp_depth and plan.mtp_weight else None
    loss_of = NextItemLoss(ranker, mtp, data, plan, rng)
    modules = [ranker] if mtp is None else [ranker, mtp]
    optimiser = Optimiser(
        modules,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        gradient_clip=plan.gradient_clip,
    )
    mean = MovingAverage(ranker, plan.ema_decay)
    ranker.train()
    batches = _forever(data, plan, ranker.config.max_history, rng)
    while not schedule.finished:
        loss = loss_of(next(batches))
        optimiser.step(loss, schedule.rate())
        mean.update()
        for gate in ranker.gates():
            gate.rebalance(plan.bias_speed)
        schedule.advance()
        report(schedule, loss.item())
    mean.settle()
    ranker.eval()


class NextItemLoss:
    """Full softmax while the catalogue has at most `full_softmax_items`, sampled softmax beyond."""

    def __init__(
        self,
        ranker: Ranker,
        mtp: MultiTokenPrediction | None,
        data: Sequences,
        plan: NextItemPlan,
        rng: np.random.Generator,
    ) -> None:
        self.ranker, self.mtp, self.data, self.plan, self.rng = ranker, mtp, data, plan, rng
        self.device = ranker.cold.device
        self.vocabulary = ranker.config.vocabulary
        self.sampler = None
        if self.vocabulary > plan.full_softmax_items:
            self.sampler = NegativeSampler(data, self.vocabulary, plan.sampled_negatives, self.device)

    def __call__(self, windows: Windows) -> Tensor:
        batch, rows = pack(self.data, windows, self.device)
        following = self._items(rows + 1)
        batch = self._with_unknowns(batch)
        layout = Layout.of(batch)
        table = self.ranker.items.table()
        hidden = self.ranker.states(batch, layout, table)
        first = self.ranker.cold.expand(int(windows.opens.sum()), -1)
        states = torch.cat((self.ranker.norm(hidden), first))
        target = torch.cat((following, self._items(windows.start[windows.opens])))
        loss = self._softmax(states, target, table)
        if self.mtp is not None and self.rng.random() < self.plan.mtp_share:
            loss = loss + self.plan.mtp_weight * self._after_next(self.mtp, hidden, following, windows, layout, table)
        return loss

    def _after_next(
        self,
        mtp: MultiTokenPrediction,
        hidden: Tensor,
        following: Tensor,
        windows: Windows,
        layout: Layout,
        table: Tensor,
    ) -> Tensor:
        predicted = mtp(hidden, table.index_select(0, following), layout)
        # The last row of a window has no row after the next inside its window.
        inner = np.ones(len(following), np.bool_)
        inner[np.cumsum(windows.stop - windows.start) - 1] = False
        kept = torch.from_numpy(np.flatnonzero(inner)).to(self.device)
        target = self._items(ranges(windows.start, windows.stop)[inner] + 2)
        return self._softmax(predicted.index_select(0, kept), target, table)

    def _softmax(self, states: Tensor, target: Tensor, table: Tensor) -> Tensor:
        vectors, bias = table[:-1], self.ranker.item_bias
        if bias is not None:
            vectors = torch.cat((vectors, bias[:-1, None]), dim=1)
            states = torch.nn.functional.pad(states, (0, 1), value=1.0)
        if self.sampler is None:
            return full_softmax(states, vectors, target, self.plan.label_smoothing)
        return sampled_softmax(states, vectors, target, self.sampler.draw(), self.sampler.log_q)

    def _items(self, rows: Ints) -> Tensor:
        return torch.from_numpy(self.data.item[rows]).to(self.device)

    def _with_unknowns(self, batch: PackedBatch) -> PackedBatch:
        """A few inputs lose their identity, so that the unknown row learns what an unseen item means."""
        if not self.plan.id_dropout:
            return batch
        lost = torch.rand(batch.history_item.shape, device=self.device) < self.plan.id_dropout
        item = batch.history_item.masked_fill(lost, self.vocabulary)
        return PackedBatch(
            item,
            batch.history_action,
            batch.history_time,
            batch.history_offset,
            batch.candidate_item,
            batch.candidate_offset,
            batch.request_time,
        )


class NegativeSampler:
    """Shared negatives: half in proportion to an item's events, half uniform, so that every item is pushed down."""

    def __init__(self, data: Sequences, vocabulary: int, count: int, device: torch.device) -> None:
        rows = data.item[ranges(data.start, data.end)]
        events = np.bincount(rows, minlength=vocabulary)[:vocabulary].astype(np.float64)
        q = 0.5 * events / max(1.0, events.sum()) + 0.5 / vocabulary
        self.q = torch.from_numpy(q).to(device)
        # Expected number of times an item is drawn: what its logit is lowered by.
        self.log_q = torch.log(self.q * count).float()
        self.count = count

    def draw(self) -> Tensor:
        return torch.multinomial(self.q, self.count, replacement=True)


def _forever(data: Sequences, plan: NextItemPlan, max_history: int, rng: np.random.Generator) -> Iterator[Windows]:
    while True:
        yield from length_buckets(epoch_windows(data, max_history, rng), plan.batch_rows, rng)
