"""One model as the scheduler's lane: plans a batch, launches its pass, splits what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from services.inference.engine.cost_model import CostModel, Load
from services.inference.engine.counters import CacheCounters
from services.inference.engine.item_rows import ItemRows
from services.inference.engine.latent_cache import LatentCache
from services.inference.engine.pages import PagePool
from services.inference.engine.planner import Planned, StepPlanner
from services.inference.engine.request import Float32, InferAnswer, InferRequest, Part
from services.inference.engine.tiers import CacheOptions, Tiers
from services.inference.model.checkpoint import LoadedModel
from services.inference.model.serve.forward import EXTRA_ITEMS, Ops, ServingRanker
from services.inference.model.serve.step import Step, StepOutput
from services.inference.model.serve.torch_ops import TorchOps
from shared.errors import SilkrecError

_PRECISION = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NotFinite(SilkrecError):
    """The model gave NaN or infinity for one request; others of its batch are well."""


class Launcher(Protocol):
    """Runs a planned step; see `StepGraphs`."""

    def run(self, step: Step) -> StepOutput | None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """A pass on its way: `copied` tells when its numbers are on the host."""

    parts: Sequence[Part]
    planned: Planned
    user: Tensor
    probability: Tensor
    copied: torch.cuda.Event | None

    @property
    def is_done(self) -> bool:
        return self.copied is None or bool(self.copied.query())  # type: ignore[no-untyped-call]


class ServingModel:
    """`launch`, `land`, `capture` and `upsert` belong to the executor's thread, the rest is read anywhere. `max_rows`:
    history rows that the model sees at most."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        device: str,
        precision: str,
        max_rows: int,
        cache: CacheOptions | None = None,
        counters: CacheCounters | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        options = cache or CacheOptions()
        self.version, self.actions, self.config = loaded.version, loaded.actions, loaded.config
        self.vocabulary, self.vector_dim = loaded.vocabulary, loaded.config.vector_dim
        self.max_rows = min(loaded.config.max_history, max_rows)
        self.cost = CostModel()
        self._clock = clock
        self._device = torch.device(device)
        self.ops, dtype = _ops(self._device), _PRECISION[precision]
        self.ranker = ServingRanker(loaded.ranker, dtype=dtype, device=self._device, ops=self.ops)
        tiers = Tiers.of(self.ranker, options, least_rows=self.max_rows)
        self.store = tiers.device
        self.cache = LatentCache(
            PagePool(tiers.device.pages),
            PagePool(0 if tiers.host is None else tiers.host.pages),
            options.page_rows,
            tiers,
            counters or CacheCounters(),
            enabled=options.enabled,
        )
        self.items = ItemRows(loaded.vocabulary, EXTRA_ITEMS)
        self._planner = StepPlanner(self.items, self.cache, self.max_rows)
        self.graphs: Launcher | None = None

    @property
    def is_gpu(self) -> bool:
        return self._device.type == "cuda"

    def load_of(self, parts: Sequence[Part]) -> Load:
        """What the parts ask for, were the cache to hold what it seems to."""
        load = Load()
        for part in parts:
            rows, cached = self.rows_of(part.request)
            load = load.plus(rows, part.candidates, cached)
        return load

    def rows_of(self, payload: object) -> tuple[int, int]:
        """Of an InferRequest: history rows to compute, and rows that seem to be cached (nothing is verified before the
        pass)."""
        request = cast("InferRequest", payload)
        length = min(len(request.history_item), self.max_rows)
        cached = min(length, self.cache.cached_rows(request.user_key))
        return length - cached, cached

    def run(self, parts: Sequence[Part]) -> list[InferAnswer | SilkrecError]:
        """One answer a part, in order. A request whose own numbers are not finite gets an error, its neighbours do
        not. Raises what torch raises, and CacheFull."""
        return self.land(self.launch(parts))

    def launch(self, parts: Sequence[Part]) -> Flight:
        """Returns before a GPU is done. What an exception leaves of the batch in the cache is dropped."""
        try:
            planned = self._planner.plan(parts, self._clock())
            with torch.inference_mode():
                output = self._forward(planned.step)
                flight = self._depart(parts, planned, output)
        except BaseException:
            self.cache.abort()
            raise
        self.cache.finish()
        return flight

    def land(self, flight: Flight) -> list[InferAnswer | SilkrecError]:
        """Waits for the numbers. Raises what the device found wrong in the meantime."""
        if flight.copied is not None:
            flight.copied.synchronize()
        users, probabilities = flight.user.numpy(), flight.probability.numpy()
        answers: list[InferAnswer | SilkrecError] = []
        begin = 0
        for row, part in enumerate(flight.parts):
            mine = probabilities[begin : begin + part.candidates]
            begin += part.candidates
            answers.append(self._answer(part, users[row], mine, flight.planned.cached[row]))
        return answers

    def unscored(self, request: InferRequest, reason: str) -> InferAnswer:
        """The answer to a ranking request that never ran."""
        total = 0 if request.candidate is None else len(request.candidate)
        zeros = np.zeros((total, len(self.actions)), np.float32)
        return InferAnswer(self.version, scores=zeros, scored=np.zeros(total, np.bool_), reason=reason)

    def capture(self, most_rows: int) -> int:
        """Captures graphs of small passes on a GPU; how many. Experts in another type than bf16 go through the host,
        which a graph cannot."""
        if not self.is_gpu or (self.config.ffn == "moe" and self.ranker.dtype is not torch.bfloat16):
            return 0
        from services.inference.model.serve.graphs import StepGraphs  # needs Triton, see `_ops`
        from services.inference.model.serve.triton_ops import TritonOps

        graphs = StepGraphs(self.ranker, cast("TritonOps", self.ops), self.store)
        count = graphs.capture(most_rows, longest=self.max_rows)
        self.graphs = graphs
        return count

    def upsert(self, item_index: int, tokens: Sequence[int]) -> bool:
        """Gives an item that came after training its content, once; histories that have it are built anew."""
        row = self.items.give(item_index)
        if row is None:
            return False
        self.ranker.set_content(row, list(tokens))
        return True

    def _forward(self, step: Step) -> StepOutput:
        if self.graphs is not None:
            output = self.graphs.run(step)
            if output is not None:
                return output
        return self.ranker.forward(self.ops.stage(step, self.store), self.store)

    def _depart(self, parts: Sequence[Part], planned: Planned, output: StepOutput) -> Flight:
        """Every head is an independent yes or no (binary cross entropy), so probabilities are sigmoids."""
        user, probability = output.user, torch.sigmoid(output.logits)
        if self._device.type != "cuda":
            return Flight(parts, planned, user, probability, None)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        flight = Flight(parts, planned, _to_host(user), _to_host(probability), copied)
        copied.record()
        return flight

    def _answer(self, part: Part, vector: Float32, mine: Float32, cached: int) -> InferAnswer | SilkrecError:
        wanted = part.request.candidate
        if not (np.isfinite(vector).all() and np.isfinite(mine).all()):
            return NotFinite(f"model {self.version} gave no finite number for this request; promote another release")
        if wanted is None:
            return InferAnswer(self.version, user_vector=vector, cached_events=cached)
        total = len(wanted)
        scores, scored, reason = mine, np.ones(total, np.bool_), ""
        if part.candidates < total:
            scores = np.zeros((total, mine.shape[1]), np.float32)
            scores[: part.candidates] = mine
            scored, reason = np.arange(total) < part.candidates, "deadline"
        return InferAnswer(self.version, None, scores, scored, reason, cached)


def _ops(device: torch.device) -> Ops:
    if device.type != "cuda":
        return TorchOps()
    from services.inference.model.serve.triton_ops import TritonOps  # Triton is there on CUDA machines only

    return TritonOps()


def _to_host(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
