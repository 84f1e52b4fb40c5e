"""Open Inference Protocol through nginx: our own client in front, engines that can be ended behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from services.inference import wire
from services.inference.client import GrpcInferenceClient
from shared.contracts.history import pack
from shared.contracts.inference import MODEL_NAME, EncodeRequest, EncodeResult
from shared.contracts.oip import oip_pb2 as pb
from shared.contracts.oip import oip_pb2_grpc
from shared.errors import InferenceUnavailable
from tests.conftest import needed
from tests.nginx import Nginx, nginx
from tests.servers import free_port

pytestmark = pytest.mark.integration
HISTORY = pack([1, 2, 3], [1, 2, 1], [100, 200, 300])


class Engine(oip_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every encode with a vector of its own number. `asked`: metadata of each call."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked: list[dict[str, str]] = []
        self.port = free_port()
        self.server = grpc.server(ThreadPoolExecutor(4))
        oip_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)  # type: ignore[no-untyped-call]
        assert self.server.add_insecure_port(f"127.0.0.1:{self.port}") == self.port
        self.server.start()

    def ModelReady(self, request: pb.ModelReadyRequest, context: grpc.ServicerContext) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=True)

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        self.asked.append({key: str(value) for key, value in context.invocation_metadata()})
        vector = np.full((1, 4), self.number, np.float32)
        return wire.response(MODEL_NAME, "m-1", request.id, [("user_vector", "FP32", vector)], {})


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    started = [Engine(number) for number in (1, 2)]
    yield started
    for engine in started:
        engine.server.stop(0).wait(5)


@contextlib.contextmanager
def front_of(folder: Path, engines: list[Engine]) -> Iterator[Nginx]:
    listed = ", ".join(f"127.0.0.1:{engine.port}" for engine in engines)
    with needed(), nginx(folder / "front", grpc=listed) as front:
        yield front


async def encode(client: GrpcInferenceClient, user: int) -> EncodeResult:
    return await client.encode(EncodeRequest(f"u:{user}", HISTORY, deadline_us=2_000_000))


def test_a_user_keeps_to_one_engine_and_moves_when_it_ends(engines: list[Engine], tmp_path: Path) -> None:
    async def scenario(front: Nginx) -> None:
        client = GrpcInferenceClient([front.grpc])
        assert await client.ready("m-1")

        async def homes() -> dict[int, int]:
            return {user: int((await encode(client, user)).user_vector[0]) for user in range(40)}

        first = await homes()
        assert await homes() == first
        assert min(Counter(first.values()).values()) >= 8, "both engines have users"
        engines[0].server.stop(0).wait(5)
        assert set((await homes()).values()) == {2}, "no call failed"
        await client.close()

    with front_of(tmp_path, engines) as front:
        asyncio.run(scenario(front))
        routes = {line["route"] for line in front.lines()}
        assert "u:1" not in front.access.read_text()
    assert "/inference.GRPCInferenceService/ModelInfer" in routes
    assert all(len(asked["x-request-id"]) == 32 for asked in engines[1].asked)


def test_without_an_engine_the_client_hears_unavailable(engines: list[Engine], tmp_path: Path) -> None:
    async def scenario(front: Nginx) -> None:
        client = GrpcInferenceClient([front.grpc])
        with pytest.raises(InferenceUnavailable):
            await encode(client, 1)
        await client.close()

    for engine in engines:
        engine.server.stop(0).wait(5)
    with front_of(tmp_path, engines) as front:
        asyncio.run(scenario(front))


def test_what_every_engine_must_hear_is_not_told_to_one_of_them(engines: list[Engine], tmp_path: Path) -> None:
    async def scenario(front: Nginx) -> None:
        client = GrpcInferenceClient([front.grpc])
        with pytest.raises(InferenceUnavailable, match="each engine"):
            await client.forget("u:1")
        await client.close()

    with front_of(tmp_path, engines) as front:
        asyncio.run(scenario(front))


def test_a_message_too_large_is_refused_in_words_of_grpc(engines: list[Engine], tmp_path: Path) -> None:
    message = pb.ModelInferRequest(model_name=MODEL_NAME, raw_input_contents=[b"x" * (wire.MESSAGE_BYTES_IN + 1)])
    with front_of(tmp_path, engines) as front, grpc.insecure_channel(front.grpc) as channel:
        stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message, timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
