"""Many users in one message: the same numbers as one by one, over a real door and a real engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from services.inference.caller import CallerCheck
from services.inference.client import GrpcInferenceClient
from services.inference.grpc import GrpcServer, InferenceServicer
from services.inference.many import MOST_REQUESTS, parts
from services.inference.metrics import DoorMetrics
from shared.contracts.history import History, pack
from shared.contracts.inference import EncodeRequest, EncodeResult, RankRequest, RankResult
from shared.errors import InferenceUnavailable
from shared.observability.metrics import Metrics
from tests.inference_models import TINY, engine_of
from tests.integration.features.helpers import NoKeys

USERS, DEADLINE_US, NOW_S = 300, 20_000_000, 10_000_000


def history(random: np.random.Generator, rows: int) -> History:
    times = np.cumsum(random.integers(1, 50_000, rows))
    return pack(random.integers(0, TINY.vocabulary, rows), random.integers(1, 3, rows), times)


@pytest.mark.integration
def test_users_in_one_message_get_what_they_get_alone(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    lengths = random.integers(0, TINY.max_history + 10, USERS)  # nobody's history, and longer ones than the model sees
    people = {f"u:{n}\N{SNOWMAN}": history(random, int(rows)) for n, rows in enumerate(lengths)}
    wanted = [random.integers(0, TINY.vocabulary, int(n), dtype=np.int32) for n in random.integers(1, 30, USERS)]

    async def scenario(target: str) -> None:
        client = GrpcInferenceClient([target])
        try:
            encodes = [EncodeRequest(key, rows, DEADLINE_US, "m-1", 1) for key, rows in people.items()]
            ranks = [
                RankRequest(key, rows, candidate, NOW_S, DEADLINE_US, "m-1", 1)
                for (key, rows), candidate in zip(people.items(), wanted, strict=True)
            ]
            vectors, scores = await client.encode_many(encodes), await client.rank_many(ranks)
            assert await client.encode_many([]) == []
            for place in range(0, USERS, 7):
                alone, together = await client.encode(encodes[place]), vectors[place]
                assert isinstance(together, EncodeResult)
                assert together.model_version == "m-1"
                np.testing.assert_allclose(together.user_vector, alone.user_vector, atol=1e-5)
                ranked, beside = await client.rank(ranks[place]), scores[place]
                assert isinstance(beside, RankResult)
                assert beside.scored.all()
                np.testing.assert_allclose(beside.scores, ranked.scores, atol=1e-5)
            with pytest.raises(InferenceUnavailable, match="NOT_FOUND"):
                await client.encode_many([EncodeRequest("u:1", people["u:1\N{SNOWMAN}"], DEADLINE_US, "m-9", 1)])
        finally:
            await client.close()

    async def served() -> None:
        with engine_of(tmp_path / "models") as engine:
            servicer = InferenceServicer(engine, CallerCheck(NoKeys()), DoorMetrics(Metrics("inference")))
            door = GrpcServer(servicer, socket=tmp_path / "door.sock", tcp=None)
            await door.start()
            try:
                await scenario(f"unix:{tmp_path / 'door.sock'}")
            finally:
                await door.stop(0.0)

    asyncio.run(served())


def test_a_list_of_requests_is_cut_where_a_message_is_full() -> None:
    assert list(parts([], [])) == []
    assert list(parts([100_000, 40_000, 10], [0, 0, 0])) == [slice(0, 1), slice(1, 3)]
    assert list(parts([1, 1, 1], [131_072, 1, 1])) == [slice(0, 1), slice(1, 3)]
    many = list(parts([1] * (MOST_REQUESTS + 1), [1] * (MOST_REQUESTS + 1)))
    assert many == [slice(0, MOST_REQUESTS), slice(MOST_REQUESTS, MOST_REQUESTS + 1)]
