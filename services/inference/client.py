"""How other services ask for vectors and scores: over gRPC, to the engine that a user belongs to.

A user keeps to one engine (rendezvous hashing of user_key over the ready targets), so that what it caches is found
again; when that engine is gone or full, the next in the user's own order takes over at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from services.inference import wire
from services.inference.target import Target
from shared.contracts.history import Float32, History
from shared.contracts.inference import (
    FORGET,
    MODEL_NAME,
    UPSERT_ITEMS,
    EncodeRequest,
    EncodeResult,
    Forgotten,
    NewItem,
    RankRequest,
    RankResult,
    Upserted,
)
from shared.contracts.oip import oip_pb2 as pb
from shared.errors import DeadlineExceeded, InferenceUnavailable, Overloaded, SilkrecError
from shared.observability import context

_FAIR_S = 0.02
"""A target that says nothing for so long hangs: it answers even what it cannot score by the deadline."""
_HUNG_S = 1.0
USER_HEADER = "x-silkrec-user"
"""By which a proxy in front of several engines keeps a user to one of them (infra/nginx)."""
_CALL_MARGIN_S = 0.25
"""gRPC's own timer runs out behind ours, so that DEADLINE_EXCEEDED is always the server's word."""


class InferenceClient(Protocol):
    """Raises InferenceUnavailable, Overloaded or DeadlineExceeded, and never later than the request's deadline."""

    async def encode(self, request: EncodeRequest) -> EncodeResult: ...

    async def rank(self, request: RankRequest) -> RankResult: ...

    async def ready(self, model_version: str) -> bool: ...

    async def close(self) -> None: ...


class EngineControl(Protocol):
    """What every engine is told, whoever's user or item it is."""

    @property
    def targets(self) -> tuple[str, ...]: ...

    async def forget(self, user_key: str) -> Forgotten:
        """Raises InferenceUnavailable when an engine that runs did not confirm: then ask again."""
        ...

    async def upsert_items(self, target: str, items: Sequence[NewItem]) -> Upserted:
        """`UPSERT_MOST` items at most; none asks how things stand. Raises InferenceUnavailable."""
        ...


class GrpcInferenceClient:
    """`targets` as gRPC writes them: `unix:/path` or `host:port`. `key`: a server key, for TCP targets that ask for
    one. Lives on the event loop of its first call."""

    def __init__(self, targets: Sequence[str], *, key: str | None = None) -> None:
        if not targets:
            raise InferenceUnavailable("no inference target is configured (recommender.inference_targets)")
        self._targets = [Target(name) for name in dict.fromkeys(targets)]
        self._access = () if key is None else (("authorization", f"Bearer {key}"),)
        self._closed = False

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        self._check_room(request)
        found = await self._ask(request, _history(request.history), {})
        vector: Float32 = found.tensor("user_vector", 2)[0]
        return EncodeResult(vector, found.model_version, found.cached_events)

    async def rank(self, request: RankRequest) -> RankResult:
        self._check_room(request)
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

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(target.name for target in self._targets)

    async def forget(self, user_key: str) -> Forgotten:
        """See `EngineControl`. All are asked, also when one does not confirm."""
        asked = (self._forget(target, user_key) for target in self._targets)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return Forgotten(confirmed=sum(map(bool, answers)), not_running=answers.count(False))

    async def _forget(self, target: Target, user_key: str) -> bool:
        """False: nothing runs there."""
        try:
            await target.control(FORGET, {"user_key": user_key}, self._access)
        except InferenceUnavailable:
            if await target.nobody_listens():
                return False
            raise
        return True

    async def upsert_items(self, target: str, items: Sequence[NewItem]) -> Upserted:
        """See `EngineControl`. Raises KeyError for a target that is none of `targets`."""
        engine = {known.name: known for known in self._targets}[target]
        answer = await engine.control(UPSERT_ITEMS, {"items": list(items)}, self._access)
        try:
            return Upserted(**{**answer, "ignored_properties": tuple(answer["ignored_properties"])})
        except (TypeError, KeyError) as error:
            raise InferenceUnavailable(f"the inference service's answer cannot be read: {error}") from None

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
                return _Answer(await self._first_answer(request.user_key, request.priority, message, deadline, asked))
        except TimeoutError:
            if asked and time.monotonic() - asked[-1].at > _FAIR_S:
                asked[-1].target.shun(_HUNG_S)
            raise DeadlineExceeded("the inference service did not answer within the deadline") from None

    def _check_room(self, request: EncodeRequest | RankRequest) -> None:
        """Before a message is written: that costs more than all else of a request that nobody has room for."""
        if all(target.rests(request.deadline_us * 1e-6, request.priority) for target in self._targets):
            raise _full()

    async def _first_answer(
        self, user_key: str, priority: int, message: pb.ModelInferRequest, deadline: float, asked: list[_Asked]
    ) -> pb.ModelInferResponse:
        """Each target once, in the user's order; asking twice is harmless. `asked` grows by each."""
        failure: SilkrecError | None = None
        metadata = (*self._access, (USER_HEADER, user_key), *context.outgoing_headers().items())
        for target in self._order(user_key):
            now = time.monotonic()
            if target.rests(deadline - now, priority):
                failure = failure or _full()
                continue
            if now >= deadline:
                raise failure or DeadlineExceeded("the deadline passed before the inference service was asked")
            asked.append(_Asked(target, now))
            message.parameters["deadline_us"].int64_param = int(target.budget_s(deadline - now) * 1e6)
            try:
                return await target.infer(message, deadline - now + _CALL_MARGIN_S, metadata)
            except (InferenceUnavailable, Overloaded) as error:
                failure = error
        raise failure or InferenceUnavailable("no inference target can be reached; see `silkrec doctor`")

    def _order(self, user_key: str) -> list[Target]:
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


class _Asked(NamedTuple):
    """`at` on time.monotonic."""

    target: Target
    at: float


def _full() -> Overloaded:
    return Overloaded("every inference target is full", retry_after_s=0.05)


def _history(history: History) -> list[tuple[str, str, wire.Array]]:
    return [
        ("history_item", "INT32", history["item"]),
        ("history_action", "INT8", history["action"]),
        ("history_time", "INT64", history["time"]),
    ]
