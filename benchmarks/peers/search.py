"""Goodput: the highest rate at which a trial passed, found by the same steps for every server.

From a first guess the rate rises by a quarter (falls by a fifth) until one fails (passes), then the geometric middle is
tried until the passed and the failed rate lie closer than `within`. A rate has failed when `attempts` trials on
different requests failed: one slow second of the machine is not the server's. A failure while other programs took more
than a quarter of a core is not counted, three times a rate; a pass then counts, since it was the harder.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from benchmarks.peers import loop
from benchmarks.peers.load import Length, Trial, trial, with_asker
from benchmarks.peers.servers import Server

_UP, _DOWN = 1.25, 0.8
_FOREIGN_MOST, _SPOILT_MOST = 0.25, 3
_LOWEST = 5.0
"""Requests a second; a server that fails here has no goodput."""


@dataclass(frozen=True, slots=True)
class Rule:
    length: Length
    within: float
    attempts: int


QUICK = Rule(Length(1.5, 150), within=1.3, attempts=1)
SWEEP = Rule(Length(2.0, 250), within=1.15, attempts=2)
FULL = Rule(Length(4.0, 500), within=1.1, attempts=2)


@dataclass(slots=True)
class Search:
    """Of one server: `next_rate` says what to try, `tell` what came of it. A search ends without a goodput when a rate
    of `floor` or less has failed."""

    rule: Rule
    guess: float
    floor: float = _LOWEST
    passed: Trial | None = None
    failed: float = math.inf
    trials: list[Trial] = field(default_factory=list)
    _failures: int = 0
    _spoilt: int = 0

    @property
    def goodput(self) -> float:
        """Requests a second that were offered in the best trial that passed."""
        return self.passed.rate if self.passed else 0.0

    @property
    def is_done(self) -> bool:
        if self.passed is None:
            return self.failed <= self.floor
        return self.failed / self.passed.rate < self.rule.within

    def next_rate(self) -> float:
        if self.passed is None:
            return self.guess if math.isinf(self.failed) else self.failed * _DOWN
        if math.isinf(self.failed):
            return self.passed.rate * _UP
        return math.sqrt(self.passed.rate * self.failed)

    def tell(self, found: Trial) -> None:
        self.trials.append(found)
        if found.passed:
            self.passed, self._failures, self._spoilt = found, 0, 0
            return
        if found.foreign > _FOREIGN_MOST and self._spoilt < _SPOILT_MOST:
            self._spoilt += 1
            return
        self._failures += 1
        if self._failures >= self.rule.attempts:
            self.failed, self._failures, self._spoilt = found.rate, 0, 0


def find(servers: Sequence[Server], searches: Sequence[Search], workload: str, seed: int, end: float) -> None:
    """Rounds: one trial a server that is not done, on the same requests, in a new order each time. No round begins
    after `end` (time.monotonic): a search that is not done then keeps what it has."""
    while time.monotonic() < end:
        open_ones = [pair for pair in zip(servers, searches, strict=True) if not pair[1].is_done]
        if not open_ones:
            return
        for server, search in random.sample(open_ones, len(open_ones)):
            search.tell(once(server, workload, seed, search.next_rate(), search.rule.length))
        seed += 1


def once(server: Server, workload: str, seed: int, rate: float, length: Length, *, to_the_end: bool = False) -> Trial:
    """See `trial`."""
    with server.awake():
        begin, all_s, own_s = time.monotonic(), _busy_s(), server.cpu_s() + time.process_time()
        found = loop.run(
            with_asker(
                server.make_asker,
                lambda asker: trial(asker, workload, seed, rate, length, to_the_end=to_the_end),
            )
        )
        others_s = _busy_s() - all_s - (server.cpu_s() + time.process_time() - own_s)
        found.foreign = max(0.0, others_s / (time.monotonic() - begin))
    return found


def _busy_s() -> float:
    """Of all cores of the machine since it started, with what a hypervisor took."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "steal", 0.0))
