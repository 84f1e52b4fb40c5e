"""Open Inference Protocol v2 over REST. Faults are problem+json, like everywhere in the suite."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from services.inference import describe, tensors
from services.inference.engine.engine import Engine
from services.inference.metrics import DoorMetrics
from shared.contracts.inference import MODEL_NAME
from shared.errors import FieldError, ValidationFailed
from shared.web.auth import Principal, require
from shared.web.json import JsonResponse, RouteHandler, StrictRoute
from shared.web.problem import UnsupportedMediaType

_BINARY_HEADER = "inference-header-content-length"
_JSON_ONLY = "tensors are JSON over REST; set binary_data=False for inputs and outputs, or use gRPC, which is binary"


class _JsonOnly(StrictRoute):
    """Triton's binary extension of the protocol is not spoken here, and metadata does not name it. Its clients use it
    unless told otherwise, so they are told how, rather than that their bytes are no JSON."""

    def get_route_handler(self) -> RouteHandler:
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if _BINARY_HEADER in request.headers:
                raise UnsupportedMediaType(_JSON_ONLY)
            return await handler(request)

        return checked


router = APIRouter(tags=["inference"], route_class=_JsonOnly)
Caller = Annotated[Principal, Depends(require("server"))]
Values = bool | int | float | str


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class InputTensor(_Body):
    """`data`: numbers, flat in row-major order or nested as `shape` says."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]
    parameters: dict[str, Values] = Field(default_factory=dict)


class RequestedOutput(_Body):
    name: str
    parameters: dict[str, Values] = Field(default_factory=dict)


class InferBody(_Body):
    """Parameters: user_key, deadline_us, priority, request_time_s."""

    id: str = ""
    parameters: dict[str, Values] = Field(default_factory=dict)
    inputs: list[InputTensor] = Field(max_length=16)
    outputs: list[RequestedOutput] = Field(default_factory=list, max_length=16)


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


@router.get("/v2/health/live", response_model=Live)
async def live(request: Request) -> Response:
    alive = _engine(request).alive
    return JsonResponse({"live": alive}, status_code=200 if alive else 503)


@router.get("/v2/health/ready", response_model=Ready)
async def ready(request: Request) -> Response:
    return _ready(describe.is_ready(_engine(request)))


@router.get("/v2")
async def server_metadata() -> describe.ServerMetadata:
    return describe.server()


@router.get("/v2/models/{name}")
async def model_metadata(request: Request, name: str) -> describe.ModelMetadata:
    return describe.model(_engine(request), name, "")


@router.get("/v2/models/{name}/versions/{version}")
async def version_metadata(request: Request, name: str, version: str) -> describe.ModelMetadata:
    return describe.model(_engine(request), name, version)


@router.get("/v2/models/{name}/ready", response_model=Ready)
async def model_ready(request: Request, name: str) -> Response:
    return _ready(describe.is_model_ready(_engine(request), name, ""))


@router.get("/v2/models/{name}/versions/{version}/ready", response_model=Ready)
async def version_ready(request: Request, name: str, version: str) -> Response:
    return _ready(describe.is_model_ready(_engine(request), name, version))


@router.post("/v2/models/{name}/infer")
async def infer(request: Request, name: str, body: InferBody, caller: Caller) -> Response:  # noqa: ARG001
    return await _infer(request, name, "", body)


@router.post("/v2/models/{name}/versions/{version}/infer")
async def infer_version(request: Request, name: str, version: str, body: InferBody, caller: Caller) -> Response:  # noqa: ARG001
    return await _infer(request, name, version, body)


async def _infer(request: Request, name: str, version: str, body: InferBody) -> Response:
    with cast("DoorMetrics", request.state.doors).request("rest"):
        describe.check_name(name)
        parameters = _json_only(body)
        inputs = [
            tensors.array_from(tensor.name, tensor.datatype, tuple(tensor.shape), tensor.data, index=index)
            for index, tensor in enumerate(body.inputs)
        ]
        asked = tensors.infer_request(inputs, parameters, model_version=version)
        wanted = [output.name for output in body.outputs]
        tensors.check_outputs(wanted, ranks=asked.candidate is not None)
        answer = await _engine(request).infer(asked)
    return JsonResponse(
        {
            "model_name": MODEL_NAME,
            "model_version": answer.model_version,
            "id": body.id,
            "parameters": tensors.answer_parameters(answer),
            "outputs": [
                {"name": output, "datatype": datatype, "shape": list(array.shape), "data": array.ravel()}
                for output, datatype, array in tensors.answer_tensors(answer, wanted)
            ],
        }
    )


def _json_only(body: InferBody) -> dict[str, Values]:
    """The parameters without those that ask for what is done anyway. Raises ValidationFailed for binary answers."""
    asked = [("/parameters/binary_data_output", body.parameters.get("binary_data_output"))]
    asked += [
        (f"/outputs/{index}/parameters/binary_data", output.parameters.get("binary_data"))
        for index, output in enumerate(body.outputs)
    ]
    for pointer, value in asked:
        if value not in (None, False):
            raise ValidationFailed(_JSON_ONLY, errors=[FieldError(pointer, "must be false", "unsupported")])
    return {name: value for name, value in body.parameters.items() if name != "binary_data_output"}


def _ready(is_ready: bool) -> Response:
    return JsonResponse({"ready": is_ready}, status_code=200 if is_ready else 503)


def _engine(request: Request) -> Engine:
    return cast("Engine", request.state.engine)
