"""REST and gRPC of one application over a real database, with a small model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc import aio
from prometheus_client.parser import text_string_to_metric_families

from services.features.users.deletions import request_deletion
from services.inference import wire
from services.inference.app import build
from services.inference.client import GrpcInferenceClient
from shared.contracts.history import pack
from shared.contracts.inference import MODEL_NAME, EncodeRequest, RankRequest
from shared.contracts.oip import oip_pb2 as pb
from shared.contracts.oip import oip_pb2_grpc
from shared.errors import ConfigurationError, InferenceUnavailable
from shared.settings.load import Loaded
from shared.storage import keys
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.tables import user_state
from tests.asgi import running
from tests.inference_models import TINY, publish
from tests.inference_process import eventually, promote, settings_of
from tests.servers import free_port

pytestmark = pytest.mark.integration
HEADS = len(TINY.actions)
HISTORY = pack([1, 2, 3], [1, 2, 1], [100, 200, 300])
UPSERT = "/v1/items:upsert"
INFER = f"/v2/models/{MODEL_NAME}/infer"


def loaded_of(database: Database, folder: Path, **overrides: object) -> Loaded:
    url = database.url.render_as_string(hide_password=False)
    return settings_of(folder / "var", **{"database.url": url, "inference.grpc_port": -1, **overrides})


@pytest.fixture
def loaded(database: Database, tmp_path: Path) -> Loaded:
    return loaded_of(database, tmp_path)


@contextlib.asynccontextmanager
async def served(loaded: Loaded, *, model: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """The application, with model m-1 warm."""
    if model:
        promote(loaded, "m-1")
    async with running(build(loaded)) as client:

        async def ready() -> bool:
            return (await client.get("/ready")).status_code == 200

        if model:
            await eventually(ready)
        yield client


def tensor(name: str, datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [1, len(data)], "data": data}


def body(candidates: list[int] | None = None, **parameters: Any) -> dict[str, Any]:
    inputs = [
        tensor("history_item", "INT32", HISTORY["item"].tolist()),
        tensor("history_action", "INT8", HISTORY["action"].tolist()),
        tensor("history_time", "INT64", HISTORY["time"].tolist()),
    ]
    if candidates is not None:
        inputs.append(tensor("candidate", "INT32", candidates))
    return {"inputs": inputs, "parameters": {"request_time_s": 400, **parameters}}


def rank_request(candidates: list[int], *, version: str = "", deadline_us: int = 5_000_000) -> RankRequest:
    return RankRequest("u:1", HISTORY, np.asarray(candidates, np.int32), 400, deadline_us, version)


def test_rest_and_grpc_give_the_same_numbers(loaded: Loaded) -> None:
    async def scenario() -> None:
        async with served(loaded) as client:
            remote = GrpcInferenceClient(loaded.settings.inference_targets())
            try:
                ranked = await remote.rank(rank_request([4, 5, 6]))
                encoded = await remote.encode(EncodeRequest("u:1", HISTORY, 5_000_000))
            finally:
                await remote.close()
            answer = (await client.post(INFER, json=body([4, 5, 6], user_key="u:1"))).json()
            scores, scored = answer["outputs"]
            assert (scores["name"], scores["datatype"], scores["shape"]) == ("scores", "FP32", [1, 3, HEADS])
            assert (scored["name"], scored["datatype"], scored["data"]) == ("scored", "BOOL", [True] * 3)
            assert answer["parameters"] == {"reason": "", "cached_events": 3, "model_version": "m-1"}
            np.testing.assert_allclose(np.reshape(scores["data"], (3, HEADS)), ranked.scores, atol=2e-5)
            vector = (await client.post(INFER, json=body())).json()["outputs"][0]
            assert (vector["name"], vector["shape"]) == ("user_vector", [1, TINY.vector_dim])
            np.testing.assert_allclose(vector["data"], encoded.user_vector, atol=2e-5)

    asyncio.run(scenario())


def test_a_forgotten_users_history_is_computed_anew(loaded: Loaded) -> None:
    async def scenario() -> None:
        async with served(loaded) as client:
            found = []
            for forgets in (False, False, True):
                if forgets:
                    assert (await client.delete("/v1/latents/u:1")).status_code == 204
                answer = (await client.post(INFER, json=body([4, 5], user_key="u:1"))).json()
                found.append(answer["parameters"]["cached_events"])
            assert found == [0, 3, 0]
            assert (await client.delete("/v1/latents/u:nobody")).status_code == 204

    asyncio.run(scenario())


def test_an_engine_that_nobody_tells_forgets_a_deleted_user_by_itself(database: Database, tmp_path: Path) -> None:
    loaded = loaded_of(database, tmp_path, **{"inference.refresh_s": 0.02})

    async def scenario() -> None:
        async with served(loaded) as client:

            async def cached() -> int:
                answer = (await client.post(INFER, json=body([4, 5], user_key="u:1"))).json()
                return int(answer["parameters"]["cached_events"])

            async def forgotten() -> bool:
                return "silkrec_inference_forgotten_rows_total 3.0" in (await client.get("/metrics")).text

            assert [await cached(), await cached()] == [0, 3]
            with database.write() as connection:
                connection.execute(user_state.insert().values(user_key="u:1", revision=1))
                request_deletion(connection, "u:1", time.time_ns() // 1000)
            await eventually(forgotten)
            assert await cached() == 0

    asyncio.run(scenario())


def new_item(item_index: Any = TINY.vocabulary, **change: Any) -> dict[str, Any]:
    return {"item_index": item_index, "title": "A ring", "categories": ["tea"], "properties": {}, **change}


def test_a_new_item_is_scored_by_its_content_after_it_was_upserted(loaded: Loaded) -> None:
    publish(ArtifactStore(loaded.settings.artifacts_dir()), "m-1", content=json.dumps(["category=tea", "title=ring"]))

    async def scenario() -> None:
        async with served(loaded) as client:

            async def score() -> list[float]:
                answer = await client.post(INFER, json=body([TINY.vocabulary]))
                return np.round(answer.json()["outputs"][0]["data"], 4).tolist()  # type: ignore[no-any-return]

            unknown = await score()
            sent = [new_item(), new_item(3), new_item(TINY.vocabulary + 1, title=None, categories=["none"])]
            told = (await client.post(UPSERT, json={"items": sent})).json()
            assert (told["model_version"], told["vocabulary"]) == ("m-1", TINY.vocabulary)
            assert (told["taken"], told["known"], told["no_room"], told["without_tokens"]) == (1, 1, 0, 1)
            assert await score() != unknown
            again = (await client.post(UPSERT, json={"items": []})).json()
            assert (again["instance"], again["taken"]) == (told["instance"], 0)

    asyncio.run(scenario())


BAD_ITEMS = [
    ([new_item(-1)], "/items/0/item_index"),
    ([new_item(2**31)], "/items/0/item_index"),
    ([new_item("7")], "/items/0/item_index"),
    ([new_item(), new_item()], "/items/1/item_index"),
    ([new_item(title="x" * 1025)], "/items/0/title"),
    ([new_item(categories="tea")], "/items/0/categories"),
    ([new_item(colour="red")], "/items/0/colour"),
    ([new_item(place) for place in range(501)], "/items"),
]


def test_bad_items_are_refused_whole_and_pointed_at(loaded: Loaded) -> None:
    async def scenario() -> None:
        async with served(loaded, model=False) as client:
            for sent, pointer in BAD_ITEMS:
                answer = await client.post(UPSERT, json={"items": sent})
                assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), answer.text
            answer = await client.post(UPSERT, json={"items": [new_item()]})
            assert (answer.status_code, answer.json()["code"]) == (503, "inference_unavailable")

    asyncio.run(scenario())


def changed(**change: Any) -> dict[str, Any]:
    """A good body whose candidate tensor differs by `change`."""
    good = body([1, 2])
    good["inputs"][3] |= change
    return good


BAD_BODIES = [
    (changed(datatype="INT64"), "/inputs/3/datatype"),
    (changed(name="candidates"), "/inputs/3/name"),
    (changed(name="context"), "/inputs/3/name"),
    (changed(name="profile", datatype="FP32"), "/inputs/3/name"),
    (changed(shape=[2]), "/inputs/3/shape"),
    (changed(shape=[1, 3]), "/inputs/3/data"),
    (changed(shape=[1, -2]), "/inputs/3/shape"),
    (changed(data=[1, 2.5]), "/inputs/3/data"),
    (changed(data=[1, None]), "/inputs/3/data"),
    (changed(data=[1, 2**40]), "/inputs/3/data"),
    (changed(data="12"), "/inputs/3/data"),
    (changed(unknown=1), "/inputs/3/unknown"),
    (body([1], temperature=1), "/parameters/temperature"),
    (body([1], deadline_us=1.5), "/parameters/deadline_us"),
    (body([1], deadline_us=None), "/parameters/deadline_us"),
    ({"inputs": []}, "/inputs"),
    ({"inputs": body()["inputs"][:2]}, "/inputs"),
    ({**body([1]), "outputs": [{"name": "user_vector"}]}, "/outputs/0/name"),
    ({**body([1]), "outputs": [{"name": "scores", "parameters": {"binary_data": True}}]}, "/outputs/0/parameters"),
    (body([1], binary_data_output=True), "/parameters/binary_data_output"),
    ({}, "/inputs"),
]


def test_a_bad_body_is_a_problem_that_points_at_the_tensor(loaded: Loaded) -> None:
    async def scenario() -> None:
        async with served(loaded, model=False) as client:
            for sent, pointer in BAD_BODIES:
                answer = await client.post(INFER, json=sent)
                assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
                assert answer.json()["errors"][0]["pointer"].startswith(pointer), answer.text

    asyncio.run(scenario())


def test_before_the_first_model_the_service_is_up_and_says_what_is_missing(loaded: Loaded) -> None:
    async def scenario() -> None:
        async with served(loaded, model=False) as client:
            assert (await client.get("/health")).status_code == 200

            async def looked() -> bool:
                told = (await client.get("/ready")).json()["dependencies"]
                return bool(told["database"] == "ok")

            await eventually(looked)
            ready = await client.get("/ready")
            assert ready.status_code == 503
            assert ready.json()["dependencies"]["model"] == "no model is promoted yet"
            answer = await client.post(INFER, json=body([1]))
            assert (answer.status_code, answer.json()["code"]) == (503, "inference_unavailable")
            assert (await client.get("/v2/health/ready")).status_code == 503
            assert (await client.get("/v2/health/live")).json() == {"live": True}
            remote = GrpcInferenceClient(loaded.settings.inference_targets())
            try:
                begin = time.monotonic()
                with pytest.raises(InferenceUnavailable, match="no model"):
                    await remote.rank(rank_request([1]))
                assert time.monotonic() - begin < 2.0
                assert not await remote.ready("")
            finally:
                await remote.close()

    asyncio.run(scenario())


def test_a_promoted_model_takes_over_and_the_one_before_still_answers_by_name(loaded: Loaded) -> None:
    async def scenario() -> None:
        async with served(loaded) as client:
            promote(loaded, "m-2", seed=1)

            async def switched() -> bool:
                return bool((await client.get(f"/v2/models/{MODEL_NAME}")).json()["versions"][0] == "m-2")

            await eventually(switched)
            remote = GrpcInferenceClient(loaded.settings.inference_targets())
            try:
                assert (await remote.rank(rank_request([1]))).model_version == "m-2"
                assert (await remote.rank(rank_request([1], version="m-1"))).model_version == "m-1"
                assert await remote.ready("m-1")
                assert not await remote.ready("m-0")
                with pytest.raises(InferenceUnavailable, match="m-0"):
                    await remote.rank(rank_request([1], version="m-0"))
            finally:
                await remote.close()
            named = await client.post(f"/v2/models/{MODEL_NAME}/versions/m-1/infer", json=body([1]))
            assert named.json()["model_version"] == "m-1"
            missing = await client.post(f"/v2/models/{MODEL_NAME}/versions/m-0/infer", json=body([1]))
            assert (missing.status_code, missing.json()["code"]) == (404, "not_found")

    asyncio.run(scenario())


def test_metadata_names_the_tensors_the_columns_and_the_versions(loaded: Loaded) -> None:
    async def scenario() -> None:
        async with served(loaded) as client:
            about = (await client.get(f"/v2/models/{MODEL_NAME}")).json()
            assert about["actions"] == ["action1", "action2"]
            assert {tensor["name"]: tensor["datatype"] for tensor in about["inputs"]}["history_action"] == "INT8"
            assert (await client.get("/v2/models/other")).status_code == 404
            assert (await client.get(f"/v2/models/{MODEL_NAME}/ready")).json() == {"ready": True}
            assert (await client.get("/v2")).json()["name"] == "silkrec"
            async with aio.insecure_channel(loaded.settings.inference_targets()[0]) as channel:
                stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
                assert (await stub.ServerLive(pb.ServerLiveRequest())).live
                assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
                assert (await stub.ModelReady(pb.ModelReadyRequest(name=MODEL_NAME))).ready
                assert not (await stub.ModelReady(pb.ModelReadyRequest(name="other"))).ready
                assert (await stub.ServerMetadata(pb.ServerMetadataRequest())).name == "silkrec"
                same = await stub.ModelMetadata(pb.ModelMetadataRequest(name=MODEL_NAME))
                assert [list(output.shape) for output in same.outputs] == [o["shape"] for o in about["outputs"]]

    asyncio.run(scenario())


def good_message() -> pb.ModelInferRequest:
    columns = [
        ("history_item", "INT32", HISTORY["item"]),
        ("history_action", "INT8", HISTORY["action"]),
        ("history_time", "INT64", HISTORY["time"]),
        ("candidate", "INT32", np.asarray([1, 2], np.int32)),
    ]
    return wire.request(MODEL_NAME, "", columns, {"user_key": "u:1"})


def bad_messages() -> dict[str, tuple[pb.ModelInferRequest, grpc.StatusCode]]:
    invalid, found = grpc.StatusCode.INVALID_ARGUMENT, {}

    def bad(word: str) -> pb.ModelInferRequest:
        message = good_message()
        found[word] = (message, invalid)
        return message

    bad("'candidate': data").raw_input_contents[3] = b"\0" * 7
    bad("'candidate': datatype").inputs[3].datatype = "FP32"
    bad("'candidate': shape").inputs[3].shape[:] = [1, 2**62]
    bad("'nobody': name").inputs[3].name = "nobody"
    del bad("4 inputs come with 3").raw_input_contents[3]
    bad("both contents").inputs[0].contents.int_contents.append(1)
    missing = bad("lack history_time, candidate".partition(",")[0])
    del missing.inputs[2:]
    del missing.raw_input_contents[2:]
    bad("deadline_us").parameters["deadline_us"].double_param = float("nan")
    bad("request_time_s").parameters["request_time_s"].uint64_param = 2**64 - 1
    bad("output 'user_vector'").outputs.add(name="user_vector")
    found["no model 'other'"] = (good_message(), grpc.StatusCode.NOT_FOUND)
    found["no model 'other'"][0].model_name = "other"
    return found


def test_a_bad_message_is_an_invalid_argument_that_names_the_tensor_and_harms_nobody(loaded: Loaded) -> None:
    async def scenario() -> None:
        async with served(loaded), aio.insecure_channel(loaded.settings.inference_targets()[0]) as channel:
            stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            for word, (message, code) in bad_messages().items():
                with pytest.raises(aio.AioRpcError) as failed:
                    await stub.ModelInfer(message)
                assert (failed.value.code(), word in (failed.value.details() or "")) == (code, True), failed.value
            answer = await stub.ModelInfer(good_message())
            assert wire.outputs(answer)["scores"].shape == (1, 2, HEADS)

    asyncio.run(scenario())


def test_typed_contents_are_read_like_raw_ones(loaded: Loaded) -> None:
    async def scenario() -> None:
        async with served(loaded), aio.insecure_channel(loaded.settings.inference_targets()[0]) as channel:
            stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            message = good_message()
            raw = wire.outputs(await stub.ModelInfer(message))
            del message.raw_input_contents[:]
            message.inputs[0].contents.int_contents.extend(HISTORY["item"].tolist())
            message.inputs[1].contents.int_contents.extend(HISTORY["action"].tolist())
            message.inputs[2].contents.int64_contents.extend(HISTORY["time"].tolist())
            message.inputs[3].contents.int_contents.extend([1, 2])
            typed = wire.outputs(await stub.ModelInfer(message))
            np.testing.assert_allclose(typed["scores"], raw["scores"], atol=2e-5)

    asyncio.run(scenario())


def test_keys_guard_rest_and_tcp_but_not_the_private_socket(database: Database, tmp_path: Path) -> None:
    port = free_port()
    loaded = loaded_of(database, tmp_path, **{"inference.grpc_port": port})
    server, browser = keys.create(database, "server", "back end").text, keys.create(database, "client", "page").text

    async def scenario() -> None:
        async with served(loaded) as client:
            assert (await client.post(INFER, json=body([1]))).status_code == 401
            assert (await client.delete("/v1/latents/u:1")).status_code == 401
            assert (await client.post(UPSERT, json={"items": []})).status_code == 401
            bearer = {"authorization": f"Bearer {browser}"}
            assert (await client.post(INFER, json=body([1]), headers=bearer)).status_code == 403
            allowed = {"x-api-key": server}
            assert (await client.post(INFER, json=body([1]), headers=allowed)).status_code == 200
            assert (await client.delete("/v1/latents/u:1", headers=allowed)).status_code == 204
            await over_grpc(loaded.settings.inference_targets()[0], None, "")
            await over_grpc(f"127.0.0.1:{port}", server, "")
            await over_grpc(f"127.0.0.1:{port}", None, "UNAUTHENTICATED")
            await over_grpc(f"127.0.0.1:{port}", "sk_server_guess", "UNAUTHENTICATED")
            await over_grpc(f"127.0.0.1:{port}", browser, "PERMISSION_DENIED")

    asyncio.run(scenario())


async def over_grpc(target: str, key: str | None, refusal: str) -> None:
    remote = GrpcInferenceClient([target], key=key)
    try:
        if not refusal:
            assert (await remote.rank(rank_request([1]))).scored.all()
            return
        with pytest.raises(InferenceUnavailable, match=refusal):
            await remote.rank(rank_request([1]))
    finally:
        await remote.close()


def test_without_keys_a_public_address_is_refused_at_the_start(database: Database, tmp_path: Path) -> None:
    public = loaded_of(database, tmp_path, **{"inference.host": "0.0.0.0", "inference.grpc_port": 0})

    async def scenario() -> None:
        async with served(public, model=False):
            pytest.fail("it started")

    with pytest.raises(ConfigurationError, match="without API keys"):
        asyncio.run(scenario())


def test_a_cache_larger_than_this_machines_memory_is_refused_at_the_start(database: Database, tmp_path: Path) -> None:
    greedy = loaded_of(database, tmp_path, **{"inference.cache.device_mb": 10**9})

    async def scenario() -> None:
        async with served(greedy, model=False):
            pytest.fail("it started")

    with pytest.raises(ConfigurationError, match=r"inference\.cache\.device_mb: 1,000,000,000 MiB"):
        asyncio.run(scenario())


def test_without_keys_a_latent_may_be_forgotten_from_this_machine(loaded: Loaded) -> None:
    async def scenario() -> None:
        async with served(loaded, model=False) as client:
            assert (await client.delete("/v1/latents/u:somebody")).status_code == 204

    asyncio.run(scenario())


def test_a_second_process_takes_neither_the_socket_nor_the_port_of_the_first(
    database: Database, tmp_path: Path
) -> None:
    port = free_port()
    first = loaded_of(database, tmp_path / "one", **{"inference.grpc_port": port})
    same_socket = loaded_of(database, tmp_path / "one")
    same_port = loaded_of(database, tmp_path / "two", **{"inference.grpc_port": port})

    async def second(loaded: Loaded, told: str) -> None:
        with pytest.raises(ConfigurationError, match=told):
            async with served(loaded, model=False):
                pytest.fail("it started")

    async def scenario() -> None:
        async with served(first):
            await second(same_socket, "another process")
            await second(same_port, "grpc_port")
            await over_grpc(first.settings.inference_targets()[0], None, "")
            await over_grpc(f"127.0.0.1:{port}", None, "")
        async with served(same_socket):
            await over_grpc(first.settings.inference_targets()[0], None, "")

    asyncio.run(scenario())


METRICS_PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
# Not what every service has, nor the client library's own.
OURS = re.compile(r"silkrec_inference_(?!http_|background_|cpu_|resident_|state_|event_loop_|pool_)\w+(?<!_created)$")
METRIC = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ([\w, ]*) ?\|", re.MULTILINE)


def documented() -> dict[str, tuple[str, set[str]]]:
    """Family name to type and labels, from the page's table."""
    rows = METRIC.findall(METRICS_PAGE.read_text("utf-8"))
    return {
        f"silkrec_inference_{name.removesuffix('_total')}": (kind, {part.strip() for part in labels.split(",")} - {""})
        for name, kind, labels in rows
    }


def test_metrics_have_the_names_types_and_labels_that_dashboards_read(loaded: Loaded) -> None:
    async def scenario() -> dict[str, Any]:
        async with served(loaded) as client:
            for sent in (body([1, 2, 3], user_key="u:1"), body([], user_key="u:1"), body([1], temperature=1)):
                await client.post(INFER, json=sent)
            await client.post(INFER.replace(MODEL_NAME, "other"), json=body([1]))
            await client.post(INFER, json=body(user_key="u:1"))
            await client.delete("/v1/latents/u:1")
            await client.post(UPSERT, json={"items": [new_item(3)]})

            async def counted() -> bool:
                return 'requests_total{outcome="scored"} 2.0' in (await client.get("/metrics")).text

            await eventually(counted)
            families = text_string_to_metric_families((await client.get("/metrics")).text)
            return {family.name: family for family in families}

    families = asyncio.run(scenario())
    told = documented()
    assert {name for name in families if OURS.match(name)} == told.keys()
    for name, (kind, labels) in told.items():
        family = families[name]
        assert family.type == kind
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels
    values = {(s.name, *s.labels.values()): s.value for family in families.values() for s in family.samples}
    assert values[("silkrec_inference_candidates_total", "true")] == 3
    assert values[("silkrec_inference_history_rows_total",)] == 3
    assert values[("silkrec_inference_model_loaded",)] == 1
    assert values[("silkrec_inference_inferences_total",)] == 2
    assert values[("silkrec_inference_executions_total",)] == 2
    assert values[("silkrec_inference_request_duration_seconds_count", "rest")] == 5
    assert values[("silkrec_inference_refused_requests_total", "validation_failed", "rest")] == 1
    assert values[("silkrec_inference_refused_requests_total", "not_found", "rest")] == 1
    assert values[("silkrec_inference_cache_hit_rows_total", "device")] >= 3  # warming up counts too
    assert values[("silkrec_inference_forgotten_rows_total",)] == 3
    assert values[("silkrec_inference_upserted_items_total", "known")] == 1
    assert values[("silkrec_inference_requests_total", "overloaded")] == 0
