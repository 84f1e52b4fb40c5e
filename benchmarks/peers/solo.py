"""What a server adds to one request alone: p50 through its door, minus p50 of the bare call of the same requests in
this process, minus p50 of an echo over gRPC with as many bytes and over the same kind of socket (Unix for our engine,
TCP for the peers).

Each request is of another user, and the next one is sent when the one before is back. Door, bare call and echo take
turns in blocks, so that a slow second falls on all three.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grpc import aio

from benchmarks.peers import loop
from benchmarks.peers.clients import SCORE_BYTES
from benchmarks.peers.compute import cached_forward
from benchmarks.peers.echo import METHOD
from benchmarks.peers.forward import forward_of
from benchmarks.peers.load import calm
from benchmarks.peers.servers import Server
from benchmarks.peers.workload import Ask, Trace
from services.inference.model import checkpoint
from tests.servers import Process, free_port

_BLOCKS, _BLOCK = 12, 20


@dataclass(slots=True)
class Times:
    """Milliseconds, one a request."""

    door: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    echo: list[float] = field(default_factory=list)

    def row(self, kind: str) -> dict[str, Any]:
        door, bare, echo = (float(np.median(found)) for found in (self.door, self.bare, self.echo))
        return {
            "part": "solo",
            "server": kind,
            "door_p50_ms": round(door, 3),
            "bare_p50_ms": round(bare, 3),
            "echo_p50_ms": round(echo, 3),
            "overhead_ms": round(door - bare - echo, 3),
        }


def solo(servers: Sequence[Server], model: Path, folder: Path) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for server in servers:
        with server.awake():
            rows.append(loop.run(_solo(server, model, folder)).row(server.kind))
    return rows


async def _solo(server: Server, model: Path, folder: Path) -> Times:
    loaded = checkpoint.load(model)
    is_ours = server.kind == "silkrec"
    bare = cached_forward(loaded) if is_ours else forward_of(loaded, "serving")
    asker, found = server.make_asker(), Times()
    address = f"unix:{folder / 'echo.sock'}" if is_ours else f"127.0.0.1:{free_port()}"
    async with _echo(address, folder) as echo:
        await calm(asker)
        for number in range(_BLOCKS + 1):
            asks = list(itertools.islice(Trace("cold", 5000 + number), _BLOCK))
            times = found if number else Times()  # the first block warms up
            for ask in asks:
                times.door.append(await _timed(asker.ask, asker.prepare(ask)))
            for ask in asks:
                times.echo.append(await _timed(echo, asker.sent(asker.prepare(ask))))
            times.bare += [_bare(bare, ask) for ask in asks]
    await asker.close()
    return found


async def _timed(call: Callable[[Any], Awaitable[Any]], argument: object) -> float:
    begin = time.perf_counter()
    await call(argument)
    return (time.perf_counter() - begin) * 1e3


def _bare(forward: Callable[[Any], Any], ask: Ask) -> float:
    requests = [ask.infer_request()]
    begin = time.perf_counter()
    forward(requests)
    return (time.perf_counter() - begin) * 1e3


@contextlib.asynccontextmanager
async def _echo(address: str, folder: Path) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    command = [sys.executable, "-m", "benchmarks.peers.echo", address, str(SCORE_BYTES)]
    process = Process(command, folder / "echo.log", lambda: _listens(address))
    process.start()
    try:
        async with aio.insecure_channel(address) as channel:
            yield channel.unary_unary(METHOD, None, None)
    finally:
        process.stop()


def _listens(address: str) -> bool:
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return Path(rest).exists()
    with socket.socket() as probe:
        return probe.connect_ex((kind, int(rest))) == 0
