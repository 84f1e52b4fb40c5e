"""The Dockerfile is linted, and its lines are carried out as far as that goes without a container engine."""

from __future__ import annotations

import dataclasses
import fnmatch
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.storage.keys import ApiKey
from tests.unit.infra.parts import INFRA, REPOSITORY, assert_is_command, run

DOCKER = INFRA / "docker"
PROBE = DOCKER / "probe.py"
DIGEST = "sha256:" + "0123456789abcdef" * 4


def instructions() -> list[tuple[str, str]]:
    """(word, the rest), lines that go on joined, comments left out."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_hadolint_finds_nothing() -> None:
    assert run("hadolint", "--no-color", DOCKER / "Dockerfile") == ""


def test_every_stage_begins_with_the_pinned_base_or_another_stage_and_ends_without_root() -> None:
    stages: dict[str, str] = {}
    users: dict[str, str] = {}
    current = ""
    for word, rest in instructions():
        if word == "FROM":
            base, _, current = rest.split()
            assert base == "${PYTHON_IMAGE}" or base in stages, base
            stages[current] = base
            users[current] = users.get(base, "")
        elif word == "USER":
            users[current] = rest
    assert users["cpu"] == users["cuda"] == "10001:10001"
    assert "ARG PYTHON_IMAGE\n" in (DOCKER / "Dockerfile").read_text(), "no default: a build must name a digest"


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = [line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for word, rest in instructions()
        if word == "COPY" and "--from=" not in rest
        for source in [part for part in rest.split() if not part.startswith("--")][:-1]
    ]
    assert len(copied) > 8
    for source in copied:
        assert (REPOSITORY / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in sent), f"{source} is ignored"


def test_shell_lines_are_shell_and_the_command_is_one_of_ours() -> None:
    words = dict(instructions())
    for word, rest in instructions():
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)
    assert json.loads(words["ENTRYPOINT"]) == ["silkrec"]
    assert_is_command(json.loads(words["CMD"]))
    assert "probe.py" in words["HEALTHCHECK"]


def test_the_wheel_is_built_as_in_the_image_and_holds_every_file_that_is_no_code(tmp_path: Path) -> None:
    line = next(rest for word, rest in instructions() if word == "RUN" and " wheel " in rest)
    command = shlex.split(line.replace("/wheels", str(tmp_path)))
    assert command[0] == "python"
    run(sys.executable, *command[1:], cwd=REPOSITORY)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        packed = set(opened.namelist())
    listed = run("git", "-C", REPOSITORY, "ls-files", "services", "shared").splitlines()
    missing = [name for name in listed if (REPOSITORY / name).exists() and name not in packed]
    assert not missing, "not in the wheel"


class _Service(http.server.BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, object]] = {}  # noqa: RUF012  (the server makes an instance a request)

    def do_GET(self) -> None:
        status, body = self.answers[self.path]
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on standard error."""


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Service) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def probe(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-IS", str(PROBE), *arguments], capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    ("what", "path", "status", "model", "expected"),
    [
        ("health", "/health", 200, "", 0),
        ("health", "/health", 503, "", 1),
        ("warm", "/ready", 200, "ok", 0),
        ("warm", "/ready", 503, "no model is promoted yet", 0),
        ("warm", "/ready", 503, "m-1 was refused: its sha256 differs", 0),
        ("warm", "/ready", 503, "ok", 1),
    ],
)  # fmt: skip
def test_the_probe_knows_who_is_well(
    service: str, what: str, path: str, status: int, model: str, expected: int
) -> None:
    _Service.answers = {path: (status, {"dependencies": {"model": model}})}
    assert probe(what, service) == expected


def test_nobody_there_is_not_well_and_a_wrong_call_is_its_own_status() -> None:
    assert probe("health", "http://127.0.0.1:1") == 1
    assert probe("healthy") == 2


def test_words_that_the_probe_looks_for_are_the_watchers() -> None:
    watcher = (REPOSITORY / "services" / "inference" / "watcher.py").read_text()
    for words in ("no model is promoted yet", " was refused: "):
        assert words in watcher
        assert words in PROBE.read_text()


def test_the_first_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    """With a `silkrec` of three lines: five real starts took 7 s. The next test holds it to the real one."""
    fake = tmp_path / "bin" / "silkrec"
    fake.parent.mkdir()
    keys = tmp_path / "keys"
    fake.write_text(
        f"""#!/bin/sh
[ "$2" = list ] || printf '{{"key_id": "k1"}}' >{keys}
if [ -s {keys} ]; then cat {keys}; else echo '{{"keys": []}}'; fi
"""
    )
    fake.chmod(0o755)
    env = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    file = tmp_path / "first-key.json"
    run(DOCKER / "first-key", file, env=env)
    assert json.loads(file.read_text()) == {"key_id": "k1"}
    assert file.stat().st_mode & 0o077 == 0
    assert "none was made" in run(DOCKER / "first-key", tmp_path / "second", env=env)
    assert not (tmp_path / "second").exists()


def test_the_first_keys_commands_are_ours_and_show_a_key_id() -> None:
    called = re.findall(r"silkrec (keys (?:list|create)[^)\n>;]*)", (DOCKER / "first-key").read_text())
    assert len(called) == 3
    for line in called:
        assert_is_command(shlex.split(line))
    assert "key_id" in {field.name for field in dataclasses.fields(ApiKey)}


@pytest.fixture
def docker(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A `docker` that writes down what it is asked, and answers with $DIGEST; a copy of infra/docker to write into."""
    folder = tmp_path / "infra" / "docker"
    folder.mkdir(parents=True)
    for name in ("pin", "build", "images.txt"):
        (folder / name).write_bytes((DOCKER / name).read_bytes())
        (folder / name).chmod((DOCKER / name).stat().st_mode)
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>"{tmp_path}/asked"\necho "$DIGEST"\n')
    fake.chmod(0o755)
    return folder, {"PATH": f"{fake.parent}:{os.environ['PATH']}", "DIGEST": DIGEST}


def test_a_build_uses_the_digest_that_was_pinned_and_attaches_a_bill_of_materials(
    docker: tuple[Path, dict[str, str]],
) -> None:
    folder, env = docker
    run(folder / "pin", env=env)
    pinned = (folder / "images.env").read_text().splitlines()
    assert f"PYTHON_IMAGE=python:3.13-slim-bookworm@{DIGEST}" in pinned
    assert all(re.fullmatch(rf"[A-Z]+_IMAGE=[a-z/]+:[^@]+@{DIGEST}", line) for line in pinned)
    run(folder / "build", "cuda", "registry.example.com/silkrec:1", "--push", env=env)
    asked = (folder.parents[1] / "asked").read_text().splitlines()[-1]
    assert f"--build-arg PYTHON_IMAGE=python:3.13-slim-bookworm@{DIGEST}" in asked
    for part in ("--target cuda", "--attest type=sbom", "--tag registry.example.com/silkrec:1", "--push"):
        assert part in asked


@pytest.mark.parametrize("digest", ["", "latest"])
def test_without_a_digest_nothing_is_pinned_and_nothing_built(docker: tuple[Path, dict[str, str]], digest: str) -> None:
    folder, env = docker
    for program in (["pin"], ["build", "cpu"]):
        command = [str(folder / program[0]), *program[1:]]
        done = subprocess.run(command, env={**env, "DIGEST": digest}, capture_output=True, check=False)
        assert done.returncode == 1
    assert {path.name for path in folder.iterdir()} == {"pin", "build", "images.txt"}
