"""Action probabilities to one score: the scene's weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from shared.contracts.history import Bool, Float32, Int64


def weight_vector(weights: Mapping[str, float], actions: Sequence[str]) -> Float32:
    """[A] in the order of the model's `actions`; an action that the scene does not weigh counts 0, and a weight
    without a trained head has nothing to weigh."""
    return np.array([weights.get(action, 0.0) for action in actions], np.float32)


def blend(scores: Float32, weights: Float32) -> Float32:
    """[N] = `scores [N, A]` x `weights [A]`; rises with every probability whose weight is positive."""
    return np.asarray(scores @ weights, np.float32)


def order_by(score: npt.NDArray[np.floating], known: Bool) -> Int64:
    """Positions [N], best first: known scores before unknown ones; equal and unknown ones keep their order."""
    return np.argsort(np.where(known, -np.asarray(score, np.float64), np.inf), kind="stable")
