"""A job's patience with an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.recommender.jobs.bulk.inference import PATIENCE_S, GroupInference, PatientInference
from shared.contracts.history import empty_history
from shared.contracts.inference import EncodeRequest, EncodeResult, RankRequest, RankResult
from shared.errors import InferenceUnavailable, Overloaded, SilkrecError


@dataclass
class Engine:
    """Away for the first `failures` calls. A user called broken has numbers that are not finite."""

    failures: list[SilkrecError] = field(default_factory=list)
    calls: list[Sequence[EncodeRequest | RankRequest]] = field(default_factory=list)

    async def encode_many(self, requests: Sequence[EncodeRequest]) -> list[EncodeResult | SilkrecError]:
        self._come(requests)
        return [
            SilkrecError("not finite") if one.user_key == "u:broken" else EncodeResult(np.ones(2, np.float32), "m")
            for one in requests
        ]

    async def rank_many(self, requests: Sequence[RankRequest]) -> list[RankResult | SilkrecError]:
        self._come(requests)
        return [RankResult(np.ones((len(r.candidate), 1), np.float32), np.ones(2, np.bool_), "m") for r in requests]

    def _come(self, requests: Sequence[EncodeRequest | RankRequest]) -> None:
        self.calls.append(requests)
        if self.failures:
            raise self.failures.pop(0)


@dataclass
class Time:
    now: float = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def encoding(user: str) -> EncodeRequest:
    return EncodeRequest(user, empty_history(), 1, "m", 1)


def grouped(engine: Engine, time: Time) -> GroupInference:
    return PatientInference(engine, clock=lambda: time.now, sleep=time.sleep).group()


def test_a_group_is_one_call_and_one_users_fault_is_his_own() -> None:
    async def scenario() -> None:
        engine = Engine()
        ours = grouped(engine, Time())
        good, broken = await asyncio.gather(
            ours.encode(encoding("u:1")), ours.encode(encoding("u:broken")), return_exceptions=True
        )
        assert isinstance(good, EncodeResult)
        assert isinstance(broken, SilkrecError)
        await ours.rank(RankRequest("u:1", empty_history(), np.arange(2, dtype=np.int32), 1, 1))
        assert [len(call) for call in engine.calls] == [2, 1]

    asyncio.run(scenario())


def test_an_engine_that_restarts_or_has_no_room_is_asked_again_until_it_answers() -> None:
    async def scenario() -> None:
        engine, time = Engine([InferenceUnavailable("gone"), Overloaded("full", retry_after_s=0.05)]), Time()
        assert isinstance(await grouped(engine, time).encode(encoding("u:1")), EncodeResult)
        assert len(engine.calls) == 3
        assert 0 < time.now < 1

    asyncio.run(scenario())


def test_an_engine_that_stays_away_fails_the_group_when_patience_is_spent() -> None:
    async def scenario() -> None:
        time = Time()
        with pytest.raises(InferenceUnavailable):
            await grouped(Engine([InferenceUnavailable("gone")] * 1000), time).encode(encoding("u:1"))
        assert 0.8 * PATIENCE_S < time.now <= PATIENCE_S

    asyncio.run(scenario())
