"""The near door's wire: OIP's own messages in frames on a Unix socket, for callers on the same machine.

    hello    b"silkrec-near-1\\n", by the client, then by the server. Another version's server closes instead.
    frame    <I bytes of what follows the header> <I call> <B kind> payload
    ASK      <H n> request id, space, traceparent [n, ASCII] | ModelInferRequest
    CANCEL   nothing: the caller no longer waits
    ANSWER   ModelInferResponse
    REFUSAL  <B gRPC status code> detail [UTF-8]

Why beside gRPC: its Python runtime takes 0.7 ms of CPU a call in the server and 0.6 ms in the client, on the
interpreter lock that the device's thread needs (`infra/decisions/0011-near-door.md`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from services.inference import wire

HELLO = b"silkrec-near-1\n"
ASK, CANCEL, ANSWER, REFUSAL = 1, 2, 3, 4
MOST_BYTES = max(wire.MESSAGE_BYTES_IN, wire.MESSAGE_BYTES_OUT) + 1024
_HEAD = struct.Struct("<IIB")
_TRACE = struct.Struct("<H")
_CODE_OF = {int(code.value[0]): code for code in grpc.StatusCode}


class BadFrame(Exception):
    """The other side does not speak this protocol: the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Frame:
    call: int
    kind: int
    payload: bytes


class FrameReader:
    """Bytes as they come, to whole frames."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._greeted = False

    @property
    def greeted(self) -> bool:
        """The other side has said hello."""
        return self._greeted

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Raises BadFrame."""
        self._received += data
        if not self._greeted:
            if not HELLO.startswith(bytes(self._received[: len(HELLO)])):
                raise BadFrame("no hello of this version")
            if len(self._received) < len(HELLO):
                return
            self._greeted = True
            del self._received[: len(HELLO)]
        while len(self._received) >= _HEAD.size:
            size, call, kind = _HEAD.unpack_from(self._received)
            if size > MOST_BYTES:
                raise BadFrame(f"a frame of {size} bytes")
            end = _HEAD.size + size
            if len(self._received) < end:
                return
            payload = bytes(memoryview(self._received)[_HEAD.size : end])
            del self._received[:end]
            yield Frame(call, kind, payload)


def frame(call: int, kind: int, payload: bytes = b"") -> bytes:
    return _HEAD.pack(len(payload), call, kind) + payload


def ask(call: int, trace: str, message: bytes) -> bytes:
    """`trace`: as `outgoing_headers` has them, joined by a space; may be empty."""
    told = trace.encode("ascii")
    return frame(call, ASK, b"".join((_TRACE.pack(len(told)), told, message)))


def asked(payload: bytes) -> tuple[str, bytes]:
    """Trace and message. Raises BadFrame."""
    if len(payload) < _TRACE.size:
        raise BadFrame("an ask without its trace's length")
    (size,) = _TRACE.unpack_from(payload)
    if len(payload) < _TRACE.size + size:
        raise BadFrame("an ask that ends within its trace")
    told = payload[_TRACE.size : _TRACE.size + size].decode("ascii", "replace")
    return told, payload[_TRACE.size + size :]


def refusal(call: int, code: grpc.StatusCode, detail: str) -> bytes:
    return frame(call, REFUSAL, bytes((int(code.value[0]),)) + detail.encode())


def refused(payload: bytes) -> tuple[grpc.StatusCode, str]:
    """Raises BadFrame."""
    code = _CODE_OF.get(payload[0]) if payload else None
    if code is None:
        raise BadFrame("a refusal without a status")
    return code, payload[1:].decode("utf-8", "replace")


def socket_beside(path: Path) -> Path:
    """The near door's socket of the engine whose gRPC socket is `path`."""
    return path.with_name(f"{path.stem}-near{path.suffix}")
