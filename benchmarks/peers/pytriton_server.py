"""The ranker behind PyTriton (https://triton-inference-server.github.io/pytriton): Triton's own gRPC door and batcher.

Triton batches requests of one shape, so a request is a padded block of bytes. Its queue policy rejects what waited
longer than `queue_timeout_ms`; a batch that runs is never late in its eyes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import (  # type: ignore[import-not-found]
    DynamicBatcher,
    ModelConfig,
    QueuePolicy,
    Tensor,
    TimeoutAction,
)
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

from benchmarks.peers import forward


def instance(candidates: int, actions: int) -> Callable[..., Any]:
    """One of Triton's model instances, with weights of its own."""
    run = forward.from_environment()

    @batch  # type: ignore[untyped-decorator, unused-ignore]
    def infer(block: Any) -> dict[str, Any]:
        found = run([row.tobytes() for row in block])
        scores = np.frombuffer(b"".join(found), np.float32).reshape(len(found), candidates * actions)
        return {"scores": scores}

    found: Callable[..., Any] = infer
    return found


def main() -> None:
    http_port, grpc_port = int(sys.argv[1]), int(sys.argv[2])
    settings = json.loads(os.environ["PEER_SETTINGS"])
    width, candidates, actions = settings["width"], settings["candidates"], settings["actions"]
    policy = QueuePolicy(
        timeout_action=TimeoutAction.REJECT,
        default_timeout_microseconds=int(settings["queue_timeout_ms"] * 1000),
        allow_timeout_override=True,
    )
    batcher = DynamicBatcher(
        max_queue_delay_microseconds=int(settings["max_queue_delay_ms"] * 1000), default_queue_policy=policy
    )
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="ranker",
            infer_func=[instance(candidates, actions) for _ in range(settings["workers"])],
            inputs=[Tensor(name="block", dtype=np.uint8, shape=(width,))],
            outputs=[Tensor(name="scores", dtype=np.float32, shape=(candidates * actions,))],
            config=ModelConfig(max_batch_size=settings["max_batch_size"], batcher=batcher),
        )
        triton.serve()


if __name__ == "__main__":
    main()
