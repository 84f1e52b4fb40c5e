"""A request as the peers get it: one block of bytes, and back. Scores come back as float32 bytes [N, A].

    int32 L, int32 N, int64 request time (s) | L rows of HISTORY_ROW | N candidates int32

PyTriton and BentoML batch inputs of one shape only (PyTriton), or want text (BentoML's JSON): `padded` and `text`.
"""

from __future__ import annotations

import base64
import struct

import numpy as np
import numpy.typing as npt

from services.inference.engine.request import InferRequest
from shared.contracts.history import HISTORY_ROW, History

_HEAD = struct.Struct("<iiq")
Int32 = npt.NDArray[np.int32]


def block(history: History, candidate: Int32, request_time_s: int) -> bytes:
    head = _HEAD.pack(len(history), len(candidate), request_time_s)
    return b"".join((head, history.tobytes(), candidate.tobytes()))


def width(rows: int, candidates: int) -> int:
    """Bytes of the largest block."""
    return _HEAD.size + rows * HISTORY_ROW.itemsize + candidates * 4


def padded(found: bytes, size: int) -> bytes:
    return found.ljust(size, b"\0")


def text(found: bytes) -> str:
    return base64.b64encode(found).decode("ascii")


def parsed(found: bytes | memoryview) -> InferRequest:
    """Columns of a block, padded or not. The user's key is not sent: peers keep nothing of a user."""
    rows, candidates, time_s = _HEAD.unpack_from(found)
    history = np.frombuffer(found, HISTORY_ROW, rows, _HEAD.size)
    candidate = np.frombuffer(found, "<i4", candidates, _HEAD.size + rows * HISTORY_ROW.itemsize)
    return InferRequest(
        history["item"].copy(), history["action"].copy(), history["time"].copy(), candidate, time_s, deadline_us=0
    )
