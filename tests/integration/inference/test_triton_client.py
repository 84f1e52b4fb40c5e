"""NVIDIA's client, in a process of its own, gets from both doors what ours gets."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.inference.client import GrpcInferenceClient
from shared.contracts.history import pack
from shared.contracts.inference import EncodeRequest, EncodeResult, RankRequest, RankResult
from tests.inference_process import InferenceProcess, inference_process

pytestmark = pytest.mark.integration
PROGRAM = Path(__file__).resolve().parents[2] / "triton_client.py"
HISTORY = pack([1, 2, 3], [1, 2, 1], [100, 200, 300])
CANDIDATES = np.asarray([4, 5, 6], np.int32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceProcess]:
    if importlib.util.find_spec("tritonclient") is None and not os.environ.get("CI"):
        pytest.skip("tritonclient is not installed; ./run setup does")
    with inference_process(tmp_path_factory.mktemp("triton") / "var", tcp=True) as process:
        yield process


@pytest.fixture(scope="module")
def told(server: InferenceProcess) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(PROGRAM), server.url.removeprefix("http://"), server.tcp]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def ours(server: InferenceProcess) -> tuple[EncodeResult, RankResult]:
    async def ask() -> tuple[EncodeResult, RankResult]:
        client = GrpcInferenceClient([server.target])
        try:
            encoded = await client.encode(EncodeRequest("u:1", HISTORY, 5_000_000))
            return encoded, await client.rank(RankRequest("u:1", HISTORY, CANDIDATES, 400, 5_000_000))
        finally:
            await client.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("door", ["rest", "grpc"])
def test_nvidias_client_finds_the_server_healthy_and_described(told: dict[str, dict[str, Any]], door: str) -> None:
    answer = told[door]
    assert (answer["live"], answer["ready"], answer["model_ready"], answer["other_ready"]) == (True, True, True, False)
    assert answer["server"] == "silkrec"
    assert answer["inputs"] == ["history_item", "history_action", "history_time", "candidate"]


@pytest.mark.parametrize("door", ["rest", "grpc"])
def test_nvidias_client_encodes_and_ranks_as_ours_does(
    told: dict[str, dict[str, Any]], ours: tuple[EncodeResult, RankResult], door: str
) -> None:
    encoded, ranked = ours
    np.testing.assert_allclose(told[door]["encoded"]["user_vector"], [encoded.user_vector], atol=2e-5)
    np.testing.assert_allclose(told[door]["ranked"]["scores"], [ranked.scores], atol=2e-5)
    assert told[door]["ranked"]["scored"] == [[True] * len(CANDIDATES)]


@pytest.mark.parametrize(("door", "status"), [("rest", "422"), ("grpc", "INVALID_ARGUMENT")])
def test_nvidias_client_shows_why_a_request_is_refused(told: dict[str, dict[str, Any]], door: str, status: str) -> None:
    assert status in told[door]["refused"]
    assert "history_item" in told[door]["refused"]


def test_nvidias_client_is_told_how_to_send_json_when_it_sends_binary_tensors(told: dict[str, dict[str, Any]]) -> None:
    assert "415" in told["rest"]["binary"]
    assert "binary_data=False" in told["rest"]["binary"]
