"""How other services ask for vectors and scores: over gRPC, to the engine that a user belongs to.

A user keeps to one engine (rendezvous hashing of user_key over the ready targets), so that what it caches is found
again; when that engine is gone or full, the next in the user's own order takes over at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import grpc
from grpc import aio

from services.inference import wire
from shared.contracts.history import Float32, History
from shared.contracts.inference import MODEL_NAME, EncodeRequest, EncodeResult, RankRequest, RankResult
from shared.contracts.oip import oip_pb2 as pb
from shared.contracts.oip import oip_pb2_grpc
from shared.errors import DeadlineExceeded, InferenceUnavailable, Overloaded, SilkrecError
from shared.observability import context

_READY_TIMEOUT_S = 0.5
_SHUN_S = 0.25
"""How long a target that just refused goes last: a restart's gap, not a judgement."""
_FAIR_S = 0.02
"""A target that says nothing for so long hangs: it answers even what it cannot score by the deadline."""
_HUNG_S = 1.0
_CALL_MARGIN_S = 0.25
"""gRPC's own timer runs out behind ours, so that DEADLINE_EXCEEDED is always the server's word."""
_TRANSIT_UP, _TRANSIT_DOWN = 0.1, 0.005
"""Rising twenty times as fast as falling, the estimate of the way's cost settles near its 95th percentile."""
_TRANSIT_MOST = 0.25
"""Of what remains: a hiccup must not make a server refuse everything."""
_CHANNELS = 2
"""Connections a target: two spread flow control and the server's read loops; a connection carries 100 streams."""
_OPTIONS = (
    ("grpc.max_send_message_length", wire.MESSAGE_BYTES_IN),
    ("grpc.max_receive_message_length", wire.MESSAGE_BYTES_OUT),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 400),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),  # a hidden retry would spend a deadline that is counted here
    ("grpc.use_local_subchannel_pool", 1),  # else equal channels share one connection
)


class InferenceClient(Protocol):
    """Raises InferenceUnavailable, Overloaded or DeadlineExceeded, and never later than the request's deadline."""

    async def encode(self, request: EncodeRequest) -> EncodeResult: ...

    async def rank(self, request: RankRequest) -> RankResult: ...

    async def ready(self, model_version: str) -> bool: ...

    async def close(self) -> None: ...


class GrpcInferenceClient:
    """`targets` as gRPC writes them: `unix:/path` or `host:port`. `key`: a server key, for TCP targets that ask for
    one. Lives on the event loop of its first call."""

    def __init__(self, targets: Sequence[str], *, key: str | None = None) -> None:
        if not targets:
            raise InferenceUnavailable("no inference target is configured (recommender.inference_targets)")
        self._targets = [_Target(name) for name in dict.fromkeys(targets)]
        self._access = () if key is None else (("authorization", f"Bearer {key}"),)
        self._closed = False

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        found = await self._ask(request, _history(request.history), {})
        vector: Float32 = found.tensor("user_vector", 2)[0]
        return EncodeResult(vector, found.model_version, found.cached_events)

    async def rank(self, request: RankRequest) -> RankResult:
        columns = [*_history(request.history), ("candidate", "INT32", request.candidate)]
        found = await self._ask(request, columns, {"request_time_s": request.request_time_s})
        scores, scored = found.tensor("scores", 3)[0], found.tensor("scored", 2)[0]
        if not len(scores) == len(scored) == len(request.candidate):
            raise InferenceUnavailable("the inference service answered with another number of candidates")
        return RankResult(scores, scored, found.model_version, found.reason, found.cached_events)

    async def ready(self, model_version: str) -> bool:
        """True when any target serves this version (empty: any); within half a second."""
        if self._closed:
            return False
        asks = [asyncio.create_task(target.model_ready(model_version)) for target in self._targets]
        try:
            for answer in asyncio.as_completed(asks):
                if await answer:
                    return True
            return False
        finally:
            for ask in asks:
                ask.cancel()

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(target.close() for target in self._targets))

    async def _ask(
        self,
        request: EncodeRequest | RankRequest,
        columns: Sequence[tuple[str, str, wire.Array]],
        extra: dict[str, wire.Parameter],
    ) -> _Answer:
        begin = time.monotonic()
        deadline = begin + request.deadline_us * 1e-6
        fixed = {"user_key": request.user_key, "priority": request.priority, **extra}
        message = wire.request(MODEL_NAME, request.model_version, columns, fixed)
        asked: list[_Asked] = []
        try:
            async with asyncio.timeout(deadline - begin):
                return _Answer(await self._first_answer(request.user_key, message, deadline, asked))
        except TimeoutError:
            if asked and time.monotonic() - asked[-1].at > _FAIR_S:
                asked[-1].target.shun(_HUNG_S)
            raise DeadlineExceeded("the inference service did not answer within the deadline") from None

    async def _first_answer(
        self, user_key: str, message: pb.ModelInferRequest, deadline: float, asked: list[_Asked]
    ) -> pb.ModelInferResponse:
        """Each target once, in the user's order; asking twice is harmless. `asked` grows by each."""
        failure: SilkrecError | None = None
        metadata = (*self._access, *context.outgoing_headers().items())
        for target in self._order(user_key):
            now = time.monotonic()
            if now >= deadline:
                raise failure or DeadlineExceeded("the deadline passed before the inference service was asked")
            asked.append(_Asked(target, now))
            message.parameters["deadline_us"].int64_param = int(target.budget_s(deadline - now) * 1e6)
            try:
                return await target.infer(message, deadline - now + _CALL_MARGIN_S, metadata)
            except (InferenceUnavailable, Overloaded) as error:
                failure = error
        raise failure or InferenceUnavailable("no inference target can be reached; see `silkrec doctor`")

    def _order(self, user_key: str) -> list[_Target]:
        """Reachable targets, the user's own first. Those known to be down are left out."""
        if self._closed:
            raise InferenceUnavailable("the inference client is closed")
        now = time.monotonic()
        usable = [target for target in self._targets if target.reachable()]
        return sorted(usable, key=lambda target: (target.shunned_until > now, -target.weight(user_key)))


class _Answer:
    """A response, with its faults turned into InferenceUnavailable."""

    def __init__(self, message: pb.ModelInferResponse) -> None:
        told = wire.plain(message.parameters)
        self.model_version = message.model_version
        self.reason = str(told.get("reason", ""))
        self.cached_events = int(told.get("cached_events", 0))
        try:
            self._tensors = wire.outputs(message)
        except ValueError as error:
            raise InferenceUnavailable(f"the inference service's answer cannot be read: {error}") from None

    def tensor(self, name: str, dimensions: int) -> wire.Array:
        found = self._tensors.get(name)
        if found is None or found.ndim != dimensions or found.shape[0] != 1:
            raise InferenceUnavailable(f"the inference service's answer has no {name} of {dimensions} dimensions")
        return found


@dataclass(slots=True)
class _Connection:
    channel: aio.Channel
    stub: oip_pb2_grpc.GRPCInferenceServiceStub
    watch: asyncio.Task[None]
    state: grpc.ChannelConnectivity = grpc.ChannelConnectivity.IDLE


class _Asked(NamedTuple):
    """`at` on time.monotonic."""

    target: _Target
    at: float


@dataclass(eq=False)
class _Target:
    """One engine process. Its connections are opened at the first use and watched from then on."""

    name: str
    shunned_until: float = 0.0
    transit_s: float = 0.001
    """What a call costs beside the server's own time: both ways, serialising, and event loops that are busy."""
    _closed: bool = False
    _connections: list[_Connection] = field(default_factory=list)
    _turn: int = 0

    def weight(self, user_key: str) -> int:
        digest = hashlib.blake2b(f"{self.name}\0{user_key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")

    def reachable(self) -> bool:
        """False only while every connection is known to fail: one that is being made takes calls."""
        self._open()
        return any(c.state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE for c in self._connections)

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
            stub = self._next().stub
            answer: pb.ModelInferResponse = await stub.ModelInfer(message, timeout=timeout_s, metadata=metadata or None)
        except aio.AioRpcError as error:
            raise self._translated(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise InferenceUnavailable("the inference client was closed") from None
            raise
        self._learn(answer, time.monotonic() - begin)
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

    async def close(self) -> None:
        self._closed = True
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await connection.watch
            await connection.channel.close(None)

    def _open(self) -> None:
        while len(self._connections) < _CHANNELS:
            channel = aio.insecure_channel(self.name, options=_OPTIONS)
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

    def _translated(self, error: aio.AioRpcError) -> SilkrecError:
        code, detail = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(detail or "the inference service did not answer within the deadline")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(detail, retry_after_s=0.05)
        if code is grpc.StatusCode.UNAVAILABLE:
            self.shun(_SHUN_S)
        return InferenceUnavailable(f"the inference service answered {code.name}: {detail}")


def _history(history: History) -> list[tuple[str, str, wire.Array]]:
    return [
        ("history_item", "INT32", history["item"]),
        ("history_action", "INT8", history["action"]),
        ("history_time", "INT64", history["time"]),
    ]
