"""The second phase: candidates take their seats behind the histories they were chosen after.

At some positions of each window the event that followed is a candidate among sampled others, a part of them those
that the model itself would have put first. The next-item loss stays in, so that retrieval keeps what it has learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.inference.model.attention import Layout
from services.inference.model.batch import PackedBatch
from services.inference.model.ranker import Ranker
from services.inference.training.dataset import Ints, Sequences, Windows, epoch_windows, length_buckets, pack
from services.inference.training.losses import candidate_loss, full_softmax, sampled_softmax
from services.inference.training.next_item import NegativeSampler, StepReport
from services.inference.training.optimiser import MovingAverage, Optimiser
from services.inference.training.plan import NextItemPlan, RankingPlan
from services.inference.training.schedule import Schedule

_HARD_POOL = 200
"""Hard negatives come from so many of the model's first: about what retrieval hands to the ranker."""


@dataclass(frozen=True, slots=True)
class Seats:
    """P positions of a packed batch, window after window: `row` [P] packed rows whose state stands for the user,
    `prefix` [P] history rows visible, `event` [P] the event that followed, `count` [W] positions a window."""

    row: Ints
    prefix: Ints
    event: Ints
    count: Ints

    @classmethod
    def drawn(cls, windows: Windows, positions: int, rng: np.random.Generator) -> Seats:
        rows, prefixes, found, counts = [], [], [], []
        begin = 0
        for start, stop in zip(windows.start.tolist(), windows.stop.tolist(), strict=True):
            length = stop - start
            chosen = np.sort(rng.choice(length, min(positions, length), replace=False))
            rows.append(begin + chosen)
            prefixes.append(chosen + 1)
            found.append(start + chosen + 1)
            counts.append(len(chosen))
            begin += length
        return cls(np.concatenate(rows), np.concatenate(prefixes), np.concatenate(found), np.array(counts, np.int64))


class RankingStep:
    """Windows to a loss. Candidates of a position: what followed first, then `plan.negatives` others."""

    def __init__(
        self, ranker: Ranker, data: Sequences, plan: RankingPlan, next_item: NextItemPlan, rng: np.random.Generator
    ) -> None:
        self.ranker, self.data, self.plan, self.next_item, self.rng = ranker, data, plan, next_item, rng
        self.device = ranker.cold.device
        self.heads = torch.tensor(ranker.config.actions, device=self.device)
        self.vocabulary = ranker.config.vocabulary
        self.negatives = NegativeSampler(data, self.vocabulary, next_item.sampled_negatives, self.device)
        self.full = self.vocabulary <= next_item.full_softmax_items

    def __call__(self, windows: Windows) -> Tensor:
        batch, rows = pack(self.data, windows, self.device)
        seats = Seats.drawn(windows, self.plan.positions, self.rng)
        candidate = self.candidates(batch, seats)
        seated = self._seated(batch, seats, candidate)
        layout, table = Layout.of(seated), self.ranker.items.table()
        states = self.ranker.norm(self.ranker.states(seated, layout, table))
        history = states[: layout.rows]
        logits = self._logits(states, history, seats, candidate, layout.rows, table)
        action = torch.from_numpy(self.data.action[seats.event]).to(self.device)
        loss = candidate_loss(logits, action, self.heads, self.plan.listwise_weight)
        if self.plan.next_item_weight:
            target = torch.from_numpy(self.data.item[rows + 1]).to(self.device)
            loss = loss + self.plan.next_item_weight * self._softmax(history, target, table)
        return loss

    def candidates(self, batch: PackedBatch, seats: Seats) -> Tensor:
        """[P, 1+n]. A negative that happens to be the positive stays: at 1 in 1,000 it costs nothing."""
        positive = torch.from_numpy(self.data.item[seats.event]).to(self.device)
        shape = (len(seats.row), self.plan.negatives)
        others = torch.multinomial(self.negatives.q, shape[0] * shape[1], replacement=True).view(shape)
        hard = round(self.plan.hard_share * self.plan.negatives)
        if hard:
            others[:, :hard] = self._hard(batch, seats, hard)
        return torch.cat((positive[:, None], others), dim=1)

    @torch.no_grad()
    def _hard(self, batch: PackedBatch, seats: Seats, count: int) -> Tensor:
        """[P, count], drawn from each position's own first items."""
        layout, table = Layout.of(batch), self.ranker.items.table()
        states = self.ranker.norm(self.ranker.states(batch, layout, table))
        wanted = states.index_select(0, torch.from_numpy(seats.row).to(self.device))
        pool = (wanted @ table[:-1].T).topk(min(_HARD_POOL, self.vocabulary), dim=1).indices
        place = torch.randint(pool.shape[1], (len(seats.row), count), device=self.device)
        hard: Tensor = pool.gather(1, place)
        return hard

    def _seated(self, batch: PackedBatch, seats: Seats, candidate: Tensor) -> PackedBatch:
        width = candidate.shape[1]
        offset = np.r_[0, np.cumsum(seats.count * width)]
        prefix = torch.from_numpy(np.repeat(seats.prefix, width)).to(self.device)
        asked = torch.from_numpy(np.repeat(self.data.time[seats.event], width)).to(self.device)
        return PackedBatch(
            batch.history_item,
            batch.history_action,
            batch.history_time,
            batch.history_offset,
            candidate.flatten(),
            torch.from_numpy(offset).to(self.device),
            asked,
            prefix,
        )

    def _logits(
        self, states: Tensor, history: Tensor, seats: Seats, candidate: Tensor, rows: int, table: Tensor
    ) -> Tensor:
        """[P, 1+n, A]"""
        user = history.index_select(0, torch.from_numpy(seats.row).to(self.device))
        items = table.index_select(0, candidate.flatten()).view(*candidate.shape, -1)
        base = torch.einsum("pd,pnd->pn", user, items)
        if self.ranker.item_bias is not None:
            base = base + self.ranker.item_bias[candidate]
        logits: Tensor = self.ranker.heads(base.flatten(), states[rows:])
        return logits.view(*candidate.shape, -1)

    def _softmax(self, states: Tensor, target: Tensor, table: Tensor) -> Tensor:
        vectors, bias = table[:-1], self.ranker.item_bias
        if bias is not None:
            vectors = torch.cat((vectors, bias[:-1, None]), dim=1)
            states = torch.nn.functional.pad(states, (0, 1), value=1.0)
        if self.full:
            return full_softmax(states, vectors, target, self.next_item.label_smoothing)
        return sampled_softmax(states, vectors, target, self.negatives.draw(), self.negatives.log_q)


def ranking_steps(data: Sequences, plan: RankingPlan, max_history: int) -> int:
    rng = np.random.default_rng(0)
    windows = epoch_windows(data, max_history, rng)
    return plan.epochs * sum(1 for _ in length_buckets(windows, plan.batch_rows, rng))


def train_ranking(
    ranker: Ranker,
    data: Sequences,
    plan: RankingPlan,
    next_item: NextItemPlan,
    schedule: Schedule,
    *,
    rng: np.random.Generator,
    report: StepReport,
) -> None:
    """Ends with the averaged weights in `ranker`, in eval mode, its probabilities calibrated."""
    step = RankingStep(ranker, data, plan, next_item, rng)
    batches = _forever(data, plan, ranker.config.max_history, rng)
    ranker.eval()
    calibrate(ranker, step, next(batches))
    optimiser = Optimiser(
        [ranker],
        learning_rate=plan.learning_rate,
        weight_decay=next_item.weight_decay,
        gradient_clip=next_item.gradient_clip,
    )
    mean = MovingAverage(ranker, next_item.ema_decay)
    ranker.train()
    while not schedule.finished:
        loss = step(next(batches))
        optimiser.step(loss, schedule.rate())
        mean.update()
        for gate in ranker.gates():
            gate.rebalance(next_item.bias_speed)
        schedule.advance()
        report(schedule, loss.item())
    if mean.steps:
        mean.settle()
    ranker.eval()


def calibrate(ranker: Ranker, step: RankingStep, windows: Windows) -> None:
    """Fits slope and offset of each head to one batch by logistic regression (Platt 1999): the softmax's logits have
    another scale than odds, and at the phase's learning rate the offsets would never get there."""
    heads = ranker.heads
    free = [heads.slope, heads.offset]
    fit = torch.optim.LBFGS(free, max_iter=30, line_search_fn="strong_wolfe")
    with torch.no_grad():
        batch, _ = pack(step.data, windows, step.device)
        seats = Seats.drawn(windows, step.plan.positions, step.rng)
        candidate = step.candidates(batch, seats)
        layout, table = Layout.of(batch), ranker.items.table()
        states = ranker.norm(ranker.states(batch, layout, table))
        user = states.index_select(0, torch.from_numpy(seats.row).to(step.device))
        base = torch.einsum("pd,pnd->pn", user, table[candidate])
        if ranker.item_bias is not None:
            base = base + ranker.item_bias[candidate]
        action = torch.from_numpy(step.data.action[seats.event]).to(step.device)

    def closure() -> Tensor:
        fit.zero_grad()
        loss = candidate_loss(base[..., None] * heads.slope + heads.offset, action, step.heads, 0.0)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    fit.step(closure)  # type: ignore[no-untyped-call]


def _forever(data: Sequences, plan: RankingPlan, max_history: int, rng: np.random.Generator) -> Iterator[Windows]:
    while True:
        yield from length_buckets(epoch_windows(data, max_history, rng), plan.batch_rows, rng)
