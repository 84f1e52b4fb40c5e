"""Encode and rank by the inference service. `services.inference.client.InferenceClient` fits `Inference`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Scored
from shared.contracts.history import Float32, Int32
from shared.contracts.inference import EncodeRequest, EncodeResult, RankRequest, RankResult
from shared.errors import InferenceUnavailable

# The answer travels back and wakes the event loop within that; an engine that used all of it would be too late.
RETURN_S = 0.001


class Inference(Protocol):
    async def encode(self, request: EncodeRequest) -> EncodeResult: ...

    async def rank(self, request: RankRequest) -> RankResult: ...


@dataclass(frozen=True, slots=True)
class InferenceEncoder:
    inference: Inference

    def possible(self, context: Context) -> bool:
        """Vectors of one model say nothing in the space of another."""
        index, model = context.snapshot.index, context.snapshot.model_version
        return index is not None and index.has_user_space and model is not None and index.model_version == model

    async def encode(self, context: Context, timeout_s: float) -> Float32:
        result = await self.inference.encode(
            EncodeRequest(
                user_key=context.model_user_key,
                history=context.user.history.rows,
                deadline_us=_microseconds(timeout_s),
                model_version=context.snapshot.model_version or "",
                priority=context.query.priority,
            )
        )
        return result.user_vector


@dataclass(frozen=True, slots=True)
class InferenceScorer:
    inference: Inference

    def actions(self, context: Context) -> tuple[str, ...]:
        model = context.snapshot.model
        return () if model is None else tuple(action.name for action in model.actions)

    async def score(self, context: Context, item_index: Int32, timeout_s: float) -> Scored:
        wanted = context.snapshot.model_version or ""
        result = await self.inference.rank(
            RankRequest(
                user_key=context.model_user_key,
                history=context.user.history.rows,
                candidate=item_index,
                request_time_s=context.query.now_s,
                deadline_us=_microseconds(timeout_s),
                model_version=wanted,
                priority=context.query.priority,
            )
        )
        if result.model_version != wanted:
            # Its columns may be other actions; probabilities under wrong names are worse than none.
            raise InferenceUnavailable(f"model {wanted!a} was asked for and {result.model_version!a} answered")
        return Scored(result.scores, result.scored, result.reason)


def _microseconds(timeout_s: float) -> int:
    return max(1, int((timeout_s - RETURN_S) * 1e6))
