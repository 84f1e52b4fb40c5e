"""Leave-one-out quality: the held-out event's rank among all items the user has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.inference.model.batch import PackedBatch
from services.inference.model.ranker import Ranker
from services.inference.training.dataset import Ints, Sequences, ranges

TOP = 10
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Quality:
    """HR@10: share of users whose held-out item is among the first ten; NDCG@10: 1/log2(1+rank) of it, 0 beyond ten."""

    hr_at_10: float
    ndcg_at_10: float
    users: int

    @classmethod
    def of_ranks(cls, rank: Ints) -> Quality:
        """`rank` [U], 0 is best."""
        if not len(rank):
            return cls(0.0, 0.0, 0)
        hit = rank < TOP
        gain = np.where(hit, 1.0 / np.log2(rank + 2.0), 0.0)
        return cls(float(hit.mean()), float(gain.mean()), len(rank))


def evaluate(data: Sequences, items: int, score: Callable[[Ints], Scores], step: int = 64) -> Quality:
    """`score(users [n])` gives [n, items]. A tie counts against the held-out item by half of the tied ones."""
    users = evaluated_users(data, items)
    ranks = []
    for begin in range(0, len(users), step):
        part = users[begin : begin + step]
        scores = np.array(score(part), np.float64)
        target = data.item[data.end[part]]
        wanted = scores[np.arange(len(part)), target]
        for row, user in enumerate(part.tolist()):
            seen = data.item[data.start[user] : data.end[user]]
            scores[row, seen[(seen >= 0) & (seen < items)]] = -np.inf
        scores[np.arange(len(part)), target] = wanted
        better = (scores > wanted[:, None]).sum(1)
        tied = (scores == wanted[:, None]).sum(1) - 1
        ranks.append(better + tied // 2)
    return Quality.of_ranks(np.concatenate(ranks) if ranks else np.empty(0, np.int64))


def evaluated_users(data: Sequences, items: int) -> Ints:
    """Users with a held-out event on an item that the model knows."""
    users = np.flatnonzero(data.held)
    target = data.item[data.end[users]]
    return users[(target >= 0) & (target < items)]


def popularity_scorer(data: Sequences, items: int) -> Callable[[Ints], Scores]:
    """Everyone gets the number of events an item has in the training rows."""
    rows = data.item[ranges(data.start, data.end)]
    count = np.bincount(rows[(rows >= 0) & (rows < items)], minlength=items).astype(np.float32)
    return lambda users: np.broadcast_to(count, (len(users), items))


def retrieval_scorer(ranker: Ranker, data: Sequences) -> Callable[[Ints], Scores]:
    """Inner product of user and item vectors, exact."""
    device = ranker.cold.device
    vectors = ranker.item_vectors()

    def score(users: Ints) -> Scores:
        batch = held_out_batch(data, users, np.empty(0, np.int64), ranker.config.max_history).to(device)
        result: Scores = (ranker(batch).user_vector @ vectors.T).cpu().numpy()
        return result

    return _without_gradients(score)


def ranking_scorer(ranker: Ranker, data: Sequences, weight: Tensor, step: int = 8) -> Callable[[Ints], Scores]:
    """The served score over all items: `weight` [A] times the heads' probabilities, at the held-out event's time."""
    device, items = ranker.cold.device, ranker.config.vocabulary
    everything = np.arange(items)

    def parts(users: Ints) -> Iterator[Tensor]:
        for begin in range(0, len(users), step):
            part = users[begin : begin + step]
            batch = held_out_batch(data, part, everything, ranker.config.max_history).to(device)
            yield (torch.sigmoid(ranker(batch).logits) @ weight.to(device)).view(len(part), items)

    def score(users: Ints) -> Scores:
        result: Scores = torch.cat(list(parts(users))).cpu().numpy()
        return result

    return _without_gradients(score)


def held_out_batch(data: Sequences, users: Ints, candidate: Ints, max_history: int) -> PackedBatch:
    """Each user's newest `max_history` training rows, and the same candidates for each."""
    spans = [(max(s, e - max_history), e) for s, e in zip(data.start[users], data.end[users], strict=True)]
    histories = [(data.item[a:b], data.action[a:b], data.time[a:b]) for a, b in spans]
    return PackedBatch.from_requests(histories, [candidate] * len(users), data.time[data.end[users]].tolist())


def _without_gradients(score: Callable[[Ints], Scores]) -> Callable[[Ints], Scores]:
    def wrapped(users: Ints) -> Scores:
        with torch.inference_mode():
            return score(users)

    return wrapped
