"""The engine as a job's pipelines see it: one call a user here, one message a group on the wire, and patience."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from services.inference.client import ManyInference
from services.recommender.jobs.bulk.rounds import Rounds, cancelled
from shared.contracts.inference import EncodeRequest, EncodeResult, RankRequest, RankResult
from shared.errors import DeadlineExceeded, InferenceUnavailable, Overloaded, SilkrecError

CALL_S = 30.0
"""Of one message. A job runs when online requests leave time; a group waits its turn behind them."""
PATIENCE_S = 20.0
"""How long an engine may be away before the chunk fails and is tried again later: a restart with a model takes 6 s."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0
Q = TypeVar("Q")
R = TypeVar("R")


class PatientInference:
    """One a process: makes a `GroupInference` for each group. `close` ends what is under way."""

    def __init__(
        self,
        client: ManyInference,
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._patience_s = patience_s
        self._clock = clock
        self._sleep = sleep
        self._calls: set[asyncio.Task[None]] = set()

    def group(self) -> GroupInference:
        return GroupInference(Rounds(self._encode, self._calls), Rounds(self._rank, self._calls))

    async def close(self) -> None:
        await cancelled(self._calls)

    async def _encode(self, requests: Sequence[EncodeRequest]) -> Sequence[EncodeResult | Exception]:
        asked = [replace(request, deadline_us=int(CALL_S * 1e6)) for request in requests]
        return await self._patiently(lambda: self._client.encode_many(asked))

    async def _rank(self, requests: Sequence[RankRequest]) -> Sequence[RankResult | Exception]:
        asked = [replace(request, deadline_us=int(CALL_S * 1e6)) for request in requests]
        return await self._patiently(lambda: self._client.rank_many(asked))

    async def _patiently(self, call: Callable[[], Awaitable[list[R | SilkrecError]]]) -> list[R | SilkrecError]:
        """An engine that restarts, or has no room for jobs now, is asked again."""
        end, wait_s = self._clock() + self._patience_s, _FIRST_WAIT_S
        while True:
            try:
                return await call()
            except (InferenceUnavailable, Overloaded, DeadlineExceeded):
                if self._clock() + wait_s > end:
                    raise
            await self._sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


@dataclass(frozen=True, slots=True)
class GroupInference:
    """Of users that go through the pipeline side by side. Fits `components.scorers.inference.Inference`; raises what
    the client raises once patience is spent."""

    encodes: Rounds[EncodeRequest, EncodeResult]
    ranks: Rounds[RankRequest, RankResult]

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        return await self.encodes.ask(request)

    async def rank(self, request: RankRequest) -> RankResult:
        return await self.ranks.ask(request)
