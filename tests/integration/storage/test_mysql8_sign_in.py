"""How MySQL 8 signs in where there is no TLS: the password goes out encrypted by the server's RSA key.

Debian has MariaDB alone, which does not speak `caching_sha2_password`. So its side is played here, from the protocol's
pages (dev.mysql.com, Connection Phase and Caching SHA-2 Pluggable Authentication): no real MySQL 8 was met.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from collections.abc import Iterator

import pymysql
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

PASSWORD = "a pass phrase"
NONCE = bytes(range(33, 53))
PROTOCOL_41, SECURE_CONNECTION, PLUGIN_AUTH = 1 << 9, 1 << 15, 1 << 19
OK = b"\x00\x00\x00\x02\x00\x00\x00"
DENIED = b"\xff" + struct.pack("<H", 1045) + b"#28000Access denied"
MORE, FULL, KEY_WANTED = b"\x01", b"\x04", b"\x02"


class MySQL8:
    """One connection: the full exchange of a password that the server has not cached."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self.port = self._listener.getsockname()[1]
        self.heard: list[bytes] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with peer, peer.makefile("rb") as lines:
            peer.settimeout(10)

            def send(number: int, body: bytes) -> None:
                peer.sendall(len(body).to_bytes(3, "little") + bytes([number]) + body)

            def receive() -> bytes:
                head = lines.read(4)
                body: bytes = lines.read(int.from_bytes(head[:3], "little"))
                self.heard.append(body)
                return body

            send(0, _greeting())
            receive()
            send(2, MORE + FULL)
            assert receive() == KEY_WANTED
            pem = self._key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            send(4, MORE + pem)
            send(6, OK if self._password(receive()) == PASSWORD.encode() + b"\x00" else DENIED)
            while (asked := receive()) and asked[:1] != b"\x01":  # COM_QUIT
                send(1, OK)

    def _password(self, sealed: bytes) -> bytes:
        oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303  (the protocol's)
        opened = self._key.decrypt(sealed, oaep)
        return bytes(byte ^ NONCE[place % len(NONCE)] for place, byte in enumerate(opened))


def _greeting() -> bytes:
    can = PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH
    first = b"\x0a8.4.0\x00" + struct.pack("<I", 7) + NONCE[:8] + b"\x00" + struct.pack("<H", can & 0xFFFF)
    rest = bytes([45]) + struct.pack("<HH", 2, can >> 16) + bytes([21]) + bytes(10) + NONCE[8:] + b"\x00"
    return first + rest + b"caching_sha2_password\x00"


@pytest.fixture
def server() -> Iterator[MySQL8]:
    found = MySQL8()
    yield found
    found.close()


def sign_in(server: MySQL8, password: str) -> None:
    pymysql.connect(
        host="127.0.0.1", port=server.port, user="silkrec", password=password, connect_timeout=10, read_timeout=10
    ).close()


def test_a_password_that_is_not_cached_goes_out_encrypted_without_tls(server: MySQL8) -> None:
    sign_in(server, PASSWORD)
    server.thread.join(10)
    assert not any(PASSWORD.encode() in part for part in server.heard)
    once = hashlib.sha256(PASSWORD.encode()).digest()
    quick = bytes(
        left ^ right
        for left, right in zip(once, hashlib.sha256(hashlib.sha256(once).digest() + NONCE).digest(), strict=True)
    )
    assert quick in server.heard[0], "first the digest that a server with a warm cache takes"


def test_a_wrong_password_is_refused(server: MySQL8) -> None:
    with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
        sign_in(server, "another")
