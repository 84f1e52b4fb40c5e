"""One engine process as its clients see it: the connections to it, what the way there costs, and whether it is worth
asking."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import orjson
from grpc import aio

from services.inference import frames, wire
from services.inference.keepalive import KEEPALIVE
from services.inference.near import NearConnection, Refused
from services.inference.rest import Rest
from services.inference.status import error_of
from shared.contracts.inference import CONTROL_SERVICE, MODEL_NAME
from shared.contracts.oip import oip_pb2 as pb
from shared.contracts.oip import oip_pb2_grpc
from shared.errors import InferenceUnavailable

_READY_TIMEOUT_S = 0.5
_CONTROL_TIMEOUT_S = 5.0
"""The engine itself gives up after 2 s when it is busy with a model; 500 items take it 30 ms."""
_SHUN_S = 0.25
"""How long a target that just refused goes last: a restart's gap, not a judgement."""
_TRANSIT_UP, _TRANSIT_DOWN = 0.1, 0.005
"""Rising twenty times as fast as falling, the estimate of the way's cost settles near its 95th percentile."""
_TRANSIT_MOST = 0.25
"""Of what remains: a hiccup must not make a server refuse everything."""
_CHANNELS = 2
"""Connections a target: two spread flow control and the server's read loops; a connection carries 100 streams."""
OPTIONS = (
    ("grpc.max_send_message_length", wire.MESSAGE_BYTES_IN),
    ("grpc.max_receive_message_length", wire.MESSAGE_BYTES_OUT),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 400),
    *KEEPALIVE.client(),
    ("grpc.enable_retries", 0),  # a hidden retry would spend a deadline that is counted here
    ("grpc.use_local_subchannel_pool", 1),  # else equal channels share one connection
)


@dataclass(slots=True)
class _Connection:
    channel: aio.Channel
    stub: oip_pb2_grpc.GRPCInferenceServiceStub
    watch: asyncio.Task[None]
    state: grpc.ChannelConnectivity = grpc.ChannelConnectivity.IDLE


@dataclass(eq=False)
class Target:
    """One engine process. Its connections are opened at the first use and watched from then on."""

    name: str
    shunned_until: float = 0.0
    transit_s: float = 0.001
    """What a call costs beside the server's own time: both ways, serialising, and event loops that are busy."""
    _rest: Rest = field(default_factory=Rest)
    _closed: bool = False
    _connections: list[_Connection] = field(default_factory=list)
    _turn: int = 0
    _near: NearConnection | None = field(init=False)

    def __post_init__(self) -> None:
        path = _unix_path(self.name)
        self._near = None if path is None else NearConnection(frames.socket_beside(path))

    def weight(self, user_key: str) -> int:
        digest = hashlib.blake2b(f"{self.name}\0{user_key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")

    def reachable(self) -> bool:
        """False only while every connection is known to fail: one that is being made takes calls."""
        self._open()
        return any(c.state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE for c in self._connections)

    def rests(self, left_s: float, priority: int) -> bool:
        """In the milliseconds after the engine turned such a request away: asking would only take time from it."""
        return self._rest.covers(time.monotonic(), self.budget_s(left_s), priority)

    def shun(self, seconds: float) -> None:
        """Others go first until then."""
        self.shunned_until = max(self.shunned_until, time.monotonic() + seconds)

    def budget_s(self, left_s: float) -> float:
        """What the server may use, so that its answer is here in time."""
        return left_s - min(self.transit_s, _TRANSIT_MOST * left_s)

    async def infer(
        self, message: pb.ModelInferRequest, timeout_s: float, metadata: tuple[tuple[str, str], ...]
    ) -> pb.ModelInferResponse:
        begin = time.monotonic()
        try:
            answer = await self._sent(message, timeout_s, metadata)
        except Refused as error:
            told = message.parameters
            # A job waits by itself; a fifth of its minute would be an idle engine.
            if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and told["priority"].int64_param == 0:
                self._rest.refused(
                    time.monotonic(), told["deadline_us"].int64_param * 1e-6, told["priority"].int64_param
                )
            elif error.code is grpc.StatusCode.UNAVAILABLE:
                self.shun(_SHUN_S)
            raise error_of(error.code, error.detail) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise InferenceUnavailable("the inference client was closed") from None
            raise
        self._learn(answer, time.monotonic() - begin)
        return answer

    async def _sent(
        self, message: pb.ModelInferRequest, timeout_s: float, metadata: tuple[tuple[str, str], ...]
    ) -> pb.ModelInferResponse:
        """Through the near door while it is open. Raises Refused."""
        self._open()
        if self._near is not None and self._near.is_open:
            return await self._near.infer(message)
        try:
            stub = self._next().stub
            answer: pb.ModelInferResponse = await stub.ModelInfer(message, timeout=timeout_s, metadata=metadata or None)
        except aio.AioRpcError as error:
            raise Refused(error.code(), error.details() or "") from None
        return answer

    def _learn(self, answer: pb.ModelInferResponse, seconds: float) -> None:
        if wire.TOOK_US in answer.parameters:
            beyond_s = max(0.0, seconds - answer.parameters[wire.TOOK_US].int64_param * 1e-6) - self.transit_s
            self.transit_s += beyond_s * (_TRANSIT_UP if beyond_s > 0 else _TRANSIT_DOWN)

    async def model_ready(self, version: str) -> bool:
        if not self.reachable():
            return False
        ask = pb.ModelReadyRequest(name=MODEL_NAME, version=version)
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                answer = await self._next().stub.ModelReady(ask, timeout=_READY_TIMEOUT_S)
        except (aio.AioRpcError, TimeoutError):
            return False
        return bool(answer.ready)

    async def control(
        self, method: str, body: Mapping[str, Any], metadata: tuple[tuple[str, str], ...]
    ) -> dict[str, Any]:
        """A call of the service beside OIP: JSON both ways. Raises InferenceUnavailable."""
        if self._closed:
            raise InferenceUnavailable("the inference client is closed")
        call = self._next().channel.unary_unary(f"/{CONTROL_SERVICE}/{method}", orjson.dumps, orjson.loads)
        try:
            async with asyncio.timeout(_CONTROL_TIMEOUT_S):
                found = await call(body, timeout=_CONTROL_TIMEOUT_S, metadata=metadata or None)
        except aio.AioRpcError as error:
            told = f"the inference service at {self.name} answered {error.code().name}: {error.details() or ''}"
            raise InferenceUnavailable(told) from None
        except TimeoutError:
            raise InferenceUnavailable(f"the inference service at {self.name} did not answer") from None
        if not isinstance(found, dict):
            raise InferenceUnavailable(f"the answer of {self.name} is no JSON object")
        return found

    async def nobody_listens(self) -> bool:
        """True only when the address itself says so: a network that is down or a host that hangs is no such word."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                _, writer = await _dialled(self.name)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except (OSError, ValueError, TimeoutError):
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return False

    async def close(self) -> None:
        self._closed = True
        if self._near is not None:
            await self._near.close()
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await connection.watch
            await connection.channel.close(None)

    def _open(self) -> None:
        if self._near is not None:
            self._near.start()
        while len(self._connections) < _CHANNELS:
            channel = aio.insecure_channel(self.name, options=OPTIONS)
            stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            position = len(self._connections)
            watch = asyncio.create_task(self._watch(channel, position), name=f"watch {self.name}")
            self._connections.append(_Connection(channel, stub, watch))

    async def _watch(self, channel: aio.Channel, position: int) -> None:
        """Keeps the state known and the channel connecting: an idle one would find out only under a request."""
        while True:
            state = channel.get_state(try_to_connect=True)
            if position < len(self._connections):
                self._connections[position].state = state
            await channel.wait_for_state_change(state)

    def _next(self) -> _Connection:
        self._open()
        working = [c for c in self._connections if c.state is grpc.ChannelConnectivity.READY] or self._connections
        self._turn += 1
        return working[self._turn % len(working)]


async def _dialled(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`unix:/path`, `host:port` or `dns:///host:port`. Raises OSError, and ValueError for what is neither."""
    path = _unix_path(target)
    if path is not None:
        return await asyncio.open_unix_connection(path)
    host, _, port = target.rpartition("/")[2].rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


def _unix_path(target: str) -> Path | None:
    return Path(target.removeprefix("unix:").removeprefix("//")) if target.startswith("unix:") else None
