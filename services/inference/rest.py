"""What a client spares an engine that just turned a request away.

A refusal is cheap but not free: on two cores 400 a second took a third of the device's own time. An engine that
refuses has most of a deadline's work waiting (`scheduler`), so a client that asks nothing for a while lets it lose no
work, and answers itself what would have been refused.

Dead end: refusing with a chance by the share that was taken of late (Google's SRE book, eq. 21-1). With K = 1.2, low
enough to help, what still goes out shrinks with every unlucky refusal and needs seconds to grow again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

REST_SHARE = 0.18
"""Of the time that the refused request had: 12 ms of 68. Most of that time is work that waits (`_ADMIT_SHARE`
of the scheduler), so it does not run out meanwhile. Goodput at three times the capacity, as a share of the best: 0.77
without, 0.87 at 5 ms, 0.91 at 10, 0.97 at 16."""
_ALIKE = 1.25
"""Times of requests with the same deadline differ by what each lost on its way here: compared exactly, every second one
was asked all the same, and refusals still took 0.9 ms of the server for each good answer."""


_OFTEN = 3
"""Refusals within one budget, from which on it is an overload and not a burst of arrivals. Resting after each refusal
turned a dozen requests away for one: 99 % of all were no longer served at 72 % of a peer's rate."""


@dataclass(slots=True)
class Rest:
    """Of one client for one engine. `now` on time.monotonic."""

    _until: float = 0.0
    _budget_s: float = 0.0
    _priority: int = 0
    _since: float = -math.inf
    _count: int = 0

    def refused(self, now: float, budget_s: float, priority: int) -> None:
        if now > self._since + budget_s:
            self._since, self._count = now, 0
        self._count += 1
        if self._count >= _OFTEN:
            self._until, self._budget_s, self._priority = now + REST_SHARE * budget_s, budget_s, priority
            self._since = now  # while it lasts, every further refusal is one of many

    def covers(self, now: float, budget_s: float, priority: int) -> bool:
        """Whether the engine would turn this one away too: it is not more urgent, and has hardly more time."""
        return now < self._until and budget_s <= _ALIKE * self._budget_s and priority >= self._priority
