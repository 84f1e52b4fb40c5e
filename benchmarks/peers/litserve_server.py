"""The ranker behind LitServe (https://lightning.ai/docs/litserve): raw bytes in the body of POST /predict, and back.

`timeout` is LitServe's only deadline: what waited longer in its queue is answered 504 without being run. `fast_queue`
(ZeroMQ between its HTTP and its inference processes) is what its page advises above 100 requests/s.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import litserve  # type: ignore[import-not-found]
from fastapi import Body, Response

from benchmarks.peers import forward

Raw = Annotated[bytes, Body(media_type="application/octet-stream")]


class RankerAPI(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.run: Callable[[Sequence[bytes]], list[bytes]] = forward.from_environment()

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def predict(self, x: Any) -> Any:
        return self.run(x) if isinstance(x, list) else self.run([x])[0]

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return Response(output, media_type="application/octet-stream")


# LitServe compares these annotations with types, so they must not be the strings that this file's future import makes.
RankerAPI.decode_request.__annotations__["request"] = Raw
RankerAPI.encode_response.__annotations__["return"] = Response


def main() -> None:
    forward.end_with_parent()
    settings = json.loads(os.environ["PEER_SETTINGS"])
    api = RankerAPI(max_batch_size=settings["max_batch_size"], batch_timeout=settings["batch_timeout_ms"] * 1e-3)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        devices=1,
        workers_per_device=settings["workers"],
        timeout=settings["timeout_ms"] * 1e-3,
        fast_queue=settings["fast_queue"],
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False, num_api_servers=1
    )


if __name__ == "__main__":
    main()
