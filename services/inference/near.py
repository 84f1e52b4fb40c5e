"""A client's connection to an engine's near door, made and remade behind the calls' back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path
from typing import cast

import grpc
from google.protobuf.message import DecodeError

from services.inference import frames
from services.inference.frames import BadFrame, Frame
from shared.contracts.oip import oip_pb2 as pb
from shared.observability import context

_AGAIN_S = 0.1
"""Between attempts; calls go by gRPC meanwhile."""
_GREETING_S = 1.0
_UNREAD_BYTES = 4 * 1024 * 1024
"""That the server has not taken: it hangs. 150 of the longest histories with 1,000 candidates each."""


class Refused(Exception):
    """The server's word, as gRPC would have brought it. UNAVAILABLE also when the connection broke."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(code.name, detail)
        self.code, self.detail = code, detail


class NearConnection:
    """`path`: the near door's socket. Lives on the loop of `start`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._link: _Link | None = None
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Once, at the first use."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name=f"connect {self._path}")

    @property
    def is_open(self) -> bool:
        return self._link is not None and self._link.is_open

    async def infer(self, message: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Raises Refused. Cancelled, it tells the server."""
        if self._link is None:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "not connected")
        return await self._link.infer(message)

    async def close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper

    async def _keep(self) -> None:
        """Dies of nothing: what goes wrong here is what the next attempt is for."""
        loop = asyncio.get_running_loop()
        while True:
            link = _Link()
            try:
                await loop.create_unix_connection(lambda link=link: link, str(self._path))  # type: ignore[misc]
                async with asyncio.timeout(_GREETING_S):
                    await link.greeted.wait()
                self._link = link
                await link.lost.wait()
            except (OSError, TimeoutError):
                pass  # no near door there (an older release, or nothing yet): gRPC's own state tells what is up
            finally:
                link.close()
            await asyncio.sleep(_AGAIN_S)


class _Link(asyncio.Protocol):
    def __init__(self) -> None:
        self.greeted = asyncio.Event()
        self.lost = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._reader = frames.FrameReader()
        self._calls = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[pb.ModelInferResponse]] = {}

    @property
    def is_open(self) -> bool:
        return self.greeted.is_set() and self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(frames.HELLO)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Refused(grpc.StatusCode.UNAVAILABLE, f"the connection broke: {exc or 'closed'}"))
        self._waiting.clear()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            for found in self._reader.feed(data):
                self._take(found)
        except (BadFrame, DecodeError):
            self.close()
        if self._reader.greeted:
            self.greeted.set()

    async def infer(self, message: pb.ModelInferRequest) -> pb.ModelInferResponse:
        if self._transport is None or self._transport.is_closing():
            raise Refused(grpc.StatusCode.UNAVAILABLE, "not connected")
        if self._transport.get_write_buffer_size() > _UNREAD_BYTES:
            self._transport.abort()
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the server does not read")
        call = next(self._calls) & 0xFFFF_FFFF
        future: asyncio.Future[pb.ModelInferResponse] = asyncio.get_running_loop().create_future()
        self._waiting[call] = future
        self._transport.write(
            frames.ask(call, " ".join(context.outgoing_headers().values()), message.SerializeToString())
        )
        try:
            return await future
        except asyncio.CancelledError:
            if call in self._waiting and not self._transport.is_closing():
                self._transport.write(frames.frame(call, frames.CANCEL))
            raise
        finally:
            self._waiting.pop(call, None)

    def _take(self, found: Frame) -> None:
        future = self._waiting.get(found.call)
        if future is None or future.done():
            return  # its caller has gone
        if found.kind == frames.ANSWER:
            future.set_result(pb.ModelInferResponse.FromString(found.payload))
        elif found.kind == frames.REFUSAL:
            future.set_exception(Refused(*frames.refused(found.payload)))
        else:
            raise BadFrame(f"kind {found.kind} from a server")
