"""The least that a remote call costs: a gRPC server, a process of its own, that answers every request with as many
bytes as scores have.

    python -m benchmarks.peers.echo ADDRESS BYTES          ADDRESS as gRPC writes it: unix:/path or 127.0.0.1:port
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import uvloop
from grpc import aio

METHOD = "/echo.Echo/Echo"


async def serve(address: str, size: int) -> None:
    answer = bytes(size)

    async def echo(request: bytes, context: aio.ServicerContext[bytes, bytes]) -> bytes:  # noqa: ARG001
        return answer

    server = aio.server()
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", handlers),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1], int(sys.argv[2])))


if __name__ == "__main__":
    main()
