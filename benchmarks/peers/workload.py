"""Who asks what: the same requests for every server.

`returning`: 70 % of the requests come from a user seen before in the trace, whose history is the one sent then plus 0
to 3 newer events; the rest, and with `cold` every request, from a user that nobody has seen. Histories of 200 rows,
normal with a deviation of 40, clipped to 20 and 300; a returning one stops growing at 300. 128 candidates of a
vocabulary of 20,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.wire import Int32, block
from services.inference.engine.request import InferRequest
from services.inference.model.config import ModelConfig
from shared.contracts.history import History, pack
from shared.contracts.inference import RankRequest

VOCABULARY, CANDIDATES = 20_000, 128
ROWS_MEAN, ROWS_SPREAD, ROWS_LEAST, ROWS_MOST, ROWS_CAP = 200, 40, 20, 300, 300
RETURNING_SHARE, NEW_EVENTS = 0.7, (0, 3)
DEADLINE_S = 0.068
WORKLOADS = ("returning", "cold")
MODEL = ModelConfig(vocabulary=VOCABULARY, actions=(1, 2, 3, 4, 5), d_model=64, n_layers=2, max_history=ROWS_CAP)
"""The demo's shape (the `small` preset: every other width is ModelConfig's default)."""
PRIMED = 256
"""Users that have been seen when a returning trace begins."""


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    user_key: str
    history: History
    candidate: Int32
    time_s: int

    def rank_request(self) -> RankRequest:
        return RankRequest(self.user_key, self.history, self.candidate, self.time_s, int(DEADLINE_S * 1e6))

    def infer_request(self) -> InferRequest:
        """As our engine gets it, for calls without a door."""
        return InferRequest(
            self.history["item"].copy(),
            self.history["action"].copy(),
            self.history["time"].copy(),
            self.candidate,
            self.time_s,
            int(DEADLINE_S * 1e6),
            self.user_key,
        )

    def block(self) -> bytes:
        return block(self.history, self.candidate, self.time_s)


class Trace:
    """`primes`: each known user once, sent before the clock runs; iterating gives what is measured, without end."""

    def __init__(self, workload: str, seed: int) -> None:
        self._random = np.random.default_rng([WORKLOADS.index(workload), seed])
        self._name = f"{workload}-{seed}"
        self._returning = workload == "returning"
        self._users: list[tuple[str, History]] = []
        self.primes = [self._new() for _ in range(PRIMED)] if self._returning else []

    def __iter__(self) -> Iterator[Ask]:
        while True:
            yield self._again() if self._returning and self._random.random() < RETURNING_SHARE else self._new()

    def _new(self) -> Ask:
        rows = int(np.clip(self._random.normal(ROWS_MEAN, ROWS_SPREAD), ROWS_LEAST, ROWS_MOST))
        history = self._events(rows, 1_700_000_000)
        self._users.append((f"u:{self._name}-{len(self._users)}", history))
        return self._ask(*self._users[-1])

    def _again(self) -> Ask:
        place = int(self._random.integers(len(self._users)))
        key, history = self._users[place]
        more = int(self._random.integers(*NEW_EVENTS, endpoint=True))
        if more and len(history) + more <= ROWS_CAP:
            history = np.concatenate((history, self._events(more, int(history["time"][-1]))))
            self._users[place] = (key, history)
        return self._ask(key, history)

    def _events(self, rows: int, after_s: int) -> History:
        random = self._random
        times = after_s + np.cumsum(random.integers(1, 20_000, rows))
        return pack(random.integers(0, VOCABULARY, rows), random.integers(1, 6, rows), times)

    def _ask(self, key: str, history: History) -> Ask:
        candidate = self._random.integers(0, VOCABULARY, CANDIDATES, dtype=np.int32)
        return Ask(key, history, candidate, int(history["time"][-1]) + 60)
