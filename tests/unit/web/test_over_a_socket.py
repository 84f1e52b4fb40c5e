from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.http_server import listening
from tests.unit.web.example import NO_KEYS, build


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with listening(build(keys=NO_KEYS)) as url:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        yield parts.hostname, parts.port


def test_a_body_over_the_limit_is_refused_before_it_was_sent(address: tuple[str, int]) -> None:
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.putrequest("POST", "/v1/echo")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", str(10**9))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert answer.headers["content-type"] == "application/problem+json"
    connection.close()


def test_an_endless_chunked_body_is_refused(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(
            b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            + (b"400\r\n" + b" " * 1024 + b"\r\n") * 5  # 5 KiB of a limit of 4, and no end
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_without_keys_a_loopback_caller_is_admin(address: tuple[str, int]) -> None:
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request("GET", "/v1/settings")
    assert connection.getresponse().status == 200
    connection.close()
