"""The near door: ModelInfer for callers on this machine, in frames on a Unix socket (`frames`)."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import cast

import grpc
from google.protobuf.message import DecodeError

from services.inference import frames
from services.inference.frames import BadFrame, Frame
from services.inference.infer_call import InferCall, request_of
from services.inference.status import status_of
from services.inference.unix_socket import OwnedSocket
from shared.contracts.oip import oip_pb2 as pb
from shared.errors import ConfigurationError, SilkrecError
from shared.observability import context
from shared.observability.logging import get_logger

_MOST_CALLS = 1024
"""Under way on one connection: twice what the engine's queue takes."""
_log = get_logger(__name__)


class NearDoor:
    """Owns the listening socket and its connections. `start` raises ConfigurationError when the path is taken."""

    def __init__(self, call: InferCall, socket: Path) -> None:
        self._call = call
        self._socket = OwnedSocket(socket)
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self) -> None:
        self._socket.take()
        path = self._socket.path
        try:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(lambda: _Connection(self._call, self._connections), path)
        except OSError as error:
            self._socket.release()
            raise ConfigurationError(f"the inference socket {path} cannot be bound: {error}") from None

    async def stop(self, grace_s: float) -> None:
        """New connections and calls are refused at once; calls under way get `grace_s`."""
        if self._server is None:
            return
        self._server.close()
        self._socket.release()
        under_way = [task for connection in self._connections for task in connection.drain()]
        if under_way:
            await asyncio.wait(under_way, timeout=grace_s)
        for connection in list(self._connections):
            connection.close()


class _Connection(asyncio.Protocol):
    """A caller that goes away cancels what it asked."""

    _transport: asyncio.Transport

    def __init__(self, call: InferCall, all_of_them: set[_Connection]) -> None:
        self._call = call
        self._all = all_of_them
        self._reader = frames.FrameReader()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._draining = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._all.add(self)
        self._transport.write(frames.HELLO)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._all.discard(self)
        for task in self._tasks.values():
            task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            for found in self._reader.feed(data):
                self._take(found)
        except BadFrame as error:
            _log.warning("a connection to the near door was closed", detail=str(error))
            self._transport.close()

    def drain(self) -> list[asyncio.Task[None]]:
        """What is under way. Later calls are refused."""
        self._draining = True
        return list(self._tasks.values())

    def close(self) -> None:
        self._transport.close()

    def _take(self, found: Frame) -> None:
        if found.kind == frames.CANCEL:
            with contextlib.suppress(KeyError):
                self._tasks[found.call].cancel()
            return
        if found.kind != frames.ASK or found.call in self._tasks:
            raise BadFrame(f"kind {found.kind} of call {found.call}")
        if self._draining:
            self._refuse(found.call, grpc.StatusCode.UNAVAILABLE, "the inference service is stopping")
        elif len(self._tasks) >= _MOST_CALLS:
            self._refuse(found.call, grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MOST_CALLS} calls on one connection")
        else:
            task = asyncio.get_running_loop().create_task(self._answer(found))
            self._tasks[found.call] = task
            task.add_done_callback(lambda done: self._ended(found.call, done))

    async def _answer(self, found: Frame) -> None:
        try:
            trace, message = frames.asked(found.payload)
            names = (context.REQUEST_ID_HEADER, context.TRACEPARENT_HEADER)
            with request_of("ModelInfer", list(zip(names, trace.split(), strict=False))):
                answer = await self._call.answer(pb.ModelInferRequest.FromString(message))
        except SilkrecError as error:
            self._refuse(found.call, status_of(error), error.detail)
        except (BadFrame, DecodeError) as error:
            self._refuse(found.call, grpc.StatusCode.INVALID_ARGUMENT, f"the message cannot be read: {error}")
        else:
            self._transport.write(frames.frame(found.call, frames.ANSWER, answer.SerializeToString()))

    def _ended(self, call: int, task: asyncio.Task[None]) -> None:
        del self._tasks[call]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("inference failed", exc_info=error)
            self._refuse(call, grpc.StatusCode.INTERNAL, type(error).__name__)

    def _refuse(self, call: int, code: grpc.StatusCode, detail: str) -> None:
        self._transport.write(frames.refusal(call, code, detail))
