"""What every peer runs for a batch: the same packed forward as ours, without anything kept between requests.

`serving`, which the servers run: our own serving pass with its cache switched off, so that what remains of a
difference is the server and the cache. `modules`: the model's own `Ranker.forward` on a `PackedBatch`, which a team
would deploy that has no serving pass; slower, and timed without a server only.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.peers.wire import parsed
from services.inference.engine.request import InferRequest, Part
from services.inference.engine.runner import ServingModel
from services.inference.engine.tiers import CacheOptions
from services.inference.engine.warmup import tune_attention
from services.inference.model import checkpoint
from services.inference.model.batch import PackedBatch
from services.inference.model.checkpoint import LoadedModel
from shared.errors import SilkrecError

Float32 = npt.NDArray[np.float32]
Forward = Callable[[Sequence[InferRequest]], list[Float32]]
VARIANTS = ("modules", "serving")


def from_environment() -> Callable[[Sequence[bytes]], list[bytes]]:
    """Blocks to score bytes, of the model in PEER_MODEL, with one thread."""
    end_with_parent()
    torch.set_num_threads(1)
    loaded = checkpoint.load(Path(os.environ["PEER_MODEL"]))
    forward = forward_of(loaded, "serving")

    def run(blocks: Sequence[bytes]) -> list[bytes]:
        return [scores.tobytes() for scores in forward([parsed(block) for block in blocks])]

    return run


def end_with_parent() -> None:
    """A LitServe worker whose parent was killed goes on looking into a broken queue: it was seen to log 22 GB of
    tracebacks into memory in six minutes."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def forward_of(loaded: LoadedModel, variant: str) -> Forward:
    if variant == "modules":
        return lambda requests: _modules(loaded, requests)
    model = ServingModel(
        loaded,
        device="cpu",
        precision="fp32",
        max_rows=loaded.config.max_history,
        cache=CacheOptions(enabled=False),
    )
    tune_attention(model)
    return lambda requests: serve(model, requests)


def serve(model: ServingModel, requests: Sequence[InferRequest]) -> list[Float32]:
    """Our serving pass, with the cache that `model` has."""
    found = model.run(
        [Part(request, 0 if request.candidate is None else len(request.candidate)) for request in requests]
    )
    scores = []
    for answer in found:
        if isinstance(answer, SilkrecError) or answer.scores is None:
            raise RuntimeError(f"the pass gave no scores: {answer}")
        scores.append(answer.scores)
    return scores


def _modules(loaded: LoadedModel, requests: Sequence[InferRequest]) -> list[Float32]:
    histories = [(request.history_item, request.history_action, request.history_time) for request in requests]
    candidates = [request.candidate for request in requests if request.candidate is not None]
    batch = PackedBatch.from_requests(histories, candidates, [request.request_time_s for request in requests])
    with torch.inference_mode():
        probability = torch.sigmoid(loaded.ranker(batch).logits).numpy()
    ends = np.cumsum([len(items) for items in candidates])[:-1]
    return list(np.split(probability, ends))
