"""Keepalive between our gRPC client and server, with HTTP/2 spoken by hand: a channel of gRPC's pings once a second at
most."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
import struct
import threading
from pathlib import Path

import pytest

from services.inference import grpc as door
from services.inference import target
from services.inference.caller import CallerCheck
from services.inference.grpc import GrpcServer, InferenceServicer
from services.inference.keepalive import KEEPALIVE, Keepalive
from services.inference.metrics import DoorMetrics
from shared.observability.metrics import Metrics
from tests.inference_models import engine_of
from tests.integration.features.helpers import NoKeys

pytestmark = pytest.mark.integration
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, _PING, _GOAWAY, _ACK = 4, 6, 7, 1
_ENHANCE_YOUR_CALM = 11
_WAIT_S = 10


class IdleConnection:
    """HTTP/2 without a call: pings are all that it sends."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_WAIT_S)
        self._socket.connect(str(path))
        self._socket.sendall(_PREFACE)
        self._send(_SETTINGS, b"")
        self._incoming = self._socket.makefile("rb")

    def close(self) -> None:
        self._incoming.close()
        self._socket.close()

    def ping(self) -> bytes | None:
        """None once it is answered; the reason when the server ends the connection instead."""
        with contextlib.suppress(BrokenPipeError):  # what it said before it went is still to be read
            self._send(_PING, bytes(8))
        while True:
            kind, flags, payload = self._frame()
            if kind == _PING and flags & _ACK:
                return None
            if kind == _GOAWAY:
                _, code = struct.unpack(">II", payload[:8])
                assert code == _ENHANCE_YOUR_CALM
                return payload[8:]

    def _send(self, kind: int, payload: bytes) -> None:
        self._socket.sendall(len(payload).to_bytes(3, "big") + bytes((kind, 0)) + bytes(4) + payload)

    def _frame(self) -> tuple[int, int, bytes]:
        head = self._incoming.read(9)
        assert len(head) == 9, "the connection ended without a reason"
        return head[3], head[4], self._incoming.read(int.from_bytes(head[:3], "big"))


def pinged(path: Path, times: int) -> list[bytes | None]:
    """Answers to pings 10 ms apart, until one is no answer."""
    found: list[bytes | None] = []
    pace = threading.Event()
    with contextlib.closing(IdleConnection(path)) as connection:
        while len(found) < times and not any(found):
            found.append(connection.ping())
            pace.wait(0.01)
    return found


def test_pings_of_an_idle_client_are_borne_at_the_agreed_pace_and_a_faster_one_is_sent_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        with engine_of(tmp_path / "models") as engine:
            servicer = InferenceServicer(engine, CallerCheck(NoKeys()), DoorMetrics(Metrics("inference")))
            patient = GrpcServer(servicer, socket=tmp_path / "a.sock", tcp=None, keepalive=Keepalive(least_ms=5))
            strict = GrpcServer(servicer, socket=tmp_path / "b.sock", tcp=None)
            await patient.start()
            await strict.start()
            try:
                assert await asyncio.to_thread(pinged, tmp_path / "a.sock", 10) == [None] * 10
                assert (await asyncio.to_thread(pinged, tmp_path / "b.sock", 10))[-1] == b"too_many_pings"
            finally:
                await patient.stop(0.0)
                await strict.stop(0.0)

    asyncio.run(scenario())


def test_a_client_pings_no_faster_than_twice_the_interval_that_the_server_bears() -> None:
    server, client = dict(KEEPALIVE.server()), dict(target.OPTIONS)
    assert client["grpc.keepalive_time_ms"] >= 2 * server["grpc.http2.min_ping_interval_without_data_ms"]


def test_every_option_is_one_that_grpc_knows_since_others_are_ignored_without_a_word() -> None:
    library = Path(str(importlib.import_module("grpc._cython.cygrpc").__file__)).read_bytes()
    names = {name for name, _ in (*door.OPTIONS, *KEEPALIVE.server(), *target.OPTIONS)}
    assert {name for name in names if name.encode() + b"\0" not in library} == set()
