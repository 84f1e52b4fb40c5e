"""AdamW, clipping, and the moving average of the weights that is published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from services.inference.model.ranker import Ranker


class Optimiser:
    """One AdamW over several modules (Loshchilov and Hutter 2019). Gains and biases are not decayed."""

    def __init__(
        self, modules: Iterable[nn.Module], *, learning_rate: float, weight_decay: float, gradient_clip: float
    ) -> None:
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.learning_rate, self.gradient_clip = learning_rate, gradient_clip
        groups = [
            {"params": [p for p in self.parameters if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)

    def step(self, loss: Tensor, rate: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = self.learning_rate * rate
        self._adamw.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip, foreach=True)
        self._adamw.step()


class MovingAverage:
    """Weights averaged over about 1 / (1 - decay) steps, sooner at the beginning, so that a short run has one too."""

    def __init__(self, ranker: Ranker, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._own = list(ranker.parameters())
        self._mean = [p.detach().clone() for p in self._own]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10.0))
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._own], 1.0 - decay)

    @torch.no_grad()
    def settle(self) -> None:
        """Puts the mean into the model for good."""
        for own, mean in zip(self._own, self._mean, strict=True):
            own.copy_(mean)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The mean in the model for a while: to evaluate in the middle of a run."""
        kept = [p.detach().clone() for p in self._own]
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for own, value in zip(self._own, kept, strict=True):
                    own.copy_(value)
