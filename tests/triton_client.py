"""NVIDIA's client for the Open Inference Protocol, run as a program: it registers the protocol's protobuf messages
under the names that ours have, so one process cannot hold both.

    python tests/triton_client.py REST_HOST:PORT GRPC_HOST:PORT

Prints one JSON object: what each door answered.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

MODEL = "ranker"
Columns = dict[str, np.ndarray[Any, Any]]
HISTORY: Columns = {
    "history_item": np.asarray([[1, 2, 3]], np.int32),
    "history_action": np.asarray([[1, 2, 1]], np.int8),
    "history_time": np.asarray([[100, 200, 300]], np.int64),
}
CANDIDATES: Columns = {"candidate": np.asarray([[4, 5, 6]], np.int32)}
PARAMETERS = {"user_key": "u:triton", "request_time_s": 400, "deadline_us": 5_000_000}
DATATYPES = {"int32": "INT32", "int8": "INT8", "int64": "INT64"}


def answers(module: Any, url: str, plain: dict[str, Any]) -> dict[str, Any]:
    """`plain`: what makes REST send JSON instead of Triton's own binary tensors."""
    client = module.InferenceServerClient(url)

    def infer(columns: Columns, outputs: list[str]) -> dict[str, Any]:
        inputs = []
        for name, column in columns.items():
            tensor = module.InferInput(name, list(column.shape), DATATYPES[str(column.dtype)])
            tensor.set_data_from_numpy(column, **plain)
            inputs.append(tensor)
        wanted = [module.InferRequestedOutput(name, **plain) for name in outputs]
        found = client.infer(MODEL, inputs, outputs=wanted, parameters=PARAMETERS, request_id="r-1")
        return {name: found.as_numpy(name).tolist() for name in outputs}

    def refusal(columns: Columns) -> str:
        try:
            infer(columns, ["scores"])
        except tritonclient.utils.InferenceServerException as error:
            return f"{error.status()} {error.message()}"
        return "taken"

    server, model = client.get_server_metadata(), client.get_model_metadata(MODEL)
    try:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(MODEL),
            "other_ready": client.is_model_ready("other"),
            "server": server["name"] if isinstance(server, dict) else server.name,
            "inputs": [i["name"] if isinstance(i, dict) else i.name for i in _inputs(model)],
            "encoded": infer(HISTORY, ["user_vector"]),
            "ranked": infer(HISTORY | CANDIDATES, ["scores", "scored"]),
            "refused": refusal(CANDIDATES),
        }
    finally:
        client.close()


def binary(url: str) -> str:
    """What the client is told when it sends its own binary tensors, as it does unless told otherwise."""
    client = tritonclient.http.InferenceServerClient(url)
    tensor = tritonclient.http.InferInput("candidate", [1, 3], "INT32")
    tensor.set_data_from_numpy(CANDIDATES["candidate"])
    try:
        client.infer(MODEL, [tensor])
    except tritonclient.utils.InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    finally:
        client.close()
    return "taken"


def _inputs(model: Any) -> Any:
    return model["inputs"] if isinstance(model, dict) else model.inputs


if __name__ == "__main__":
    rest, grpc = sys.argv[1:]
    told: dict[str, Any] = {
        "rest": answers(tritonclient.http, rest, {"binary_data": False}),
        "grpc": answers(tritonclient.grpc, grpc, {}),
    }
    told["rest"]["binary"] = binary(rest)
    json.dump(told, sys.stdout)
