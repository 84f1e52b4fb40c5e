"""The gRPC door: Open Inference Protocol v2 on the Unix socket, and on TCP unless it is closed.

A caller that goes away cancels its handler, and with it the queued request.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import grpc
from grpc import aio

from services.inference import describe, tensors, wire
from services.inference.caller import CallerCheck
from services.inference.engine.engine import Engine
from services.inference.metrics import DoorMetrics
from services.inference.unix_socket import OwnedSocket
from shared.contracts.inference import MODEL_NAME
from shared.contracts.oip import oip_pb2 as pb
from shared.contracts.oip import oip_pb2_grpc
from shared.errors import (
    ClientError,
    ConfigurationError,
    DeadlineExceeded,
    DependencyError,
    Forbidden,
    NotFound,
    Overloaded,
    SilkrecError,
    Unauthenticated,
    ValidationFailed,
)
from shared.observability import context as request_context
from shared.observability import tracing
from shared.observability.context import RequestContext
from shared.observability.logging import get_logger

Context = aio.ServicerContext[object, object]
_OPTIONS = (
    ("grpc.max_receive_message_length", wire.MESSAGE_BYTES_IN),
    ("grpc.max_send_message_length", wire.MESSAGE_BYTES_OUT),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # a second process on the port is a mistake to report, not to share with
)
_CODES: tuple[tuple[type[SilkrecError], grpc.StatusCode], ...] = (
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (ClientError, grpc.StatusCode.INVALID_ARGUMENT),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (DependencyError, grpc.StatusCode.UNAVAILABLE),
)
_log = get_logger(__name__)
_TYPED = {"INT8": "int_contents", "INT32": "int_contents", "INT64": "int64_contents"}


class InferenceServicer(oip_pb2_grpc.GRPCInferenceServiceServicer):
    """Method names are the protocol's. Metadata and health are for everyone, inference for `callers`."""

    def __init__(self, engine: Engine, callers: CallerCheck, doors: DoorMetrics) -> None:
        self._engine = engine
        self._callers = callers
        self._doors = doors

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: N802, ARG002
        return pb.ServerLiveResponse(live=self._engine.alive)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:  # noqa: N802, ARG002
        return pb.ServerReadyResponse(ready=describe.is_ready(self._engine))

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: N802, ARG002
        return pb.ModelReadyResponse(ready=describe.is_model_ready(self._engine, request.name, request.version))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:  # noqa: N802, ARG002
        about = describe.server()
        return pb.ServerMetadataResponse(name=about.name, version=about.version, extensions=about.extensions)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:  # noqa: N802
        try:
            about = describe.model(self._engine, request.name, request.version)
        except SilkrecError as error:
            await abort(context, error)
        return pb.ModelMetadataResponse(
            name=about.name,
            versions=about.versions,
            platform=about.platform,
            inputs=[pb.ModelMetadataResponse.TensorMetadata(**tensor.model_dump()) for tensor in about.inputs],
            outputs=[pb.ModelMetadataResponse.TensorMetadata(**tensor.model_dump()) for tensor in about.outputs],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        begin = time.monotonic()
        metadata = context.invocation_metadata()
        try:
            with request_of("ModelInfer", metadata), self._doors.request("grpc"):
                self._callers.check(context.peer(), metadata)
                describe.check_name(request.model_name)
                if "deadline_us" in request.parameters:
                    self._engine.check_room(request.parameters["deadline_us"].int64_param)
                asked = tensors.infer_request(
                    _inputs(request), wire.plain(request.parameters), model_version=request.model_version
                )
                wanted = [output.name for output in request.outputs]
                tensors.check_outputs(wanted, ranks=asked.candidate is not None)
                answer = await self._engine.infer(asked)
        except SilkrecError as error:
            await abort(context, error)
        return wire.response(
            MODEL_NAME,
            answer.model_version,
            request.id,
            tensors.answer_tensors(answer, wanted),
            {**tensors.answer_parameters(answer), wire.TOOK_US: int((time.monotonic() - begin) * 1e6)},
        )


class GrpcServer:
    """Owns the listening sockets. `start` raises ConfigurationError when an address cannot be taken."""

    def __init__(
        self, servicer: InferenceServicer, *more: grpc.GenericRpcHandler[Any, Any], socket: Path, tcp: str | None
    ) -> None:
        self._socket = OwnedSocket(socket)
        self._tcp = tcp
        self.port = 0
        """The TCP port that was taken; 0 when that door is closed."""
        self._server = aio.server(options=_OPTIONS)
        oip_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        self._server.add_generic_rpc_handlers(more)

    async def start(self) -> None:
        self._socket.take()
        try:
            self._bind()
        except ConfigurationError:
            await self.stop(0.0)
            raise
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """New calls are refused at once; those under way get `grace_s`."""
        await self._server.stop(grace_s)
        self._socket.release()

    def _bind(self) -> None:
        path = self._socket.path
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise ConfigurationError(f"the inference socket {path} cannot be bound: {error}") from None
        if self._tcp is None:
            return
        try:
            self.port = self._server.add_insecure_port(self._tcp)
        except RuntimeError as error:
            raise ConfigurationError(
                f"inference.grpc_port: {self._tcp} cannot be bound: {error}; set SILKREC_INFERENCE__GRPC_PORT to "
                "another port, or to -1 to open the Unix socket alone"
            ) from None


def request_of(
    method: str, metadata: Iterable[tuple[str, str | bytes]] | None
) -> contextlib.AbstractContextManager[RequestContext]:
    """Around a call: the caller's request id and trace, for what is logged and traced inside."""
    sent = {name: value for name, value in metadata or () if isinstance(value, str)}
    return tracing.serving(
        method, sent.get(request_context.REQUEST_ID_HEADER), sent.get(request_context.TRACEPARENT_HEADER)
    )


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


async def abort(context: Context, error: SilkrecError) -> NoReturn:
    """Ends a call as gRPC names the error."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    if code is grpc.StatusCode.INTERNAL:
        _log.error("inference failed", code=error.code, detail=error.detail, exc_info=error)
    await context.abort(code, error.detail)
