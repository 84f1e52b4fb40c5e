"""The ranker behind BentoML (https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html).

POST /rank {"blocks": ["<base64>"]}, a list of one, since a batchable endpoint takes lists: BentoML's arrays travel as
JSON numbers from outside (pickle is refused there), which takes longer than base64. `max_latency_ms` sheds: its
dispatcher drops what it expects to be later.
"""

from __future__ import annotations

import base64
import json
import os

import bentoml  # type: ignore[import-not-found]

from benchmarks.peers import forward

_SETTINGS = json.loads(os.environ["PEER_SETTINGS"])


@bentoml.service(
    name="ranker",
    workers=_SETTINGS["workers"],
    threads=1,
    traffic={"timeout": 10},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Ranker:
    def __init__(self) -> None:
        self.run = forward.from_environment()

    @bentoml.api(  # type: ignore[untyped-decorator, unused-ignore]
        batchable=True, max_batch_size=_SETTINGS["max_batch_size"], max_latency_ms=_SETTINGS["max_latency_ms"]
    )
    def rank(self, blocks: list[str]) -> list[str]:
        found = self.run([base64.b64decode(block) for block in blocks])
        return [base64.b64encode(scores).decode("ascii") for scores in found]
