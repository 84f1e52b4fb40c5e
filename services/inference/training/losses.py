"""The losses: next item over the catalogue (full or sampled), and candidates in their seats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_CHUNK = 1024
"""Rows a slice of the softmax: 1,024 x 1,682 floats are 6.9 MB, so that logits need not go to memory and back."""


class _FullSoftmax(torch.autograd.Function):
    """Mean cross entropy of `states @ vectors.T`, whose gradient is formed on the way forward, slice by slice.

    The logits of a batch are never kept: autograd would hold three tensors of [T, V] and pass over each again.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, target: Tensor, smoothing: float) -> Tensor:
        total = states.new_zeros(())
        grad_states, grad_vectors = torch.empty_like(states), torch.zeros_like(vectors)
        share = 1.0 / max(1, states.shape[0])
        for begin in range(0, states.shape[0], _CHUNK):
            rows = slice(begin, begin + _CHUNK)
            logits = states[rows] @ vectors.T
            wanted = target[rows, None]
            log_sum = torch.logsumexp(logits, dim=1, keepdim=True)
            total += ((log_sum - logits.gather(1, wanted)) * (1 - smoothing)).sum()
            if smoothing:
                total += (log_sum.sum() * logits.shape[1] - logits.sum()) * (smoothing / logits.shape[1])
            gradient = logits.sub_(log_sum).exp_()
            if smoothing:
                gradient -= smoothing / logits.shape[1]
            gradient.scatter_add_(1, wanted, gradient.new_full(wanted.shape, smoothing - 1.0))
            gradient *= share
            torch.mm(gradient, vectors, out=grad_states[rows])
            grad_vectors.addmm_(gradient.T, states[rows])
        ctx.save_for_backward(grad_states, grad_vectors)
        return total * share

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_states, grad_vectors = ctx.saved_tensors
        return grad_states * outputs[0], grad_vectors * outputs[0], None, None


def full_softmax(states: Tensor, vectors: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over rows of -log softmax(states @ vectors.T)[target]; states [T, D], vectors [V, D], target [T]."""
    loss: Tensor = _FullSoftmax.apply(states, vectors, target, smoothing)  # type: ignore[no-untyped-call]
    return loss


def sampled_softmax(states: Tensor, vectors: Tensor, target: Tensor, negative: Tensor, log_q: Tensor) -> Tensor:
    """Softmax over the target and shared negatives [S], each logit lowered by log q of its item (Bengio and Senécal
    2008), so that the sampling does not teach popularity twice. `log_q` [V]; an accidental hit is masked."""
    positive = (states * vectors[target]).sum(1) - log_q[target]
    others = states @ vectors[negative].T - log_q[negative]
    others = others.masked_fill(negative[None, :] == target[:, None], float("-inf"))
    return functional.cross_entropy(
        torch.cat((positive[:, None], others), dim=1), torch.zeros_like(target), reduction="mean"
    )


def candidate_loss(logits: Tensor, action: Tensor, heads: Tensor, listwise_weight: float) -> Tensor:
    """`logits` [P, 1+n, A], the positive first; `action` [P] codes of what happened to it; `heads` [A] codes.

    BCE a head: the positive is 1 in the column of its own action, everything else 0. Listwise: softmax over the n+1
    candidates of log(sum_a odds_a), which orders the list without touching the scale of the probabilities.
    """
    truth = torch.zeros_like(logits)
    truth[:, 0] = (action[:, None] == heads).to(logits.dtype)
    pointwise = functional.binary_cross_entropy_with_logits(logits, truth)
    ordered = torch.logsumexp(logits, dim=-1)
    listwise = functional.cross_entropy(ordered, torch.zeros_like(action))
    return pointwise + listwise_weight * listwise
