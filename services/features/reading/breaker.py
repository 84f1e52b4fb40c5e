"""A circuit breaker: a store that is known to be away is not asked again on every request."""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES_TO_OPEN = 5
PROBE_INTERVAL_S = 0.25


class CircuitBreaker:
    """Opens after `failures` consecutive failures; open, it lets one call through every `probe_interval_s`.

    A dead Redis then costs its 20 ms time-out to four requests a second instead of to all. Used from one event loop.
    """

    def __init__(
        self,
        *,
        failures: int = FAILURES_TO_OPEN,
        probe_interval_s: float = PROBE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._interval_s = probe_interval_s
        self._clock = clock
        self._failures = 0
        self._next_probe = 0.0

    @property
    def is_open(self) -> bool:
        return self._failures >= self._limit

    def allow(self) -> bool:
        """Whether to try now. While open, a True is the one probe of this interval."""
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._next_probe:
            return False
        self._next_probe = now + self._interval_s
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._next_probe = self._clock() + self._interval_s
