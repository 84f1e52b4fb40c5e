"""A circuit breaker: a store that is known to be away is not asked again on every request."""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES_TO_OPEN = 5
PROBE_INTERVAL_S = 0.25
LATE_SPAN_S = 0.1


class CircuitBreaker:
    """Opens after `failures` consecutive failures; open, it lets one call through every `probe_interval_s`.

    Answers that were only late must besides have been missing for LATE_SPAN_S: whatever stalls for 20 ms on a busy
    machine makes all calls in flight late at once, and a healthy store would be left alone for it.

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
        self._failing_since = 0.0
        self._open = False
        self._next_probe = 0.0

    @property
    def is_open(self) -> bool:
        return self._open

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
        self._open = False

    def failed(self, *, late: bool = False) -> None:
        now = self._clock()
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        lasted = not late or now - self._failing_since >= LATE_SPAN_S
        if self._open or (self._failures >= self._limit and lasted):
            self._open = True
            self._next_probe = now + self._interval_s
