"""One forward pass for a batch of parts: pack, run, split. Knows the model, not the queue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from services.inference.engine.cost_model import CostModel
from services.inference.engine.request import Float32, InferAnswer, InferRequest, Int64, Part
from services.inference.model.batch import PackedBatch
from services.inference.model.checkpoint import LoadedModel
from shared.errors import SilkrecError

_PRECISION = {"fp16": torch.float16, "bf16": torch.bfloat16}


class ServingModel:
    """A loaded model as the scheduler's lane: `run` belongs to the executor's thread, the rest is read anywhere."""

    def __init__(self, loaded: LoadedModel, *, device: str, precision: str, max_rows: int) -> None:
        self.loaded = loaded
        self.version = loaded.version
        self.max_rows = min(loaded.config.max_history, max_rows)
        self.cost = CostModel()
        self._device = device
        self._precision = _PRECISION.get(precision)

    @property
    def actions(self) -> tuple[tuple[str, int], ...]:
        return self.loaded.actions

    @property
    def vector_dim(self) -> int:
        return self.loaded.config.vector_dim

    def run(self, parts: Sequence[Part]) -> list[InferAnswer | SilkrecError]:
        """One answer a part, in order. A request whose own numbers are not finite gets an error, its neighbours do
        not. Raises what torch raises."""
        batch = pack([part.request for part in parts], [part.candidates for part in parts])
        with torch.inference_mode():
            vectors, probabilities = self._forward(batch.to(self._device))
        answers: list[InferAnswer | SilkrecError] = []
        begin = 0
        for row, part in enumerate(parts):
            mine = probabilities[begin : begin + part.candidates]
            begin += part.candidates
            answers.append(self._answer(part, vectors[row], mine))
        return answers

    def _forward(self, batch: PackedBatch) -> tuple[Float32, Float32]:
        """Every head is an independent yes or no (binary cross entropy), so probabilities are sigmoids."""
        if self._precision is None:
            output = self.loaded.ranker(batch)
        else:
            with torch.autocast(torch.device(self._device).type, self._precision):
                output = self.loaded.ranker(batch)
        return output.user_vector.cpu().numpy(), torch.sigmoid(output.logits).cpu().numpy()

    def _answer(self, part: Part, vector: Float32, probabilities: Float32) -> InferAnswer | SilkrecError:
        wanted = part.request.candidate
        result = vector if wanted is None else probabilities
        if not np.isfinite(result).all():
            return SilkrecError(f"model {self.version} gave no finite number for this request; promote another release")
        if wanted is None:
            return InferAnswer(self.version, user_vector=vector)
        total = len(wanted)
        if part.candidates == total:
            return InferAnswer(self.version, scores=probabilities, scored=np.ones(total, np.bool_))
        scores = np.zeros((total, probabilities.shape[1]), np.float32)
        scores[: part.candidates] = probabilities
        return InferAnswer(self.version, scores=scores, scored=np.arange(total) < part.candidates, reason="deadline")

    def unscored(self, request: InferRequest, reason: str) -> InferAnswer:
        """The answer to a ranking request that never ran."""
        total = 0 if request.candidate is None else len(request.candidate)
        zeros = np.zeros((total, len(self.actions)), np.float32)
        return InferAnswer(self.version, scores=zeros, scored=np.zeros(total, np.bool_), reason=reason)


def pack(requests: Sequence[InferRequest], candidates: Sequence[int]) -> PackedBatch:
    """Columns joined once a column; of request b the first `candidates[b]` are taken."""
    wanted = [
        np.empty(0, np.int32) if request.candidate is None else request.candidate[:count]
        for request, count in zip(requests, candidates, strict=True)
    ]
    return PackedBatch(
        _joined([request.history_item for request in requests]),
        _joined([request.history_action for request in requests]),
        _joined([request.history_time for request in requests]),
        _offsets(np.fromiter((len(request.history_item) for request in requests), np.int64, len(requests))),
        _joined(wanted),
        _offsets(np.asarray(candidates, np.int64)),
        torch.from_numpy(np.fromiter((request.request_time_s for request in requests), np.int64, len(requests))),
    )


def _joined(parts: Sequence[np.ndarray[tuple[int], np.dtype[np.integer]]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts, dtype=np.int64))


def _offsets(lengths: Int64) -> torch.Tensor:
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return torch.from_numpy(ends)
