"""The gRPC door: Open Inference Protocol v2 on the Unix socket, and on TCP unless it is closed.

A caller that goes away cancels its handler, and with it the queued request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import grpc
from grpc import aio

from services.inference import describe, wire
from services.inference.caller import CallerCheck
from services.inference.engine.engine import Engine
from services.inference.infer_call import InferCall, request_of
from services.inference.keepalive import KEEPALIVE, Keepalive
from services.inference.metrics import DoorMetrics
from services.inference.status import status_of
from services.inference.unix_socket import OwnedSocket
from shared.contracts.oip import oip_pb2 as pb
from shared.contracts.oip import oip_pb2_grpc
from shared.errors import ConfigurationError, SilkrecError

Context = aio.ServicerContext[object, object]
OPTIONS = (
    ("grpc.max_receive_message_length", wire.MESSAGE_BYTES_IN),
    ("grpc.max_send_message_length", wire.MESSAGE_BYTES_OUT),
    ("grpc.so_reuseport", 0),  # a second process on the port is a mistake to report, not to share with
)


class InferenceServicer(oip_pb2_grpc.GRPCInferenceServiceServicer):
    """Method names are the protocol's. Metadata and health are for everyone, inference for `callers`."""

    def __init__(self, engine: Engine, callers: CallerCheck, doors: DoorMetrics) -> None:
        self._engine = engine
        self._callers = callers
        self._call = InferCall(engine, doors, "grpc")

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
        metadata = context.invocation_metadata()
        try:
            with request_of("ModelInfer", metadata):
                self._callers.check(context.peer(), metadata)
                return await self._call.answer(request)
        except SilkrecError as error:
            await abort(context, error)


class GrpcServer:
    """Owns the listening sockets. `start` raises ConfigurationError when an address cannot be taken."""

    def __init__(
        self,
        servicer: InferenceServicer,
        *more: grpc.GenericRpcHandler[Any, Any],
        socket: Path,
        tcp: str | None,
        keepalive: Keepalive = KEEPALIVE,
    ) -> None:
        self._socket = OwnedSocket(socket)
        self._tcp = tcp
        self.port = 0
        """The TCP port that was taken; 0 when that door is closed."""
        self._server = aio.server(options=(*OPTIONS, *keepalive.server()))
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


async def abort(context: Context, error: SilkrecError) -> NoReturn:
    """Ends a call as gRPC names the error."""
    await context.abort(status_of(error), error.detail)
