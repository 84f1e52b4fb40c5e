"""One ModelInfer of the Open Inference Protocol, whichever binary door it came through."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

from services.inference import describe, many_door, tensors, wire
from services.inference.engine.engine import Engine
from services.inference.engine.request import InferAnswer
from services.inference.metrics import DoorMetrics
from shared.contracts.inference import MODEL_NAME
from shared.contracts.oip import oip_pb2 as pb
from shared.errors import ValidationFailed
from shared.observability import context, tracing
from shared.observability.context import RequestContext

_TYPED = {"INT8": "int_contents", "INT32": "int_contents", "INT64": "int64_contents"}


class InferCall:
    """`door` names the door in the metrics."""

    def __init__(self, engine: Engine, doors: DoorMetrics, door: str) -> None:
        self._engine = engine
        self._doors = doors
        self._door = door

    async def answer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Raises what is wrong with the request, and what `Engine.infer` raises."""
        begin = time.monotonic()
        with self._doors.request(self._door):
            describe.check_name(request.model_name)
            if "deadline_us" in request.parameters:
                self._engine.check_room(request.parameters["deadline_us"].int64_param)
            if many_door.is_many(request):
                return await self._many(request, begin)
            asked = tensors.infer_request(
                _inputs(request), wire.plain(request.parameters), model_version=request.model_version
            )
            wanted = [output.name for output in request.outputs]
            tensors.check_outputs(wanted, ranks=asked.candidate is not None)
            answer = await self._engine.infer(asked)
        return wire.response(
            MODEL_NAME,
            answer.model_version,
            request.id,
            tensors.answer_tensors(answer, wanted),
            {**tensors.answer_parameters(answer), wire.TOOK_US: int((time.monotonic() - begin) * 1e6)},
        )

    async def _many(self, request: pb.ModelInferRequest, begin: float) -> pb.ModelInferResponse:
        """See `many`. Raises what no part of the message escaped (no room, another version); the rest is told request
        by request."""
        asked = many_door.requests(request)
        answers = await self._engine.infer_many(asked)
        version = next((answer.model_version for answer in answers if isinstance(answer, InferAnswer)), "")
        return wire.response(
            MODEL_NAME,
            version,
            request.id,
            many_door.answer_tensors(asked, answers),
            {"model_version": version, wire.TOOK_US: int((time.monotonic() - begin) * 1e6)},
        )


def request_of(
    method: str, metadata: Iterable[tuple[str, str | bytes]] | None
) -> contextlib.AbstractContextManager[RequestContext]:
    """Around a call: the caller's request id and trace, for what is logged and traced inside."""
    sent = {name: value for name, value in metadata or () if isinstance(value, str)}
    return tracing.serving(method, sent.get(context.REQUEST_ID_HEADER), sent.get(context.TRACEPARENT_HEADER))


def _inputs(request: pb.ModelInferRequest) -> list[tensors.InputTensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise ValidationFailed(f"{len(request.inputs)} inputs come with {len(raw)} raw_input_contents")
    found = []
    for index, tensor in enumerate(request.inputs):
        shape = tuple(tensor.shape)
        if raw:
            if tensor.HasField("contents"):
                raise ValidationFailed(f"input {tensor.name!r} has both contents and raw_input_contents")
            found.append(tensors.array_of(tensor.name, tensor.datatype, shape, raw[index], index=index))
        else:
            values = getattr(tensor.contents, _TYPED.get(tensor.datatype, "int_contents"))
            found.append(tensors.array_from(tensor.name, tensor.datatype, shape, list(values), index=index))
    return found
