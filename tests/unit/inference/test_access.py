"""The socket's owner, and who may ask over TCP."""

from __future__ import annotations

import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.inference.caller import CallerCheck
from services.inference.unix_socket import OwnedSocket
from shared.errors import ConfigurationError, Forbidden, Unauthenticated


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "i.sock"


def left_behind(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_what_a_killed_process_left_is_removed(path: Path) -> None:
    left_behind(path)
    owned = OwnedSocket(path)
    owned.take()
    assert not path.exists()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    owned.release()


def test_the_socket_of_a_living_process_is_left_alone(path: Path) -> None:
    first, second = OwnedSocket(path), OwnedSocket(path)
    first.take()
    path.touch()
    with pytest.raises(ConfigurationError, match="another process"):
        second.take()
    second.release()
    assert path.exists()
    first.release()
    assert not path.exists()
    second.take()
    second.release()


def test_something_else_in_its_place_is_not_touched(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    owned = OwnedSocket(path)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="no socket"):
            owned.take()
    assert path.read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigurationError, match="run"):
        OwnedSocket(tmp_path / "run" / "i.sock").take()


@dataclass
class Key:
    key_id: str
    role: str
    name: str = "a key"


@dataclass
class FakeKeys:
    keys: dict[str, Key] = field(default_factory=dict)

    def has_keys(self) -> bool:
        return bool(self.keys)

    def find(self, text: str) -> Key | None:
        return self.keys.get(text)


WITH_KEYS = CallerCheck(FakeKeys({"s": Key("1", "server"), "a": Key("2", "admin"), "c": Key("3", "client")}))  # type: ignore[arg-type]
WITHOUT = CallerCheck(FakeKeys())  # type: ignore[arg-type]
TCP = "ipv4:10.0.0.7:5123"


@pytest.mark.parametrize("check", [WITH_KEYS, WITHOUT])
@pytest.mark.parametrize("peer", ["unix:", "unix:/tmp/i.sock"])
def test_whoever_reaches_the_unix_socket_may_ask(check: CallerCheck, peer: str) -> None:
    check.check(peer, None)


@pytest.mark.parametrize("metadata", [("authorization", "Bearer s"), ("authorization", "bearer a"), ("x-api-key", "s")])
def test_a_server_or_admin_key_opens_tcp(metadata: tuple[str, str]) -> None:
    WITH_KEYS.check(TCP, [("user-agent", "grpc"), metadata])


@pytest.mark.parametrize("peer", [TCP, "ipv4:127.0.0.1:5123"])
@pytest.mark.parametrize(
    "metadata", [[], [("x-api-key", "old")], [("authorization", "Basic s")], [("x-api-key", b"s")]]
)
def test_without_a_known_key_tcp_is_refused(peer: str, metadata: list[tuple[str, str | bytes]]) -> None:
    with pytest.raises(Unauthenticated):
        WITH_KEYS.check(peer, metadata)


def test_a_browsers_key_is_not_enough() -> None:
    with pytest.raises(Forbidden):
        WITH_KEYS.check(TCP, [("x-api-key", "c")])


@pytest.mark.parametrize(
    "peer", ["ipv4:127.0.0.1:5123", "ipv6:%5B::1%5D:5123", "ipv6:[::1]:5123", "ipv6:%5B::ffff:127.0.0.1%5D:9"]
)
def test_without_any_key_this_machine_may_ask(peer: str) -> None:
    WITHOUT.check(peer, None)


@pytest.mark.parametrize("peer", [TCP, "ipv6:%5B2001:db8::1%5D:5123", ""])
def test_without_any_key_other_machines_may_not(peer: str) -> None:
    with pytest.raises(Unauthenticated):
        WITHOUT.check(peer, None)
