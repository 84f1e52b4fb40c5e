"""How the load asks each server. `ask` tells whether every candidate came back scored; whatever goes wrong is a no."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

import grpc
from grpc import aio

from benchmarks.peers import wire
from benchmarks.peers.workload import CANDIDATES, MODEL, ROWS_CAP, Ask
from services.inference.client import GrpcInferenceClient
from shared.contracts.inference import RankRequest
from shared.contracts.oip import oip_pb2 as pb
from shared.contracts.oip import oip_pb2_grpc
from shared.errors import SilkrecError

SCORE_BYTES = CANDIDATES * len(MODEL.actions) * 4
BLOCK_BYTES = wire.width(ROWS_CAP, CANDIDATES)
GIVE_UP_S = 1.0
"""An answer this late is not waited for: fifteen deadlines."""


class Asker(Protocol):
    """`keeps_users`: whether what it knows of a user matters, so that a trace's primes are sent."""

    keeps_users: bool

    def prepare(self, ask: Ask) -> Any:
        """What can be done before the clock runs."""

    def sent(self, prepared: Any) -> bytes:
        """As many bytes as go over the socket, about: what an echo is asked with."""

    async def ask(self, prepared: Any) -> bool: ...

    async def close(self) -> None: ...


class SilkrecAsker:
    """Our client, which gives up at the deadline by itself."""

    keeps_users = True

    def __init__(self, targets: Sequence[str]) -> None:
        self._client = GrpcInferenceClient(targets)

    def prepare(self, ask: Ask) -> RankRequest:
        return ask.rank_request()

    def sent(self, prepared: RankRequest) -> bytes:
        return wire.block(prepared.history, prepared.candidate, prepared.request_time_s)

    async def ask(self, prepared: RankRequest) -> bool:
        try:
            return bool((await self._client.rank(prepared)).scored.all())
        except SilkrecError:
            return False

    async def close(self) -> None:
        await self._client.close()


class TritonAsker:
    """OIP v2 is Triton's own protocol, so our generated stubs speak to it: what PyTriton's own client sends, with less
    work in this process."""

    keeps_users = False

    def __init__(self, target: str) -> None:
        self._channels = [aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(2)]
        self._stubs = [oip_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]  # type: ignore[no-untyped-call]
        self._turn = 0

    def prepare(self, ask: Ask) -> pb.ModelInferRequest:
        column = pb.ModelInferRequest.InferInputTensor(name="block", datatype="UINT8", shape=(1, BLOCK_BYTES))
        raw = wire.padded(ask.block(), BLOCK_BYTES)
        return pb.ModelInferRequest(model_name="ranker", inputs=[column], raw_input_contents=[raw])

    def sent(self, prepared: pb.ModelInferRequest) -> bytes:
        return prepared.SerializeToString()

    async def ask(self, prepared: pb.ModelInferRequest) -> bool:
        self._turn += 1
        try:
            answer = await self._stubs[self._turn % 2].ModelInfer(prepared, timeout=GIVE_UP_S)
        except grpc.RpcError:
            return False
        return [len(raw) for raw in answer.raw_output_contents] == [SCORE_BYTES]

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)


class HttpAsker:
    """HTTP/1.1 with connections kept open, as little as there can be: a load must not be what is measured. A full
    client library takes 0.3 to 1 ms of the same two cores for each request."""

    keeps_users = False

    def __init__(self, port: int, path: str, media_type: str, *, as_text: bool) -> None:
        self._port = port
        self._head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media_type}\r\nContent-Length: "
        self._as_text = as_text
        self._least = len(wire.text(bytes(SCORE_BYTES))) if as_text else SCORE_BYTES
        self._free: list[_Connection] = []

    def prepare(self, ask: Ask) -> bytes:
        body = ask.block()
        if self._as_text:
            body = f'{{"blocks":["{wire.text(body)}"]}}'.encode("ascii")
        return f"{self._head}{len(body)}\r\n\r\n".encode("ascii") + body

    def sent(self, prepared: bytes) -> bytes:
        return prepared

    async def ask(self, prepared: bytes) -> bool:
        try:
            async with asyncio.timeout(GIVE_UP_S):
                connection = await self._connection()
                try:
                    status, size = await connection.exchange(prepared)
                except BaseException:
                    connection.transport.close()
                    raise
        except (TimeoutError, OSError):
            return False
        self._free.append(connection)
        return status == 200 and size >= self._least

    async def close(self) -> None:
        for connection in self._free:
            connection.transport.close()
        self._free = []

    async def _connection(self) -> _Connection:
        while self._free:
            found = self._free.pop()
            if not found.transport.is_closing():
                return found
        _, made = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self._port)
        return made


class _Connection(asyncio.Protocol):
    """One exchange at a time; answers must tell their Content-Length."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, int]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    async def exchange(self, request: bytes) -> tuple[int, int]:
        """Status and bytes of the body."""
        if self.transport.is_closing():
            raise ConnectionResetError
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        at = head.find(b"content-length:")
        if at < 0:
            self._fail(ConnectionError("the answer does not tell its length"))
            return
        size = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._received) >= end + 4 + size:
            self._received.clear()
            if self._answer is not None and not self._answer.done():
                self._answer.set_result((int(head[9:12]), size))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._fail(ConnectionResetError())

    def _fail(self, error: OSError) -> None:
        if self._answer is not None and not self._answer.done():
            with contextlib.suppress(asyncio.InvalidStateError):
                self._answer.set_exception(error)
