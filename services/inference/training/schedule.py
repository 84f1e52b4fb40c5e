"""How far a phase is, in steps and in time: the learning rate follows whichever runs out first.

A phase therefore always reaches the end of its cosine inside its seconds, on whatever machine and however busy: on a
slow one the same curve is walked in fewer epochs, and no step time has to be guessed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

Clock = Callable[[], float]
"""Monotonic seconds; tests bring their own."""

_MARGIN_STEPS = 1.5
"""A step is begun only if this many of the slowest recent ones still fit."""


@dataclass(slots=True)
class Schedule:
    """`steps` is the most a phase may take, `deadline` (on `clock`) when it must have ended."""

    steps: int
    deadline: float
    clock: Clock
    warmup: float = 0.03
    floor: float = 0.02
    began: float = field(init=False)
    done: int = field(init=False, default=0)
    _last: float = field(init=False)
    _slowest: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.began = self._last = self.clock()

    def advance(self) -> None:
        """After a step."""
        now = self.clock()
        self._slowest = max(0.98 * self._slowest, now - self._last)
        self._last = now
        self.done += 1

    @property
    def finished(self) -> bool:
        """No step left, or no time for one."""
        return self.done >= self.steps or self._last + _MARGIN_STEPS * self._slowest > self.deadline

    @property
    def progress(self) -> float:
        """0 to 1."""
        return min(1.0, max(self.done / max(1, self.steps), self._time_share()))

    @property
    def bound_by_time(self) -> bool:
        """Whether the clock, not the planned steps, decides the end."""
        return self._time_share() > self.done / max(1, self.steps)

    @property
    def eta_s(self) -> float:
        """Seconds to the end at the present pace, never beyond the deadline."""
        left = max(0.0, self.deadline - self._last)
        if not self.done:
            return left
        return min(left, (self.steps - self.done) * (self._last - self.began) / self.done)

    def rate(self) -> float:
        """Factor of the learning rate: linear warm-up, then a cosine down to `floor` (Loshchilov and Hutter 2017)."""
        progress = self.progress
        if progress < self.warmup:
            return max(progress / self.warmup, 1.0 / max(1.0, self.warmup * self.steps))
        angle = math.pi * (progress - self.warmup) / (1.0 - self.warmup)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(angle))

    def _time_share(self) -> float:
        span = self.deadline - self.began
        return 1.0 if span <= 0 else (self._last - self.began) / span
